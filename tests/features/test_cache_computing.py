"""One computation per fleet: across tasks, processes, cancellations, deaths, failures, deletes and outages."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from observatory import Cache, CacheComputationFailed, CacheError, InvalidArgument, Observatory
from observatory.features.cache import lease
from tests.conftest import Open
from tests.servers import ROOT, Server, environment, wait_until
from tests.topologies import Cluster

PROGRAM = """
import asyncio, os, sys, time
from observatory import Observatory

LOG, PAUSE = sys.argv[1], float(sys.argv[2])
INTERVAL = 0.05

async def one(cache, key, at):
    async def compute():
        with open(LOG, "a") as log:
            log.write(f"{os.getpid()} {key}\\n")
        await asyncio.sleep(PAUSE)
        return f"{key} of {os.getpid()}, {time.monotonic()}"

    await asyncio.sleep(at - time.monotonic())
    found = set(await asyncio.gather(*(cache.get_or_compute(key, compute) for _ in range(20))))
    return f"{key}: {' or '.join(found)}"

async def main():
    async with Observatory("test") as obs:
        cache = obs.cache(str, name="fleet")
        print("ready", flush=True)
        at = float(sys.stdin.readline())
        tasks = [one(cache, key, at + number * INTERVAL) for number, key in enumerate(sys.argv[3:])]
        print(*await asyncio.gather(*tasks), sep="\\n", flush=True)

