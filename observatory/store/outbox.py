"""Exactly-once delivery of frozen batches, for every feature that counts.

What holds: a batch is added once, however often it is sent, in whatever order replies are lost; after a failover that lost
acknowledged batches, those of the last ten seconds are sent again. What may be lost: batches older than that, and what a
process had not yet delivered when it was killed. Both are bounded, and the first is counted.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, NamedTuple, TypeVar

from ..clock import monotonic

B = TypeVar("B")

KEEP_FOR = 10.0
"""Seconds that an acknowledged batch is kept, in case a failover loses it. Longer than any replication lag we promise for."""

ASK_AFTER = 2.0
"""Seconds of quiet after which the last kept batch is sent once more: who has nothing new to say would not hear of a gap."""

RENEW_AFTER = 24 * 3600.0
"""Seconds of quiet after which a writer takes another identity: the store forgets a watermark after seven days."""

DUPLICATE, ADDED, GAP = 0, 1, 2


class Verdict(NamedTuple):
    """What the store said of a batch: what became of it, and the writer's watermark now."""

    what: int
    watermark: int


def new_writer() -> str:
    """An identity that was never used before."""
    return secrets.token_hex(8)


class Outbox(Generic[B]):
    """Batches on their way. `send(writer, number, batch)` runs the script that adds one."""

    def __init__(self, send: Callable[[str, int, B], Awaitable[Verdict]]) -> None:
        self._send = send
        self._delivering: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None
        self.lost = 0
        """Batches that a failover lost and that were too old to be sent again."""
        self.reset()

    def reset(self) -> None:
        """Another identity with nothing on its way: a forked child, or a copy of this process, must not share ours."""
        self.writer = new_writer()
        self._next = 1
        self._pending: deque[tuple[int, B]] = deque()
        self._kept: deque[tuple[int, B, float]] = deque()
        self._delivering = None
        self._sent = False
        self._heard_at = monotonic()

    def __len__(self) -> int:
        return len(self._pending)

    def put(self, batch: B) -> None:
        """Freeze it: from now on it is sent as it is, under this number."""
        self._pending.append((self._next, batch))
        self._next += 1

    async def deliver(self) -> None:
        """Send what is pending, in order. StoreUnavailable leaves the rest pending; cancellation too."""
        async with self._one_at_a_time():
            while self._pending:
                self._forget_old()
                if not self._sent and monotonic() - self._heard_at > RENEW_AFTER:
                    self._begin_anew([batch for _, batch in self._pending])
                number, batch = self._pending[0]
                self._sent = True
                verdict = await self._send(self.writer, number, batch)
                self._heard_at, self._sent = monotonic(), False
                if verdict.what == GAP:
                    self._refill(verdict.watermark)
                    continue
                # A duplicate is what an earlier send became whose reply was lost.
                self._pending.popleft()
                self._kept.append((number, batch, monotonic()))
            self._forget_old()
            if self._kept and ASK_AFTER < monotonic() - self._heard_at < RENEW_AFTER:
                await self._ask()

    async def _ask(self) -> None:
        """Nothing is new; has what is kept stayed? A duplicate says so. What has not is pending again."""
        number, batch, _ = self._kept[-1]
        verdict = await self._send(self.writer, number, batch)
        self._heard_at = monotonic()
        if verdict.what == GAP:
            self._refill(verdict.watermark)
        elif verdict.what == ADDED:
            # It was the only one that was lost.
            self._kept[-1] = (number, batch, self._heard_at)

    def _forget_old(self) -> None:
        # Measured from when the store was last heard: after a long outage it may have gone back to before these.
        forget_before = self._heard_at - KEEP_FOR
        while self._kept and self._kept[0][2] < forget_before:
            self._kept.popleft()

    def _one_at_a_time(self) -> asyncio.Lock:
        """A lock belongs to the loop that first waited for it; an Observatory may be opened on another one later."""
        loop = asyncio.get_running_loop()
        if self._delivering is None or self._delivering[0] is not loop:
            self._delivering = (loop, asyncio.Lock())
        return self._delivering[1]

    def _refill(self, watermark: int) -> None:
        """The store is behind us: go back to the batch after its watermark, as far as we still have it."""
        again = [(number, batch) for number, batch, _ in self._kept if number > watermark]
        self._kept.clear()
        batches = [*again, *self._pending]
        missing = batches[0][0] - (watermark + 1)
        if missing > 0:
            # What lies between is gone for good. Our old numbers can never be added any more, so a new identity may
            # carry the same batches.
            self.lost += missing
            self._begin_anew([batch for _, batch in batches])
        else:
            self._pending = deque(batches)

    def _begin_anew(self, batches: list[B]) -> None:
        """The same batches under an identity whose numbers nobody has seen."""
        self.writer = new_writer()
        self._kept.clear()
        self._pending = deque(enumerate(batches, 1))
        self._next = len(batches) + 1
