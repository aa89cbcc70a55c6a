"""Values and bytes: msgpack by type, never pickle. A changed type has another fingerprint, so both generations can live."""

import zlib
from typing import Any, Generic, TypeVar, cast

import msgspec

from ... import units
from ...errors import NotEncodable, ValueTooLarge
from .entry import COMPRESSED
from .shape import fingerprint

T = TypeVar("T")
MISSING: Any = object()
"""What bytes are that are no value of the type."""
_SHOWN = (str, bytes, int, float, type(None))
_LEVEL = 1
"""Of zlib: what a cache compresses it also waits for."""


class Codec(Generic[T]):
    """One type's way to bytes and back."""

    def __init__(self, kind: Any, max_value: int) -> None:
        self.kind = kind
        self.fingerprint = fingerprint(kind)
        self._max_value = max_value
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(kind)

    def encode(self, value: T, compress_over: int | None = None) -> tuple[bytes, int]:
        """Payload and flags. NotEncodable when the value is not of the type; ValueTooLarge above cache.max_value.

        compress_over: bytes; None: never.
        """
        if isinstance(value, str | bytes | bytearray) and len(value) > self._max_value:
            raise self._too_large(len(value))  # before half a gigabyte is copied
        try:
            payload = self._encoder.encode(value)
            if (size := len(payload)) > self._max_value:
                del payload  # which the error would keep alive
                raise self._too_large(size)
            # What cannot be read back must not be written: another process would find a miss where we promised a value.
            self._decoder.decode(payload)
        except (ValueTooLarge, MemoryError):
            raise
        except Exception as error:  # a type's own __post_init__ raises what it likes
            # To spell out a list that holds half a gigabyte would be to copy it.
            what = units.shown(value) if isinstance(value, _SHOWN) else f"a {type(value).__name__}"
            raise NotEncodable(f"{what} is not a {self.kind!r:.80}: {error}") from error
        if compress_over is not None and len(payload) > compress_over:
            smaller = zlib.compress(payload, _LEVEL)
            if len(smaller) < len(payload):
                return smaller, COMPRESSED
        return payload, 0

    def _too_large(self, size: int) -> ValueTooLarge:
        return ValueTooLarge(f"an encoded value must be at most {self._max_value} bytes, got {size}")

    def decode(self, payload: bytes, flags: int) -> T:
        """The value, or MISSING for bytes that are not ours: a miss, never a crash."""
        try:
            return self._decoder.decode(self.plain(payload, flags))
        except Exception:  # a type's own __post_init__ raises what it likes
            return cast(T, MISSING)

    def plain(self, payload: bytes, flags: int) -> bytes:
        """A payload as it was before it was compressed. ValueError or zlib.error: it was not."""
        if not flags & COMPRESSED:
            return payload
        # A few bytes may promise gigabytes.
        inflating = zlib.decompressobj()
        plain = inflating.decompress(payload, self._max_value)
        if not inflating.eof:
            raise ValueError("compressed bytes promise more than a value may be")
        return plain

    def plainly(self, plain: bytes) -> T:
        """The value of bytes that were decoded before; MISSING when the type will not have them any more."""
        return self.decode(plain, 0)
