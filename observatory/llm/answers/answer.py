"""An answer as it is kept, and what of it may be given to others."""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec

from ..wire.sse import Events
from .refusals import Reason

Headers = Sequence[tuple[str, str]]

_REPLAYED: Final = frozenset(
    {"content-type", "content-encoding", "x-request-id", "request-id", "apim-request-id", "openai-version", "openai-model"}
)
"""What says something of the answer. The rest speaks of one connection, one account's limits, one moment."""
_ADVICE: Final = frozenset({"retry-after", "retry-after-ms", "x-should-retry"})
_ERRORS = frozenset({"error", "failed", "cancelled", "queued", "in_progress"})
_FILTERED = frozenset({"content_filter", "refusal", "pause_turn"})
_LIMITED = frozenset({"max_output_tokens", "max_tokens"})
_ENDS = {b"data: [DONE]", b"event: message_stop", b"event: response.completed", b"event: response.incomplete"}


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What stands in Redis for a request. run: which call to the provider it comes from; made_us: when that ended; gaps_us:
    what passed before each chunk."""

    run: str
    made_us: int
    status: int
    headers: tuple[tuple[str, str], ...]
    chunks: tuple[bytes, ...]
    gaps_us: tuple[int, ...]


def replayed(status: int, headers: Headers) -> tuple[tuple[str, str], ...]:
    """The headers of an answer that others get too; the provider's id of the request among them, as it was."""
    kept = _REPLAYED if status < 300 else _REPLAYED | _ADVICE
    return tuple((name, value) for name, value in headers if name.lower() in kept)


def header(headers: Headers, name: str) -> str:
    return ", ".join(value for key, value in headers if key.lower() == name)


def forbids(headers: Headers) -> bool:
    """Whether it says that nobody may keep it."""
    said = {one.strip().lower() for one in header(headers, "cache-control").split(",")}
    return "no-store" in said


def nearly_over(chunks: Sequence[bytes], encoded: bool) -> bool:
    """Whether a client may have stopped reading because it has all that it wants; where we cannot see it, it may."""
    tail = b"".join(chunks[-4:])[-4096:]
    return bool(chunks) and (encoded or any(end in tail for end in _ENDS))


def flaw(endpoint: str, streamed: bool, status: int, headers: Headers, chunks: Iterable[bytes], limit: int) -> Reason | None:
    """Why it may not be kept, once it is all there."""
    if not 200 <= status < 300:
        return "status"
    if forbids(headers):
        return "no_store"
    body = _decoded(b"".join(chunks), header(headers, "content-encoding").lower().strip(), limit)
    if not isinstance(body, bytes):
        return body
    told = header(headers, "content-type").lower().startswith("text/event-stream")
    if told != streamed:
        return "incomplete"
    return _flaw_of_stream(endpoint, body) if streamed else _flaw_of_document(endpoint, body)


def _decoded(body: bytes, encoding: str, limit: int) -> bytes | Reason:
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "deflate"):
        return "encoding"
    inflating = zlib.decompressobj(wbits=47)
    try:
        plain = inflating.decompress(body, limit * 8)
    except zlib.error:
        return "encoding"
    if inflating.unconsumed_tail:
        return "too_large"
    return plain if inflating.eof else "incomplete"


def _document(text: bytes | str) -> dict[str, Any] | None:
    try:
        found = msgspec.json.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _flaw_of_document(endpoint: str, body: bytes) -> Reason | None:
    found = _document(body)
    if found is None:
        return "incomplete"
    if found.get("error") is not None or found.get("type") == "error":
        return "error"
    if endpoint in ("chat/completions", "completions"):
        choices = found.get("choices")
        if not isinstance(choices, list) or not choices:
            return "incomplete"
        return _first(_flaw_of_end(one.get("finish_reason") if isinstance(one, dict) else None) for one in choices)
    if endpoint == "messages":
        return _flaw_of_end(found.get("stop_reason"))
    if endpoint == "responses":
        return _flaw_of_response(found)
    return None if found.get("data") or found.get("results") else "incomplete"


def _flaw_of_end(reason: Any) -> Reason | None:
    if not isinstance(reason, str) or not reason:
        return "incomplete"
    return "filtered" if reason in _FILTERED else "error" if reason in _ERRORS else None


def _flaw_of_response(response: Any) -> Reason | None:
    if not isinstance(response, dict):
        return "incomplete"
    if response.get("status") == "completed":
        return "error" if response.get("error") else None
    if response.get("status") == "incomplete":
        why = response.get("incomplete_details")
        return None if isinstance(why, dict) and why.get("reason") in _LIMITED else "filtered"
    return "error"


def _first(flaws: Iterable[Reason | None]) -> Reason | None:
    return next((one for one in flaws if one), None)


def events(body: bytes) -> list[tuple[str, str]]:
    """The server-sent events of a body: their name, and their data. What has no empty line behind it is none."""
    found = list[tuple[str, str]]()

    def short(name: bytes, data: bytes) -> None:
        found.append((name.decode("utf-8", "replace"), data.decode("utf-8", "replace")))

    reading = Events(short, lambda name, _: short(name, b""), longest=len(body))
    reading.feed(body)
    reading.end()
    return found


def _flaw_of_stream(endpoint: str, body: bytes) -> Reason | None:
    ends: dict[str, Any] = {}
    last, said = "", dict[str, Any]()
    for name, data in events(body):
        found = {"type": data} if data == "[DONE]" else _document(data)
        if found is None:
            return "incomplete"
        if name == "error" or found.get("type") == "error" or (found.get("error") is not None and "type" not in found):
            return "error"
        ends.update(_ends(endpoint, found, ends))
        last, said = str(found.get("type") or name), found
    if endpoint == "responses" and last in ("response.completed", "response.incomplete", "response.failed"):
        return _flaw_of_response(said.get("response"))
    if last != ("message_stop" if endpoint == "messages" else "[DONE]") or not ends:
        return "incomplete"
    return _first(_flaw_of_end(reason) for reason in ends.values())


def _ends(endpoint: str, event: dict[str, Any], before: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Why each of the choices that an event speaks of has ended, as far as is known."""
    delta = event.get("delta")
    if endpoint == "messages" and isinstance(delta, dict) and "stop_reason" in delta:
        yield "", delta["stop_reason"]
    choices = event.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict):
            index = str(choice.get("index"))
            yield index, choice.get("finish_reason") or before.get(index)
