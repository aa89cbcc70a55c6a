"""What one process does for the whole fleet: whichever holds the lease, so that a fleet without workers lacks nothing."""

from collections.abc import Awaitable, Callable

from .background import Job
from .features.leases import Lease

COMPACT_EVERY = 10.0


def duty(
    name: str, every: float, acquire: Callable[[str, float], Awaitable[Lease | None]], step: Callable[[], Awaitable[object]]
) -> Job:
    """A job that only the lease's holder does, `every` seconds: a client, or the worker that leads the role of this name.

    The lease saves work; what makes a step safe is in the step.
    """

    async def run() -> None:
        if await acquire(f"role:{name}", 3 * every) is not None:
            await step()

    return Job(name, every, run)
