"""Computations while the store changes under them: primaries, slots, flushes, standstills, forks. Nobody hangs, and afterwards
one computation is one again."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from observatory import Observatory, StoreUnavailable
from observatory.settings import Settings
from observatory.store.cluster import slot_of_key
from tests.conftest import Open
from tests.servers import Server, process
from tests.store.test_cluster import move
from tests.store.test_sentinel import switch
from tests.topologies import Cluster, Sentinels

MAX_WAIT = Settings().redis.max_wait


class Work:
    """A computation that is held until it is let go, and says how often it was begun."""

    def __init__(self) -> None:
        self.begun = 0
        self.going = asyncio.Event()

    async def __call__(self) -> str:
        self.begun += 1
        await self.going.wait()
        return "computed"

    async def has_begun(self) -> None:
        async with asyncio.timeout(10):
            while not self.begun:
                await asyncio.sleep(0.005)


@pytest.fixture
async def pair(namespace: str) -> AsyncIterator[Callable[[str], Awaitable[tuple[Observatory, Observatory]]]]:
    """Two clients of a URL."""
    async with AsyncExitStack() as stack:

        async def opened(url: str) -> tuple[Observatory, Observatory]:
            both = [Observatory("test", redis_url=url, namespace=namespace) for _ in range(2)]
            for one in both:
                await stack.enter_async_context(one)
            return both[0], both[1]

        yield opened


Pair = Callable[[str], Awaitable[tuple[Observatory, Observatory]]]


async def during(obs: tuple[Observatory, Observatory], change: Callable[[], Awaitable[object]], at_most: int) -> None:
    """Five callers in each of two processes wait for one computation while something happens; all of them get a value, and the
    next who asks finds it kept or computes it once."""
    one, two = (each.cache(str, name="during", near=False) for each in obs)
    work = Work()
    asking = [asyncio.ensure_future(one.get_or_compute("k", work)) for _ in range(5)]
    await work.has_begun()
    asking += [asyncio.ensure_future(two.get_or_compute("k", work)) for _ in range(5)]
    await asyncio.sleep(0.05)
    assert work.begun == 1
    await change()
    work.going.set()
    async with asyncio.timeout(10):
        assert await asyncio.gather(*asking) == ["computed"] * 10
    assert work.begun <= at_most

    async def again() -> bool:
        try:
            for cache, other in ((one, two), (two, one)):
                await cache.set("next", cache.name)
                if await other.get("next") is None:  # its slot may be another's now, which each learns for himself
                    return False
                await other.delete("next")
        except StoreUnavailable:
            return False
        return True

    async with asyncio.timeout(10):
        while not await again():
            await asyncio.sleep(0.02)
    work.begun = 0
    both = await asyncio.gather(*(cache.get_or_compute("next", work) for cache in (one, two) for _ in range(5)))
    assert both == ["computed"] * 10
    assert work.begun == 1


async def test_a_slot_moves_during_a_computation(own_cluster: Cluster, pair: Pair) -> None:
    """With the entry's lease, key by key: nobody computes a second time."""
    obs = await pair(own_cluster.url)
    slot = slot_of_key(obs[0].cache(str, name="during", near=False)._room.place("k").entry)
    target = next(one for one in own_cluster.primaries if one is not own_cluster.owner(slot))
    await during(obs, lambda: asyncio.to_thread(move, own_cluster, slot, target, lambda: time.sleep(0.01)), 1)


async def test_a_primary_is_switched_during_a_computation(own_sentinels: Sentinels, pair: Pair) -> None:
    """Leases are replicated, so a planned failover loses few; each lost one is a computation more."""
    obs = await pair(own_sentinels.url)
    await during(obs, lambda: asyncio.to_thread(switch, own_sentinels), 2)


async def test_a_primary_dies_during_a_computation(own_cluster: Cluster, pair: Pair) -> None:
    """Its replica takes over; whoever waited is served by his own process at the latest."""
    obs = await pair(own_cluster.url)
    slot = slot_of_key(obs[0].cache(str, name="during", near=False)._room.place("k").entry)
    owner = own_cluster.owner(slot)
    replica = own_cluster.replica_of(owner)

    async def die() -> None:
        owner.stop()
        async with asyncio.timeout(20):
            while replica.role() != "master":
                await asyncio.sleep(0.05)

    own_cluster.members.remove(owner)
    try:
        await during(obs, die, 2)
    finally:
        own_cluster.members.append(owner)


async def test_everything_is_flushed_during_a_computation(opening_any: Open) -> None:
    """The lease is gone, so one more may begin; and the namespace's salt, so that for a moment two may not agree on the key."""
    obs = await opening_any(), await opening_any()

    async def flush() -> None:
        # Only what is this namespace's: the server is shared.
        keys = [key async for key in obs[0].store.scan(f"obs1:{obs[0].settings.namespace}:*")]
        await obs[0].store.command("DEL", *keys)

    await during(obs, flush, 3)


