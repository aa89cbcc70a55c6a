"""Dead letters: events that could not be applied, with the reason; to be looked at, put back, or thrown away.

A letter is named `<partition>:<place>`. Each lies in one place: replaying moves it back to its stream in one step, so that
asking again after a lost answer finds it gone, and counts nothing twice.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from ..errors import InvalidArgument, NotFound
from ..keys import Key
from ..store.script import lua
from ..store.store import Bulk, Store

AT_ONCE = 20
"""Letters moved in one step: at most 64 KiB each."""
MOST_PER_PAGE = 1000
_ID = re.compile(r"(\d{1,4}):(\d{1,20}-\d{1,20})", re.ASCII)


@lua("events/replay")
def _replay(
    store: Bulk, *, stream: Key, ledger: Key, dead: Key, max_entries: int, max_bytes: int, letters: Sequence[str]
) -> Awaitable[list[int]]: ...


@lua("events/drop")
def _drop(store: Bulk, *, ledger: Key, dead: Key, letters: Sequence[str]) -> Awaitable[list[int]]: ...


class DeadLetter(msgspec.Struct, frozen=True):
    """An event that could not be applied."""

    id: str
    event: str
    """The event's own id."""
    reason: str
    buried_at: float
    """Seconds since the epoch, by the store's clock."""
    size: int
    event_type: str | None = None
    """None: it cannot be read."""
    content: Any = None
    """What it says, as far as it can be read; only where one letter was asked for."""


class Page(msgspec.Struct, frozen=True):
    """Letters, the oldest of each partition first. cursor: to go on; None: these were the last."""

    letters: tuple[DeadLetter, ...]
    cursor: str | None


class Moved(msgspec.Struct, frozen=True):
    """What became of letters. missing: they were not there (any more). left: the stream is full; replay them later."""

    done: int
    missing: int = 0
    left: int = 0


