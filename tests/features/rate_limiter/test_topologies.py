"""The limiter behind Sentinel and on Cluster: several slots, failovers and moves under load, strict writes."""

import asyncio
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from observatory import Limit, Observatory, RateLimitExceeded, StoreUnavailable
from observatory.settings import Settings
from tests.servers import process, wait_until
from tests.topologies import Cluster, Sentinels

Opening = Callable[..., Any]


@pytest.fixture
async def opening() -> AsyncIterator[Opening]:
    """Clients of one namespace on any topology."""
    namespace = f"t{secrets.token_hex(6)}"
    async with AsyncExitStack() as stack:

        async def open_(where: Any, **given: Any) -> Observatory:
            settings = {"service_name": "test", "redis_url": where.url, "namespace": namespace}
            return await stack.enter_async_context(Observatory(**{**settings, **given}))

        yield open_


def limits(many: int = 6) -> list[Limit]:
    """Of dimensions of their own, so that their buckets lie in several slots."""
    return [Limit(f"l{number}", 10, per="1h", by=f"d{number}", on_store_down="closed") for number in range(many)]


DIMENSIONS = {f"d{number}": f"value-{number}" for number in range(6)}


async def test_all_or_nothing_over_slots(cluster: Cluster, opening: Opening) -> None:
    """Allowed: each is charged once. Refused by one: none is, and no hold is left."""
    obs = await opening(cluster)
    several = limits()
    tags = {obs.store.keys.bucket(limit.name, DIMENSIONS[limit.dimensions[0]]).split("}")[0] for limit in several}
    assert len(tags) > 3, "they lie in several slots"
    decision = await obs.rate_limiter.check(several, DIMENSIONS, 3)
    assert decision.allowed
    assert [part.remaining for part in decision.parts] == [7] * 6
    await obs.rate_limiter.check(several[4], DIMENSIONS, 6)
    refused = await obs.rate_limiter.check(several, DIMENSIONS, 3)
    assert (refused.allowed, refused.limit) == (False, "l4")
    assert [part.limit for part in refused.parts] == [limit.name for limit in several]
    await asyncio.sleep(0.1)
    peeked = await obs.rate_limiter.peek(several, DIMENSIONS)
    assert [part.remaining for part in peeked.parts] == [7, 7, 7, 7, 1, 7]
    assert not [key async for key in obs.store.scan(obs.store.keys.pattern() + ":holds")]


async def test_racing_callers_over_slots_never_exceed_any(cluster: Cluster, opening: Opening) -> None:
    """Of a hundred, ten each: what one takes, all take."""
    first, second = await opening(cluster), await opening(cluster)
    several = limits(4)
    asked = [(first, second)[n % 2].rate_limiter.check(several, DIMENSIONS) for n in range(100)]
    allowed = sum(bool(decision) for decision in await asyncio.gather(*asked))
    await asyncio.sleep(0.2)
    left = [part.remaining for part in (await first.rate_limiter.peek(several, DIMENSIONS)).parts]
    assert allowed <= 10
    assert left == [10 - allowed] * 4


HALF_WAY = """
import asyncio, os, signal, sys
from observatory import Limit, Observatory
from observatory.features.rate_limiter.desk import Desk

async def main():
    async with Observatory("dies", redis_url=sys.argv[1], namespace=sys.argv[2]) as obs:
        limits = [Limit(f"l{n}", 10, per="1h", by=f"d{n}") for n in range(6)]
        asks, ask = 0, Desk.ask
        def dying(self, verb, *given, **more):
            nonlocal asks
            asks += 1
            if asks == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return ask(self, verb, *given, **more)
        Desk.ask = dying
        await obs.rate_limiter.check(limits, {f"d{n}": f"value-{n}" for n in range(6)}, 5)
asyncio.run(main())
"""


async def test_death_between_two_slots_is_returned_at_the_deadline(cluster: Cluster, opening: Opening) -> None:
    """Killed with two slots held: after two seconds everything is there again, without anybody's doing."""
    obs = await opening(cluster, settings=Settings().replace(redis_max_wait=2.0))
    with process(["-c", HALF_WAY, cluster.url, obs.settings.namespace]) as dies:
        await asyncio.to_thread(dies.wait, 20)
    several = limits()
    peeked = await obs.rate_limiter.peek(several, DIMENSIONS)
    assert sorted(part.remaining for part in peeked.parts) == [5, 5, 10, 10, 10, 10]
    await asyncio.sleep(2.1)
    peeked = await obs.rate_limiter.peek(several, DIMENSIONS)
    assert [part.remaining for part in peeked.parts] == [10] * 6


async def test_holds_lines_and_slots_on_cluster(cluster: Cluster, opening: Opening) -> None:
    """reserve over slots, settled from another process; acquire in line; slots of concurrency."""
    one, other = await opening(cluster), await opening(cluster)
    several = limits()
    for obs in (one, other):
        obs.rate_limiter.define(*several)
    held = await one.rate_limiter.reserve([limit.name for limit in several], DIMENSIONS, 4)
    assert [part.remaining for part in held.decision.parts] == [6] * 6
    await other.rate_limiter.reservation(held.id).settle(1)
    peeked = await one.rate_limiter.peek(several, DIMENSIONS)
    assert [part.remaining for part in peeked.parts] == [9] * 6
    line = Limit("line", 20, per=1, burst=1)
    began = time.monotonic()
    await asyncio.gather(*[(one, other)[n % 2].rate_limiter.acquire(line, timeout=10) for n in range(15)])
    assert 0.6 < time.monotonic() - began < 3.0
    gpus = Limit("gpus", 1, unit="slots")
    async with one.rate_limiter.reserve(gpus):
        with pytest.raises(RateLimitExceeded):
            await other.rate_limiter.reserve(gpus)


