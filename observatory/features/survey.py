"""How the event streams stand, partition by partition: what waits, for how long, and whether the ledger tells the truth."""

import asyncio
from collections.abc import Awaitable
from typing import NamedTuple

import msgspec

from ..errors import StoreError, StoreUnavailable
from ..keys import Key
from ..store.script import lua
from ..store.store import Bulk, Store

PAGE = 25
"""Stream entries counted in one script call: up to 2,500 events, about a millisecond."""
MOST_PAGES = 800
"""Pages of one partition that an audit counts: 20,000 entries."""
TRIES = 5
"""How often a partition is counted again from its beginning, since a worker had overtaken the count."""


@lua("events/survey")
def _survey(
    store: Bulk, *, stream: Key, ledger: Key, dead: Key, begin: str, page: int
) -> Awaitable[tuple[int, int, int, int, int, int, int, bytes, int, bytes]]: ...


class Backlog(msgspec.Struct, frozen=True):
    """One partition: how many events, ever, and what lies there now."""

    partition: int
    accepted: int
    applied: int
    dead: int
    dropped: int
    waiting: int
    """What the other four leave over."""
    entries: int
    oldest_age: float
    """Seconds that the oldest waiting event has been on the stream; 0 when none waits."""


class Drift(NamedTuple):
    """Of one partition. events: by how many the ledger's waiting differ from those on the stream. dead: of the dead."""

    events: int
    dead: int


class _Page(NamedTuple):
    """What one step found."""

    backlog: Backlog
    replayed: int
    buried: int
    oldest: str
    counted: int
    following: str

    @property
    def gone(self) -> int:
        """Events that the ledger says are not on the stream any more."""
        return self.backlog.applied + self.backlog.dead + self.backlog.dropped


async def _page(store: Store, partition: int, begin: str = "-", page: int = 0) -> _Page:
    keys = store.keys
    accepted, applied, dead, dropped, replayed, buried, entries, oldest, counted, following = await _survey(
        store.bulk(),
        stream=keys.stream(partition),
        ledger=keys.ledger(partition),
        dead=keys.dead(partition),
        begin=begin,
        page=page,
    )
    age = max((store.server_us() or 0) / 1e6 - int(oldest.partition(b"-")[0]) / 1e3, 0.0) if oldest else 0.0
    waiting = accepted - applied - dead - dropped
    found = Backlog(partition, accepted, applied, dead, dropped, waiting, entries, age)
    return _Page(found, replayed, buried, oldest.decode(), counted, following.decode())


async def backlog(store: Store, *, readable: bool = False) -> tuple[Backlog, ...]:
    """Every partition. readable: those that can be read; a key of another type is another partition's matter."""
    pages = await asyncio.gather(
        *(_page(store, partition) for partition in range(store.keys.partitions)), return_exceptions=True
    )
    found = []
    for page in pages:
        if not isinstance(page, BaseException):
            found.append(page.backlog)
        elif not readable or isinstance(page, StoreUnavailable) or not isinstance(page, StoreError):
            raise page
    return tuple(found)


async def drift(store: Store, partition: int) -> Drift | None:
    """Count what lies on a partition, and compare. None: it has more entries than are counted, or is worked off faster than it
    can be counted; nobody can say."""
    for _ in range(TRIES):
        found = await _walk(store, partition)
        if found is not None:
            return found
    return None


async def _walk(store: Store, partition: int) -> Drift | None:
    first = page = await _page(store, partition, page=PAGE)
    counted = page.counted
    for _ in range(MOST_PAGES):
        begin = page.following
        if not begin:
            # Whatever was taken meanwhile had been counted, and whatever was added has been: it is as if nothing had been taken
            # since the first page.
            there = page.backlog.accepted - first.gone + page.replayed - first.replayed
            return Drift(there - counted, page.backlog.dead - page.buried)
        page = await _page(store, partition, begin, PAGE)
        if not page.oldest or _place(page.oldest) > _place(begin):
            return None
        counted += page.counted
    return None


def _place(entry: str) -> tuple[int, int]:
    moment, _, number = entry.partition("-")
    return int(moment), int(number)
