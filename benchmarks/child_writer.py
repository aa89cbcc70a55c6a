"""One writer in a process of its own: records and flushes, as often as it can (elsewhere.py drives it).

python -m benchmarks.child_writer URL
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from .elsewhere import Served, serve
from .limiters import opened
from .loop import BrokenContender, Once


@asynccontextmanager
async def served(url: str) -> AsyncIterator[Served]:
    """An operation is a flush of as many changed counters as there are keys."""
    async with opened(url) as obs:

        def pick(keys: int) -> Once:
            handles = [obs.metrics.counter("bench_written_total").bind(n=str(number)) for number in range(keys)]

            async def once(_: int) -> bool:
                for handle in handles:
                    handle.add(1)
                await obs.metrics.flush()
                return True

            return once

        async def verify() -> None:
            obs.metrics.increment_counter("bench_proof_total", 3)
            await obs.metrics.flush()
            if (await obs.metrics.query("bench_proof_total")).value != 3:
                raise BrokenContender("what was flushed is not there")

        yield Served(pick, verify)


if __name__ == "__main__":
    asyncio.run(serve(served(sys.argv[1])))
