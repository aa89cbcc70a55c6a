"""A cluster: every call at the primary of its slot, also while slots and primaries move."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from observatory.errors import StoreMisconfigured, StoreUnavailable
from observatory.store.address import address
from observatory.store.cluster import slot_of, slot_of_key
from observatory.store.journey import Journey
from tests.servers import free_port, wait_until
from tests.store.conftest import Open
from tests.store.load import ADD, Load, script, store_at
from tests.topologies import Cluster, Member

SPREAD = [f"k{{{number}}}" for number in range(12)]
"""Keys on all three masters."""


@pytest.fixture
def redirects(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """What servers refused with, by its first word."""
    seen: Counter[str] = Counter()
    refused = Journey.refused

    def counted(self: Journey, error: BaseException, *rest: Any, **more: Any) -> None:
        seen[str(error).split(" ", 1)[0]] += 1
        refused(self, error, *rest, **more)

    monkeypatch.setattr(Journey, "refused", counted)
    return seen


@pytest.fixture
def used(cluster: Cluster) -> AsyncIterator[Cluster] | Any:
    """The shared cluster, emptied."""
    yield cluster
    for member in cluster.primaries:
        member("FLUSHALL")


def test_a_cluster_is_known_from_its_url() -> None:
    """Before any connection; the password is not shown."""
    where = address("rediss+cluster://u:s3cret@h1:1,[::1]:2", environment="production", home=Path("/nowhere"))
    assert (where.topology, where.nodes) == ("cluster", (("h1", 1), ("::1", 2)))
    assert where.shown == "rediss+cluster://h1:1,[::1]:2"
    assert store_at("redis+cluster://h").is_cluster
    assert not store_at("redis://h").is_cluster


def test_commands_go_by_their_first_key() -> None:
    """And what has none goes anywhere."""
    slot = slot_of_key("{a}x")
    assert slot == slot_of_key("a") == slot_of_key(b"b{a}")
    keyed: tuple[tuple[str | bytes | float, ...], ...] = (
        *(("GET", "{a}"), ("set", "{a}", "1", "PX", 5), ("XREAD", "COUNT", 5, "BLOCK", 1, "STREAMS", "{a}", "0-0")),
        *(("EVALSHA", "sha", 1, "{a}", "x"), ("HGETALL", b"{a}")),
    )
    for command in keyed:
        assert slot_of(command) == slot
    keyless = ("PING",), ("INFO", "server"), ("EVAL", "return 1", 0, "{a}"), ("SCRIPT", "LOAD", "return 1")
    assert [slot_of(command) for command in keyless] == [None] * 4


async def test_every_key_finds_its_primary(used: Cluster, at: Open, redirects: Counter[str]) -> None:
    """Scripts and commands, straight, without being sent on; from one seed that answers."""
    store = at(f"redis+cluster://127.0.0.1:{free_port()},{used.members[1].place}")
    for number in (1, 2):
        assert await asyncio.gather(*(store.run(ADD, [key], []) for key in SPREAD)) == [number] * len(SPREAD)
    assert [await store.command("GET", key) for key in SPREAD] == [b"2"] * len(SPREAD)
    assert set(redirects) <= {"NOSCRIPT"}
    assert len({used.owner(slot_of_key(key)).port for key in SPREAD}) == 3
    assert {key.decode() async for key in store.scan("k{*")} == set(SPREAD)
    pongs = await store.everywhere("PING")
    assert pongs == {member.place: b"PONG" for member in used.primaries}


async def test_forgotten_scripts_heal_on_each_server(used: Cluster, at: Open) -> None:
    """SCRIPT FLUSH on all of them."""
    store = at(used.url)
    await asyncio.gather(*(store.run(ADD, [key], []) for key in SPREAD))
    for member in used.primaries:
        member("SCRIPT", "FLUSH")
    assert await asyncio.gather(*(store.run(ADD, [key], []) for key in SPREAD)) == [2] * len(SPREAD)


async def test_plain_url_says_what_to_write(used: Cluster, at: Open) -> None:
    """A cluster behind redis:// is refused with the remedy, and keys of several slots in one script too."""
    plain = at(f"redis://{used.members[0].place}")
    with pytest.raises(StoreMisconfigured, match=r"redis\+cluster://"):
        await asyncio.gather(*(plain.run(ADD, [key], []) for key in SPREAD))
    with pytest.raises(StoreMisconfigured, match="CROSSSLOT"):
        await at(used.url).run(ADD, ["a", "b"], [])