class DeadLetters:
    """`obs.dead_letters`."""

    def __init__(
        self, store: Callable[[], Store], max_entries: int, max_bytes: int, count_dropped: Callable[[int, str], None]
    ) -> None:
        self._store = store
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._count_dropped = count_dropped

    async def list(self, *, page_size: int = 100, cursor: str | None = None) -> Page:
        """One page. What is buried meanwhile may be on a later page, or not."""
        if isinstance(page_size, bool) or not isinstance(page_size, int) or not 1 <= page_size <= MOST_PER_PAGE:
            raise InvalidArgument(f"page_size must be from 1 to {MOST_PER_PAGE}, got {page_size!r:.40}")
        store = self._store()
        partition, begin = (0, "-") if cursor is None else _parsed(cursor, "cursor")
        found: list[DeadLetter] = []
        while partition < store.keys.partitions:
            wanted = page_size + 1 - len(found)
            rows = await store.bulk().command("XRANGE", store.keys.dead(partition), begin, "+", "COUNT", wanted)
            found += [_letter(partition, *row, whole=False) for row in rows]
            if len(found) > page_size:
                return Page(tuple(found[:page_size]), found[page_size].id)
            partition, begin = partition + 1, "-"
        return Page(tuple(found), None)

    async def show(self, id: str) -> DeadLetter:  # noqa: A002 (the word for it)
        """One letter, and what it says as far as it can be read. NotFound: it was replayed or dropped, or made room."""
        partition, place = self._placed(id)
        store = self._store()
        rows = await store.bulk().command("XRANGE", store.keys.dead(partition), place, place)
        if not rows:
            raise NotFound(f"there is no dead letter {id}")
        return _letter(partition, *rows[0], whole=True)

    async def replay(self, *ids: str) -> Moved:
        """Put these back on their streams: workers read them again, and bury again what they still cannot apply.

        StoreUnavailable: some may have been put back; asking again puts back the others.
        """
        done = missing = left = 0
        for partition, places in self._by_partition(ids).items():
            for start in range(0, len(places), AT_ONCE):
                some = places[start : start + AT_ONCE]
                store = self._store()
                keys = store.keys
                replayed, absent, full = await _replay(
                    store.bulk(),
                    stream=keys.stream(partition),
                    ledger=keys.ledger(partition),
                    dead=keys.dead(partition),
                    max_entries=self._max_entries,
                    max_bytes=self._max_bytes,
                    letters=some,
                )
                done, missing = done + replayed, missing + absent
                left += len(some) if full else 0
        return Moved(done, missing, left)

    async def drop(self, *ids: str) -> Moved:
        """Throw these away, and count them as dropped. StoreUnavailable: as `replay`."""
        done = missing = 0
        for partition, places in self._by_partition(ids).items():
            for start in range(0, len(places), AT_ONCE):
                store = self._store()
                keys = store.keys
                dropped, absent = await _drop(
                    store.bulk(),
                    ledger=keys.ledger(partition),
                    dead=keys.dead(partition),
                    letters=places[start : start + AT_ONCE],
                )
                done, missing = done + dropped, missing + absent
                if dropped:
                    self._count_dropped(dropped, "thrown_away")
        return Moved(done, missing)

    async def replay_all(self) -> Moved:
        """Every letter that is there now, not those that come back meanwhile."""
        return await self._all(self.replay)

    async def drop_all(self) -> Moved:
        """Every letter that is there now."""
        return await self._all(self.drop)

    async def _all(self, move: Callable[..., Awaitable[Moved]]) -> Moved:
        sums = Moved(0)
        async for ids in self._standing():
            one = await move(*ids)
            sums = Moved(sums.done + one.done, sums.missing + one.missing, sums.left + one.left)
        return sums

    async def _standing(self) -> AsyncIterator[Sequence[str]]:
        """The ids of all letters, up to the last of each partition as it is at the beginning."""
        store = self._store()
        keys, bulk = store.keys, store.bulk()
        last = await asyncio.gather(
            *(bulk.command("XREVRANGE", keys.dead(one), "+", "-", "COUNT", 1) for one in range(keys.partitions))
        )
        for partition, rows in enumerate(last):
            begin = "-"
            while rows:
                page = await bulk.command("XRANGE", keys.dead(partition), begin, rows[0][0], "COUNT", AT_ONCE)
                if not page:
                    break
                yield [f"{partition}:{place.decode()}" for place, _ in page]
                begin = f"({page[-1][0].decode()}"

    def _placed(self, id: str) -> tuple[int, str]:  # noqa: A002
        partition, place = _parsed(id, "id")
        if partition >= self._store().keys.partitions:
            raise NotFound(f"there is no dead letter {id}")
        return partition, place

    def _by_partition(self, ids: Iterable[str]) -> Mapping[int, Sequence[str]]:
        found: dict[int, dict[str, None]] = {}
        for one in ids:
            partition, place = self._placed(one)
            found.setdefault(partition, {})[place] = None
        return {partition: tuple(places) for partition, places in found.items()}


def _parsed(text: object, what: str) -> tuple[int, str]:
    found = _ID.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise InvalidArgument(f"{what} {text!r:.60} is none", remedy="Write it as `observatory dead-letters list` shows it")
    # What the store cannot read as an id is none either.
    if max(map(int, found[2].split("-"))) >= 2**64:
        raise InvalidArgument(f"{what} {text!r:.60} is none: beyond the last that a stream can have")
    return int(found[1]), found[2]


def _letter(partition: int, place: bytes, fields: Sequence[bytes], *, whole: bool) -> DeadLetter:
    said = dict(zip(fields[::2], fields[1::2], strict=True))
    payload, moment = said.get(b"payload", b""), place.decode()
    try:
        content = msgspec.msgpack.decode(payload)
        # What cannot be shown as JSON is as good as unreadable.
        msgspec.json.encode(content)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError, OverflowError):
        content = None
    kind = content.get("type") if isinstance(content, dict) else None
    return DeadLetter(
        id=f"{partition}:{moment}",
        event=said.get(b"id", b"").decode(errors="replace"),
        reason=said.get(b"reason", b"").decode(errors="replace"),
        buried_at=int(moment.partition("-")[0]) / 1000,
        size=len(payload),
        event_type=kind if isinstance(kind, str) else None,
        content=content if whole else None,
    )
