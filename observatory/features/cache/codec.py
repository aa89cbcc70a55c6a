"""Values and bytes: msgpack by type, never pickle. A changed type has another fingerprint, so both generations can live."""

from hashlib import blake2b
from typing import Any, Generic, TypeVar

import msgspec

from ...errors import NotEncodable, ValueTooLarge

T = TypeVar("T")
_MISSING = object()


def fingerprint(kind: Any) -> str:
    """Of a type's shape, as it would be written. NotEncodable when msgspec does not know the type."""
    try:
        schema = msgspec.json.schema(kind)
    except (TypeError, NotImplementedError) as error:
        raise NotEncodable(f"a cache of {kind!r:.120} is not possible: {error}") from error
    canonical = msgspec.json.encode([repr(kind), schema], order="deterministic")
    return blake2b(canonical, digest_size=6).hexdigest()


class Codec(Generic[T]):
    """One type's way to bytes and back."""

    def __init__(self, kind: Any, max_value: int) -> None:
        self.kind = kind
        self.fingerprint = fingerprint(kind)
        self._max_value = max_value
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(kind)

    def encode(self, value: T) -> bytes:
        """NotEncodable when the value is not of the type; ValueTooLarge above cache.max_value."""
        try:
            payload = self._encoder.encode(value)
            # What cannot be read back must not be written: another process would find a miss where we promised a value.
            self._decoder.decode(payload)
        except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
            raise NotEncodable(f"{value!r:.80} is not a {self.kind!r:.80}: {error}") from error
        if len(payload) > self._max_value:
            raise ValueTooLarge(f"an encoded value must be at most {self._max_value} bytes, got {len(payload)}")
        return payload

    def decode(self, payload: bytes) -> "T | object":
        """The value, or MISSING for bytes that are not ours: a miss, never a crash."""
        try:
            return self._decoder.decode(payload)
        except (msgspec.MsgspecError, ValueError):
            return _MISSING

    @staticmethod
    def is_missing(value: object) -> bool:
        return value is _MISSING
