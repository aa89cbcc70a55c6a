"""Does the store stand where it stood? A failover or restart may lose batches that were added; their writers send them again.

Until they have, every total is too low. Whoever reads a counter that steps back takes it for a restart, and adds all of it a
second time: so totals are not told meanwhile.
"""

import asyncio

from ...clock import monotonic
from ...errors import StoreUnavailable
from ...logs import INTERNAL
from ...store.store import Store

SETTLE = 3.0
"""Seconds for which totals are held back at least: the batches of one writer must not pass for the missing ones of another."""
PATIENCE = 15.0
"""Seconds without any batch after which nobody will send what is missing."""
LONGEST = 60.0
"""Seconds after which what is missing is given up in any case: writers keep acknowledged batches for ten."""


class Gaps:
    """How many batches each partition has ever added, as seen from here; fewer than before, and there are gaps.

    Only who has looked before the store went back can know it: an exporting process looks about once a second.
    """

    def __init__(self) -> None:
        self._highest: dict[int, int] = {}
        self._last: dict[int, int] = {}
        self._fell_at: float | None = None
        self._moved_at = 0.0
        self.given_up = 0
        """How often totals stayed lower than they had been."""

    async def look(self, store: Store) -> bool:
        """Whether totals are whole, as far as can be known here. StoreUnavailable: unknown."""
        partitions = range(store.keys.partitions)
        bulk = store.bulk()
        found = await asyncio.gather(*(bulk.command("GET", store.keys.metric_flushes(partition)) for partition in partitions))
        return self._judge({partition: int(count or 0) for partition, count in enumerate(found)}, monotonic())

    async def refuse(self, store: Store) -> None:
        """StoreUnavailable while totals are not whole."""
        if not await self.look(store):
            raise StoreUnavailable("the store lost batches, and their writers are sending them again", retry_after=1.0)

    def _judge(self, counts: dict[int, int], now: float) -> bool:
        if any(count < self._last.get(partition, 0) for partition, count in counts.items()):
            self._fell_at = self._moved_at = now
        elif counts != self._last:
            self._moved_at = now
        self._last = counts
        if self._fell_at is not None:
            if any(count < self._highest.get(partition, 0) for partition, count in counts.items()):
                if now - self._moved_at < PATIENCE and now - self._fell_at < LONGEST:
                    return False
                self.given_up += 1
                INTERNAL.error("the store lost batches that nobody sends again: totals may be lower than they were")
            elif now - self._fell_at < SETTLE:
                return False
            self._fell_at, self._highest = None, {}
        self._highest = {partition: max(count, self._highest.get(partition, 0)) for partition, count in counts.items()}
        return True
