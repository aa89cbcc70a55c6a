"""The log of a stream on its way: written by the process that calls the provider, read by those that follow it.

It is an acceleration and no more: what an answer is, is said by its entry in the cache. Where the log is lost, slow or refused,
followers wait for the entry. A slow Redis delays nobody but them: the writer takes what has come since its last trip, in one.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

import msgspec

from ...errors import NotOpen, StoreError
from ...features.cache.shelf import Place
from ...features.cache.versions import Values
from ...keys import Key
from ...store.script import Runner, lua
from ...store.store import Store
from ...store.watch import Watch
from .run import Head, Run

_TTL_MS: Final = 6_000
_BEAT: Final = 1.0
"""Seconds after which a stream that is silent is said to go on."""
_MARK_MS: Final = 3_000
_PAUSE: Final = 0.01
"""Seconds between two trips: so much later than its maker a follower may be."""
_MOST: Final = 500
_LAST_WAIT: Final = 1.0
_BACKOFF: Final = 0.25

END = b""
"""The last part: the provider has said all."""
TOO_LONG = b"!"
"""The last part: more came than is kept."""


@lua("answers/append")
def _append(
    store: Runner, *, log: Key, followed: Key, lease: Key, run: str, at: int, ttl_ms: int, parts: Sequence[bytes]
) -> Awaitable[tuple[int, int]]: ...


@lua("answers/follow")
def _follow(
    store: Runner, *, log: Key, followed: Key, lease: Key, run: str, at: int, most: int, mark_ms: int
) -> Awaitable[tuple[bytes, list[bytes]]]: ...


class Beginning(msgspec.Struct, array_like=True):
    """The first part."""

    status: int
    headers: tuple[tuple[str, str], ...]


class Chunks(msgspec.Struct, array_like=True):
    """Any other."""

    chunks: list[bytes]
    gaps_us: list[int]


_encoder = msgspec.msgpack.Encoder()
_beginnings = msgspec.msgpack.Decoder(Beginning)
_pieces = msgspec.msgpack.Decoder(Chunks)


class Log:
    """Where a stream is told. Fenced by the lease of the entry that it becomes: who has lost that writes no more, and what was
    begun before a delete or a set is not read any more."""

    def __init__(self, store: Callable[[], Store], place: Callable[[], Place]) -> None:
        self._store = store
        self._place = place

    def _where(self) -> dict[str, Key]:
        place = self._place()
        log, followed = self._store().keys.answer_log(place.entry)
        return {"log": log, "followed": followed, "lease": place.lease}

    async def append(self, run: str, at: int, parts: Sequence[bytes]) -> tuple[bool, bool]:
        """Whether this run may write it, and whether somebody reads it."""
        own, read = await _append(Values(self._store()), **self._where(), run=run, at=at, ttl_ms=_TTL_MS, parts=parts)
        return bool(own), bool(read)

    async def read(self, run: str, at: int, *, given_up: bool = False) -> tuple[str, list[bytes]]:
        """Whose log it is (empty: there is none), and what it has from there on. given_up: also when nobody computes."""
        mark_ms = 0 if given_up else _MARK_MS
        found, parts = await _follow(Values(self._store()), **self._where(), run=run, at=at, most=_MOST, mark_ms=mark_ms)
        return found.decode(), parts

    async def stands(self, run: str) -> bool:
        """Whether what this run brings will be the entry, as things are."""
        holder = await self._store().command("GET", self._place().lease, link="values")
        return holder is not None and bytes(holder).decode() == run

    def watching(self) -> Watch:
        """Of what is written, or ends."""
        where = self._where()
        return self._store().watching(where["log"])


class Writer:
    """Tells a run of this process."""

    def __init__(self, log: Log, run: Run) -> None:
        self._log = log
        self._run = run
        self._told = 0
        self._at = 0
        self._begun = False
        self._task = asyncio.get_running_loop().create_task(self._write(), name="observatory answers log")

    async def _write(self) -> None:
        run, pending = self._run, self._news()
        while True:
            try:
                own, _ = await self._log.append(run.id, self._at, pending)
            except (StoreError, NotOpen):  # whether it was written is unknown: the same parts again
                await asyncio.sleep(_BACKOFF)
                continue
            self._at += len(pending)
            if not own or run.broken or (pending and pending[-1] in (END, TOO_LONG)):
                return
            await asyncio.sleep(_PAUSE)
            pending = self._news()
            with suppress(TimeoutError):
                async with asyncio.timeout(_BEAT):
                    while not pending and not run.broken:
                        await run.pulse.next()
                        pending = self._news()

    def _news(self) -> list[bytes]:
        """What has come since it was last asked."""
        run, news = self._run, list[bytes]()
        if run.head is None:
            return news
        if not self._begun:
            self._begun = True
            news.append(_encoder.encode(Beginning(run.head.status, run.head.shared)))
        if not run.kept:
            return [*news, TOO_LONG]
        if len(run.chunks) > self._told:
            news.append(_encoder.encode(Chunks(run.chunks[self._told :], run.gaps_us[self._told :])))
            self._told = len(run.chunks)
        return [*news, END] if run.ended else news

    def drop(self) -> None:
        """It is nobody else's business."""
        self._task.cancel()

    async def followed(self) -> bool:
        """Whether somebody reads it now, in another process."""
        with suppress(StoreError, NotOpen):
            own, read = await self._log.append(self._run.id, self._at, ())
            return own and read
        return False

    async def close(self) -> None:
        """When all is told that has come; it does not wait long for a Redis that is away."""
        await asyncio.wait({self._task}, timeout=0 if self._run.broken else _LAST_WAIT)
        self._task.cancel()


class Tale:
    """What is read of a log: a run that grows in this process as it does in another."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.id = ""
        self._at = 0
        self.over = False
        self.too_long = False

    async def more(self, *, given_up: bool = False) -> tuple[bool, list[bytes]]:
        """Whether it is another run's than before, and what is new of it. given_up: though it will be no entry."""
        found, parts = await self._log.read(self.id, self._at, given_up=given_up)
        if not found:
            return False, []
        other = found != self.id
        if other:
            self.id, self._at, self.over, self.too_long = found, 0, False, False
        self._at += len(parts)
        return other, parts

    def apply(self, run: Run, parts: Sequence[bytes | None]) -> None:
        """ValueError or msgspec's: the log is not what a writer of ours writes."""
        for part in parts:
            if part is None:
                raise ValueError("the log has a gap")
            if part in (END, TOO_LONG):
                self.over, self.too_long = True, part == TOO_LONG
                if part == END:
                    run.end()
            elif run.head is None:
                said = _beginnings.decode(part)
                run.begin(Head(said.status, said.headers, said.headers))
            else:
                for chunk, gap_us in zip(*_split(part), strict=True):
                    run.add(chunk, gap_us)


async def whole(log: Log, said: str, run: Run) -> Run | None:
    """Of an answer that will be no entry: all of it into this run, if it is the one that was spoken of."""
    tale = Tale(log)
    while not tale.over:
        other, parts = await tale.more(given_up=True)
        if not parts or tale.id not in said or (other and run.head is not None):
            return None
        run.id = tale.id
        tale.apply(run, parts)
    return run if run.ended else None


def _split(part: bytes) -> tuple[list[bytes], list[int]]:
    piece = _pieces.decode(part)
    return piece.chunks, piece.gaps_us
