"""Waiting for keys where primaries change: woken by the change, or by the next look; told again by the new one."""

import asyncio
from contextlib import suppress

import pytest

from observatory.errors import StoreUnavailable
from observatory.store import watch
from observatory.store.cluster import slot_of_key
from observatory.store.store import Store
from tests.servers import wait_until
from tests.store.conftest import Open
from tests.store.test_cluster import SPREAD, move
from tests.store.test_sentinel import switch
from tests.store.test_watch import LONG, connections, put, read, registered, until, waiting
from tests.topologies import Cluster, Sentinels

pytestmark = pytest.mark.usefixtures("told_only")


@pytest.fixture
def told_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks without being told: what is noticed was announced."""
    monkeypatch.setattr(watch, "LOOK_AFTER", LONG)


async def put_somehow(store: Store, key: str, value: str = "v") -> None:
    """As soon as somebody takes it."""
    async with asyncio.timeout(15):
        while True:
            with suppress(StoreUnavailable):
                await put(store, key, value)
                return
            await asyncio.sleep(0.02)


async def test_every_primary_announces_its_own(own_cluster: Cluster, at: Open) -> None:
    """Keys over all slots, and two that share one; a connection a primary."""
    store, other = at(own_cluster.url), at(own_cluster.url)
    reading = [asyncio.create_task(read(store, key)) for key in SPREAD]
    await until(lambda: store._watches is not None and waiting(store) == len(SPREAD))
    assert len(connections(store)) == len({own_cluster.owner(slot_of_key(key)).port for key in SPREAD})
    for key in SPREAD:
        await put(other, key, key)
    async with asyncio.timeout(5):
        assert await asyncio.gather(*reading) == [key.encode() for key in SPREAD]
    with store.watching("a{t}", "b{t}") as change:
        await registered(change)
        hearing = asyncio.create_task(change.heard(LONG))
        await put(other, "b{t}")
        async with asyncio.timeout(5):
            await hearing


@pytest.mark.parametrize("there", [True, False], ids=["there", "not there"])
async def test_slot_that_moves(own_cluster: Cluster, at: Open, there: bool) -> None:
    """Who waits is woken when its key leaves, or as soon as anybody here hears that the slot is served elsewhere."""
    store, other = at(own_cluster.url), at(own_cluster.url)
    key, slot = "moves", slot_of_key("moves")
    target = next(member for member in own_cluster.primaries if member is not own_cluster.owner(slot))
    if there:
        await put(other, key)
    with store.watching(key) as change:
        await registered(change)
        hearing = asyncio.create_task(change.heard(LONG))
        await asyncio.to_thread(move, own_cluster, slot, target, lambda: None)
        if not there:
            assert not hearing.done()
            assert await store.command("GET", key) is None
        async with asyncio.timeout(5):
            await hearing
        await registered(change)
        (now,) = [one for one in connections(store) if one.registered]
        assert now._wire is not None
        assert now._wire.peer == ("127.0.0.1", target.port)
        hearing = asyncio.create_task(change.heard(LONG))
        await put(other, key, "w")
        async with asyncio.timeout(5):
            await hearing


async def test_slot_on_its_way_is_looked_at(own_cluster: Cluster, at: Open) -> None:
    """A key that is not there cannot be registered then: neither side announces it, and nobody waits for that."""
    store, other = at(own_cluster.url), at(own_cluster.url)
    key, slot = "halfway", slot_of_key("halfway")
    source = own_cluster.owner(slot)
    target = next(member for member in own_cluster.primaries if member is not source)
    target("CLUSTER", "SETSLOT", slot, "IMPORTING", own_cluster.identity(source))
    source("CLUSTER", "SETSLOT", slot, "MIGRATING", own_cluster.identity(target))
    looks: list[int] = []
    reading = asyncio.create_task(read(store, key, looks))
    await until(lambda: len(looks) > 5)
    await put(other, key)
    async with asyncio.timeout(5):
        assert await reading == b"v"


@pytest.mark.parametrize("how", ["killed", "swapped"])
async def test_another_node_takes_over(own_cluster: Cluster, at: Open, how: str) -> None:
    """By its death, or as planned: woken, and told by the one that was promoted."""
    store, other = at(own_cluster.url), at(own_cluster.url)
    key = SPREAD[0]
    before = own_cluster.owner(slot_of_key(key))
    replica = own_cluster.replica_of(before)
    reading = asyncio.create_task(read(store, key))
    await until(lambda: store._watches is not None and waiting(store) == 1)
    if how == "killed":
        before.stop()
    else:
        replica("CLUSTER", "FAILOVER")
    await asyncio.to_thread(wait_until, lambda: replica.role() == "master", "it was promoted")
    await put_somehow(other, key)
    async with asyncio.timeout(10):
        if how == "swapped":
            # An old primary goes on as a replica, and announces what it is sent.
            assert await reading == b"v"
            return
        while not reading.done():
            await asyncio.sleep(0.02)
        assert await reading == b"v"


async def test_sentinels_name_another(own_sentinels: Sentinels, at: Open) -> None:
    """The old primary stays connected, as a replica: it is left, and the new one announces."""
    store, other = at(own_sentinels.url), at(own_sentinels.url)
    with store.watching("k") as change:
        await registered(change)
        hearing = asyncio.create_task(change.heard(LONG))
        after = await asyncio.to_thread(switch, own_sentinels)
        async with asyncio.timeout(10):
            await hearing
            while not (connections(store) and change._registered and peer(store) == after.port):
                await change.heard(0.2)
        hearing = asyncio.create_task(change.heard(LONG))
        await put_somehow(other, "k")
        async with asyncio.timeout(5):
            await hearing


def peer(store: Store) -> int:
    (one,) = connections(store)
    assert one._wire is not None
    return 0 if one._wire.peer is None else one._wire.peer[1]
