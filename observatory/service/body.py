"""Reading a request's body: bounded before it is buffered, then decoded by its media type."""

from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from ..errors import InvalidArgument, PayloadTooLarge

T = TypeVar("T")


async def read(request: Request, max_body: int) -> bytes:
    """The whole body. PayloadTooLarge as soon as it is known to be above `max_body`."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_body:
        raise PayloadTooLarge(f"the body has {announced} bytes, at most {max_body} are taken", remedy="Send fewer at once")
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > max_body:
            raise PayloadTooLarge(f"the body has more than {max_body} bytes", remedy="Send fewer at once")
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
    try:
        match media_type.partition(";")[0].strip().lower():
            case "application/x-ndjson" | "application/jsonl":
                found: Any = msgspec.json.Decoder().decode_lines(body)
            case "application/msgpack" | "application/x-msgpack" | "application/vnd.msgpack":
                found = msgspec.msgpack.decode(body)
            case _:
                found = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError, TypeError) as error:
        raise InvalidArgument(f"the body cannot be decoded: {error}") from None
    return found if isinstance(found, list) else [found]


__all__ = ["ClientDisconnect", "decode", "items", "read"]
