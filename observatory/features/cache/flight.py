"""One computation on its way: on which terms, who waits for it, and what it brought."""

import asyncio
from collections.abc import Awaitable
from typing import Any, NamedTuple


class Terms(NamedTuple):
    """How a value is kept. fail_for: seconds; last: serve what was kept near while the store is away."""

    ttl_ms: int
    stale_ms: int = 0
    tags: tuple[str, ...] = ()
    fail_for: float = 0.0
    compress_over: int | None = None
    last: bool = False


class Landed(NamedTuple):
    """What a flight brought. payload: for everybody but the first, who has the value itself; shared: it came from elsewhere.

    fenced: it was not stored, and is for the first alone. unproven: nobody can say whether it was."""

    value: Any
    payload: bytes
    flags: int
    fenced: bool = False
    shared: bool = False
    unproven: bool = False


class Flight:
    """kept: it goes on though nobody waits. computing: it has begun to, so who joins now came later, and may know of changes
    that it does not; late: somebody has. alone: without a lease, so that no change would end it."""

    __slots__ = ("alone", "computing", "kept", "late", "task", "waiting")
    task: "asyncio.Task[Landed]"

    def __init__(self, *, kept: bool) -> None:
        self.kept = kept
        self.waiting = 0
        self.computing = self.late = self.alone = False


async def through(work: Awaitable[None]) -> None:
    """To its end, also when this task is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task}, timeout=1.0)
        raise
