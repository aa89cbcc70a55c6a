"""`obs.cache(T)`: the same entries in every process, each with a time to live."""

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, NoReturn, Protocol, TypeVar, cast, overload

from aiocache import BaseCache

from ... import names, units
from ...errors import CacheError, ConfigurationError, InvalidArgument
from ...keys import Key
from ...names import Metric
from ...store.store import Store
from .codec import Codec

T = TypeVar("T")
D = TypeVar("D")
_OWN: Any = object()
"""ttl=_OWN: the cache's own."""


class Recording(Protocol):
    """What a cache needs of the metrics."""

    def increment_counter(self, metric: str, value: int = 1, labels: Mapping[str, str] | None = None) -> None: ...


class Cache(BaseCache, Generic[T]):  # type: ignore[misc]
    """Shared, typed entries. Same name, same entries, in every process. ttl=None is refused: every shared entry expires.

    Every method may raise StoreUnavailable; whether a write took effect is then unknown, and it is safe to repeat.
    """

    def __init__(
        self, store: Callable[[], Store], metrics: Recording, codec: Codec[T], *, name: str, ttl: float, jitter: float
    ) -> None:
        super().__init__(timeout=None)
        self.name = name
        self._store = store
        self._metrics = metrics
        self._codec = codec
        self._jitter = jitter
        self._hit = {"cache": name, "tier": "shared"}
        self._miss = {"cache": name}
        self._own_ttl_ms = self._ttl_ms(ttl)

    def _ttl_ms(self, ttl: float) -> int:
        if ttl is _OWN:
            return self._own_ttl_ms
        if ttl is None:
            raise InvalidArgument("ttl must be seconds above 0: every shared entry expires")
        ttl_ms = units.microseconds(ttl, "ttl") // 1000
        if ttl_ms < 1:
            raise InvalidArgument(f"ttl must be at least 1 ms, got {units.shown(ttl, 40)}")
        return ttl_ms

    def _spread(self, ttl: float) -> int:
        """The time to live, less a random part, so that entries made together do not end together."""
        ttl_ms = self._ttl_ms(ttl)
        return max(int(ttl_ms * (1 - random.uniform(0, self._jitter))), 1)

    def _key(self, key: str) -> Key:
        if not isinstance(key, str) or not key:
            raise InvalidArgument(f"cache key must be a non-empty string, got {units.shown(key)}")
        return self._store().keys.entry(self.name, self._codec.fingerprint, key)

    async def _command(self, *command: str | bytes | int) -> Any:
        return await self._store().command(*command, link="values")

    @overload
    async def get(self, key: str) -> T | None: ...
    @overload
    async def get(self, key: str, default: D) -> T | D: ...
    async def get(self, key: str, default: Any = None) -> Any:
        """The value, or `default` for a miss."""
        return self._read(await self._command("GET", self._key(key)), default)

    def _read(self, payload: bytes | None, default: Any) -> Any:
        value = default
        missed = payload is None
        if payload is not None:
            decoded = self._codec.decode(payload)
            missed = self._codec.is_missing(decoded)
            value = default if missed else decoded
        if missed:
            self._metrics.increment_counter(Metric.CACHE_MISSES, 1, self._miss)
        else:
            self._metrics.increment_counter(Metric.CACHE_HITS, 1, self._hit)
        return value

    async def get_many(self, keys: Iterable[str]) -> dict[str, T]:
        """Hits only, so that None can be a value."""
        wanted = list(keys)
        payloads = await asyncio.gather(*(self._command("GET", self._key(key)) for key in wanted))
        missed: Any = object()
        found = {key: self._read(payload, missed) for key, payload in zip(wanted, payloads, strict=True)}
        return {key: value for key, value in found.items() if value is not missed}

    async def set(self, key: str, value: T, ttl: float = _OWN) -> bool:
        """Write. NotEncodable when the value is not of the cache's type, ValueTooLarge above cache.max_value."""
        await self._command("SET", self._key(key), self._codec.encode(value), "PX", self._spread(ttl))
        return True

    async def set_many(self, entries: Mapping[str, T], ttl: float = _OWN) -> None:
        """As many `set` at once."""
        encoded = [(self._key(key), self._codec.encode(value)) for key, value in entries.items()]
        await asyncio.gather(*(self._command("SET", key, payload, "PX", self._spread(ttl)) for key, payload in encoded))

    async def add(self, key: str, value: T, ttl: float = _OWN) -> bool:
        """Write where nothing is. ValueError when it exists (aiocache's contract)."""
        done = await self._command("SET", self._key(key), self._codec.encode(value), "PX", self._spread(ttl), "NX")
        if done is None:
            raise ValueError(f"cache {self.name}: key {key!r:.80} exists already")
        return True

    async def delete(self, key: str) -> int:
        """Remove; the number of entries that were there."""
        return cast(int, await self._command("DEL", self._key(key)))

    async def exists(self, key: str) -> bool:
        return bool(await self._command("EXISTS", self._key(key)))

    async def expire(self, key: str, ttl: float) -> bool:
        """Give an entry another time to live; False when it is not there."""
        return bool(await self._command("PEXPIRE", self._key(key), self._ttl_ms(ttl)))

    # what aiocache's caches have beside
    async def multi_get(self, keys: Iterable[str]) -> list[T | None]:
        """The values in the order of their keys, None for a miss."""
        wanted = list(keys)
        found = await self.get_many(wanted)
        return [found.get(key) for key in wanted]

    async def multi_set(self, pairs: Iterable[tuple[str, T]], ttl: float = _OWN) -> bool:
        """As `set_many`."""
        await self.set_many(dict(pairs), ttl)
        return True

    async def increment(self, *_: object, **__: object) -> NoReturn:
        raise _missing(self.name, "counts nothing", "Count with obs.metrics, or limit with obs.rate_limiter")

    async def clear(self, *_: object, **__: object) -> NoReturn:
        raise _missing(self.name, "cannot be cleared", "Give it another name; what is there expires by itself")

    async def raw(self, *_: object, **__: object) -> NoReturn:
        raise _missing(self.name, "passes no commands on", "Use a Redis client of yours")


def _missing(name: str, what: str, remedy: str) -> CacheError:
    return CacheError(f"cache {name} {what}: its entries are typed, and spread over the store", remedy=remedy)


class CacheSpace:
    """The caches of one process, by name: one type a name."""

    def __init__(self, store: Callable[[], Store], metrics: Recording, *, ttl: float, jitter: float, max_value: int) -> None:
        self._store = store
        self._metrics = metrics
        self._ttl = ttl
        self._jitter = min(jitter, 1.0)
        self._max_value = max_value
        self._kinds: dict[str, tuple[Any, Codec[Any]]] = {}

    def cache(self, kind: Any, name: str, ttl: float | None) -> Cache[Any]:
        """ConfigurationError when the name is in use here with another type."""
        names.cache_name(name)
        known, codec = self._kinds.get(name, (kind, None))
        if codec is None:
            codec = Codec(kind, self._max_value)
            self._kinds[name] = (kind, codec)
        elif known != kind:
            raise ConfigurationError(
                f"cache {name!r} is of {known!r:.80} here, and cannot be of {kind!r:.80} too", remedy="Give it another name"
            )
        ttl = self._ttl if ttl is None else ttl
        return Cache(self._store, self._metrics, codec, name=name, ttl=ttl, jitter=self._jitter)
