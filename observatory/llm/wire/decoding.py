"""A second look at bytes that pass in a content encoding: they are decoded aside, in bounded steps, and stay as they are."""

import zlib
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

STEP: Final = 16_384
"""Bytes that are decoded at once: a few bytes may mean gigabytes."""


class Decoder(Protocol):
    """bytes in; those that they mean out, in steps. ValueError: they mean nothing."""

    def feed(self, data: bytes) -> Iterator[bytes]: ...


class _Plain:
    def feed(self, data: bytes) -> Iterator[bytes]:
        yield data


class _Inflate:
    """gzip, and both of what is called deflate. A member may follow the one before."""

    def __init__(self, wbits: int) -> None:
        self._wbits = wbits
        self._inflate = zlib.decompressobj(wbits)
        self._any = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        try:
            yield from self._feed(data)
        except zlib.error as error:
            if self._any or self._wbits != zlib.MAX_WBITS:
                raise ValueError("it cannot be inflated") from error
            self._wbits = -zlib.MAX_WBITS  # deflate without its frame, as some send it
            self._inflate = zlib.decompressobj(self._wbits)
            try:
                yield from self._feed(data)
            except zlib.error as again:
                raise ValueError("it cannot be inflated") from again

    def _feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._inflate.eof:
                self._inflate = zlib.decompressobj(self._wbits)
            plain = self._inflate.decompress(data, STEP)
            self._any = self._any or bool(plain)
            if plain:
                yield plain
            data = self._inflate.unconsumed_tail or self._inflate.unused_data
            if not data and len(plain) == STEP:
                # Its window may hold more than it was asked for.
                while plain := self._inflate.decompress(b"", STEP):
                    yield plain


class _Brotli:
    def __init__(self, library: Any) -> None:
        self._library = library
        self._decompressor = library.Decompressor()

    def feed(self, data: bytes) -> Iterator[bytes]:
        try:
            step = self._decompressor.process
            plain = step(data, output_buffer_limit=STEP)
            while plain:
                yield plain
                plain = step(b"", output_buffer_limit=STEP)  # until it has no more of it
        except self._library.error as error:
            raise ValueError("it cannot be decoded as br") from error


def decoder(encoding: str) -> Decoder | None:
    """Of a content-encoding; None where it cannot be read here. br needs a brotli that is there, as the HTTP library does."""
    kind = encoding.strip().lower()
    makers: dict[str, Callable[[], Decoder | None]] = {
        "": _Plain,
        "identity": _Plain,
        "gzip": lambda: _Inflate(zlib.MAX_WBITS | 16),
        "x-gzip": lambda: _Inflate(zlib.MAX_WBITS | 16),
        "deflate": lambda: _Inflate(zlib.MAX_WBITS),
        "br": _brotli,
    }
    return makers[kind]() if kind in makers else None


def _brotli() -> Decoder | None:
    try:
        import brotli
    except ImportError:
        return None
    return _Brotli(brotli) if hasattr(brotli.Decompressor, "can_accept_more_data") else None
