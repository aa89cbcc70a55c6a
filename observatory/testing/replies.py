"""`reply`: an answer in the shape of whichever API was asked."""

import json
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from ..errors import InvalidArgument
from ..llm.library import library
from . import anthropic, openai
from .errors import UnexpectedCall
from .provider import AFTER, Provider

if TYPE_CHECKING:
    import httpx2


def reply(
    text: str = "ok", *, input_tokens: int = 10, output_tokens: int = 5, status: int = 200, after: float = 0.0
) -> Provider:
    """An answer in the shape of whichever API was asked (OpenAI chat, responses, completions, embeddings; Anthropic messages),
    JSON or stream. status from 400 on: an error of that API, whose message is the text. after: seconds on the sandbox's clock.
    """
    said = Said(text, input_tokens, output_tokens)
    _check(said, status, after)

    def answer(request: "httpx2.Request") -> "httpx2.Response":
        api = _apis(request.url.path)
        try:
            document = json.loads(request.content or b"{}")
        except ValueError:
            document = None
        if api is None or not isinstance(document, dict):
            raise UnexpectedCall(
                f"{request.method} {request.url.copy_with(query=None)}: reply knows no answer in the shape of this API",
                remedy="Give a function of the request that returns an httpx2.Response",
            )
        shape, streams = api
        lib: Any = library("httpx2")
        headers = {"x-request-id": "req_sandbox", "request-id": "req_sandbox"}
        if status >= 400:
            kind = anthropic if shape is anthropic.message else openai
            made = lib.Response(status, json=kind.error(status, text), headers=headers)
        elif document.get("stream") and streams is not None:
            headers |= {"content-type": "text/event-stream; charset=utf-8"}
            made = lib.Response(status, headers=headers, content=_chunks(streams(said, document, request.url.host)))
        else:
            made = lib.Response(status, json=shape(said, document), headers=headers)
        if after:
            made.extensions[AFTER] = after
        answered: httpx2.Response = made
        return answered

    return answer


def _check(said: "Said", status: object, after: object) -> None:
    if not isinstance(said.text, str):
        raise InvalidArgument(f"text must be a string, got {said.text!r:.80}")
    for name, tokens in (("input_tokens", said.input_tokens), ("output_tokens", said.output_tokens)):
        if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 0:
            raise InvalidArgument(f"{name} must be a whole number of at least 0, got {tokens!r:.40}")
    if isinstance(status, bool) or not isinstance(status, int) or not (200 <= status < 300 or 400 <= status < 600):
        raise InvalidArgument(f"status must be 2xx, 4xx or 5xx, got {status!r:.40}")
    if isinstance(after, bool) or not isinstance(after, int | float) or not 0 <= after < 1e9:
        raise InvalidArgument(f"after must be seconds of at least 0, got {after!r:.40}")


class Said(msgspec.Struct, frozen=True):
    """What is answered, in whatever shape."""

    text: str
    input_tokens: int
    output_tokens: int

    @property
    def words(self) -> list[str]:
        """The text in the pieces of a stream."""
        found = self.text.split(" ")
        return [word if at == 0 else f" {word}" for at, word in enumerate(found)] if self.text else []


def _apis(path: str) -> Any:
    for end, made in _SHAPES:
        if path.endswith(end):
            return made
    return None


async def _chunks(events: Sequence[bytes]) -> AsyncIterator[bytes]:
    for event in events:
        yield event


_SHAPES: tuple[tuple[str, Any], ...] = (
    ("/chat/completions", (openai.chat, openai.chat_stream)),
    ("/completions", (openai.completion, openai.completion_stream)),
    ("/responses", (openai.response, openai.response_stream)),
    ("/embeddings", (openai.embeddings, None)),
    ("/messages", (anthropic.message, anthropic.message_stream)),
    ("/messages/count_tokens", (anthropic.counted, None)),
)