async def spend(obs: Observatory, limit: Limit, ends: float, identities: int = 1) -> tuple[int, int]:
    """Allowed, and unknown, until a moment."""
    allowed = unknown = number = 0
    while time.monotonic() < ends:
        number += 1
        try:
            allowed += bool(await obs.rate_limiter.check(limit, f"id-{number % identities}"))
        except StoreUnavailable:
            unknown += 1
            await asyncio.sleep(0.02)
    return allowed, unknown


async def test_sentinel_failover_during_load_admits_no_second_burst(own_sentinels: Sentinels, opening: Opening) -> None:
    """The primary is killed with the burst spent: what follows is the rate, not another burst."""
    obs = await opening(own_sentinels)
    limit = Limit("burst", 600, per=60, burst=600, on_store_down="closed")
    began = time.monotonic()
    for _ in range(600):
        await obs.rate_limiter.check(limit, "id-0")
    load = asyncio.create_task(spend(obs, limit, began + 8.0))
    await asyncio.sleep(0.5)
    own_sentinels.primary.stop()
    allowed, unknown = await load
    assert unknown, "there was an outage"
    assert allowed <= 10 * (time.monotonic() - began) + 1
    assert (await obs.rate_limiter.peek(limit, "id-0")).decided_by == "redis"


async def test_cluster_failover_and_slot_move_during_load(own_cluster: Cluster, opening: Opening) -> None:
    """A master is killed and its replica promoted: over sixty buckets, no second burst anywhere."""
    obs = await opening(own_cluster)
    limit = Limit("many", 60, per=60, burst=20, on_store_down="closed")
    began = time.monotonic()
    for number in range(60 * 22):
        await obs.rate_limiter.check(limit, f"id-{number % 60}")
    load = asyncio.create_task(spend(obs, limit, began + 9.0, 60))
    await asyncio.sleep(0.5)
    own_cluster.primaries[0].stop()
    allowed, unknown = await load
    elapsed = time.monotonic() - began
    assert unknown
    # Each bucket begins empty and grows by one a second; nothing is known of calls that were not answered.
    assert allowed <= 60 * (elapsed + 1)
    assert not [number for number in range(60) if (await obs.rate_limiter.peek(limit, f"id-{number}")).remaining > elapsed + 1]


async def test_strict_is_answered_when_a_replica_has_it(own_sentinels: Sentinels, opening: Opening) -> None:
    """With the replicas away nothing is allowed, by a limit that is closed; what was charged stays charged."""
    obs = await opening(own_sentinels)
    wait_until(lambda: len(own_sentinels.primary("ROLE")[2]) == 2, "the replicas are attached")
    strict = Limit("strict", 10, per="1h", durability="strict", on_store_down="closed")
    fast = Limit("fast", 10, per="1h", on_store_down="closed")
    assert await obs.rate_limiter.check(strict)
    async with obs.rate_limiter.reserve(strict) as held:
        await held.settle()
    replicas = own_sentinels.replicas
    for replica in replicas:
        replica.signal(signal.SIGSTOP)
    try:
        with pytest.raises(StoreUnavailable, match="acknowledged"):
            await obs.rate_limiter.check(strict)
        assert await obs.rate_limiter.check(fast)
        assert (await obs.rate_limiter.peek(strict)).remaining == 7
    finally:
        for replica in replicas:
            replica.signal(signal.SIGCONT)


async def test_split_brain_stays_at_the_limit_when_strict(own_sentinels: Sentinels, opening: Opening) -> None:
    """A primary that is cut off from its replicas goes on accepting: strict admits 1.00 times the limit in all."""
    obs = await opening(own_sentinels)
    wait_until(lambda: len(own_sentinels.primary("ROLE")[2]) == 2, "the replicas are attached")
    old = own_sentinels.primary
    limit = Limit("split", 100, per="1h", durability="strict", on_store_down="closed", after_failover="keep")
    admitted = 0
    for _ in range(40):
        admitted += bool(await obs.rate_limiter.check(limit))
    # The old primary is asked directly, as by a client that does not hear the sentinels; its replicas hear nothing of it.
    async with Observatory("cut off", redis_url=f"redis://127.0.0.1:{old.port}", namespace=obs.settings.namespace) as behind:
        for replica in [member for member in own_sentinels.data if member is not old]:
            replica("REPLICAOF", "NO", "ONE")
        refused = 0
        for _ in range(20):
            try:
                admitted += bool(await behind.rate_limiter.check(limit))
            except StoreUnavailable:
                refused += 1
        assert refused == 20, "nobody acknowledged"
    ahead_of_it = next(member for member in own_sentinels.data if member is not old)
    async with Observatory(
        "ahead", redis_url=f"redis://127.0.0.1:{ahead_of_it.port}", namespace=obs.settings.namespace
    ) as ahead:
        fast = Limit("split", 100, per="1h", on_store_down="closed", after_failover="keep")
        for _ in range(150):
            admitted += bool(await ahead.rate_limiter.check(fast))
    assert admitted == 100