async def test_flushall(own_server: Server, pair: Pair) -> None:
    """The whole server, with the record of the namespace."""
    obs = await pair(own_server.url)
    await during(obs, lambda: obs[0].store.command("FLUSHALL"), 3)


async def test_a_store_that_stands_still_for_two_seconds(own_server: Server, pair: Pair) -> None:
    """Under load of all kinds: no call takes longer than a bound for each of its trips, reads are misses and not errors,
    writers are told; and when it goes on, so do they."""
    obs = await pair(own_server.url)
    caches = [each.cache(int, name="still", near=False) for each in obs]
    await caches[0].set_many(dict.fromkeys(map(str, range(20)), 1))
    slowest: dict[str, float] = {}
    answers = {"get": 0, "get_or_compute": 0, "set": 0}
    refused = 0
    going = True

    async def compute() -> int:
        await asyncio.sleep(0.02)
        return 1

    async def load(verb: str, call: Callable[[str], Awaitable[object]], number: int) -> None:
        nonlocal refused
        while going:
            number += 1
            began = time.monotonic()
            try:
                answer = await call(str(number % 30))
                assert answer in (1, True, None if verb == "get" else 1)
                answers[verb] += 1
            except StoreUnavailable:
                assert verb == "set"
                refused += 1
            slowest[verb] = max(slowest.get(verb, 0.0), time.monotonic() - began)
            await asyncio.sleep(0.001)

    tasks = [
        asyncio.ensure_future(load(verb, call, number))
        for cache in caches
        for number in range(4)
        for verb, call in (
            ("get", cache.get),
            ("get_or_compute", lambda key, cache=cache: cache.get_or_compute(key, compute, ttl=0.5)),
            ("set", lambda key, cache=cache: cache.set(key, 1, ttl=0.5)),
        )
    ]
    await asyncio.sleep(0.3)
    own_server.signal(signal.SIGSTOP)
    try:
        stopped = dict(answers)
        await asyncio.sleep(2.0)
        assert all(answers[verb] > stopped[verb] for verb in ("get", "get_or_compute")), "they go on"
        assert refused
    finally:
        own_server.signal(signal.SIGCONT)
    resumed, before = dict(answers), (await caches[0].stats(fleet=False)).hits
    async with asyncio.timeout(10):
        while not all(answers[verb] > resumed[verb] + 50 for verb in answers):
            await asyncio.sleep(0.02)
    going = False
    async with asyncio.timeout(10):
        await asyncio.gather(*tasks)
    assert (await caches[0].stats(fleet=False)).hits > before
    # A read is one trip; a computation reads, asks for the lease, reads versions, stores and lets go; a set is two or three.
    assert slowest["get"] < MAX_WAIT * 1 + 1.0
    assert slowest["set"] < MAX_WAIT * 3 + 1.0
    assert slowest["get_or_compute"] < MAX_WAIT * 6 + 1.0


FORKED = """
import asyncio, os, sys
from observatory import Observatory
obs = Observatory("forks", redis_url=sys.argv[1], namespace=sys.argv[2])
texts = obs.cache(str, name="forked", near=False)
numbers = obs.cache(int, name="numbers", near=False)

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # whole lines: two processes write them

async def work():
    await asyncio.sleep(1)
    return str(os.getpid())

async def child(parent):
    async with obs:
        # It joins the parent's computation as a stranger would: by the lease, not by its task.
        found = await texts.get_or_compute("k", work)
        await numbers.increment("n", 100)
        say("child", found == str(parent))

async def main():
    async with obs:
        parent = os.getpid()
        computing = asyncio.create_task(texts.get_or_compute("k", work))
        await asyncio.sleep(0.3)
        # Some of these hold a lock, and others stand in line for it.
        adding = [asyncio.create_task(numbers.increment("n")) for _ in range(3)]
        await asyncio.sleep(0)
        if os.fork() == 0:
            asyncio.events._set_running_loop(None)
            asyncio.set_event_loop(None)
            asyncio.run(child(parent))
            os._exit(0)
        await asyncio.gather(*adding)
        say("parent", await computing == str(parent))
        os.wait()
        say("sum", await numbers.get("n"))
asyncio.run(main())
"""


async def test_a_child_forked_during_a_computation(server: Server, namespace: str) -> None:
    """It waits for its parent's as for a stranger's, computes nothing, and counts for itself."""
    with process(["-W", "ignore", "-c", FORKED, server.url, namespace]) as forks:
        out, err = await asyncio.to_thread(forks.communicate, timeout=20)
    assert sorted(out.split("\n")) == ["", "child True", "parent True", "sum 103"], err
