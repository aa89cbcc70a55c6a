"""The ledger of holds: each is reserved once and ends once, whoever ends it; the scripts keep it, in the step that does it."""

import asyncio
from collections.abc import Awaitable, Sequence

import msgspec

from ...keys import Key
from ...store.script import lua
from ...store.store import Bulk, Store

_AT_ONCE = 64


@lua("rate_limiter/survey")
def _survey(store: Bulk, *, fence: Key, now_us: int) -> Awaitable[Sequence[int]]: ...


class Reservations(msgspec.Struct, frozen=True):
    """What became of the holds of a namespace, ever, and how many are open now."""

    reserved: int = 0
    settled: int = 0
    cancelled: int = 0
    reaped: int = 0
    open: int = 0

    @property
    def drift(self) -> int:
        """0, or a hold ended twice, or in no way."""
        return self.reserved - self.settled - self.cancelled - self.reaped - self.open


async def reservations(store: Store) -> Reservations:
    """The sums over all slots: one, and on a cluster all of them."""
    fences = store.keys.limiter_fences() if store.is_cluster else (store.keys.fence(),)
    sums = [0] * 5
    for start in range(0, len(fences), _AT_ONCE):
        found = await asyncio.gather(*(_survey(store.bulk(), fence=one, now_us=0) for one in fences[start : start + _AT_ONCE]))
        sums = [sum(column) for column in zip(sums, *found, strict=True)]
    return Reservations(*sums)
