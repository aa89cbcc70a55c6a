"""The verbs of a cache that read and write one entry, or several, or all."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, Literal, Protocol, TypeVar, cast, overload

from aiocache import BaseCache
from aiocache.base import SENTINEL

from ... import units
from ...errors import CacheError, InvalidArgument, NotEncodable, StoreError, StoreMisconfigured
from .checks import at_least_1, dimensions_of, invalidated, labels, milliseconds, nearness, pairs_of, several_keys, threshold
from .codec import MISSING
from .entry import BOUNDED, COMPRESSED, pack
from .flight import Terms
from .plugins import told
from .shelf import ABSENT, ANY, Look, Place, near_key
from .space import Bounds, CacheSpace, Room

A = TypeVar("A")
T = TypeVar("T")
D = TypeVar("D")
OWN: Any = SENTINEL
"""ttl=OWN: the cache's own. aiocache's word for it, since its decorators say it too."""
_MOST_TRIES = 100
_AWAY = Look(None, b"", None, away=True)
_AT_ONCE = 256
"""Keys that one call asks for at a time: so many answers come within redis.max_wait."""


class Lender(Protocol):
    """An Observatory, as a cache sees it."""

    @property
    def caches(self) -> CacheSpace: ...


def batched(several: Sequence[A]) -> Iterator[Sequence[A]]:
    """As many at a time as may be on their way at once."""
    for start in range(0, len(several), _AT_ONCE):
        yield several[start : start + _AT_ONCE]


class Entries(BaseCache, Generic[T]):  # type: ignore[misc]
    """Shared, typed entries. Same name, same entries, in every process. ttl=None is refused: every shared entry expires.

    With the store away or slow, reads are misses within redis.max_wait, and counted; whatever writes raises StoreUnavailable:
    whether it took effect is then unknown, and it is safe to repeat (but `add` and `increment`). Cancelled: likewise.
    """

    def __init__(
        self,
        *,
        obs: Lender,
        type: Any,  # noqa: A002 (the word for it)
        name: str = "default",
        ttl: float | None = None,
        stale_for: float = 0.0,
        near: bool | None = None,
        by: str | Iterable[str] | None = None,
        max_entries: int | None = None,
        max_bytes: int | None = None,
        compress_over: int | None = None,
        on_store_down: Literal["miss", "stale"] = "miss",
        plugins: list[Any] | None = None,
        namespace: str | None = None,
        key_builder: Callable[..., str] | None = None,
        serializer: None = None,
        timeout: None = None,
    ) -> None:
        if serializer is not None:
            raise InvalidArgument("a cache has no serializer: its type says how values are written")
        super().__init__(timeout=timeout, plugins=plugins, namespace=namespace, key_builder=key_builder)
        space = obs.caches
        bounds = Bounds(
            space.near.entries if max_entries is None else at_least_1(max_entries, "max_entries"),
            space.near.bytes if max_bytes is None else at_least_1(max_bytes, "max_bytes"),
        )
        is_near = space.is_near if nearness(near) is None else near
        self._room: Room = space.room(type, name, dimensions_of(by), bounds if is_near else None)
        self.name = name
        self._spelled = namespace is not None or key_builder is not None
        self._own_ttl_ms = milliseconds(space.ttl if ttl is None else ttl, "ttl")
        self._own_stale_ms = milliseconds(stale_for, "stale_for", least=0)
        over = threshold(compress_over)
        self._compress_over = space.compress_over if over is None else over
        if on_store_down not in ("miss", "stale"):
            raise InvalidArgument(f"on_store_down must be miss or stale, got {units.shown(on_store_down)}")
        self._last = on_store_down == "stale"
        self._own_terms = Terms(self._own_ttl_ms, self._own_stale_ms, (), 0.0, self._compress_over, self._last)

    def _terms(self, ttl: Any = OWN, stale_for: Any = OWN, tags: Iterable[str] = (), fail_for: float = 0.0) -> Terms:
        if ttl is OWN and stale_for is OWN and tags == () and fail_for == 0.0:
            return self._own_terms
        checked = labels(tags)
        ttl_ms = self._own_ttl_ms if ttl is OWN else milliseconds(ttl, "ttl")
        stale_ms = self._own_stale_ms if stale_for is OWN else milliseconds(stale_for, "stale_for", least=0)
        kept = milliseconds(fail_for, "fail_for", least=0) / 1000
        return Terms(ttl_ms, stale_ms, checked, kept, self._compress_over, self._last)

    def _place(self, key: str) -> Place:
        return self._room.place(self.build_key(self._room.checked(key)) if self._spelled else key)

    # reading
    @overload
    async def get(self, key: str) -> T | None: ...
    @overload
    async def get(self, key: str, default: D) -> T | D: ...
    @told
    async def get(self, key: str, default: Any = None) -> Any:
        """The value, or `default` for a miss; what is stale is one (`get_or_compute` serves it), and a store that is away."""
        value = self._nearby(key)
        if value is not MISSING:
            return value
        value = await self._get(key)
        return default if value is MISSING else value

    def _nearby(self, key: str) -> Any:
        """The value, where it is kept near: the whole of most hits."""
        room = self._room
        if room.near is None or not isinstance(key, str):
            return MISSING
        key = self.build_key(key) if self._spelled else key
        return room.near.lookup(near_key(key, room.scope()) if room.by else key)

    async def _get(self, key: str) -> Any:
        place = self._known(key)
        return self._taken(place, await self._look(place))

    async def _look(self, place: Place | None, away: bool = False) -> Look:
        """away: the store has just not answered, and is not asked again."""
        if place is not None and not away:
            return await self._room.flights.look(place)
        if place is not None:
            self._room.counts.error()
        return _AWAY

    def _taken(self, place: Place | None, look: Look) -> Any:
        """The value of what was found, counted and kept near."""
        counts = self._room.counts
        value = self._value(look)
        if place is not None and look.entry is not None and value is not MISSING:
            counts.hit("shared")
            payload = self._room.codec.plain(look.entry.payload, look.entry.flags)
            self._room.shelf.keep(place, look, value, payload, self._now_us(), self._own_stale_ms)
            return value
        value = MISSING if place is None else self._room.flights.last(place, look, self._own_terms)
        if value is MISSING:
            counts.miss()
        return value

    def _known(self, key: str) -> Place | None:
        """For who reads: None before the store was ever reached, which counts as an outage."""
        self._room.checked(key)
        try:
            return self._place(key)
        except StoreMisconfigured:
            raise
        except StoreError:
            self._room.counts.error()
            return None

    def _value(self, look: Look) -> Any:
        entry = look.entry
        if entry is None or not entry.is_fresh(self._now_us()):
            return MISSING
        value = self._room.codec.decode(entry.payload, entry.flags)
        if value is MISSING:
            self._room.counts.corrupt()
        return value

    def _now_us(self) -> int:
        return self._room.flights.now_us()

    async def get_many(self, keys: Iterable[str]) -> dict[str, T]:
        """Hits only, so that None can be a value. Some hundreds of keys are asked for at a time."""
        wanted = tuple(dict.fromkeys(several_keys(keys)))
        found = {key: value for key in wanted if (value := self._nearby(key)) is not MISSING}
        others = [key for key in wanted if key not in found]
        away = False
        for some in batched(others):
            places = [self._known(key) for key in some]
            looks = await asyncio.gather(*(self._look(place, away) for place in places))
            away = all(look.away for look in looks)
            found.update(zip(some, map(self._taken, places, looks), strict=True))
        return {key: found[key] for key in wanted if found[key] is not MISSING}

    @told
    async def exists(self, key: str) -> bool:
        """Whether `get` would be a hit; counts as none."""
        place = self._known(key)
        return place is not None and self._value(await self._room.flights.look(place)) is not MISSING

    # writing
    @told
    async def set(self, key: str, value: T, ttl: float = OWN, *, tags: Iterable[str] = ()) -> bool:
        """Write, in every generation's stead; who computes the entry meanwhile stores it no more.

        NotEncodable when the value is not of the cache's type, ValueTooLarge above cache.max_value.
        """
        return await self._write(self._place(key), value, self._terms(ttl, tags=tags))

    async def _write(self, place: Place, value: T, terms: Terms, expected: str | bytes = ANY) -> bool:
        room = self._room
        payload, flags = room.codec.encode(value, terms.compress_over)
        record = await room.shelf.record(place, terms.ttl_ms + terms.stale_ms)
        tags = await room.shelf.versions.of_tags(place.scope, terms.tags, terms.ttl_ms + terms.stale_ms)
        entry, life_ms = room.flights.computations.entry(payload, flags, terms, record.version, tags)
        try:
            return await room.shelf.write(place, pack(entry), life_ms, record=record, expected=expected)
        finally:
            room.flights.detach(place)

    async def set_many(self, entries: Mapping[str, T], ttl: float = OWN, *, tags: Iterable[str] = ()) -> None:
        """As many `set`, some hundreds at a time; none is written when one is not of the type. StoreUnavailable: some are."""
        terms = self._terms(ttl, tags=tags)
        pairs = [(self._place(key), value) for key, value in pairs_of(entries).items()]
        for _, value in pairs:
            self._room.codec.encode(value)
        for some in batched(pairs):
            await asyncio.gather(*(self._write(place, value, terms) for place, value in some))

    @told
    async def add(self, key: str, value: T, ttl: float = OWN, *, tags: Iterable[str] = ()) -> bool:
        """Write where nothing is. ValueError when it exists (aiocache's contract)."""
        place, terms = self._place(key), self._terms(ttl, tags=tags)
        for _ in range(_MOST_TRIES):
            look = await self._room.flights.look(place)
            if self._value(look) is not MISSING:
                raise ValueError(f"cache {self.name}: key {key!r:.80} exists already")
            if await self._write(place, value, terms, look.head or ABSENT):
                return True
        raise self._busy(key)

    @told
    async def delete(self, key: str) -> int:
        """Remove, in all generations of the class: 1 when there was one (of another generation, also one that a tag has ended).
        What is computed meanwhile is not stored."""
        place = self._place(key)
        look = await self._room.shelf.read(place)
        try:
            dropped = await self._room.shelf.remove(place, look.record)
        finally:
            self._room.flights.detach(place)
        return int(look.entry is not None or dropped > bool(look.head))

    @told
    async def expire(self, key: str, ttl: float) -> bool:
        """Give an entry another time to live; False when it is not there."""
        place, ttl_ms = self._place(key), self._terms(ttl).ttl_ms
        for _ in range(_MOST_TRIES):
            look = await self._room.shelf.read(place)
            entry = look.entry
            if entry is None or look.record is None or self._value(look) is MISSING:
                return False
            stale_ms = self._own_stale_ms if entry.flags & BOUNDED else 0
            if not await self._room.shelf.outlive(place, look.record, entry, ttl_ms + stale_ms):
                return False
            until_us = self._now_us() + ttl_ms * 1000
            flags = entry.flags & COMPRESSED
            if await self._replace(place, look, ttl_ms + stale_ms, more_flags=flags, fresh_until_us=until_us):
                return True
        raise self._busy(key)

    @told
    async def increment(self, key: str, delta: int = 1) -> int:
        """Add to a whole number, which is `delta` where nothing is; it keeps its time to live and its tags. NotEncodable when
        the cache has no whole numbers. Not for counting fast: that is what obs.metrics is for."""
        if isinstance(delta, bool) or not isinstance(delta, int):
            raise InvalidArgument(f"delta must be a whole number, got {units.shown(delta)}")
        place = self._place(key)
        lock = self._room.counting.setdefault(place.entry, asyncio.Lock())
        async with lock:  # of this process one at a time: the others would only lose to it
            for _ in range(_MOST_TRIES):
                look = await self._room.shelf.read(place)
                value = self._value(look)
                if value is MISSING:
                    number, done = delta, await self._write(place, cast(T, delta), self._terms(), look.head or ABSENT)
                elif isinstance(value, bool) or not isinstance(value, int):
                    raise NotEncodable(f"cache {self.name}: {key!r:.80} is no whole number", remedy="Use obs.cache(int)")
                else:
                    number = value + delta
                    payload, flags = self._room.codec.encode(number)
                    done = await self._replace(place, look, 0, made_us=self._now_us(), payload=payload, more_flags=flags)
                if done:
                    return number
        raise self._busy(key)

    async def _replace(self, place: Place, look: Look, life_ms: int, *, more_flags: int = 0, **changes: Any) -> bool:
        """The entry that was found by one like it, unless another stands there now. life_ms 0: it lives as long as before."""
        if look.entry is None or look.record is None:
            return False
        changed = look.entry._replace(flags=look.entry.flags & BOUNDED | more_flags, **changes)
        try:
            return await self._room.shelf.write(place, pack(changed), life_ms, record=look.record, expected=look.head)
        finally:
            self._room.flights.detach(place)

    def _busy(self, key: str) -> CacheError:
        return CacheError(f"cache {self.name}: {key!r:.80} changes faster than it can be changed")

    @told
    async def clear(self) -> bool:
        """Everything in the cache counts no more, in O(1); of a cache `by` a dimension, what is of the one that is bound."""
        scope = self._room.scope()
        try:
            await self._room.shelf.forget(scope)
        finally:
            self._room.flights.detach_all()
        return True

    async def invalidate(self, *tags: str) -> None:
        """Everything set with any of these tags counts no more, in O(1) each; also what is being computed now."""
        checked = invalidated(tags)
        try:
            await self._room.shelf.versions.invalidate(self._room.scope(), checked)
        finally:
            self._room.flights.detach_all()
