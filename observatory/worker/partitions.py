"""Which partitions are this worker's: divided by leases, evenly, and handed over when workers come and go.

Leases are for efficiency only. What keeps two workers from counting one event twice is the offset, in events/apply.
"""

import random
from collections.abc import Callable

from ..features.leases import Lease, Leases
from ..logs import INTERNAL


class Partitions:
    """The partitions that this worker holds."""

    def __init__(self, leases: Leases, *, count: Callable[[], int], workers: Callable[[], int], lease: float) -> None:
        self._leases = leases
        self._count = count
        self._workers = workers
        self._lease = lease
        self._held: dict[int, Lease] = {}

    def held(self) -> list[int]:
        """Those whose lease has not run out, as far as we know."""
        return sorted(partition for partition, lease in self._held.items() if lease.is_live)

    async def balance(self) -> None:
        """Renew what is held, give up what is above the fair share, take what is free below it."""
        count = self._count()
        share = -(-count // max(self._workers(), 1))
        for partition in sorted(self._held):
            if len(self._held) > share:
                await self._give_up(partition)
            else:
                await self._take(partition)
        free = [partition for partition in range(count) if partition not in self._held]
        random.shuffle(free)
        for partition in free:
            if len(self._held) >= share:
                break
            await self._take(partition)

    async def _take(self, partition: int) -> None:
        lease = await self._leases.acquire(_name(partition), self._lease)
        if lease is not None:
            if partition not in self._held:
                INTERNAL.info("worker took partition %d (fence %d)", partition, lease.fence)
            self._held[partition] = lease
        elif self._held.pop(partition, None) is not None:
            INTERNAL.warning("worker lost partition %d", partition)

    async def _give_up(self, partition: int) -> None:
        del self._held[partition]
        await self._leases.release(_name(partition))
        INTERNAL.info("worker gave up partition %d", partition)

    async def release(self) -> None:
        """Give all of them up, so that nobody has to wait for the leases to run out."""
        for partition in sorted(self._held):
            await self._give_up(partition)


def _name(partition: int) -> str:
    return f"events:{partition}"
