"""Near values where primaries change: nothing served is older than the bound, and everything is near again afterwards."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest

from observatory.clock import monotonic
from observatory.errors import StoreUnavailable
from observatory.store.address import address
from observatory.store.cluster import Cluster as ClusterMap
from observatory.store.cluster import slot_of_key
from observatory.store.node import Patience
from observatory.store.tracker import SHARING
from tests.features.nearby import Client, Judge, gone, where
from tests.servers import wait_until
from tests.store.load import store_at
from tests.store.test_cluster import move
from tests.store.test_sentinel import switch
from tests.topologies import Cluster, Member, Sentinels

BOUND = 0.5
SWITCH = 2.0 + 8.0
"""Seconds on top where sentinels decide: they are asked every second, and an old primary that is cut off says nothing wrong.
Two where they answer at once, which on a busy machine they do not."""


@contextmanager
def closing(*clients: Client) -> Iterator[None]:
    try:
        yield
    finally:
        for client in clients:
            client.store.close()


@asynccontextmanager
async def used(reader: Client, writer: Client, keys: list[str]) -> AsyncIterator[Judge]:
    """One client writes, another reads what is near of it; both go on through whatever happens."""
    judge = Judge()
    versions = dict.fromkeys(keys, 0)

    async def writing(key: str) -> None:
        while True:
            versions[key] += 1
            with suppress(StoreUnavailable):
                await writer.set(key, str(versions[key]))
                judge.wrote(key, versions[key])
            await asyncio.sleep(0.02)

    async def reading(key: str) -> None:
        while True:
            asked_at = monotonic()
            with suppress(StoreUnavailable):
                value = await reader.get(key)
                if value is not None:
                    judge.saw(key, int(value), asked_at)
            await asyncio.sleep(0.001)

    tasks = [asyncio.create_task(does(key)) for key in keys for does in (writing, reading)]
    try:
        await asyncio.sleep(0.5)
        yield judge
        await asyncio.sleep(0.5)
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert not [error for error in ended if isinstance(error, Exception)]
    await asyncio.sleep(BOUND + 0.2)
    await reader.warm(*keys)
    for key in keys:
        value: object = reader.near.lookup(key)
        assert str(value).encode() == await writer.read(where(key)), key


async def test_planned_failover_is_noticed(own_sentinels: Sentinels) -> None:
    """The old primary becomes a replica, and says so when it is asked."""
    reader, writer = (Client(store_at(own_sentinels.url), BOUND) for _ in range(2))
    with closing(reader, writer):
        async with used(reader, writer, ["a", "b"]) as judge:
            await asyncio.to_thread(switch, own_sentinels)
            await asyncio.sleep(3)
        print(f"\nserved up to {judge.oldest():.3f} s after it had changed")
        assert judge.oldest() <= BOUND + SWITCH
        assert reader.near.stats.hits > 100
        assert reader.trackings[-1].generations


async def test_primary_that_goes_on_by_itself_is_not_believed(own_sentinels: Sentinels) -> None:
    """Cut off from its sentinels it answers every question; the lease ends when the sentinels have agreed on another."""
    before = own_sentinels.primary
    for member in own_sentinels.data:
        member("ACL", "SETUSER", "app", "on", ">s3cret", "~*", "+@all")
    url = own_sentinels.url.replace("//", "//app:s3cret@")
    reader, writer = Client(store_at(url), BOUND), Client(store_at(url), BOUND)
    with closing(reader, writer):
        await writer.set("k", "1")
        await reader.warm("k")
        lease = reader.trackings[-1].lease(where("k"))
        before("ACL", "SETUSER", "default", "off")
        before("CLIENT", "KILL", "USER", "default")
        await asyncio.to_thread(wait_until, lambda: own_sentinels.primary is not before, "the sentinels have agreed on another")
        agreed_at = monotonic()
        while lease is not None and not lease.ended:
            assert monotonic() - agreed_at < SWITCH
            await asyncio.sleep(0.01)
        async with asyncio.timeout(5):
            while True:
                with suppress(StoreUnavailable):
                    await writer.set("k", "2")
                    break
        await reader.warm("k")
        assert reader.tracker.peer == ("127.0.0.1", own_sentinels.primary.port)


async def test_replica_promises_nothing(own_sentinels: Sentinels) -> None:
    """Made one by hand: the sentinels still name it, and it says itself what it is."""
    reader = Client(store_at(own_sentinels.url), BOUND)
    with closing(reader):
        await reader.set("k", "1")
        await reader.warm("k")
        lease = reader.trackings[-1].lease(where("k"))
        assert lease is not None
        own_sentinels.primary("REPLICAOF", "127.0.0.1", own_sentinels.replicas[0].port)
        await asyncio.sleep(BOUND)
        assert lease.ended


def test_node_that_is_cut_off_promises_nothing() -> None:
    """It knows of its old slots, and that it may not serve them."""
    assert SHARING.facts([["slots"], b"cluster_state:ok\r\n"]) == ["slots"]
    with pytest.raises(StoreUnavailable, match="cut off"):
        SHARING.facts([["slots"], b"cluster_state:fail\r\n"])


async def test_who_serves_less_is_known_at_once() -> None:
    """By a map from anybody, and by MOVED; not only when its old owner is asked next."""
    told: list[object] = []

    class Watching:
        def moved(self, node: object) -> None:
            told.append(node)

        def astray(self, node: object) -> None:
            pass

        def gone(self, node: object) -> None:
            pass

    where_ = address("redis+cluster://127.0.0.1:1", environment="production", home=Path("/nowhere"))
    cluster = ClusterMap(where_, 1.0, Patience(1.0, 1.0))
    cluster.watchers.append(Watching())
    first, second = [b"127.0.0.1", 1, b"one"], [b"127.0.0.1", 2, b"two"]
    cluster._take([[0, 8191, first], [8192, 16383, second]], "127.0.0.1:1")
    assert told == []
    loser = cluster.pick(8191)
    cluster._take([[0, 8190, first], [8191, 16383, second]], "127.0.0.1:1")
    assert told == [loser]
    cluster._looked_at = asyncio.get_running_loop().time()
    winner = cluster.moved(0, "127.0.0.1:2", cluster._served[0] or cluster._node("127.0.0.1", 1))
    assert told == [loser, loser]
    assert cluster.pick(0) is winner
    cluster.close()


def take(cluster: Cluster, slot: int, target: Member) -> None:
    """By force: what lies there is copied, and the old owner hears of it when its neighbours tell."""
    source = cluster.owner(slot)
    target("CLUSTER", "SETSLOT", slot, "IMPORTING", cluster.identity(source))
    for key in source("CLUSTER", "GETKEYSINSLOT", slot, 100):
        source("MIGRATE", "127.0.0.1", target.port, key, 0, 5000, "COPY", "REPLACE")
    target("CLUSTER", "SETSLOT", slot, "NODE", cluster.identity(target))


async def test_slot_that_was_taken_by_force(own_cluster: Cluster) -> None:
    """No key was removed where it had been, so nothing is announced: the old owner stops promising when it knows."""
    reader, writer = (Client(store_at(own_cluster.url), BOUND) for _ in range(2))
    slot = slot_of_key(where("a"))
    source = own_cluster.owner(slot)
    target = next(member for member in own_cluster.primaries if member is not source)
    with closing(reader, writer):
        await writer.set("a", "1")
        await reader.warm("a")
        await asyncio.to_thread(take, own_cluster, slot, target)
        await asyncio.to_thread(target, "SET", where("a"), "2", "PX", 60_000)
        served_for = await gone(reader, "a", 5.0)
        print(f"\nserved for {served_for:.3f} s after it had changed")
        assert served_for <= BOUND
        await reader.warm("a")
        assert reader.near.lookup("a") == "2"


@pytest.mark.parametrize("how", ["moved", "killed", "swapped"])
async def test_slots_change_hands(own_cluster: Cluster, how: str) -> None:
    """Moved key by key while in use, taken over by the replica of a master that died, or in a planned failover."""
    reader, writer = (Client(store_at(own_cluster.url), BOUND) for _ in range(2))
    keys = ["a", "b", "c"]
    slot = slot_of_key(where("a"))
    source = own_cluster.owner(slot)
    target = next(member for member in own_cluster.primaries if member is not source)

    def pace() -> None:
        import time

        time.sleep(0.1)

    def change() -> None:
        if how == "moved":
            move(own_cluster, slot, target, pace)
        elif how == "killed":
            source.stop()
            wait_until(lambda: own_cluster.primaries.__len__() == 3, "another has taken over")
        else:
            replica = own_cluster.replica_of(source)
            replica("CLUSTER", "FAILOVER")
            wait_until(lambda: replica.role() == "master" and source.role() == "slave", "they changed")

    with closing(reader, writer):
        async with used(reader, writer, keys) as judge:
            await asyncio.to_thread(change)
            await asyncio.sleep(2)
        print(f"\nserved up to {judge.oldest():.3f} s after it had changed")
        assert judge.oldest() <= BOUND
        assert reader.near.stats.hits > 100
        assert reader.trackings[-1].generations
        assert reader.trackings[-1].lease(where("a")) is not None


async def test_read_that_was_sent_on_is_not_kept(own_cluster: Cluster) -> None:
    """While a slot moves, a key that is new lies with the other primary, whose notices its old one's lease knows nothing of."""
    reader, writer = (Client(store_at(own_cluster.url), BOUND) for _ in range(2))
    slot = slot_of_key(where("fresh"))
    with closing(reader, writer):
        await writer.set("fresh", "0")
        await reader.warm("fresh")
        source = own_cluster.owner(slot)
        target = next(member for member in own_cluster.primaries if member is not source)
        target("CLUSTER", "SETSLOT", slot, "IMPORTING", own_cluster.identity(source))
        source("CLUSTER", "SETSLOT", slot, "MIGRATING", own_cluster.identity(target))
        source("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", where("fresh"))
        await asyncio.sleep(0.1)
        for version in ("1", "2"):
            assert await reader.get("fresh") is not None
            assert reader.near.lookup("fresh") is not version
            await writer.set("fresh", version)
            assert await reader.get("fresh") == version
