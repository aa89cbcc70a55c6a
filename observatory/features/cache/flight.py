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
    """What a flight brought. payload: for everybody but the first, who has the value itself; shared: it came from elsewhere."""

    value: Any
    payload: bytes
    flags: int
    fenced: bool = False
    shared: bool = False


class Flight:
    """kept: it goes on though nobody waits."""

    __slots__ = ("kept", "task", "waiting")
    task: "asyncio.Task[Landed]"

    def __init__(self, *, kept: bool) -> None:
        self.kept = kept
        self.waiting = 0


async def through(work: Awaitable[None]) -> None:
    """To its end, also when this task is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task}, timeout=1.0)
        raise