asyncio.run(main())
"""


class Fleet:
    """Processes that wait for a word, and then ask for the same keys at the same moments, 20 tasks in each."""

    def __init__(self, url: str, namespace: str, log: Path, pause: float, *keys: str, size: int = 4) -> None:
        self.log = log
        log.touch()
        # Patient with a busy machine: who gives the store up computes for himself.
        env = environment(
            OBSERVATORY_REDIS_URL=url, OBSERVATORY_NAMESPACE=namespace, OBSERVATORY_REDIS_MAX_WAIT="5", PYTHONPATH=str(ROOT)
        )
        self.members = [
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(log), str(pause), *keys],
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(size)
        ]
        for member in self.members:
            assert member.stdout is not None
            assert member.stdout.readline() == "ready\n"

    def start(self) -> None:
        at = time.monotonic() + 0.1
        for member in self.members:
            assert member.stdin is not None
            member.stdin.write(f"{at}\n")
            member.stdin.flush()

    def computed_by(self) -> list[int]:
        return [int(line.split()[0]) for line in self.log.read_text().splitlines()]

    def computed(self) -> list[str]:
        return [line.split()[1] for line in self.log.read_text().splitlines()]


@pytest.fixture(params=["valkey", "redis", "cluster"])
def place(request: pytest.FixtureRequest) -> str:
    """Where the fleet meets."""
    if request.param == "cluster":
        cluster = request.getfixturevalue("cluster")
        assert isinstance(cluster, Cluster)
        return cluster.url
    server: Server = request.getfixturevalue("servers")(request.param)
    return server.url


def test_one_computation_for_four_processes_and_eighty_tasks(place: str, namespace: str, tmp_path: Path) -> None:
    """Of each of a hundred keys; all eighty get the same value (the peers compute up to 61 times, limiters.md R9)."""
    keys = [f"k{number}" for number in range(100)]
    fleet = Fleet(place, namespace, tmp_path / "log", 0.1, *keys)
    fleet.start()
    outs = [member.communicate(timeout=60)[0] for member in fleet.members]
    assert sorted(fleet.computed()) == sorted(keys)
    assert len(set(fleet.computed_by())) > 1, "they were there at the same moment"
    assert outs == [outs[0]] * 4
    assert [line.split(" of ")[0] for line in outs[0].splitlines()] == [f"{key}: {key}" for key in keys]


def test_a_killed_holder_is_replaced_within_its_lease(server: Server, namespace: str, tmp_path: Path) -> None:
    """SIGKILL in the middle of the computation: one more is made, by one of the others."""
    fleet = Fleet(server.url, namespace, tmp_path / "log", 1.0, "k")
    fleet.start()
    wait_until(fleet.computed_by, "somebody computes")
    killed = fleet.computed_by()[0]
    began = time.monotonic()
    for member in fleet.members:
        if member.pid == killed:
            member.kill()
    for member in fleet.members:
        out, _ = member.communicate(timeout=60)
        assert member.pid == killed or out.startswith("k: k of ")
    assert time.monotonic() - began < lease.LEASE + 1.0 + 2.0
    assert len(fleet.computed_by()) == 2


def counting(value: Any, pause: float = 0.0, calls: list[int] | None = None) -> Callable[[], Awaitable[Any]]:
    """A computation, and a list that grows with each."""

    async def compute() -> Any:
        if calls is not None:
            calls.append(1)
        await asyncio.sleep(pause)
        return value

    return compute


async def test_tasks_of_a_process_share_a_computation(obs: Observatory) -> None:
    """And a mutable value is no one's but each caller's."""
    calls: list[int] = []
    cache = obs.cache(dict[str, int], near=False)
    found = await asyncio.gather(*(cache.get_or_compute("k", counting({"a": 1}, 0.05, calls)) for _ in range(50)))
    assert found == [{"a": 1}] * 50
    assert len({id(one) for one in found}) == 50
    assert len(calls) == 1
    assert await cache.get_or_compute("k", counting({}, 0, calls)) == {"a": 1}
    assert len(calls) == 1
    here = await cache.stats(fleet=False)
    assert (here.hits, here.misses, here.coalesced, here.computed) == (1, 50, 49, 1)
    await obs.flush()
    assert await cache.stats() == here


async def test_none_is_a_value(obs: Observatory) -> None:
    """Computed once."""
    calls: list[int] = []
    cache = obs.cache(int | None)
    for _ in range(3):
        assert await cache.get_or_compute("k", counting(None, 0, calls)) is None
    assert len(calls) == 1


async def test_cancelling_the_first_cancels_nobody_else(opening_any: Open) -> None:
    """Neither here nor in another process; the computation is not begun anew."""
    first, second = await opening_any(), await opening_any()
    calls: list[int] = []
    compute = counting("v", 0.3, calls)
    leader = asyncio.create_task(first.cache(str).get_or_compute("k", compute))
    await asyncio.sleep(0.1)
    waiting = [asyncio.create_task(one.cache(str).get_or_compute("k", compute)) for one in (first, second)]
    await asyncio.sleep(0.05)
    leader.cancel()
    assert await asyncio.gather(*waiting) == ["v", "v"]
    assert leader.cancelled()
    assert len(calls) == 1


async def test_when_all_are_cancelled_the_lease_is_given_back(opening: Open) -> None:
    """So another process does not wait for its end."""
    first, second = await opening(), await opening()
    ended: list[str] = []

    async def compute() -> str:
        try:
            await asyncio.sleep(30)
        finally:
            ended.append("cancelled")
        return "never"

    leaders = [asyncio.create_task(first.cache(str).get_or_compute("k", compute)) for _ in range(3)]
    await asyncio.sleep(0.1)
    other = asyncio.create_task(second.cache(str).get_or_compute("k", counting("other")))
    await asyncio.sleep(0.1)
    for leader in leaders:
        leader.cancel()
    began = time.monotonic()
    assert await other == "other"
    assert time.monotonic() - began < lease.LEASE / 2
    assert ended == ["cancelled"]


async def test_a_failure_is_told_to_all_and_then_forgotten(opening_any: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who computes gets the error itself; the others one of ours that names it; a second later it is tried again."""
    first, second = await opening_any(), await opening_any()
    calls: list[int] = []

    async def fail() -> str:
        calls.append(1)
        await asyncio.sleep(0.1)
        raise LookupError("no such user")

    mine = asyncio.gather(*(first.cache(str).get_or_compute("k", fail) for _ in range(5)), return_exceptions=True)
    await asyncio.sleep(0.05)
    theirs = asyncio.gather(*(second.cache(str).get_or_compute("k", fail) for _ in range(5)), return_exceptions=True)
    assert {type(error) for error in await mine} == {LookupError}
    told = await theirs
    assert {type(error) for error in told} == {CacheComputationFailed}
    error = told[0]
    assert isinstance(error, CacheComputationFailed)
    assert error.kind == "LookupError"
    assert "no such user" in str(error)
    assert error.retryable
    assert error.retry_after is not None
    assert 0 < error.retry_after <= 1
    assert len(calls) == 1
    with pytest.raises(CacheComputationFailed):
        await first.cache(str).get_or_compute("k", fail)
    await asyncio.sleep(error.retry_after + 0.05)
    assert await second.cache(str).get_or_compute("k", counting("v")) == "v"


async def test_a_failure_is_remembered_as_long_as_asked(opening: Open) -> None:
    """And ends with a set or a delete."""
    obs = await opening()
    cache = obs.cache(str)

    async def fail() -> str:
        raise LookupError

    with pytest.raises(LookupError):
        await cache.get_or_compute("k", fail, fail_for=30)
    await asyncio.sleep(1.1)
    with pytest.raises(CacheComputationFailed) as caught:
        await cache.get_or_compute("k", counting("v"))
    assert caught.value.retry_after is not None
    assert caught.value.retry_after > 20
    await cache.delete("k")
    assert await cache.get_or_compute("k", counting("v")) == "v"


