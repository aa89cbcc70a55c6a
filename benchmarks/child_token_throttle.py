"""token-throttle in a process of its own, since it needs Python 3.12: reserve and refund on one bucket (elsewhere.py).

python -m benchmarks.child_token_throttle URL AT_ONCE     (AT_ONCE: 0 = as many as ask)
"""

import asyncio
import importlib
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any

from .elsewhere import Served, serve
from .loop import BrokenContender, Once

ESTIMATE, ACTUAL = 1000, 600
MAX_CONNECTIONS = 32


@asynccontextmanager
async def opened(url: str, at_once: int) -> AsyncIterator[Served]:
    """Its limiter on its Redis backend, with its defaults."""
    theirs: Any = importlib.import_module("token_throttle")  # of another interpreter: nothing here knows its types
    driver: Any = importlib.import_module("redis.asyncio")
    pool = driver.BlockingConnectionPool.from_url(url, max_connections=MAX_CONNECTIONS)
    gate: AbstractAsyncContextManager[Any] = asyncio.Semaphore(at_once) if at_once else nullcontext()

    def limiter(limit: int, seconds: int, prefix: str) -> Any:
        quotas = theirs.UsageQuotas([theirs.Quota(metric="tokens", limit=limit, per_seconds=seconds)])
        return theirs.RateLimiter(
            theirs.PerModelConfig(quotas=quotas), backend=theirs.RedisBackendBuilder(client, key_prefix=prefix)
        )

    async def verify() -> None:
        small = limiter(5, 3600, "scratch")

        async def one() -> Any:
            try:
                return await small.acquire_capacity({"tokens": 1}, model="bench", timeout=0)
            except TimeoutError:
                return None

        held = [await one() for _ in range(8)]
        if [bool(one) for one in held] != [True] * 5 + [False] * 3:
            raise BrokenContender(f"of 8 reservations of a limit of 5 it made {sum(map(bool, held))}")
        await small.refund_capacity({"tokens": 0}, held[0])
        if await one() is None or await one() is not None:
            raise BrokenContender("what was not used did not come back, or more than that did")

    async with driver.Redis.from_pool(pool) as client:
        big = limiter(1_000_000_000, 60, "bench")

        async def once(_: int) -> bool:
            async with gate:
                held = await big.acquire_capacity({"tokens": ESTIMATE}, model="bench")
                await big.refund_capacity({"tokens": ACTUAL}, held)
            return True

        def pick(keys: int) -> Once:
            return once

        yield Served(pick, verify)


if __name__ == "__main__":
    asyncio.run(serve(opened(sys.argv[1], int(sys.argv[2]))))
