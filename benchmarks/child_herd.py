"""One process of many that miss one key at once: lines of JSON say which key and when, lines of JSON answer what came of it.

python -m benchmarks.child_herd URL WHO CALLERS SECONDS
"""

import asyncio
import importlib
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from urllib.parse import urlsplit

import aiocache
from redis.asyncio import BlockingConnectionPool

from .limiters import MAX_CONNECTIONS, opened

Fetch = Callable[[str, Callable[[], Awaitable[str]]], Awaitable[str]]
Opened = Callable[[str], AbstractAsyncContextManager[Fetch]]


@asynccontextmanager
async def observatory(url: str) -> AsyncIterator[Fetch]:
    """Ours."""
    async with opened(url) as obs:
        yield obs.cache(str, name="herd", ttl=60, near=False).get_or_compute


@asynccontextmanager
async def stampede(url: str) -> AsyncIterator[Fetch]:
    """aiocache's decorator against it; its lock lives longer than the computation."""
    where = urlsplit(url)
    known: dict[str, Callable[[], Awaitable[str]]] = {}

    async def fetch(key: str, compute: Callable[[], Awaitable[str]]) -> str:
        if key not in known:  # one cache, and one pool, for each decorated function

            async def work() -> str:
                return await compute()

            pool = {"connection_pool_class": BlockingConnectionPool, "pool_max_size": MAX_CONNECTIONS}
            store = {"cache": aiocache.RedisCache, "endpoint": where.hostname, "port": where.port, **pool}
            decorator = aiocache.cached_stampede(lease=5, ttl=60, key=key, **store)
            known[key] = decorator(work)
        return await known[key]()

    yield fetch


def cashews(**given: object) -> Opened:
    """Its decorators: with a lock, or `early`, which is for what is hot."""

    @asynccontextmanager
    async def opened_(url: str) -> AsyncIterator[Fetch]:
        cache = importlib.import_module("cashews").Cache()
        cache.setup(url, max_connections=MAX_CONNECTIONS)
        known: dict[str, Callable[[], Awaitable[str]]] = {}

        async def fetch(key: str, compute: Callable[[], Awaitable[str]]) -> str:
            if key not in known:

                async def work() -> str:
                    return await compute()

                early = given.get("early")
                known[key] = (cache.early(ttl=60, key=key) if early else cache(ttl=60, key=key, **given))(work)
            found: str = await known[key]()
            return found

        try:
            yield fetch
        finally:
            await cache.close()

    return opened_


WHO: dict[str, Opened] = {
    "observatory": observatory,
    "stampede": stampede,
    "cashews_lock": cashews(lock=True),
    "cashews_early": cashews(early=True),
}


async def herd(url: str, who: str, callers: int, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    async with WHO[who](url) as fetch:
        print(json.dumps({"ready": True}), flush=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            asked = json.loads(line)
            ended: list[float] = []
            served: list[float] = []

            async def compute(ended: list[float] = ended) -> str:
                await asyncio.sleep(seconds)
                ended.append(time.monotonic())
                return "computed"

            async def caller(key: str, served: list[float] = served, work: Callable[[], Awaitable[str]] = compute) -> str:
                found = await fetch(key, work)
                served.append(time.monotonic())
                return found

            await asyncio.sleep(asked["at"] - time.monotonic())
            answers = await asyncio.gather(*(caller(asked["key"]) for _ in range(callers)), return_exceptions=True)
            wrong = [str(one) for one in answers if one != "computed"]
            print(
                json.dumps({"ended": ended, "served": max(served, default=0.0), "wrong": wrong[:1], "of": len(wrong)}),
                flush=True,
            )


if __name__ == "__main__":
    asyncio.run(herd(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