@pytest.mark.parametrize("how", ["delete", "set", "clear", "invalidate"])
async def test_what_was_computed_before_a_change_is_not_stored(opening_any: Open, how: str) -> None:
    """The caller who began it has it; nobody who asks afterwards gets it, here or elsewhere."""
    first, second = await opening_any(), await opening_any()
    cache, other = first.cache(str, near=False), second.cache(str, near=False)
    leader = asyncio.create_task(cache.get_or_compute("k", counting("old", 0.3), tags=["t"]))
    await asyncio.sleep(0.1)
    match how:
        case "delete":
            await other.delete("k")
        case "set":
            await other.set("k", "new")
        case "clear":
            await other.clear()
        case _:
            await other.invalidate("t")
    joined = asyncio.create_task(cache.get_or_compute("k", counting("new")))
    assert await leader == "old"
    assert await joined == "new"
    assert await other.get_or_compute("k", counting("new")) == "new"
    assert await cache.get("k") == "new"


async def test_own_changes_are_seen_at_once(obs: Observatory) -> None:
    """Who deletes and asks again does not get what was computed before."""
    cache = obs.cache(str)
    changes: dict[str, Callable[[], Awaitable[object]]] = {
        "delete": lambda: cache.delete("k"),
        "clear": cache.clear,
        "invalidate": lambda: cache.invalidate("t"),
    }
    for how, change in changes.items():
        leader = asyncio.create_task(cache.get_or_compute("k", counting("old", 0.2), tags=["t"]))
        await asyncio.sleep(0.05)
        await change()
        assert await cache.get_or_compute("k", counting("new")) == "new"
        assert how != "delete" or not leader.done(), "nobody waits for what is not wanted any more"
        assert await leader == "old"
        assert await cache.get("k") == "new"
        await cache.delete("k")


