"""Reading a request's body: bounded before it is buffered, then decoded by its media type."""

import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from ..errors import InvalidArgument, PayloadTooLarge

T = TypeVar("T")
MSGPACK = ("application/msgpack", "application/x-msgpack", "application/vnd.msgpack")


async def read(request: Request, max_body: int) -> bytes:
    """The whole body. PayloadTooLarge as soon as it is known to be above `max_body`."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_body:
        raise PayloadTooLarge(f"the body has {announced} bytes, at most {max_body} are taken", remedy="Send less at once")
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > max_body:
            raise PayloadTooLarge(f"the body has more than {max_body} bytes", remedy="Send less at once")
        parts.append(part)
    return b"".join(parts)


def decode(body: bytes, kind: type[T]) -> T:
    """JSON by type. InvalidArgument says where it is wrong."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise InvalidArgument(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(f"the body is not JSON: {error}") from None


def items(body: bytes, media_type: str) -> list[Any]:
    """A list of objects: a JSON array or one object, NDJSON (application/x-ndjson), or msgpack (application/msgpack)."""
    if media_type.partition(";")[0].strip().lower() in ("application/x-ndjson", "application/jsonl"):
        found = _decoded(msgspec.json.Decoder().decode_lines, body)
    else:
        found = value(body, media_type)
    return found if isinstance(found, list) else [found]


def value(body: bytes, media_type: str) -> Any:
    """One value: JSON, or msgpack where the media type says so."""
    is_packed = media_type.partition(";")[0].strip().lower() in MSGPACK
    return _decoded(msgspec.msgpack.decode if is_packed else msgspec.json.decode, body)


def _decoded(decode_: Callable[[bytes], Any], body: bytes) -> Any:
    try:
        return decode_(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError, TypeError) as error:
        raise InvalidArgument(f"the body cannot be decoded: {error}") from None


def packs(accept: str) -> bool:
    """Whether an Accept header would rather have msgpack than JSON. A wildcard is content with JSON."""
    best = {True: 0.0, False: 0.0}
    for one in accept.split(","):
        media, *rest = (part.strip().lower() for part in one.split(";"))
        quality = dict(part.partition("=")[::2] for part in rest).get("q", "1")
        if media in MSGPACK or media in ("application/json", "application/*", "*/*"):
            number = float(quality) if re.fullmatch(r"[01](\.\d{0,3})?", quality) else 0.0
            best[media in MSGPACK] = max(best[media in MSGPACK], number)
    return 0 < best[True] >= best[False]


__all__ = ["MSGPACK", "ClientDisconnect", "decode", "items", "packs", "read", "value"]
