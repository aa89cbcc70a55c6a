"""The loop: read, apply, go on. Bounded in memory: one run of entries per partition at a time."""

import asyncio
from typing import Any

from ..background import Background, Job
from ..client import Observatory
from ..errors import StoreError
from ..logs import INTERNAL
from ..store.store import BLOCK_FOR, Store
from .apply import Entry, Meaning, apply
from .partitions import Partitions

ENTRIES = 20
"""Stream entries read at once, per partition: up to 2,000 events."""
BALANCE_EVERY = 0.5
_POLL = 0.1
"""Seconds between two looks at streams that cannot be waited for at once."""


class Worker:
    """Works off the events of one namespace until told to stop. Any number may run; each event is applied once.

    What holds: an event is applied by exactly one `events/apply`, which also moves the offset; a worker that dies before it has
    changed nothing, one that dies after it has finished. A successor goes on where the offset stands, at the latest a lease and
    a beat after the worker fell silent.
    """

    def __init__(self, obs: Observatory) -> None:
        self._obs = obs
        self._offsets: dict[int, str] = {}
        self.partitions = Partitions(
            obs.leases,
            count=lambda: obs.store.keys.partitions,
            workers=lambda: obs.live_peers,
            lease=obs.settings.worker.lease,
        )
        self.applied = 0
        """Events that this worker has applied."""

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop`; then finish the run at hand and give the partitions back."""
        balancing = Background((Job("partitions", BALANCE_EVERY, self.partitions.balance),))
        balancing.start()
        stopping = asyncio.ensure_future(stop.wait())
        step: asyncio.Future[None] | None = None
        try:
            while not stop.is_set():
                step = asyncio.ensure_future(self._step())
                await asyncio.wait({step, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not step.done():
                    # A blocking read may be abandoned at any moment; an apply is short, and is waited for.
                    await self._finish(step)
                    break
                step.result()
        finally:
            stopping.cancel()
            if step is not None and not step.done():
                step.cancel()
                await asyncio.gather(step, return_exceptions=True)
            await balancing.stop()
            try:
                await self.partitions.release()
            except StoreError as error:
                INTERNAL.warning("worker leaves its partitions to run out: %s", error)

    async def _finish(self, step: "asyncio.Future[None]") -> None:
        await asyncio.wait({step}, timeout=min(self._obs.settings.worker.drain_timeout, BLOCK_FOR + 1.0))
        if not step.done():
            step.cancel()
        await asyncio.gather(step, return_exceptions=True)

    async def _step(self) -> None:
        held = self.partitions.held()
        if not held:
            await asyncio.sleep(0.1)
            return
        try:
            runs = await self._read(held)
            await asyncio.gather(*(self._apply(partition, entries) for partition, entries in runs))
        except StoreError as error:
            # Offsets are read anew: a failover may have rolled them back.
            self._offsets.clear()
            INTERNAL.warning("worker waits for the store: %s", error)
            await asyncio.sleep(0.5)

    async def _read(self, held: list[int]) -> list[tuple[int, list[Entry]]]:
        store = self._obs.store
        keys = store.keys
        self._offsets = {partition: offset for partition, offset in self._offsets.items() if partition in held}
        for partition in held:
            if partition not in self._offsets:
                stands_at = await store.bulk().command("GET", keys.offset(partition))
                self._offsets[partition] = stands_at.decode() if stands_at else "0-0"
        streams = {keys.stream(partition).encode(): partition for partition in held}
        reads = [held]
        if store.is_cluster and len(held) > 1:
            # One command reads of one server only, and while it waits there the next one does: so nobody waits.
            reads = [[partition] for partition in held]
        replies = await asyncio.gather(*(self._ask(store, partitions, wait=len(reads) == 1) for partitions in reads))
        runs = [(streams[name], entries) for reply in replies for name, entries in (reply or {}).items()]
        if not runs and len(reads) > 1:
            await asyncio.sleep(_POLL)
        return sorted(runs)

    async def _ask(self, store: Store, held: list[int], *, wait: bool) -> dict[bytes, Any] | None:
        reply: dict[bytes, Any] | None = await store.command(
            *("XREAD", "COUNT", ENTRIES, *(("BLOCK", int(BLOCK_FOR * 250)) if wait else ()), "STREAMS"),
            *(store.keys.stream(partition) for partition in held),
            *(self._offsets[partition] for partition in held),
            link="blocking",
        )
        return reply

    async def _apply(self, partition: int, entries: list[Entry]) -> None:
        store = self._obs.store
        settings = self._obs.settings.metrics
        meaning = Meaning(settings.dimensions, store.server_us() or 0, settings.max_series)
        meaning.read(entries)
        offset = self._offsets[partition]
        done, stands_at, unusual = await apply(store.bulk(), partition, offset, entries, meaning)
        if done:
            self.applied += meaning.applied
        self._obs.metrics.count_unusual("worker", *unusual)
        # Not done: either another worker was here, or the reply of our own last call was lost. Go on where it stands.
        self._offsets[partition] = stands_at