async def test_a_long_computation_keeps_its_lease(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three times as long as the lease; the other process waits."""
    monkeypatch.setattr(lease, "LEASE", 0.3)
    monkeypatch.setattr(lease, "_RENEW_EVERY", 0.075)
    first, second = await opening(), await opening()
    calls: list[int] = []
    work = [one.cache(str).get_or_compute("k", counting("v", 0.9, calls)) for one in (first, second)]
    assert await asyncio.gather(*work) == ["v", "v"]
    assert len(calls) == 1


async def test_a_lost_lease_means_that_the_late_store_is_refused(opening: Open) -> None:
    """Evicted, as a store with allkeys-lfu may: a newer value stays."""
    first, second = await opening(), await opening()
    leader = asyncio.create_task(first.cache(str).get_or_compute("k", counting("old", 0.3)))
    await asyncio.sleep(0.1)
    place = first.cache(str)._room.place("k")
    assert await first.store.command("DEL", place.lease) == 1
    assert await second.cache(str).get_or_compute("k", counting("new")) == "new"
    assert await leader == "old"
    assert await first.cache(str).get("k") == "new"
    assert (await first.cache(str).stats(fleet=False)).computed == 1


async def test_stale_is_served_while_one_makes_a_new_one(opening_any: Open) -> None:
    """In the fleet; and when that fails the old value is served until stale_for is over."""
    first, second = await opening_any(), await opening_any()
    one, two = (obs.cache(str, ttl=0.1, stale_for=30, near=False) for obs in (first, second))
    calls: list[int] = []
    assert await one.get_or_compute("k", counting("1", 0, calls)) == "1"
    await asyncio.sleep(0.15)
    assert await one.get("k") is None, "get takes nothing stale"
    both = await asyncio.gather(
        *(cache.get_or_compute("k", counting("2", 0.1, calls)) for cache in (one, two) for _ in range(9))
    )
    assert both == ["1"] * 18
    await asyncio.sleep(0.2)
    assert len(calls) == 2
    assert (await one.stats(fleet=False)).stale == 9

    async def fail() -> str:
        raise ConnectionError

    for _ in range(3):
        assert await two.get_or_compute("k", fail) == "2"
        await asyncio.sleep(0.02)
    short = first.cache(str, name="short", ttl=0.05, stale_for=0.1)
    await short.set("k", "v")
    await asyncio.sleep(0.25)
    with pytest.raises(ConnectionError):
        await short.get_or_compute("k", fail)


async def test_a_dear_entry_is_made_anew_before_its_end(obs: Observatory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sooner the dearer it is: XFetch with a draw of ours."""
    cache = obs.cache(str, ttl=10, near=False)
    calls: list[int] = []
    await cache.get_or_compute("k", counting("1", 0.2, calls))
    monkeypatch.setattr("random.random", lambda: 0.0)
    await cache.get_or_compute("k", counting("2", 0, calls))
    await asyncio.sleep(0.05)
    assert len(calls) == 1, "the luckiest draw asks for nothing"
    monkeypatch.setattr("random.random", lambda: 1 - 1e-16)
    await cache.set("cheap", "1")
    monkeypatch.setattr("math.log", lambda _: -60.0)  # 0.2 s, sixty times
    assert await cache.get_or_compute("k", counting("2", 0, calls)) == "1"
    await asyncio.sleep(0.1)
    assert await cache.get("k") == "2"
    assert len(calls) == 2


async def test_with_the_store_away_everybody_computes(opening: Open, own_server: Server) -> None:
    """Within the bound, once a process, and what cannot be known is not waited for."""
    obs = await opening(own_server)
    cache = obs.cache(str)
    await cache.set("k", "v")
    own_server.stop()
    calls: list[int] = []
    began = time.monotonic()
    assert await cache.get("k", "miss") == "miss"
    found = await asyncio.gather(*(cache.get_or_compute("k", counting("mine", 0.05, calls)) for _ in range(10)))
    assert found == ["mine"] * 10
    assert len(calls) == 1
    assert time.monotonic() - began < 2.0
    assert (await cache.stats(fleet=False)).errors > 0


async def test_before_the_store_was_ever_reached(opening: Open, tmp_path: Path) -> None:
    """The same."""
    async with Observatory("x", redis_url=f"unix://{tmp_path}/none") as obs:
        cache = obs.cache(str)
        calls: list[int] = []
        assert await cache.get("k", "miss") == "miss"
        found = await asyncio.gather(*(cache.get_or_compute("k", counting("mine", 0.05, calls)) for _ in range(10)))
        assert found == ["mine"] * 10
        assert len(calls) == 1


async def test_a_slow_store_is_an_absent_one(opening: Open, own_server: Server) -> None:
    """It stands still: reads and computations go on after the bound."""
    obs = await opening(own_server)
    cache = obs.cache(str)
    await cache.set("k", "v")
    own_server.signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        assert await cache.get("k", "miss") == "miss"
        assert await cache.get_or_compute("k", counting("mine")) == "mine"
        assert time.monotonic() - began < 0.25 * 2 + 0.2
    finally:
        own_server.signal(signal.SIGCONT)


async def test_a_computation_that_waits_for_itself_is_told_so(obs: Observatory) -> None:
    """Instead of for ever."""
    cache = obs.cache(str)

    async def compute() -> str:
        return await cache.get_or_compute("k", compute)

    with pytest.raises(CacheError, match="waits for itself"):
        await cache.get_or_compute("k", compute)
    assert await cache.get_or_compute("other", counting("v")) == "v"


async def test_closing_gives_leases_back(opening: Open, server: Server, namespace: str) -> None:
    """Nobody waits for a process that has said goodbye."""
    other = await opening()
    async with Observatory("x", redis_url=server.url, namespace=namespace) as obs:
        leader = asyncio.create_task(obs.cache(str).get_or_compute("k", counting("never", 30)))
        await asyncio.sleep(0.1)
    with pytest.raises(CacheComputationFailed, match="cancelled"):
        await leader
    began = time.monotonic()
    assert await other.cache(str).get_or_compute("k", counting("v")) == "v"
    assert time.monotonic() - began < 1.0


async def test_a_computation_that_will_not_end_keeps_nobody_from_closing(server: Server, namespace: str) -> None:
    """It swallows its cancellation; closing goes on without it."""
    done = asyncio.Event()

    async def stubborn() -> str:
        while not done.is_set():
            try:
                await done.wait()
            except asyncio.CancelledError:
                continue
        return "v"

    obs = Observatory("x", redis_url=server.url, namespace=namespace)
    await obs.open()
    leader = asyncio.create_task(obs.cache(str).get_or_compute("k", stubborn))
    await asyncio.sleep(0.1)
    obs.metrics.increment_counter("last_words_total")
    began = time.monotonic()
    await obs.aclose()
    assert time.monotonic() - began < 2.0
    done.set()
    assert await leader == "v"
    async with obs:
        assert (await obs.metrics.query("last_words_total")).value == 1


async def test_a_wrong_value_is_everybodys_error(obs: Observatory) -> None:
    """It can be computed, and not kept."""
    cache: Cache[str] = obs.cache(str)
    with pytest.raises(TypeError):
        await cache.get_or_compute("k", counting(5))
    with pytest.raises(InvalidArgument, match="fail_for"):
        await cache.get_or_compute("k", counting("v"), fail_for=-1)
