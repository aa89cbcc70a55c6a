"""The caches of one process, by name: one type a name, and whatever the handles of one name share."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol
from weakref import WeakValueDictionary

from ... import dimensions, names, units
from ...errors import ConfigurationError, InvalidArgument
from ...keys import Key, part
from ...store.store import Store
from ...store.tracker import Listener
from ...store.tracking import Tracking
from .codec import Codec
from .counts import Counts, Recording
from .flights import Flights
from .near import Near, Vicinity
from .shelf import Place, Shelf

_LONGEST_KEY = 1 << 20


class Bounds(NamedTuple):
    """Of what one cache keeps near in one process."""

    entries: int
    bytes: int


class Room:
    """What the handles of one name share."""

    def __init__(self, space: "CacheSpace", kind: Any, name: str, by: tuple[str, ...], bounds: Bounds | None) -> None:
        self.kind = kind
        self.by = by
        self.name = name
        self.bounds = bounds
        self.store = space.store
        self.counting: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()
        """Whose number is being added to."""
        self.codec: Codec[Any] = Codec(kind, space.max_value)
        self.counts = Counts(space.metrics, name)
        self.near: Near[Any] | None = None
        if bounds is not None:
            self.near = Near(
                *(space.vicinity, self.codec.plainly),
                max_entries=bounds.entries,
                max_bytes=bounds.bytes,
                mismatched=self.counts.mismatched,
            )
            space.include(name)
        self.shelf = Shelf(space.store, name, self.codec.fingerprint, self.near)
        self.flights: Flights[Any] = Flights(
            *(space.store, self.shelf, self.codec, self.counts),
            name=name,
            now_us=space.now_us,
            jitter=space.jitter,
        )

    def scope(self) -> str:
        """Whose entries they are, here and now. InvalidArgument when nobody said."""
        if not self.by:
            return ""
        bound = dimensions.current()
        missing = [name for name in self.by if name not in bound]
        if missing:
            raise InvalidArgument(
                f"cache {self.name} is kept by {', '.join(self.by)}, and {', '.join(missing)} is not bound",
                remedy=f"Bind it: with obs.bound({missing[0]}=...)",
            )
        return ",".join(f"{name}={part(bound[name])}" for name in self.by)

    def checked(self, key: str) -> str:
        if not isinstance(key, str) or not key:
            raise InvalidArgument(f"cache key must be a non-empty string, got {units.shown(key)}")
        if len(key) > _LONGEST_KEY:
            raise InvalidArgument(f"cache key must be at most {_LONGEST_KEY} characters, got {len(key)}")
        return key

    def place(self, key: str) -> Place:
        """Where an entry is. StoreUnavailable before the store was ever reached."""
        return self.shelf.place(self.checked(key), self.scope())

    def nowhere(self, key: str) -> Place:
        """In the same case: only a name, by which computations meet."""
        scope = self.scope()
        return Place(key, scope, Key(f"{scope}\0{key}"), Key(""), Key(""))


class Lender(Protocol):
    """An Observatory, as a cache sees it."""

    @property
    def caches(self) -> "CacheSpace": ...


class CacheSpace:
    """Makes the rooms."""

    def __init__(
        self,
        store: Callable[[], Store],
        metrics: Recording,
        now_us: Callable[[], int],
        *,
        ttl: float,
        jitter: float,
        max_value: int,
        compress_over: int,
        is_near: bool,
        near: Bounds,
        near_bound: float,
    ) -> None:
        self.store = store
        self.metrics = metrics
        self.now_us = now_us
        self.ttl = ttl
        self.jitter = min(jitter, 1.0)
        self.max_value = max_value
        self.compress_over = compress_over
        self.is_near = is_near
        self.near = near
        self.vicinity = Vicinity(self._track, self._stored, bound=near_bound)
        self._near: dict[str, None] = {}
        self._tracked: Store | None = None
        self._rooms: dict[str, Room] = {}

    def _track(self, listener: Listener) -> Tracking:
        store = self._tracked = self.store()
        return store.track([store.keys.cached(name) for name in list(self._near)], listener, self.vicinity.bound)

    async def _stored(self, key: Key) -> bytes | None:
        found: bytes | None = await self.store().command("GET", key, link="values")
        return found

    def include(self, name: str) -> None:
        """Something of this cache will be kept near. From any thread: the store's own loop, if there is one, does the rest."""
        self._near[name] = None
        self.vicinity.include(lambda: self._spelled(name))

    def _spelled(self, name: str) -> str:
        return (self._tracked or self.store()).keys.cached(name)

    def room(self, kind: Any, name: str, by: str | Iterable[str] | None, near: Bounds | None) -> Room:
        """ConfigurationError when the name is in use here with another type, or kept by something else."""
        names.cache_name(name)
        wanted = tuple(sorted(dimensions.checked(dict.fromkeys((by,) if isinstance(by, str) else by or (), "x"))))
        room = self._rooms.get(name)
        if room is None:
            room = self._rooms[name] = Room(self, kind, name, wanted, near)
        elif room.kind != kind:
            raise ConfigurationError(
                f"cache {name!r} is of {room.kind!r:.80} here, and cannot be of {kind!r:.80} too", remedy="Give it another name"
            )
        elif room.by != wanted:
            raise ConfigurationError(
                f"cache {name!r} is kept by {room.by or 'nobody'} here, and cannot be kept by {wanted or 'nobody'} too",
                remedy="Give it another name",
            )
        elif room.bounds != near:
            raise ConfigurationError(
                f"cache {name!r} is near={_shown(room.bounds)} here, and cannot be near={_shown(near)} too",
                remedy="Say the same of near, max_entries and max_bytes wherever it is opened",
            )
        return room

    def settle(self) -> None:
        """What was counted on the way of a hit goes to the metrics."""
        for room in self._rooms.values():
            if room.near is not None:
                room.counts.settle(room.near.stats)

    async def aclose(self) -> None:
        """Nobody computes any more; leases are given back."""
        for room in self._rooms.values():
            await room.flights.aclose()
        self.settle()

    def drop(self) -> None:
        """What is near is read anew."""
        for room in self._rooms.values():
            if room.near is not None:
                room.near.clear()

    def forget(self) -> None:
        """A forked child."""
        self.vicinity.forget()
        for room in self._rooms.values():
            if room.near is not None:
                room.near.forget()
            room.flights.forget()
            room.counting.clear()
            room.counts.forget()


def _shown(bounds: Bounds | None) -> str:
    return "False" if bounds is None else f"True, max_entries={bounds.entries}, max_bytes={bounds.bytes}"