async def test_nobody_there_is_unavailable(at: Open) -> None:
    """At once where connections are refused."""
    store = at(f"redis+cluster://127.0.0.1:{free_port()}", max_wait=5.0)
    began = asyncio.get_running_loop().time()
    with pytest.raises(StoreUnavailable):
        await store.run(ADD, ["k"], [])
    with pytest.raises(StoreUnavailable):
        await store.connected(5.0)
    with pytest.raises(StoreUnavailable):
        await store.everywhere("PING")
    assert asyncio.get_running_loop().time() - began < 1.0


@pytest.fixture
async def silent() -> AsyncIterator[int]:
    """The port of somebody who listens, and never says a word."""

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    listener = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    yield listener.sockets[0].getsockname()[1]
    listener.close()
    await asyncio.sleep(0.05)


async def test_silent_nodes_cost_the_bounded_wait(silent: int, at: Open) -> None:
    """The clock runs from the caller's arrival, not from when the map is known."""
    store = at(f"redis+cluster://127.0.0.1:{silent},localhost:{silent}", max_wait=0.25)
    began = asyncio.get_running_loop().time()
    with pytest.raises(StoreUnavailable, match=r"did not answer within 0\.25 s"):
        await store.run(ADD, ["k"], [])
    assert asyncio.get_running_loop().time() - began < 0.45
    store.close()


async def test_closing_ends_those_who_wait(silent: int, at: Open) -> None:
    """Also who waits for the map; nothing is left running."""
    store = at(f"redis+cluster://127.0.0.1:{silent}", max_wait=30.0)
    call = asyncio.ensure_future(store.run(ADD, ["k"], []))
    await asyncio.sleep(0.05)
    store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        async with asyncio.timeout(1):
            await call
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("observatory")]


async def test_stopped_primary_costs_the_bounded_wait(own_cluster: Cluster, at: Open) -> None:
    """A master that stands still: its keys are away within max_wait, then served by its replica; the others all the while."""
    store = at(own_cluster.url, max_wait=0.25)
    load = Load(store, SPREAD)
    async with load.running():
        await load.recovered(within=5)
        victim = own_cluster.owner(slot_of_key(SPREAD[0]))
        others = [key for key in SPREAD if own_cluster.owner(slot_of_key(key)) is not victim]
        victim.signal(signal.SIGSTOP)
        try:
            loop = asyncio.get_running_loop()
            for _ in range(3):
                began = loop.time()
                with pytest.raises(StoreUnavailable):
                    await store.run(ADD, [SPREAD[0]], [])
                assert loop.time() - began < 0.8
                assert await store.command("EXISTS", others[0]) == 1
            await load.recovered(within=10)
        finally:
            victim.signal(signal.SIGCONT)
        await asyncio.sleep(1.5)
        await load.recovered(within=5)
    await asyncio.to_thread(wait_until, own_cluster.whole, "the old master is a replica")
    assert await load.check(lost=100)


async def test_killed_master_is_followed(own_cluster: Cluster, at: Open) -> None:
    """Under load; scripts are loaded again on the one that was promoted."""
    store = at(own_cluster.url)
    load = Load(store, SPREAD)
    async with load.running():
        await load.recovered(within=5)
        own_cluster.owner(slot_of_key(SPREAD[0])).stop()
        await asyncio.sleep(0.3)
        await load.recovered(within=10)
    assert await load.check(lost=100) > 100


