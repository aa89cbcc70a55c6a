"""The house as a whole, on every topology: a limit, metrics, events, a cache, leases, and who is here."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from observatory import CacheComputationFailed, Limit, Metric, Observatory
from observatory.features.metrics.waiting import Group
from observatory.features.metrics.wire import Batch
from observatory.keys import PERMANENT, WINDOW_US
from observatory.names import Definition
from observatory.store.check import findings
from observatory.worker.audit import Audit
from observatory.worker.worker import Worker
from tests.servers import ROOT, environment, process
from tests.store.load import script
from tests.store.test_fork import FORKING
from tests.store.test_watch import registered
from tests.topologies import Cluster, Sentinels

Topology = Sentinels | Cluster


@pytest.fixture(params=[("sentinel", "valkey"), ("cluster", "valkey"), ("cluster", "redis")], ids="-".join)
def topology(request: pytest.FixtureRequest, topologies: Callable[[str, str], Topology]) -> Topology:
    return topologies(*request.param)


@pytest.fixture
async def opening(topology: Topology) -> AsyncIterator[Callable[..., Any]]:
    """Clients of one namespace; at the end no key of it may be without a TTL."""
    namespace = f"t{secrets.token_hex(6)}"
    async with AsyncExitStack() as stack:

        async def open_(**given: Any) -> Observatory:
            settings = {"service_name": "test", "redis_url": topology.url, "namespace": namespace}
            return await stack.enter_async_context(Observatory(**{**settings, **given}))

        yield open_
    left = {key: left for member in topology.primaries for key, left in member.keys(f"obs1:{namespace}:*")}
    assert left
    assert not [key for key, ttl in left.items() if ttl == -1 and not PERMANENT.fullmatch(key)]


async def test_everything_works(opening: Callable[..., Any]) -> None:
    """Two clients and a worker see one truth."""
    first, second = await opening(), await opening()
    limit = Limit("e2e", 20, per="1h")
    decisions = await asyncio.gather(
        *(obs.rate_limiter.check(limit, f"user{number}") for number in range(20) for obs in (first, second))
    )
    assert all(decision.allowed for decision in decisions)
    assert {(await first.rate_limiter.check(limit, f"user{number}")).remaining for number in range(20)} == {17}
    for obs in (first, second):
        for number in range(7):
            obs.metrics.increment_counter("e2e_total", 1, {"number": str(number)})
            obs.record_request("openai", "gpt-4o-mini", latency=0.1, tokens=3)
        await obs.flush()
    assert (await second.metrics.query("e2e_total", "sum", since="1h")).value == 14

    worker = await opening(role="worker")
    stop = asyncio.Event()
    task = asyncio.create_task(Worker(worker).run(stop))
    async with asyncio.timeout(20):
        while (await first.events.lag())["applied"] < 14:
            await asyncio.sleep(0.05)
    assert {member.says.role for member in await first.instances()} == {"client", "worker"}
    stop.set()
    await task
    assert (await second.metrics.query(Metric.REQUESTS_TOTAL, "sum", since="1h")).value == 14

    cache = first.cache(dict, name="e2e")
    await cache.set_many({f"k{number}": {"n": number} for number in range(20)})
    assert len(await second.cache(dict, name="e2e").get_many([f"k{number}" for number in range(25)])) == 20
    assert await second.cache(dict, name="e2e").delete("k1") == 1
    assert await first.leases.acquire("e2e", 5.0) is not None
    assert await second.leases.acquire("e2e", 5.0) is None
    await first.leases.release("e2e")
    await first.ready()
    health = await first.health()
    assert health.status == "degraded", "no append-only file"
    assert len(await first.instances()) == 3
    assert {finding.name: finding.status for finding in health.checks}["version"] == "ok"


async def test_forked_children_are_their_own(opening: Callable[..., Any], topology: Topology) -> None:
    """Neither connections nor the map nor the watch over the sentinels are shared with the parent."""
    obs = await opening()
    with process(["-c", FORKING, topology.url, obs.settings.namespace], environment()) as one:
        out, said = await asyncio.to_thread(one.communicate, timeout=60)
    assert one.returncode == 0, out + said
    assert "Warning" not in said, said
    assert (await obs.metrics.query("test_forked_total")).value == 4 * 30 + 10


async def test_documented_rights_are_enough(opening: Callable[..., Any], topology: Topology) -> None:
    """A user who may do what docs/operations.md lists, and no more; the password is asked for, and not shown."""
    text = (
        (ROOT / "docs" / "operations.md").read_text().partition("ACL SETUSER observatory on >SECRET ")[2].partition("\n\n")[0]
    )
    rights = [word for word in text.split() if word.startswith(("~", "+")) or word == "resetchannels"]
    redis7 = b"redis_version:7.0" in topology.primaries[0]("INFO", "server")
    rights = [word for word in rights if not (redis7 and word == "+client|setinfo")]
    for member in topology.members if isinstance(topology, Cluster) else topology.data:
        member("ACL", "SETUSER", "observatory", "reset", "on", ">s3cret", *rights)
    obs = await opening(redis_url=topology.url.replace("//", "//observatory:s3cret@"))
    assert "s3cret" not in obs.store.address.shown
    assert (await obs.rate_limiter.check(Limit("rights", 5, per="1h"), "a")).remaining == 4
    write = script("return redis.call('SET', KEYS[1], '0,0,1,1', 'PX', 60000)")
    assert await obs.store.send(write, [obs.store.keys.bucket("strict", "a")], [], replicas=1) == b"OK"
    obs.metrics.increment_counter("rights_total", 3)
    obs.metrics.set_gauge("rights_now", 3)
    obs.record_request("openai", "gpt-4o-mini", latency=0.1)
    await obs.flush()
    assert (await obs.metrics.query("rights_total", "sum", since="1h")).value == 3
    cache = obs.cache(str, name="rights")
    await cache.set("k", "v", tags=["t"])
    assert await cache.get("k") == "v"
    await cache.invalidate("t")

    async def ask(answer: str | None) -> str:
        if answer is None:
            raise LookupError
        return answer

    with pytest.raises(LookupError):
        await cache.get_or_compute("k", lambda: ask(None))
    with obs.store.watching(obs.store.keys.bucket("strict", "a")) as change:
        await registered(change)
    with pytest.raises(CacheComputationFailed):
        await cache.get_or_compute("k", lambda: ask("v"))
    assert await cache.delete("k") == 0
    assert await cache.get_or_compute("k", lambda: ask("v"), tags=["t"]) == "v"
    assert await obs.cache(int, name="numbers").increment("i") == 1
    assert await cache.clear()
    assert await obs.leases.acquire("rights", 5.0) is not None
    assert len(await obs.instances()) == 1
    health = await obs.health()
    assert "bad" not in {finding.status for finding in health.checks}
    assert (await obs.events.lag())["accepted"] == 1
    yesterday = (obs.store.server_us() or 0) - 20 * 3_600_000_000
    group = Group("rights_total", Definition("counter"), [("w|", 4)])
    obs.metrics._outbox.put(Batch(yesterday - yesterday % WINDOW_US, (group,), None))
    await obs.flush()
    while await obs.metrics.compact():
        pass
    assert (await obs.metrics.query("rights_total", since="24h", step=3600)).series[0].points[0].value == 4
    assert not (await obs.dead_letters.list()).letters
    async with obs.rate_limiter.reserve(Limit("held", 5, per="1h"), "a") as held:
        await held.settle(1)
    await Audit(obs).step(1)
    with obs.span("rights"):
        await obs.flush()


async def test_each_primary_is_looked_at(opening: Callable[..., Any], topology: Topology) -> None:
    """The worst finding is told, with its place."""
    obs = await opening()
    bad = topology.primaries[-1]
    before = await findings(obs.store, ())
    bad("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        found = {finding.name: finding for finding in await findings(obs.store, ())}
    finally:
        bad("CONFIG", "SET", "maxmemory-policy", "noeviction")
    assert found["eviction"].status == "bad"
    assert [finding.name for finding in before] == list(found)
    if isinstance(topology, Cluster):
        assert found["eviction"].message.startswith(bad.place)
        assert found["cluster"].message == "3 primaries, every slot is served"
