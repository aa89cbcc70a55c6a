"""Leases: one owner of a name at a time, until a moment, with a fence that only grows."""

from collections.abc import Awaitable, Callable

import msgspec

from ..clock import monotonic
from ..keys import Key
from ..store.script import lua
from ..store.store import Store


class Lease(msgspec.Struct, frozen=True):
    """Owned until `ends_at` on this machine's clock that counts through suspend, measured from before the asking."""

    name: str
    fence: int
    ends_at: float

    @property
    def is_live(self) -> bool:
        return monotonic() < self.ends_at


@lua("leases/acquire")
def _acquire(store: Store, *, lease: Key, fences: Key, name: str, owner: str, lease_ms: int) -> Awaitable[list[int]]: ...


@lua("leases/release")
def _release(store: Store, *, lease: Key, owner: str) -> Awaitable[list[int]]: ...


class Leases:
    """What one owner holds."""

    def __init__(self, store: Callable[[], Store], owner: Callable[[], str]) -> None:
        self._store = store
        self._owner = owner

    async def acquire(self, name: str, lease: float) -> Lease | None:
        """Become or stay the owner for `lease` seconds; None when somebody else is.

        StoreUnavailable: unknown; a lease that was held before still ends at its `ends_at`.
        """
        store = self._store()
        asked_at = monotonic()
        owned, fence, _ = await _acquire(
            store,
            lease=store.keys.lease(name),
            fences=store.keys.fences(),
            name=name,
            owner=self._owner(),
            lease_ms=max(int(lease * 1000), 1),
        )
        return Lease(name, fence, asked_at + lease) if owned else None

    async def release(self, name: str) -> None:
        """Let go, if still the owner."""
        store = self._store()
        await _release(store, lease=store.keys.lease(name), owner=self._owner())
