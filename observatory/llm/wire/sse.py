"""Server-sent events out of chunks that are cut anywhere, in bounded memory."""

from collections.abc import Callable
from typing import Final

from .skim import Skim

LONGEST: Final = 8192
"""Bytes of an event that is kept to be read in full; a longer one is skimmed as it passes."""


class Events:
    """Feed it bytes. short: called with each event's name and data. long: with name and skim of one above `longest` bytes."""

    __slots__ = ("_carry", "_cr", "_head", "_long", "_longest", "_short", "_skim", "_started")

    def __init__(
        self, short: Callable[[bytes, bytes], None], long: Callable[[bytes, Skim], None], longest: int = LONGEST
    ) -> None:
        self._longest = longest
        self._short = short
        self._long = long
        self._carry = bytearray()
        self._cr = False
        self._skim: Skim | None = None
        self._head = b""
        self._started = False

    def feed(self, data: bytes) -> None:
        if not self._started:
            data = self._begun(data)
        if self._cr or b"\r" in data:
            data = self._plain(data)
        if not data:
            return
        carry = self._carry
        if self._skim is None and not carry and data.endswith(b"\n\n"):
            for block in data[:-2].split(b"\n\n"):
                self._block(block)
            return
        searched = max(0, len(carry) - 1)
        carry += data
        while (end := carry.find(b"\n\n", searched)) >= 0:
            block = bytes(carry[:end])
            del carry[: end + 2]
            searched = 0
            self._block(block)
        if len(carry) > self._longest:
            self._pass(bytes(carry[:-1]))
            del carry[:-1]

    def end(self) -> None:
        """What has no empty line behind it is no event: it is forgotten, as the standard has it."""
        if self._cr:
            self._cr = False
            self.feed(b"\n")
        self._carry.clear()
        self._skim = None

    def _begun(self, data: bytes) -> bytes:
        self._carry += data
        data = bytes(self._carry)
        if len(data) < 3 and b"\xef\xbb\xbf".startswith(data):
            return b""
        self._started = True
        self._carry.clear()
        return data.removeprefix(b"\xef\xbb\xbf")

    def _plain(self, data: bytes) -> bytes:
        """With \\n at the end of each line; a \\r at the end waits for what follows."""
        if self._cr:
            data = b"\r" + data
        self._cr = data.endswith(b"\r")
        if self._cr:
            data = data[:-1]
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _block(self, block: bytes) -> None:
        if self._skim is not None:
            skim, self._skim = self._skim, None
            skim.feed(block)
            self._long(self._head, skim)
        elif len(block) > self._longest:
            self._pass(block)
            self._block(b"")
        elif block.startswith(b"data: ") and b"\n" not in block:
            self._short(b"", block[6:])
        elif block:
            name, data = _fields(block)
            if data is not None:
                self._short(name, data)

    def _pass(self, part: bytes) -> None:
        if self._skim is None:
            self._skim = Skim()
            self._head = _fields(part[:512])[0]
        self._skim.feed(part)


def _fields(block: bytes) -> tuple[bytes, bytes | None]:
    """The event's name, and its data; None: it has none."""
    name, data = b"", list[bytes]()
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value.removeprefix(b" "))
        elif field == b"event":
            name = value.removeprefix(b" ")
    return name, b"\n".join(data) if data else None
