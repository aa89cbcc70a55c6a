"""Ours in a process of its own: checks of one limit, of as many keys as are asked for (elsewhere.py drives it).

python -m benchmarks.child_observatory URL
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from observatory import Limit

from .elsewhere import Served, serve
from .limiters import NEVER_REFUSES, opened
from .loop import BrokenContender, Once


@asynccontextmanager
async def served(url: str) -> AsyncIterator[Served]:
    """With the settings that everybody gets."""
    async with opened(url) as obs:
        period = timedelta(minutes=NEVER_REFUSES.minutes)
        obs.rate_limiter.define(Limit("bench", NEVER_REFUSES.amount, per=period), Limit("scratch", 5, per="1h"))
        check = obs.rate_limiter.check

        def pick(keys: int) -> Once:
            async def once(number: int) -> bool:
                # A step that shares no factor with the number of keys visits them all, and neighbours rarely meet.
                return (await check("bench", f"tenant-{number * 7919 % keys}")).allowed

            return once

        async def verify() -> None:
            answers = [(await check("scratch", "a")).allowed for _ in range(8)]
            if answers != [True] * 5 + [False] * 3:
                raise BrokenContender(f"of 8 checks against a burst of 5 it allowed {answers}")

        yield Served(pick, verify)


if __name__ == "__main__":
    asyncio.run(serve(served(sys.argv[1])))
