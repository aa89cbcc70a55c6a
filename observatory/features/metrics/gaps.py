"""Does the store stand where it stood? A failover or restart may lose batches that were added; their writers send them again.

Until they have, every total is too low. Whoever reads a counter that steps back takes it for a restart, and adds all of it a
second time: so totals are not told meanwhile. Nor right after any restart or promotion: others' new batches may stand where the
lost ones stood.
"""

import asyncio

from ...clock import monotonic
from ...errors import StoreError, StoreMisconfigured, StoreUnavailable
from ...keys import Key
from ...logs import INTERNAL
from ...store.continuity import Continuity
from ...store.store import Store
from . import spoilt

SETTLE = 3.0
"""Seconds for which totals are held back at least: the batches of one writer must not pass for the missing ones of another. A
writer with nothing new asks every two seconds whether its last batch stayed."""
PATIENCE = 15.0
"""Seconds without any batch after which nobody will send what is missing."""
LONGEST = 60.0
"""Seconds after which what is missing is given up in any case: writers keep acknowledged batches for ten."""


class Gaps:
    """How many batches each partition has ever added, and how far its events are applied, as seen from here; less than before,
    and there are gaps. Other servers than before, and there may be.

    Only who has looked before the store went back can know it: an exporting process looks about once a second.
    """

    def __init__(self) -> None:
        self._continuity = Continuity()
        self._highest: dict[Key, int] = {}
        self._last: dict[Key, int] = {}
        self._fell_at: float | None = None
        self._moved_at = 0.0
        self._falls = 0
        self.given_up = 0
        """How often totals stayed lower than they had been."""

    async def look(self, store: Store) -> bool:
        """Whether totals are whole, as far as can be known here. StoreUnavailable: unknown."""
        # First: between the servers that answer here and those of the next look lies whatever is read now.
        if await self._continuity.broken(store):
            # Also if the counts do not come: who looks next will find the same servers.
            self._fall(monotonic())
        keys = store.keys
        # What workers derive from events moves with the offset in the stream.
        places = [place(partition) for partition in range(keys.partitions) for place in (keys.metric_flushes, keys.offset)]
        found = await asyncio.gather(*(_number(store, place) for place in places))
        counts = {place: number for place, number in zip(places, found, strict=True) if number is not None}
        return self._judge(counts, monotonic())

    async def refuse(self, store: Store) -> int:
        """StoreUnavailable while totals are not whole. Returns how often the store has gone back until now: what is read
        between two answers that are the same is of one life."""
        if await self.look(store):
            return self._falls
        why = "the store was restarted or lost batches, and their writers are sending them again"
        raise StoreUnavailable(f"totals are held back: {why}", retry_after=1.0)

    def _fall(self, now: float) -> None:
        self._fell_at = self._moved_at = now
        self._falls += 1

    def _judge(self, counts: dict[Key, int], now: float) -> bool:
        if any(count < self._last.get(place, 0) for place, count in counts.items()):
            self._fall(now)
        elif counts != self._last:
            self._moved_at = now
        self._last = counts
        if self._fell_at is not None:
            if any(count < self._highest.get(place, 0) for place, count in counts.items()):
                if now - self._moved_at < PATIENCE and now - self._fell_at < LONGEST:
                    return False
                self.given_up += 1
                INTERNAL.error("the store lost batches that nobody sends again: totals may be lower than they were")
            elif now - self._fell_at < SETTLE:
                return False
            self._fell_at, self._highest = None, {}
        self._highest = {place: max(count, self._highest.get(place, 0)) for place, count in counts.items()}
        return True


async def _number(store: Store, place: Key) -> int | None:
    """A count, or an entry's id (moment-number) as one number that grows with it; None where somebody else has spoilt it."""
    try:
        moment, _, number = (await store.bulk().command("GET", place) or b"0").partition(b"-")
        return int(moment) << 32 | int(number or 0)
    except (StoreUnavailable, StoreMisconfigured):
        raise
    except (StoreError, ValueError):
        spoilt.tell(f"{place} is no count")
        return None
