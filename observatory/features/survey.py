"""How the event streams stand, partition by partition: what waits, for how long, and whether the ledger tells the truth."""

import asyncio
from collections.abc import Awaitable
from typing import NamedTuple

import msgspec

from ..keys import Key
from ..store.script import lua
from ..store.store import Bulk, Store

PAGE = 25
"""Stream entries counted in one script call: up to 2,500 events, about a millisecond."""
MOST_PAGES = 800
"""Pages of one partition that an audit counts: 20,000 entries."""


@lua("events/survey")
def _survey(
    store: Bulk, *, stream: Key, ledger: Key, dead: Key, begin: str, page: int
) -> Awaitable[tuple[int, int, int, int, int, int, bytes, int, bytes]]: ...


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


async def _page(store: Store, partition: int, begin: str = "-", page: int = 0) -> tuple[Backlog, int, int, str]:
    """The backlog; dead letters that are there; events in the page; where the next one begins."""
    keys = store.keys
    accepted, applied, dead, dropped, buried, entries, oldest, counted, following = await _survey(
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
    return found, buried, counted, following.decode()


async def backlog(store: Store) -> tuple[Backlog, ...]:
    """Every partition."""
    pages = await asyncio.gather(*(_page(store, partition) for partition in range(store.keys.partitions)))
    return tuple(found for found, *_ in pages)


async def drift(store: Store, partition: int) -> Drift | None:
    """Count what lies on a partition, and compare. None: it is longer than a page, and was being worked off meanwhile, so that
    nobody can say; ask again."""
    before, buried, counted, following = await _page(store, partition, page=PAGE)
    gone = (before.applied, before.dead, before.dropped)
    for _ in range(MOST_PAGES):
        if not following:
            # Read in one step with the last page. Whatever was added meanwhile stands behind what was counted before.
            return Drift(before.waiting - counted, before.dead - buried)
        before, buried, more, following = await _page(store, partition, following, PAGE)
        counted += more
        if (before.applied, before.dead, before.dropped) != gone:
            return None
    return None
