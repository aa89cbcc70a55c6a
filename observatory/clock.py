"""Who owns the time. What is shared is decided by the server's clock; what is local, by one that only moves forward."""

import asyncio
import time
from collections.abc import Callable
from functools import partial

monotonic: Callable[[], float] = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
)
"""Seconds that also count while the machine is suspended (where the system has such a clock): leases need that."""


class ServerClock:
    """Production's clock: scripts are told 0 and ask Redis, so no client's clock decides anything shared."""

    def now_us(self) -> int:
        return 0

    def monotonic(self) -> float:
        return monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
