"""Leases: one owner of a name at a time, until a moment, with a fence that only grows."""

from collections.abc import Awaitable, Callable

import msgspec

from .. import units
from ..clock import monotonic
from ..errors import InvalidArgument
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
    """What one owner holds. Of every name ever used the last fence is kept for ever: names are not made up at run time."""

    def __init__(self, store: Callable[[], Store], owner: Callable[[], str]) -> None:
        self._store = store
        self._owner = owner

    async def acquire(self, name: str, lease: float) -> Lease | None:
        """Become or stay the owner for `lease` seconds, at least 1 ms; None when somebody else is.

        StoreUnavailable: unknown; a lease that was held before still ends at its `ends_at`.
        """
        lease_ms = units.microseconds(lease, "lease") // 1000
        if lease_ms < 1:
            raise InvalidArgument(f"lease must be at least 1 ms, got {units.shown(lease, 40)}")
        store = self._store()
        asked_at = monotonic()
        owned, fence, _ = await _acquire(
            store,
            lease=store.keys.lease(_checked(name)),
            fences=store.keys.fences(),
            name=name,
            owner=self._owner(),
            lease_ms=lease_ms,
        )
        return Lease(name, fence, asked_at + lease_ms / 1000) if owned else None

    async def release(self, name: str) -> None:
        """Let go, if still the owner."""
        store = self._store()
        await _release(store, lease=store.keys.lease(_checked(name)), owner=self._owner())


def _checked(name: object) -> str:
    if not isinstance(name, str) or not 0 < len(name) <= 256:
        raise InvalidArgument(f"a lease's name must be a text of 1 to 256 characters, got {units.shown(name)}")
    return name
