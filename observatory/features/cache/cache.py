"""`obs.cache(T)`: the same entries in every process, each with a time to live."""

from collections.abc import Awaitable, Callable, Iterable
from functools import partial, wraps
from typing import Any, NoReturn, ParamSpec, TypeVar, cast, overload

from ...errors import CacheError, StoreError, StoreMisconfigured
from ...keys import Key
from .arguments import key_of
from .checks import asynchronous, milliseconds, pairs_in, several_keys
from .codec import MISSING
from .counts import CacheStats
from .entries import OWN, Entries
from .lease import release
from .plugins import told

T = TypeVar("T")
P = ParamSpec("P")


class Cache(Entries[T]):
    """Shared, typed entries. Same name, same entries, in every process. ttl=None is refused: every shared entry expires.

    With the store away or slow, reads are misses within redis.max_wait, and counted; whatever writes raises StoreUnavailable:
    whether it took effect is then unknown, and it is safe to repeat (but `add` and `increment`). Cancelled: likewise.
    `get_or_compute` and what is `cached` answer all the same.
    """

    async def get_or_compute(
        self,
        key: str,
        compute: Callable[[], Awaitable[T]],
        ttl: float = OWN,
        *,
        tags: Iterable[str] = (),
        stale_for: float = OWN,
        fail_for: float = 0.0,
    ) -> T:
        """The value; computed once in the fleet where it is not there. With the store away each process computes for itself.

        stale_for: seconds after `ttl` during which the old value is served while one process makes a new one, also when that
        fails. fail_for: seconds that an exception is remembered (1 at least: so long it is told to everybody who waits).
        Whoever computes gets the exception itself, the others CacheComputationFailed. Cancelled: the computation goes on while
        anybody here waits for it, and ends with the last.
        """
        value: T = self._nearby(key)
        if value is not MISSING:
            return value
        asynchronous(compute, "compute")
        terms = self._terms(ttl, stale_for, tags, fail_for)
        self._room.checked(key)
        try:
            place = self._place(key)
        except StoreMisconfigured:
            raise
        except StoreError:
            self._room.counts.error()
            place = self._room.nowhere(key)
        return cast(T, await self._room.flights.fetch(place, compute, terms))

    @overload
    def cached(self, fn: Callable[P, Awaitable[T]], /) -> Callable[P, Awaitable[T]]: ...
    @overload
    def cached(
        self,
        *,
        key: str | Callable[..., str] | None = None,
        ttl: float = ...,
        tags: Iterable[str] = (),
        stale_for: float = ...,
        fail_for: float = 0.0,
    ) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]: ...
    def cached(
        self,
        fn: Any = None,
        *,
        key: str | Callable[..., str] | None = None,
        ttl: float = OWN,
        tags: Iterable[str] = (),
        stale_for: float = OWN,
        fail_for: float = 0.0,
    ) -> Any:
        """`get_or_compute` as a decorator. key: a template over the arguments, "user:{user_id}", or a function of them; None:
        built from all of them, types distinguished. The decorated function's `.key(...)` says which key a call has."""
        labels = self._terms(ttl, stale_for, tags, fail_for).tags

        def decorate(inner: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
            made = key_of(asynchronous(inner, "what is cached"), key)

            @wraps(inner)
            async def call(*args: Any, **kwargs: Any) -> T:
                work = partial(inner, *args, **kwargs)
                return await self.get_or_compute(
                    made(*args, **kwargs), work, ttl, tags=labels, stale_for=stale_for, fail_for=fail_for
                )

            call.key = made  # type: ignore[attr-defined]
            call.cache = self  # type: ignore[attr-defined]
            return call

        return decorate if fn is None else decorate(fn)

    async def stats(self, *, fleet: bool = True) -> CacheStats:
        """How it has served: the fleet in the last hour (StoreUnavailable: ask again), or this process since it began."""
        near = self._room.near
        return await self._room.counts.everywhere() if fleet else self._room.counts.here(None if near is None else near.stats)

    # what aiocache's caches have beside
    @told
    async def multi_get(self, keys: Iterable[str]) -> list[T | None]:
        """The values in the order of their keys, None for a miss."""
        wanted = several_keys(keys)
        found = await self.get_many(wanted)
        return [found.get(key) for key in wanted]

    @told
    async def multi_set(self, pairs: Iterable[tuple[str, T]], ttl: float = OWN) -> bool:
        """As `set_many`."""
        await self.set_many(pairs_in(pairs), ttl)
        return True

    async def close(self) -> bool:
        """Nothing: the Observatory owns the connections, and closes them."""
        return True

    async def raw(self, *_: object, **__: object) -> NoReturn:
        raise CacheError(
            f"cache {self.name} passes no commands on: its entries are typed, and spread over the store",
            remedy="Use a Redis client of yours",
        )

    # what aiocache's RedLock asks for: a lock beside the entries, which is nobody's value
    async def _add(self, key: str, value: str, ttl: float) -> bool:
        if await self._room.store().command(
            "SET", self._lock(key), value, "PX", milliseconds(ttl, "lease"), "NX", link="values"
        ):
            return True
        raise ValueError(f"cache {self.name}: {key!r:.80} is locked")

    async def _redlock_release(self, key: str, value: str) -> int:
        return await release(self._room.store(), self._lock(key), value)

    def _lock(self, key: str) -> Key:
        return self._room.store().keys.entry(self.name, "lock", self._room.checked(key), self._room.scope())
