"""One call to a provider, as this process knows of it: what has come so far, and how far each reader is."""

import asyncio
from collections.abc import Sequence
from typing import Final

from ...errors import AnswerInterrupted
from .refusals import Reason

AHEAD: Final = 2**20
"""Bytes that a call too long to be kept may be ahead of its slowest reader."""


class Pulse:
    """Something has changed: look again. Whoever looks and then waits, without an await between, misses nothing."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    async def next(self) -> None:
        heard: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(heard)
        try:
            await heard
        finally:
            self._waiting.discard(heard)

    def tell(self) -> None:
        for one in tuple(self._waiting):
            if not one.done():
                one.set_result(None)


class Head:
    """How an answer begins. own: the headers for who sent the request; shared: for everybody else."""

    __slots__ = ("own", "shared", "status")

    def __init__(self, status: int, own: Sequence[tuple[str, str]], shared: Sequence[tuple[str, str]]) -> None:
        self.status = status
        self.own = tuple(own)
        self.shared = tuple(shared)


class Run:
    """Grows at one end and is read at many places. limit: bytes that are kept for who comes later; a longer one is read by
    those who are there, and waits for the slowest of them. bounded: whether it may wait."""

    def __init__(self, id: str, pulse: Pulse, *, limit: int, bounded: bool, own: bool) -> None:  # noqa: A002
        self.id = id
        self.own = own
        """The call is this process's; else it comes out of the log or the entry."""
        self.pulse = pulse
        self.head: Head | None = None
        self.chunks: list[bytes] = []
        self.gaps_us: list[int] = []
        self.size = 0
        self.made_us = 0
        self.found = False
        """It was there before anybody asked."""
        self.private: Reason | None = None
        """Why nobody else may have it."""
        self.ended = False
        self.error: BaseException | None = None
        self.readers: set[Reader] = set()
        self._limit = limit
        self._bounded = bounded
        self._read = False
        """Whether anybody has come to read it."""
        self._dropped = 0
        self._held = 0

    @property
    def kept(self) -> bool:
        """Whether all of it is here."""
        return self.size <= self._limit

    @property
    def broken(self) -> bool:
        return self.error is not None

    def begin(self, head: Head) -> None:
        self.head = head
        self.pulse.tell()

    def add(self, chunk: bytes, gap_us: int) -> None:
        self.chunks.append(chunk)
        self.gaps_us.append(gap_us)
        self.size += len(chunk)
        self._held += len(chunk)
        self.pulse.tell()

    def fill(self, chunks: Sequence[bytes], gaps_us: Sequence[int]) -> None:
        """The rest of it, of which the beginning is here."""
        for number in range(len(self.chunks), len(chunks)):
            self.add(chunks[number], gaps_us[number])
        self.end()

    def end(self, error: BaseException | None = None) -> None:
        """It comes no more."""
        if not self.ended and self.error is None:
            self.ended, self.error = error is None, error
            self.pulse.tell()

    async def room(self) -> None:
        """Where it is too long to be kept: until its readers have read enough of it."""
        while self._bounded and not self.kept:
            # Before its first reader is there, nothing was read; when the last has left, nobody needs it.
            slowest = min((reader.at for reader in self.readers), default=self._dropped + len(self.chunks) * self._read)
            for chunk in self.chunks[: slowest - self._dropped]:
                self._held -= len(chunk)
            del self.chunks[: slowest - self._dropped]
            self._dropped = max(slowest, self._dropped)
            if self._held <= AHEAD:
                return
            await self.pulse.next()

    def attach(self, reader: "Reader") -> None:
        self._read = True
        self.readers.add(reader)

    def part(self, at: int) -> bytes | None:
        """The chunk of this number, when it has come. AnswerInterrupted: it is not here any more."""
        index = at - self._dropped
        if index < 0:  # another chunk in its place would be read as if it were the answer
            raise interrupted("its beginning is not kept")
        return self.chunks[index] if index < len(self.chunks) else None


class Reader:
    """One consumer's place in a run."""

    __slots__ = ("at", "run")

    def __init__(self, run: Run) -> None:
        self.run = run
        self.at = 0
        run.attach(self)

    async def next(self) -> bytes | None:
        """The next chunk; None: that was all. AnswerInterrupted, or what the call to the provider met."""
        run = self.run
        while True:
            chunk = run.part(self.at)
            if chunk is not None:
                self.at += 1
                if not run.kept:
                    run.pulse.tell()
                return chunk
            if run.error is not None:
                raise run.error
            if run.ended:
                return None
            await run.pulse.next()

    def close(self) -> None:
        self.run.readers.discard(self)
        self.run.pulse.tell()


def interrupted(why: str) -> AnswerInterrupted:
    return AnswerInterrupted(f"the stream was shared, and {why}", remedy="Ask again: a stream cannot be taken up in its middle")
