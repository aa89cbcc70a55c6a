"""Who asks after a change is told nothing from before it, whatever became of the computation that he might have joined."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from observatory import Cache, CacheError, InvalidArgument, Observatory, StoreUnavailable
from observatory.features.cache.lease import LEASE, held
from observatory.settings import Settings
from tests.servers import Server, environment

FAR = Settings().replace(cache_near="off")
Pair = tuple[Cache[int], Cache[int]]


@pytest.fixture
async def pair(own_server: Server) -> AsyncIterator[Pair]:
    """The same cache in two processes; both have met the store, and it has their scripts."""
    obs, other = (Observatory("x", redis_url=own_server.url, namespace="late", settings=FAR) for _ in range(2))
    async with obs, other:
        caches = tuple(one.cache(int, name="c", stale_for=60) for one in (obs, other))
        for number, cache in enumerate(caches):
            await cache.get_or_compute(f"met {number}", World().now)
            await cache.delete(f"met {number}")
        yield caches[0], caches[1]


class World:
    """What a computation reads when it begins, and tells when it may."""

    def __init__(self) -> None:
        self.value = 1
        self.began = asyncio.Event()
        self.may_end = asyncio.Event()

    async def slowly(self) -> int:
        value = self.value
        self.began.set()
        await self.may_end.wait()
        return value

    async def now(self) -> int:
        return self.value


async def pause(cache: Cache[int], milliseconds: int, what: str = "ALL") -> None:
    await cache._room.store().command("CLIENT", "PAUSE", milliseconds, what)


async def settled(work: Callable[[], Awaitable[Any]]) -> None:
    """Until the store acknowledges it."""
    async with asyncio.timeout(10):
        while True:
            try:
                await work()
            except StoreUnavailable:
                await asyncio.sleep(0.05)
            else:
                return


@pytest.mark.parametrize("how", ["refreshed", "first cancelled"])
async def test_a_clear_while_it_is_computed(pair: Pair, how: str) -> None:
    """Also where the one who waits is not the one who began."""
    cache, far = pair
    world = World()
    if how == "refreshed":
        await cache.set("k", 0, ttl=0.01)
        await asyncio.sleep(0.05)
    first = asyncio.create_task(cache.get_or_compute("k", world.slowly))
    await world.began.wait()
    world.value = 2
    await far.clear()
    second = asyncio.create_task(cache.get_or_compute("k", world.now))
    await asyncio.sleep(0.1)
    if how == "first cancelled":
        first.cancel()
        await asyncio.sleep(0.05)
    world.may_end.set()
    assert await asyncio.wait_for(second, 10) == 2
    await asyncio.gather(first, return_exceptions=True)


async def test_a_delete_after_a_slow_moment_of_the_store(pair: Pair) -> None:
    """What is computed without a lease is not for those who have met the store since: no delete would have ended it."""
    cache, far = pair
    world = World()
    await pause(far, 600)
    first = asyncio.create_task(cache.get_or_compute("k", world.slowly))
    await world.began.wait()
    world.value = 2
    await settled(lambda: far.delete("k"))
    await settled(lambda: cache._room.store().command("PING"))
    assert await asyncio.wait_for(cache.get_or_compute("k", world.now), 10) == 2
    world.may_end.set()
    assert await first == 1, "who began has what he asked for"


async def test_a_delete_and_a_write_whose_answer_is_lost(pair: Pair) -> None:
    """Nobody can say whether it was stored; the store would have refused it."""
    cache, far = pair
    world = World()
    first = asyncio.create_task(cache.get_or_compute("k", world.slowly))
    await world.began.wait()
    world.value = 2
    await far.delete("k")
    second = asyncio.create_task(cache.get_or_compute("k", world.now))
    await asyncio.sleep(0.1)
    await pause(far, 600)
    world.may_end.set()
    assert await asyncio.wait_for(second, 10) == 2
    assert await first == 1


async def test_a_claim_that_nobody_waits_for_is_given_back(pair: Pair) -> None:
    """Cancelled, timed out or given up while the store was slow: the others do not wait for a lease of nobody."""
    cache, far = pair
    world = World()
    for number, patience in enumerate((0.1, 5)):
        await pause(far, 500, "WRITE")
        try:
            assert await asyncio.wait_for(cache.get_or_compute(f"k{number}", world.now), patience) == 1
        except TimeoutError:
            assert patience < 1
        await settled(lambda: far.set("ready", 1))
        began = time.monotonic()
        async with asyncio.timeout(10):
            while not await far.exists(f"k{number}"):
                await far.get_or_compute(f"k{number}", world.now)
        assert time.monotonic() - began < LEASE * 0.8


TWO_LOOPS = """
import asyncio, sys
from observatory import Observatory

obs = Observatory("x", redis_url=sys.argv[1], namespace="loops")
cache = obs.cache(int, name="c", near=False)
began = asyncio.Event()

async def never():
    began.set()
    await asyncio.sleep(1000)

async def leave():
    await obs.open()
    asyncio.ensure_future(cache.get_or_compute("k", never))
    await began.wait()

async def one():
    return 1

async def again():
    async with obs:
        print(await asyncio.wait_for(cache.get_or_compute("k", one), 15))

loop = asyncio.new_event_loop()
loop.run_until_complete(leave())
loop.close()
asyncio.run(again())
"""


async def test_a_loop_that_ended_computes_nothing(own_server: Server) -> None:
    """A program that ran one loop and then another: its keys are computed again."""
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", TWO_LOOPS, own_server.url),
        env=environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    said, _ = await asyncio.wait_for(program.communicate(), 30)
    assert said.strip() == b"1"


@pytest.mark.parametrize("away", [False, True])
async def test_a_computation_that_waits_for_itself_is_told(pair: Pair, own_server: Server, away: bool) -> None:
    """With the store and without."""
    cache = pair[0]

    async def ask() -> int:
        return await cache.get_or_compute("k", ask)

    if away:
        own_server.stop()
    with pytest.raises(CacheError, match="waits for itself"):
        await asyncio.wait_for(ask(), 10)


async def test_what_is_computed_alone_holds_nothing(pair: Pair, own_server: Server) -> None:
    """Also within a computation that does."""
    cache, tokens = pair[0], list[str]()

    async def inner() -> int:
        tokens.append(held.get())
        return 1

    async def outer() -> int:
        tokens.append(held.get())
        own_server.stop()
        return await cache.get_or_compute("inner", inner)

    assert await cache.get_or_compute("outer", outer) == 1
    assert tokens[0]
    assert not tokens[1]


async def test_what_cannot_be_awaited_is_refused(pair: Pair) -> None:
    """Before, where it can be seen; else when it is called, and nothing is left behind."""
    cache, wrong = pair[0], [5, None, "compute"]
    for one in wrong:
        with pytest.raises(InvalidArgument, match="async function"):
            await cache.get_or_compute("k", one)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="async function"):
            cache.cached(key="k")(one)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="async function"):
        await cache.get_or_compute("sync", lambda: 1)  # type: ignore[arg-type, return-value]
    await cache.delete("sync")
    assert await cache.get_or_compute("sync", World().now) == 1
