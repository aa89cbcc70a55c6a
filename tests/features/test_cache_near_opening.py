"""Near caches that are opened late: from a thread, without a loop, many while others are in use."""

import asyncio
from typing import Any

from observatory import Cache, Observatory
from observatory.features.cache.near import Near
from observatory.settings import Settings
from tests.features.test_cache_near import heard, warm
from tests.servers import Server

SLOW = Settings().replace(cache_near_bound=30.0)
"""What comes before the bound came by a notice."""


def opened(server: Server, namespace: str) -> Observatory:
    return Observatory("x", redis_url=server.url, namespace=namespace, settings=SLOW)


async def is_near(cache: Cache[str], far: Cache[str]) -> None:
    """It serves without asking, and hears of what others write."""
    await far.set("k", "1")
    await heard(cache, "k", "1")
    await warm(cache, "k")
    await far.set("k", "2")
    await heard(cache, "k", "2")


async def test_opened_in_a_thread(server: Server, namespace: str) -> None:
    """No loop runs there: the store's own is told, as often as it is opened."""
    async with opened(server, namespace) as obs, opened(server, namespace) as far:
        first = obs.cache(str, name="first")
        await first.set("k", "v")
        await warm(first, "k")
        for _ in range(2):
            await asyncio.to_thread(lambda: obs.cache(str, name="lazy"))
        lazy = await asyncio.to_thread(lambda: obs.cache(str, name="lazy"))
        await is_near(lazy, far.cache(str, name="lazy"))
        await is_near(first, far.cache(str, name="first"))
        assert list(obs.caches._near) == ["first", "lazy"]


def test_opened_after_a_loop_that_is_gone(server: Server, namespace: str) -> None:
    """It ended without closing, as a test runner's may: the next one tracks all of them."""
    obs = opened(server, namespace)
    loop = asyncio.new_event_loop()

    async def before() -> None:
        await obs.open()
        first = obs.cache(str, name="first")
        await first.set("k", "v")
        await warm(first, "k")

    loop.run_until_complete(before())
    loop.close()
    late = obs.cache(str, name="late")

    async def then() -> None:
        async with obs, opened(server, namespace) as far:
            await is_near(late, far.cache(str, name="late"))
            await is_near(obs.cache(str, name="first"), far.cache(str, name="first"))

    asyncio.run(then())


async def test_new_caches_cost_the_others_nothing(server: Server, namespace: str) -> None:
    """What is near stays so, whatever is opened; what is opened is near, too."""
    async with opened(server, namespace) as obs, opened(server, namespace) as far:
        cache = obs.cache(str, name="used")
        await cache.set("k", "v")
        await warm(cache, "k")
        misses = await asked(cache)
        for number in range(20):
            obs.cache(str, name=f"more{number}")
            for _ in range(20):
                assert await cache.get("k") == "v"
                await asyncio.sleep(0.001)
        assert await asked(cache) == misses, "every read was near"
        await is_near(obs.cache(str, name="more19"), far.cache(str, name="more19"))
        await is_near(cache, far.cache(str, name="used"))


async def asked(cache: Cache[str]) -> int:
    """Hits that were not near."""
    stats = await cache.stats(fleet=False)
    near: Near[Any] | None = cache._room.near
    assert near is not None
    return stats.hits - stats.near_hits
