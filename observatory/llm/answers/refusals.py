"""What must not be kept, or not be given to anybody else, and why: asked before a request is sent."""

from collections.abc import Iterator
from typing import Any, Final, Literal

from .canonical import DETERMINISTIC, Number, Request

Reason = Literal[
    "asked",  # by the caller: cache-control: no-store, observatory-cache: off
    "endpoint",  # not one of those that we know
    "body",  # not a JSON object that says each name once, or too long
    "nondeterministic",  # the same question is to be answered anew: no temperature, or one above 0; several choices
    "tools",  # the provider does something, or looks something up
    "state",  # the answer depends on, or leaves, something at the provider
    "url",  # what it points to may change
    "modalities",  # an answer that is not text
    "status",  # not 2xx
    "no_store",  # the provider says so
    "incomplete",  # the answer has no end
    "error",  # it says that something went wrong
    "filtered",  # it was cut, or refused by who watches over it
    "encoding",  # we cannot look into it
    "other",  # somebody else answered than was asked
    "too_large",  # for cache.max_value
    "failed",  # whoever asked for all of us got an exception, and everybody asks for themselves
    "store",  # Redis is not set up for this
]

_CALLS = frozenset({"function", "custom"})
"""Tools that the client runs. The answer only asks for them, and asks the same the next time."""
_SEARCHES = frozenset(
    {"web_search_options", "search_parameters", "plugins", "mcp_servers", "code_execution", "documents_search"}
)
_SEARCHING = ("-search-", "-search", "sonar", "deep-research", ":online", "compound")
_STATE = frozenset(
    {"previous_response_id", "conversation", "conversation_id", "container", "prompt", "thread_id", "session_id"}
)
_POINTERS = frozenset({"file_id", "file_url", "image_url", "video_url", "audio_url", "document_url", "input_file_id"})
_DEPTH: Final = 64


def refusal(request: Request, document: dict[str, Any], *, nondeterministic: bool) -> Reason | None:
    """Why an answer to this is nobody else's; None: it may be kept.

    nondeterministic: one of many possible answers will do.
    """
    endpoint = request.endpoint
    if request.method.upper() != "POST" or not endpoint:
        return "endpoint"
    if not isinstance(document.get("model", "" if endpoint == "moderations" else None), str):
        return "body"
    if document.get("stream") not in (None, True, False):
        return "body"
    if reason := _acting(document) or _stateful(document, endpoint):
        return reason
    if any(document.get(name) for name in ("audio", "modalities")) and document.get("modalities") != ["text"]:
        return "modalities"
    if any(_points(document.get(name)) for name in ("messages", "input", "system")):
        return "url"
    if not nondeterministic and endpoint not in DETERMINISTIC and not _deterministic(document):
        return "nondeterministic"
    return None


def _deterministic(document: dict[str, Any]) -> bool:
    """Where no temperature is said, providers take 1."""
    temperature = document.get("temperature")
    if not isinstance(temperature, Number) or float(temperature) != 0:
        return False
    return all(document.get(name) in (None, Number("1")) for name in ("n", "best_of"))


def _acting(document: dict[str, Any]) -> Reason | None:
    tools = document.get("tools")
    if tools is not None and not isinstance(tools, list):
        return "body"
    for tool in tools or ():
        # Anthropic's have no type where the client runs them and says what they are.
        if not isinstance(tool, dict) or tool.get("type") not in (*_CALLS, None):
            return "tools"
    model = document.get("model", "").lower()
    if any(document.get(name) for name in _SEARCHES) or any(word in model for word in _SEARCHING):
        return "tools"
    return None


def _stateful(document: dict[str, Any], endpoint: str) -> Reason | None:
    if document.get("background") or document.get("store"):
        return "state"
    if any(document.get(name) and not (name == "prompt" and endpoint == "completions") for name in _STATE):
        return "state"
    if endpoint == "responses":
        # They are kept by the provider unless it is said, and their id is where the conversation goes on.
        items = document.get("input")
        referring = isinstance(items, list) and any(isinstance(one, dict) and _refers(one) for one in items)
        if document.get("store") is not False or referring:
            return "state"
    return None


def _refers(item: dict[str, Any]) -> bool:
    return item.get("type") == "item_reference"


def _points(value: Any, depth: int = 0) -> bool:
    """Whether it points somewhere, instead of saying what is there."""
    if depth > _DEPTH:
        return True
    if isinstance(value, list):
        return any(_points(one, depth + 1) for one in value)
    if not isinstance(value, dict):
        return False
    if value.get("type") in ("url", "file") and not isinstance(value.get("file"), dict):
        return True
    for name, one in value.items():
        if name in _POINTERS and any(not text.startswith("data:") for text in _urls(one)):
            return True
        if isinstance(one, dict | list) and _points(one, depth + 1):
            return True
    return False


def _urls(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict) and isinstance(url := value.get("url"), str):
        yield url
