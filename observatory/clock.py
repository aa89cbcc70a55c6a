"""Who owns the time. What is shared is decided by the server's clock; what is local, by one that only moves forward."""

import asyncio
import random
import time
from asyncio import Future
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from typing import Protocol, TypeVar

from .types import Clock

T = TypeVar("T")

monotonic: Callable[[], float] = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
)
"""Seconds that also count while the machine is suspended (where the system has such a clock): leases need that."""


class Timer(Protocol):
    """Something that will happen, unless it is cancelled."""

    def cancel(self) -> None: ...


class ServerClock:
    """Production's clock: scripts are told 0 and ask Redis, so no client's clock decides anything shared."""

    def now_us(self) -> int:
        return 0

    def monotonic(self) -> float:
        return monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class RoomClock:
    """The clock of one Observatory's rooms, and their timers. A clock of `observatory.testing` brings its own timers.

    Its parts are looked up at each use and are plain functions: in production nothing stands between. What measures this
    machine, its network or its store goes by `monotonic` of the module, whatever clock this is.
    """

    __slots__ = (
        *("call_at", "monotonic", "now_us", "overseen", "pause", "rest", "sleep", "spread", "time", "timeout"),
        *("ahead_us", "given", "looked", "wait"),
    )

    now_us: Callable[[], int]
    """0: scripts ask Redis."""
    monotonic: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]
    time: Callable[[], float]
    """What timers go by: the loop's clock, of which call_at's moments are."""
    call_at: Callable[[float, Callable[[], object]], Timer]
    timeout: Callable[[float | None], AbstractAsyncContextManager[object]]
    pause: Callable[[float], Awaitable[None]]
    """The wait before another attempt."""
    rest: Callable[[float], Awaitable[None]]
    """The wait of somebody nobody waits for."""
    wait: Callable[[asyncio.Event, float], Awaitable[None]]
    """For the event, at most so many seconds."""
    looked: Callable[[asyncio.Event, float], Awaitable[None]]
    """The same before one looks again, which has to be now and then, whatever the time."""
    overseen: Callable[["Future[T]", Callable[[], float]], Awaitable[T]]
    """Somebody waits for this; the function says for how many seconds still."""
    spread: Callable[[float], float]
    """A random part of so many seconds, so that not everybody comes at one moment."""
    ahead_us: Callable[[], int]
    """How far a clock that moves with the store's has been put forward."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.use(clock)

    def use(self, clock: Clock | None) -> None:
        """From now on. None: production's."""
        self.given = clock
        given = clock or ServerClock()
        self.now_us, self.monotonic, self.sleep = given.now_us, given.monotonic, given.sleep
        if clock is None:
            self.monotonic = monotonic
        for part, usual in _TIMERS.items():
            setattr(self, part, getattr(given, part, usual))


def _call_at(when: float, fn: Callable[[], object]) -> Timer:
    return asyncio.get_running_loop().call_at(when, fn)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


_TIMERS: dict[str, Callable[..., object]] = {
    "time": time.monotonic,
    "call_at": _call_at,
    "timeout": asyncio.timeout,
    "pause": asyncio.sleep,
    "rest": asyncio.sleep,
    "wait": _wait,
    "looked": _wait,
    "overseen": lambda future, left: future,
    "spread": partial(random.uniform, 0.0),
    "ahead_us": lambda: 0,
}
