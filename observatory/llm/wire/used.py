"""What a provider says was used, in our words."""

from typing import Any, Final

import msgspec

from ...units import MAX_EXACT
from ..call import Usage

_NOTHING: Final[dict[str, Any]] = {}


class Used(msgspec.Struct, frozen=True):
    """A Usage, and what of it has a price of its own without being in it."""

    usage: Usage
    cache_write_1h: int = 0
    """Of the tokens written to the cache, those that stay for an hour."""
    web_searches: int = 0


def _count(value: Any) -> int:
    return value if type(value) is int and 0 <= value <= MAX_EXACT else 0


def _inner(said: dict[str, Any], *names: str) -> dict[str, Any]:
    return next((found for name in names if isinstance(found := said.get(name), dict)), _NOTHING)


def openai(said: dict[str, Any]) -> Used | None:
    """Of chat, responses, completions, embeddings, and whoever speaks like them. None: no count is there."""
    before, after = (
        said.get("prompt_tokens", said.get("input_tokens")),
        said.get("completion_tokens", said.get("output_tokens")),
    )
    if type(before) is not int and type(after) is not int:
        return None
    into = _inner(said, "prompt_tokens_details", "input_tokens_details")
    out = _inner(said, "completion_tokens_details", "output_tokens_details")
    tools = _inner(said, "server_tool_use", "server_side_tool_usage_details")
    return Used(
        Usage(
            input_tokens=_count(before),
            output_tokens=_count(after),
            cache_read_input_tokens=_count(into.get("cached_tokens", said.get("prompt_cache_hit_tokens"))),
            cache_write_input_tokens=_count(into.get("cache_write_tokens")),
            reasoning_output_tokens=_count(out.get("reasoning_tokens")),
            audio_input_tokens=_count(into.get("audio_tokens")),
            audio_output_tokens=_count(out.get("audio_tokens")),
        ),
        web_searches=_count(tools.get("web_search_requests", tools.get("web_search_calls"))),
    )


def anthropic(said: dict[str, Any]) -> Used | None:
    """Of messages, whose input_tokens leave out what has to do with the cache. None: no count is there."""
    if type(said.get("input_tokens")) is not int and type(said.get("output_tokens")) is not int:
        return None
    read, written = _count(said.get("cache_read_input_tokens")), _count(said.get("cache_creation_input_tokens"))
    thought = _inner(said, "output_tokens_details")
    return Used(
        Usage(
            input_tokens=min(_count(said.get("input_tokens")) + read + written, MAX_EXACT),
            output_tokens=_count(said.get("output_tokens")),
            cache_read_input_tokens=read,
            cache_write_input_tokens=written,
            reasoning_output_tokens=_count(thought.get("thinking_tokens")),
        ),
        cache_write_1h=_count(_inner(said, "cache_creation").get("ephemeral_1h_input_tokens")),
        web_searches=_count(_inner(said, "server_tool_use").get("web_search_requests")),
    )
