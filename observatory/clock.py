"""Who owns the time. What is shared is decided by the server's clock; what is local, by one that only moves forward."""

import asyncio
import time

_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", None)


def monotonic() -> float:
    """Seconds that also count while the machine is suspended (where the system has such a clock): leases need that."""
    return time.clock_gettime(_BOOTTIME) if _BOOTTIME is not None else time.monotonic()


class ServerClock:
    """Production's clock: scripts are told 0 and ask Redis, so no client's clock decides anything shared."""

    def now_us(self) -> int:
        return 0

    def monotonic(self) -> float:
        return monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
