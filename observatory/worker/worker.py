"""The loop: partitions, streams, and the roles that one worker of the fleet has; and an orderly end."""

import asyncio
from collections.abc import Iterable

from ..background import Background, Job
from ..client import Observatory
from ..clock import monotonic
from ..errors import StoreError, StoreUnavailable
from ..logs import INTERNAL
from .leaders import Leaders
from .partitions import Partitions
from .roles import EVENTS, ROLES, wanted
from .streams import Streams

BALANCE_EVERY = 0.5
STALLED_AFTER = 30.0
"""Seconds without progress, with events waiting, after which a worker does not call itself alive."""


class Worker:
    """Works for one namespace until told to stop. Any number may run.

    What holds: an event is applied once, whoever reads it. A worker that dies before its apply has changed nothing, one that
    dies after it has finished; a successor goes on where the offset stands, at the latest a lease and a beat after the worker
    fell silent. A leader role is had by one worker at a time, and by another a lease after that one fell silent.

    roles: `events`, leader roles (roles.py), or "all". concurrency: stream entries in hand at once. None: as the settings say.
    """

    def __init__(self, obs: Observatory, roles: Iterable[str] | None = None, concurrency: int | None = None) -> None:
        settings = obs.settings.worker
        self._obs = obs
        self._drain_timeout = settings.drain_timeout
        self.roles = wanted(settings.roles if roles is None else roles, obs)
        self.partitions = Partitions(
            obs.leases,
            count=lambda: obs.store.keys.partitions,
            workers=lambda: 1 if obs.presence is None else obs.presence.live_peers,
            lease=settings.lease,
        )
        self.streams = Streams(obs, self.partitions, concurrency or settings.concurrency)
        self.leaders = Leaders(obs, [ROLES[role](obs) for role in self.roles if role != EVENTS], settings.lease)

    @property
    def applied(self) -> int:
        """Events that this worker has applied."""
        return self.streams.applied

    async def run(self, stop: asyncio.Event) -> bool:
        """Work until `stop`; then finish the run at hand and give partitions and leases back. False: that took longer than
        worker.drain_timeout, or the store was away; leases run out by themselves."""
        jobs = (Job("partitions", BALANCE_EVERY, self.partitions.balance),) if EVENTS in self.roles else ()
        balancing = Background(jobs)
        balancing.start()
        self.leaders.start()
        working = asyncio.ensure_future(self._work())
        stopping = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
        finally:
            stopping.cancel()
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            await balancing.stop()
            drained = await self._drain()
        return drained

    async def stuck(self) -> str | None:
        """Why this worker is of no use any more, as liveness has it: nothing was applied for so many seconds while something
        waits on a partition of its own. A store that is away is not cured by a restart: nobody can say, and it is None. Nor is
        one partition that the store refuses, as long as the others go on: its trouble is in the log, its lag in the metrics.
        """
        silent = self.streams.silent(STALLED_AFTER) if EVENTS in self.roles else ()
        if not silent or monotonic() - self.streams.applied_at < STALLED_AFTER:
            return None
        store, waiting = self._obs.store, {}
        try:
            async with asyncio.timeout(1.0):
                for partition in silent:
                    try:
                        waiting[partition] = await store.command("XLEN", store.keys.stream(partition))
                    except StoreUnavailable:
                        raise
                    except StoreError:
                        # A stream that cannot even be measured; how much of it there is, nobody knows.
                        waiting[partition] = 1
        except (StoreUnavailable, TimeoutError):
            return None
        waiting = {partition: length for partition, length in waiting.items() if length}
        if not waiting:
            return None
        where = ", ".join(map(str, waiting))
        why = "; ".join(sorted({self.streams.troubles.get(one, "the store refused nothing") for one in waiting}))
        seconds = monotonic() - self.streams.applied_at
        return (
            f"no event was applied for {seconds:.0f} s, and {sum(waiting.values())} entries wait on partitions {where}: {why}"
        )

    async def _work(self) -> None:
        if EVENTS not in self.roles:
            await asyncio.Event().wait()
        while True:
            await self.streams.step()

    async def _drain(self) -> bool:
        """A blocking read was abandoned already; an apply is short, and is waited for."""
        try:
            async with asyncio.timeout(self._drain_timeout):
                await self.streams.settle()
                try:
                    await self.leaders.stop()
                finally:
                    await self.partitions.release()
                # Who held nothing has not asked anybody yet.
                await self._obs.store.ping()
                return True
        except TimeoutError:
            INTERNAL.error("worker.drain_timeout (%g s) is over; what it holds runs out by itself", self._drain_timeout)
        except StoreError as error:
            INTERNAL.warning("worker leaves what it holds to run out: %s", error)
        finally:
            await self.streams.cancel()
            await self.leaders.cancel()
        return False
