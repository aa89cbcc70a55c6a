"""Caches by their names alone, for the doors: who asks over HTTP or on the command line has no class to decode an entry by.

A read finds the newest entry of any generation that has written. A write is of the untyped generation, and an owner's: it ends
what every type has, and readers with a type find it (generations.py).
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec

from ... import dimensions
from ...errors import CacheMiss, NotEncodable, StoreError
from .cache import Cache
from .codec import MISSING
from .counts import FIELDS, CacheStats, Counts
from .generations import all_of
from .space import Bounds, CacheSpace, Room

_MOST_NAMES = 1000
"""Of caches whose own numbers a process keeps."""


class Found(NamedTuple):
    """An entry. value: what msgpack knows: None, bool, numbers, str, bytes, moments, lists, mappings."""

    value: Any
    age: float
    """Seconds since it was made."""
    ttl: float
    """Seconds that it is served still."""

    def json(self) -> bytes:
        """Bytes as base64, moments as RFC 3339, NaN and infinities as null, keys as strings. NotEncodable for what has no such
        form: msgpack's extensions, keys that are null, true, false or a list."""
        try:
            return msgspec.json.encode(self.value)
        except (TypeError, ValueError, RecursionError) as error:
            raise NotEncodable(
                f"the entry has no form in JSON: {error}", remedy="Over HTTP ask with Accept: application/msgpack"
            ) from None


class CacheReport(msgspec.Struct, frozen=True):
    """How one cache has served: `CacheStats`, with its name."""

    cache: str
    hits: int
    misses: int
    near_hits: int
    stale: int
    coalesced: int
    computed: int
    errors: int
    corrupt: int
    near_entries: int
    near_bytes: int
    near_evictions: int
    near_checks: int
    near_mismatches: int
    hit_rate: float


def report(cache: str, stats: CacheStats) -> CacheReport:
    return CacheReport(cache=cache, hit_rate=stats.hit_rate, **msgspec.structs.asdict(stats))


class UntypedCache(Cache[Any]):
    """One cache of unknown type. `set`, `delete`, `clear`, `invalidate`, `stats` are a `Cache`'s; `find` finds entries."""

    def __init__(self, caches: "UntypedCaches", name: str, by: tuple[str, ...]) -> None:
        super().__init__(obs=caches, type=Any, name=name, by=by)
        self._caches = caches

    async def find(self, key: str) -> Found:
        """The newest entry of any generation. CacheMiss when there is none; StoreUnavailable, which is no miss here: who asks
        from outside cannot tell an outage otherwise."""
        room = self._room
        place = room.place(key)
        try:
            looks = await all_of(room.shelf, place)
        except StoreError:
            if self._caches.knows(self.name):
                room.counts.error()
            raise
        if looks[0].record is not None:
            self._caches.keep(self.name, room.counts)
        now_us = self._now_us()
        for look in looks:
            if look.corrupt:
                room.counts.corrupt()
        entries = [look.entry for look in looks if look.entry is not None and look.entry.is_fresh(now_us)]
        for entry in sorted(entries, key=lambda one: one.made_us, reverse=True):
            value = room.codec.decode(entry.payload, entry.flags)
            if value is not MISSING:
                room.counts.hit("shared")
                return Found(value, max(now_us - entry.made_us, 0) / 1e6, max(entry.fresh_until_us - now_us, 0) / 1e6)
            room.counts.corrupt()
        if self._caches.knows(self.name):
            room.counts.miss()
        raise CacheMiss(f"cache {self.name} has no entry {key!r:.80}", context={"cache": self.name})


class UntypedCaches(CacheSpace):
    """Every cache of the namespace. Who asks says by which dimensions a cache is kept, and whose part is meant."""

    def __init__(self, space: CacheSpace) -> None:
        super().__init__(
            *(space.store, space.metrics, space.now_us),
            ttl=space.ttl,
            jitter=space.jitter,
            max_value=space.max_value,
            compress_over=space.compress_over,
            is_near=False,
            near=space.near,
            near_bound=space.vicinity.bound,
        )
        self._counts: dict[str, Counts] = {}

    @property
    def caches(self) -> CacheSpace:
        """It lends itself to its caches."""
        return self

    @contextmanager
    def of(self, name: str, whose: Mapping[str, str]) -> Iterator[UntypedCache]:
        """A cache, for a block. whose: the dimensions that it is kept by, {"tenant": "acme"}; none: it is everybody's."""
        known = dimensions.checked(whose)
        with dimensions.bound(**known):
            yield UntypedCache(self, name, tuple(known))

    def knows(self, name: str) -> bool:
        """Whether somebody has written under this name. What is made up outside is not counted: it would cost series."""
        return name in self._counts

    def keep(self, name: str, counts: Counts) -> None:
        """It is known from now on."""
        if name not in self._counts and len(self._counts) >= _MOST_NAMES:
            del self._counts[next(iter(self._counts))]
        self._counts[name] = counts

    def room(self, kind: Any, name: str, by: str | Iterable[str] | None, near: Bounds | None) -> Room:
        """Made anew each time: what a name is kept by is known to nobody here, and names come from outside."""
        self._rooms.clear()
        room = super().room(kind, name, by, near)
        room.counts = self._counts.get(name, room.counts)
        return room

    async def reports(self) -> list[CacheReport]:
        """Every cache that somebody asked in the last hour, as far as the fleet's metrics know; StoreUnavailable: ask again."""
        found: dict[str, dict[str, int]] = {}

        async def add(field: str, metric: str, stat: str, labels: Mapping[str, str]) -> None:
            answer = await self.metrics.query(metric, stat, by="cache", where=labels)
            for one in answer.series:
                if name := one.labels.get("cache"):
                    found.setdefault(name, {})[field] = int(one.value or 0)

        await asyncio.gather(*(add(field, *asked) for field, asked in FIELDS.items()))
        return [report(name, CacheStats(**numbers)) for name, numbers in sorted(found.items())]

    def forget(self) -> None:
        """A forked child."""
        super().forget()
        self._counts.clear()
