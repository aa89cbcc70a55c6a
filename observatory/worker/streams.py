"""Partitions worked off: read ahead, understand, apply; one run is under way at the store while the next is being read.

Bounded in memory: at most `concurrency` stream entries are in hand, in both runs together and over all partitions. An entry is
at most 100 events, and as a rule 256 KiB (features/events.py).
"""

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

from .. import names
from ..client import Observatory
from ..clock import monotonic
from ..errors import StoreError
from ..logs import INTERNAL
from ..store.store import BLOCK_FOR
from .apply import Entry, Meaning, apply
from .partitions import Partitions

_POLL = 0.1
"""Seconds between two looks at streams that cannot be waited for at once."""
_REST = 0.5
"""Seconds that a partition is left alone after the store refused it."""


class _Run(NamedTuple):
    """What was read of one partition, from where, and what it means."""

    partition: int
    offset: str
    entries: list[Entry]
    meaning: Meaning


class Streams:
    """The streams of the partitions that are held.

    What holds: an event is applied by exactly one `events/apply`, which also moves the offset. What was read ahead of an apply
    that was refused is forgotten and read again from where the partition stands.
    """

    def __init__(self, obs: Observatory, partitions: Partitions, concurrency: int) -> None:
        self._obs = obs
        self._partitions = partitions
        self._concurrency = max(concurrency, 2)
        self._heads: dict[int, str] = {}
        """Where the next run of a partition is read from."""
        self._under_way: dict[int, asyncio.Task[bool]] = {}
        self._resting: dict[int, float] = {}
        self._turn = self._long_turn = 0
        self._long: set[int] = set()
        """Partitions that had more than was taken of them."""
        self.applied = 0
        """Events that were applied from here."""
        self.progress_at = monotonic()
        """When something was last applied, or there was nothing to apply."""
        self.troubles: dict[int, str] = {}
        """What the store last said of partitions that it refuses."""

    async def step(self) -> None:
        """Read what comes next, then let go of what was under way, then send it."""
        held = self._mine()
        if not held:
            await self.settle()
            if not self._partitions.held():
                self.progress_at = monotonic()
            await asyncio.sleep(_POLL)
            return
        try:
            runs = await self._read(held)
        except StoreError as error:
            self._failed(error, held)
            await self.settle()
            return
        if not runs and not self._under_way:
            self.progress_at = monotonic()
            self.troubles.clear()
        # Of a partition one run at a time: the next begins where this one ends.
        sound = await self.settle()
        for run in runs:
            if sound.get(run.partition, True):
                self._under_way[run.partition] = asyncio.ensure_future(self._apply(run))

    async def settle(self) -> dict[int, bool]:
        """Wait for what is under way: which partitions stand where they were expected to."""
        under_way = self._under_way
        if under_way:
            # Not gathered: who is cancelled while waiting must not take an apply with it.
            await asyncio.wait(under_way.values())
        self._under_way = {}
        return {partition: task.result() for partition, task in under_way.items()}

    async def cancel(self) -> None:
        """Let go of what is under way at once: whether it was applied, the offset knows."""
        under_way, self._under_way = self._under_way, {}
        for task in under_way.values():
            task.cancel()
        await asyncio.gather(*under_way.values(), return_exceptions=True)

    def _mine(self) -> list[int]:
        """The partitions whose turn it is: as many as may have an entry each in hand, in both runs."""
        now = monotonic()
        held = self._partitions.held()
        self._heads = {one: head for one, head in self._heads.items() if one in held}
        self.troubles = {one: trouble for one, trouble in self.troubles.items() if one in held}
        able = [one for one in held if self._resting.get(one, 0.0) <= now]
        long = [one for one in able if one in self._long]
        if long:
            # Read alone, so that more events share what they add; every other turn is that of the others.
            self._long_turn += 1
            others = [one for one in able if one not in self._long]
            if not others or self._long_turn % 2:
                return [long[(self._long_turn if not others else self._long_turn // 2) % len(long)]]
            able = others
        most = self._concurrency // 2
        if len(able) > most:
            start = self._turn % len(able)
            self._turn += most
            able = (able + able)[start : start + most]
        return sorted(able)

    async def _read(self, held: list[int]) -> list[_Run]:
        store = self._obs.store
        keys = store.keys
        for partition in held:
            if partition not in self._heads:
                stands_at = await store.bulk().command("GET", keys.offset(partition))
                self._heads[partition] = stands_at.decode() if stands_at else "0-0"
        reads = [held]
        if store.is_cluster and len(held) > 1:
            # One command reads of one server only, and while it waits there the next one does: so nobody waits.
            reads = [[partition] for partition in held]
        wait = len(reads) == 1 and not self._under_way and len(held) == len(self._partitions.held())
        count = max(self._concurrency // 2 // len(held), 1)
        replies = await asyncio.gather(*(self._ask(partitions, count, wait=wait) for partitions in reads))
        streams = {keys.stream(partition).encode(): partition for partition in held}
        found = sorted((streams[name], entries) for reply in replies for name, entries in (reply or {}).items())
        if not found and not wait and not self._under_way:
            await asyncio.sleep(_POLL)
        self._long -= set(held)
        self._long |= {partition for partition, entries in found if len(entries) >= count}
        runs = []
        for partition, entries in found:
            runs.append(self._understood(partition, entries))
            await asyncio.sleep(0)
        return runs

    async def _ask(self, held: Sequence[int], count: int, *, wait: bool) -> dict[bytes, Any] | None:
        store = self._obs.store
        reply: dict[bytes, Any] | None = await store.command(
            *("XREAD", "COUNT", count, *(("BLOCK", int(BLOCK_FOR * 250)) if wait else ()), "STREAMS"),
            *(store.keys.stream(partition) for partition in held),
            *(self._heads[partition] for partition in held),
            link="blocking",
        )
        return reply

    def _understood(self, partition: int, entries: list[Entry]) -> _Run:
        settings = self._obs.settings.metrics
        meaning = Meaning(settings.dimensions, self._obs.store.server_us() or 0, settings.max_series)
        meaning.read(entries)
        run = _Run(partition, self._heads[partition], entries, meaning)
        self._heads[partition] = entries[-1][0].decode()
        return run

    async def _apply(self, run: _Run) -> bool:
        """True when the partition stands at the run's end now, so that what was read behind it may follow."""
        partition, offset, entries, meaning = run
        try:
            done = await apply(self._obs.store.bulk(), partition, offset, entries, meaning)
        except StoreError as error:
            self._failed(error, [partition])
            return False
        if done.done:
            self.applied += meaning.applied
            self.progress_at = monotonic()
            self.troubles.pop(partition, None)
        self._obs.metrics.count_unusual("worker", *done.unusual)
        if done.saved:
            self._obs.metrics.increment_counter(names.EVENTS_SAVED, done.saved)
        if done.forgotten:
            self._obs.events.count_dropped(done.forgotten, "dead_letters")
        if done.offset == entries[-1][0].decode():
            return True
        # Another worker was here, or a failover went back. Go on where it stands.
        self._heads[partition] = done.offset
        return False

    def _failed(self, error: StoreError, partitions: list[int]) -> None:
        """Offsets are read anew: a failover may have rolled them back."""
        for partition in partitions:
            self._heads.pop(partition, None)
            self._resting[partition] = monotonic() + _REST
        if not self.troubles:
            INTERNAL.warning("worker waits for the store (partitions %s): %s", ", ".join(map(str, partitions)), error)
        self.troubles.update(dict.fromkeys(partitions, str(error)))
