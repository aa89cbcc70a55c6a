"""Partitions worked off: read ahead, understand, apply; one run is under way at the store while the next is being read.

Bounded in memory: at most `concurrency` stream entries are in hand, in both runs together and over all partitions. An entry is
at most 100 events, and as a rule 256 KiB (features/events.py).
"""

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from .. import names
from ..client import Observatory
from ..clock import monotonic
from ..errors import StoreError, StoreUnavailable
from ..logs import INTERNAL
from ..store.store import BLOCK_FOR
from .apply import Entry, Meaning, apply
from .partitions import Partitions

_POLL = 0.1
"""Seconds between two looks at streams that cannot be waited for at once."""
_REST = 0.5
"""Seconds that a partition is left alone after the store refused it."""
MOST_ADDITIONS = 2000
"""Additions of one apply, about: the run ends with the entry that reaches them, so that no script holds the server for long. An
entry by itself has at most 100 events."""


class _Run(NamedTuple):
    """What was read of one partition, from where, and what it means: what one apply adds."""

    partition: int
    offset: str
    entries: list[Entry]
    meaning: Meaning

    @property
    def end(self) -> str:
        return self.entries[-1][0].decode()


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
        self.applied_at = monotonic()
        """When the last of them were."""
        self._progress: dict[int, float] = {}
        self.troubles: dict[int, str] = {}
        """What the store last said of partitions that it refuses."""

    def silent(self, seconds: float) -> list[int]:
        """The partitions of which nothing was applied for so long, though something may lie there."""
        before = monotonic() - seconds
        return sorted(one for one in self._partitions.held() if self._progress.get(one, math.inf) <= before)

    async def step(self) -> None:
        """Read what comes next, then let go of what was under way, then send it."""
        held = self._mine()
        if not held:
            await self.settle()
            await asyncio.sleep(_POLL)
            return
        try:
            runs = await self._read(held)
        except StoreError as error:
            self._failed(error, held)
            await self.settle()
            return
        # Of a partition one chain at a time: the next begins where this one ends. Only now is it known that it does; what was
        # read ahead of a run that was refused is forgotten.
        sound = await self.settle()
        for partition, chain in runs.items():
            if sound.get(partition, True):
                self._heads[partition] = chain[-1].end
                self._under_way[partition] = asyncio.ensure_future(self._apply_all(chain))

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
        self._progress = {one: self._progress.get(one, now) for one in held}
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

    async def _read(self, held: list[int]) -> dict[int, list[_Run]]:
        """What comes next of each; one that cannot be read does not stop the others."""
        heads = await self._standing(held)
        # One command reads of one server only, and while it waits there the next one does: so nobody waits. And it fails as a
        # whole: what was in trouble is read apart.
        apart = [one for one in heads if self._obs.store.is_cluster or one in self.troubles]
        together = [one for one in heads if one not in apart]
        reads = [*([together] if together else []), *([one] for one in apart)]
        wait = len(reads) == 1 and not self._under_way and len(heads) == len(self._partitions.held())
        count = max(self._concurrency // 2 // len(held), 1)
        found: dict[int, list[Entry]] = {}
        for partitions, reply in zip(reads, await self._ask(reads, heads, count, wait=wait), strict=True):
            if isinstance(reply, StoreError) and len(partitions) > 1:
                reads = [[one] for one in partitions]
                for (one,), alone in zip(reads, await self._ask(reads, heads, count, wait=False), strict=True):
                    self._take(found, [one], alone)
            else:
                self._take(found, partitions, reply)
        if not found and not wait and not self._under_way:
            await asyncio.sleep(_POLL)
        self._long -= set(held)
        self._long |= {partition for partition, entries in found.items() if len(entries) >= count}
        runs = {}
        for partition in sorted(found):
            runs[partition] = [run async for run in self._understood(partition, heads[partition], found[partition])]
        return runs

    async def _standing(self, held: list[int]) -> dict[int, str]:
        """Where the next run of each is read from. Noted here: an apply that fails meanwhile takes it back from us."""
        store, heads = self._obs.store, {}
        for partition in held:
            head = self._heads.get(partition)
            if head is None:
                try:
                    stands_at = await store.bulk().command("GET", store.keys.offset(partition))
                except StoreUnavailable:
                    raise
                except StoreError as error:
                    self._failed(error, [partition])
                    continue
                head = stands_at.decode() if stands_at else "0-0"
            heads[partition] = head
        return heads

    async def _ask(self, reads: list[list[int]], heads: dict[int, str], count: int, *, wait: bool) -> list[Any]:
        """The replies, or what the store had against it. StoreUnavailable is everybody's."""
        store = self._obs.store
        block = ("BLOCK", int(BLOCK_FOR * 250)) if wait else ()
        asked = [
            store.command(
                *("XREAD", "COUNT", count, *block, "STREAMS"),
                *(store.keys.stream(partition) for partition in partitions),
                *(heads[partition] for partition in partitions),
                link="blocking",
            )
            for partitions in reads
        ]
        replies = await asyncio.gather(*asked, return_exceptions=True)
        for reply in replies:
            if isinstance(reply, BaseException) and (isinstance(reply, StoreUnavailable) or not isinstance(reply, StoreError)):
                raise reply
        return replies

    def _take(self, found: dict[int, list[Entry]], partitions: list[int], reply: Any) -> None:
        if isinstance(reply, StoreError):
            self._failed(reply, partitions)
            return
        streams = {self._obs.store.keys.stream(partition).encode(): partition for partition in partitions}
        found.update({streams[name]: entries for name, entries in (reply or {}).items()})
        for partition in partitions:
            if partition not in found and partition not in self._under_way:
                self._went_on(partition)

    async def _understood(self, partition: int, begin: str, entries: list[Entry]) -> AsyncIterator[_Run]:
        """The entries, divided into runs."""
        settings = self._obs.settings.metrics
        rest = deque(entries)
        while rest:
            meaning = Meaning(settings.dimensions, self._obs.store.server_us() or 0, settings.max_series)
            taken: list[Entry] = []
            while rest and meaning.size < MOST_ADDITIONS:
                taken.append(rest.popleft())
                meaning.read(taken[-1:])
            run = _Run(partition, begin, taken, meaning)
            begin = run.end
            yield run
            await asyncio.sleep(0)

    async def _apply_all(self, chain: list[_Run]) -> bool:
        """True when the partition stands at the end of the last one now, so that what was read behind it may follow."""
        for run in chain:
            if not await self._apply(run):
                return False
        return True

    async def _apply(self, run: _Run) -> bool:
        """True when the partition stands at the run's end now."""
        partition, offset, entries, meaning = run
        try:
            done = await apply(self._obs.store.bulk(), partition, offset, entries, meaning)
        except StoreError as error:
            self._failed(error, [partition])
            return False
        if done.done:
            self.applied += meaning.applied
            self.applied_at = monotonic()
            self._went_on(partition)
        self._obs.metrics.count_unusual("worker", *done.unusual)
        if done.saved:
            self._obs.metrics.increment_counter(names.EVENTS_SAVED, done.saved)
        if done.forgotten:
            self._obs.events.count_dropped(done.forgotten, "dead_letters")
        if done.offset == run.end:
            return True
        # Another worker was here, or a failover went back. Go on where it stands.
        self._heads[partition] = done.offset
        return False

    def _went_on(self, partition: int) -> None:
        self._progress[partition] = monotonic()
        self.troubles.pop(partition, None)

    def _failed(self, error: StoreError, partitions: list[int]) -> None:
        """Offsets are read anew: a failover may have rolled them back."""
        for partition in partitions:
            self._heads.pop(partition, None)
            self._resting[partition] = monotonic() + _REST
        if not any(one in self.troubles for one in partitions):
            INTERNAL.warning("worker waits for the store (partitions %s): %s", ", ".join(map(str, partitions)), error)
        self.troubles.update(dict.fromkeys(partitions, str(error)))