async def test_what_was_sent_is_not_sent_again(own_cluster: Cluster, at: Open) -> None:
    """Connections are cut while calls are under way: those are unknown, and were executed at most once."""
    store = at(own_cluster.url)
    load = Load(store, SPREAD)
    async with load.running(64):
        await load.recovered(within=5)
        for _ in range(30):
            for member in own_cluster.primaries:
                await asyncio.to_thread(member, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await asyncio.sleep(0.03)
        await load.recovered(within=5)
    assert await load.check() > 500
    assert sum(load.unknown.values()) > 64, "some answers were lost"


async def test_planned_failover_loses_nothing(own_cluster: Cluster, at: Open, redirects: Counter[str]) -> None:
    """CLUSTER FAILOVER under load: not one count is lost, none is made twice."""
    store = at(own_cluster.url)
    load = Load(store, SPREAD)
    async with load.running():
        await load.recovered(within=5)
        before = own_cluster.owner(slot_of_key(SPREAD[0]))
        replica = own_cluster.replica_of(before)
        replica("SCRIPT", "FLUSH")
        replica("CLUSTER", "FAILOVER")
        await asyncio.to_thread(wait_until, lambda: replica.role() == "master" and before.role() == "slave", "they changed")
        await load.recovered(within=5)
    assert await load.check() > 100
    assert redirects["MOVED"]


def move(cluster: Cluster, slot: int, target: Member, pace: Callable[[], None]) -> None:
    """A slot to another master, key by key, while it is in use."""
    source = cluster.owner(slot)
    target("CLUSTER", "SETSLOT", slot, "IMPORTING", cluster.identity(source))
    source("CLUSTER", "SETSLOT", slot, "MIGRATING", cluster.identity(target))
    pace()
    while keys := source("CLUSTER", "GETKEYSINSLOT", slot, 1):
        source("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        pace()
    for member in (target, source, *cluster.primaries):
        member("CLUSTER", "SETSLOT", slot, "NODE", cluster.identity(target))


async def test_slots_move_under_load(own_cluster: Cluster, at: Open, redirects: Counter[str]) -> None:
    """MOVED and ASK are followed: every call is answered, and counted once."""
    store = at(own_cluster.url, max_wait=5.0)
    keys = [f"k{number}{{{tag}}}" for tag in range(3) for number in range(8)]
    load = Load(store, keys)
    async with load.running(16):
        await load.recovered(within=5)

        def run() -> None:
            import time

            for tag in range(3):
                slot = slot_of_key(f"{{{tag}}}")
                targets = [member for member in own_cluster.primaries if member is not own_cluster.owner(slot)]
                for target in targets:
                    move(own_cluster, slot, target, lambda: time.sleep(0.02))

        await asyncio.to_thread(run)
        await load.recovered(within=5)
    total = await load.check()
    assert total > 500
    assert redirects["MOVED"]
    assert redirects["ASK"]
    assert not redirects["StoreUnavailable"]
    assert load.longest_away == 0.0, "no caller was refused"


async def test_keys_on_both_sides_wait(own_cluster: Cluster, at: Open, redirects: Counter[str]) -> None:
    """A script whose keys are in two places: TRYAGAIN until they are together, or StoreUnavailable when the wait is over."""
    both = script("return redis.call('INCR', KEYS[1]) + redis.call('INCR', KEYS[2])")
    store = at(own_cluster.url, max_wait=0.3)
    keys = ["a{t}", "b{t}"]
    assert await store.run(both, keys, []) == 2
    slot = slot_of_key(keys[0])
    source = own_cluster.owner(slot)
    target = next(member for member in own_cluster.primaries if member is not source)
    target("CLUSTER", "SETSLOT", slot, "IMPORTING", own_cluster.identity(source))
    source("CLUSTER", "SETSLOT", slot, "MIGRATING", own_cluster.identity(target))
    source("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", keys[0])
    began = asyncio.get_running_loop().time()
    with pytest.raises(StoreUnavailable, match="TRYAGAIN"):
        await store.run(both, keys, [])
    assert 0.2 < asyncio.get_running_loop().time() - began < 1.0
    waiting = asyncio.ensure_future(store.run(both, keys, []))
    await asyncio.sleep(0.05)
    source("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", keys[1])
    assert await waiting == 4
    assert redirects["TRYAGAIN"] > 2
    assert redirects["ASK"]


async def test_redirects_end(used: Cluster, at: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two servers that name each other do not keep a caller for ever."""
    store = at(used.url)
    key = SPREAD[0]
    right = used.owner(slot_of_key(key))
    await store.connected(2.0)
    assert store._cluster is not None
    wrong = [store._cluster._nodes[member.place] for member in used.primaries if member is not right]
    monkeypatch.setattr(store._cluster, "moved", lambda *_: wrong[0])
    monkeypatch.setattr(store._cluster, "pick", lambda _: wrong[1])
    with pytest.raises(StoreUnavailable, match="5 times"):
        await store.run(ADD, [key], [])


async def test_part_of_it_away_is_clusterdown(own_cluster: Cluster, at: Open) -> None:
    """Slots that nobody serves: StoreUnavailable within the bounded wait, also where the server says so itself."""
    store = at(own_cluster.url, max_wait=0.3)
    await store.run(ADD, ["k"], [])
    owner = own_cluster.owner(slot_of_key("k"))
    for member in (own_cluster.replica_of(owner), owner):
        member.stop()

    def down() -> bool:
        try:
            return all(b"cluster_state:fail" in member("CLUSTER", "INFO") for member in own_cluster.primaries)
        except redis.RedisError:
            return False

    await asyncio.to_thread(wait_until, down, "the cluster says that it is down")
    loop = asyncio.get_running_loop()
    for key in SPREAD[:4]:
        began = loop.time()
        with pytest.raises(StoreUnavailable):
            await store.run(ADD, [key], [])
        assert loop.time() - began < 0.9
