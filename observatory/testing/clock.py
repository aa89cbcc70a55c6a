"""A clock that stands still until it is moved, with the timers of those who go by it."""

import asyncio
import heapq
import itertools
import math
import threading
import time
from asyncio import Future
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from ..clock import monotonic
from ..errors import InvalidArgument
from .errors import TimeStandsStill

T = TypeVar("T")

_FEW = 64
_LOOK_EVERY = 0.02
"""Seconds of real time between two looks of those who have to look in any case."""


class _Due:
    """Something that happens at a moment of the clock."""

    __slots__ = ("_dropped", "_fn", "_loop", "cancelled")

    def __init__(self, fn: Callable[[], object], dropped: Callable[[], None]) -> None:
        self._fn = fn
        self._loop = asyncio.get_running_loop()
        self._dropped = dropped
        self.cancelled = False

    def cancel(self) -> None:
        if not self.cancelled:
            self.cancelled = True
            self._dropped()

    def happen(self) -> None:
        # Its loop may have ended, or be another thread's.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._now)

    def _now(self) -> None:
        if not self.cancelled:
            self._fn()


class FrozenClock:
    """Time stands still until you move it. Scripts get it as their clock; waits in acquire, retry, breakers wake as it moves.

    start: seconds since the epoch. stuck_after: seconds of real time for which a call may wait while nobody moves it; then it
    fails with TimeStandsStill, which says how far to advance. What is drawn at random beside a wait is 0.
    """

    def __init__(self, start: float = 1_700_000_000.0, *, stuck_after: float = 5.0) -> None:
        if not _is_seconds(start) or start <= 0:
            raise InvalidArgument(f"start must be seconds since the epoch, got {start!r:.40}")
        self._start_us = self._us = round(start * 1e6)
        self._stuck_after = stuck_after
        self._due: list[tuple[float, int, _Due]] = []
        self._number = itertools.count()
        self._dropped = 0
        """Timers that were cancelled since the others were last put together; some of them were not in line any more."""
        self._turn = threading.RLock()
        self._moved_at = time.monotonic()
        self.listeners: list[Callable[[float], object]] = []
        """Told how far, before anybody wakes; sandboxes'."""
        self.complaints: list[Callable[[TimeStandsStill], object]] = []
        """Told of every call that has waited in vain, since whoever made it may catch it; sandboxes'."""

    def advance(self, seconds: float) -> None:
        """In one step; what is due by then wakes, at the new time. InvalidArgument: time goes forward only."""
        if not _is_seconds(seconds):
            raise InvalidArgument(f"advance takes seconds of at least 0, got {seconds!r:.40}")
        self._us += round(seconds * 1e6)
        self._moved_at = time.monotonic()
        for told in self.listeners:
            told(seconds)
        now, reached = self.time(), []
        with self._turn:
            while self._due and self._due[0][0] <= now:
                reached.append(heapq.heappop(self._due)[2])
        for due in reached:
            due.happen()

    # the clock
    def now_us(self) -> int:
        return self._us

    def monotonic(self) -> float:
        return self._us / 1e6

    time = monotonic

    async def sleep(self, seconds: float) -> None:
        """Until it was moved so far."""
        await self._until(asyncio.get_running_loop().create_future(), seconds)

    # what the rooms of an Observatory use beside
    def call_at(self, when: float, fn: Callable[[], object]) -> _Due:
        due = _Due(fn, self._drop)
        with self._turn:
            waits = when > self.time()
            if waits:
                heapq.heappush(self._due, (when, next(self._number), due))
        if not waits:
            due.happen()
        return due

    def _drop(self) -> None:
        """Who succeeds cancels a timer far ahead: of such ones no more are kept than of others, and a few."""
        with self._turn:
            self._dropped += 1
            if self._dropped > max(len(self._due) // 2, _FEW):
                self._due = [one for one in self._due if not one[2].cancelled]
                heapq.heapify(self._due)
                self._dropped = 0

    pause = sleep

    async def rest(self, seconds: float) -> None:
        woken: Future[None] = asyncio.get_running_loop().create_future()
        due = self.call_at(self.time() + seconds, lambda: _wake(woken))
        try:
            await woken
        finally:
            due.cancel()

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        waiting = asyncio.ensure_future(event.wait())
        try:
            await self._until(waiting, seconds)
        finally:
            waiting.cancel()

    async def looked(self, event: asyncio.Event, seconds: float) -> None:
        moved, until = self._us, monotonic() + max(min(seconds, 0.25), _LOOK_EVERY)
        while not event.is_set() and self._us == moved and (left := until - monotonic()) > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left, _LOOK_EVERY)):
                    await event.wait()

    async def overseen(self, future: "Future[T]", left: Callable[[], float]) -> T:
        began = time.monotonic()
        while not future.done():
            still = max(began, self._moved_at) + self._stuck_after - time.monotonic()
            if still <= 0:
                error = self._stuck(left())
                for told in self.complaints:
                    told(error)
                raise error
            await asyncio.wait({future}, timeout=still)
        return future.result()

    @asynccontextmanager
    async def timeout(self, seconds: float | None) -> AsyncIterator[object]:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(None) as cut:
            due = None if seconds is None else self.call_at(self.time() + seconds, lambda: cut.reschedule(loop.time()))
            try:
                yield cut
            finally:
                if due is not None:
                    due.cancel()

    @staticmethod
    def spread(most: float) -> float:
        return 0.0

    def ahead_us(self) -> int:
        return self._us - self._start_us

    async def _until(self, woken: "Future[Any]", seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        when = self.time() + seconds
        reached: Future[None] = asyncio.get_running_loop().create_future()
        due = self.call_at(when, lambda: _wake(reached))
        either = asyncio.ensure_future(asyncio.wait({woken, reached}, return_when=asyncio.FIRST_COMPLETED))
        try:
            await self.overseen(either, lambda: when - self.time())
        finally:
            due.cancel()
            either.cancel()

    def _stuck(self, left: float) -> TimeStandsStill:
        waited = f"a call has waited {self._stuck_after:g} s of real time for a clock that stands still"
        if left <= 0:
            return TimeStandsStill(f"{waited}, and time alone does not help", remedy="Give back what it waits for")
        far = math.ceil(left * 1e6) / 1e6
        return TimeStandsStill(f"{waited}; it would go on {far:g} s later", remedy=f"box.clock.advance({far:g})")


def _wake(sleeper: "Future[None]") -> None:
    if not sleeper.done():
        sleeper.set_result(None)


class Impatient:
    """The clock of a sandbox without a frozen one: real time, but nobody waits before another attempt."""

    def now_us(self) -> int:
        return 0

    def monotonic(self) -> float:
        return monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(0)


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
