"""A server that was restarted or promoted is seen; what loses nothing is not taken for one."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from observatory import StoreUnavailable
from observatory.store.continuity import Continuity, Server, _is_broken
from observatory.store.store import Store
from tests.servers import wait_until
from tests.store.conftest import Open
from tests.topologies import Cluster, Member


@pytest.fixture(params=["valkey", "redis"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Member, Member]]:
    """Two servers that do not know each other yet."""
    two = Member(request.param, tmp_path / "one"), Member(request.param, tmp_path / "two")
    for one in two:
        one.start()
        wait_until(one.answers, "the server answers")
    yield two
    for one in two:
        one.stop()


async def test_a_restart_and_nothing_less(at: Open, pair: tuple[Member, Member]) -> None:
    """A first replica changes the history that the server tells, and loses nothing; a restart is told once."""
    primary, replica = pair
    store = at(f"redis://{primary.place}")
    eye = Continuity()
    assert not await eye.broken(store), "there was nothing before"
    before = primary("INFO", "replication")
    replica("REPLICAOF", "127.0.0.1", str(primary.port))
    await asyncio.to_thread(wait_until, lambda: b"connected_slaves:1" in primary("INFO", "replication"), "it has attached")
    assert primary("INFO", "replication").split(b"master_replid:")[1][:40] not in before
    assert not await eye.broken(store)
    await asyncio.to_thread(primary.stop)
    with pytest.raises(StoreUnavailable):
        await eye.broken(store)
    primary.start()
    await asyncio.to_thread(wait_until, primary.answers, "the server answers")
    assert await answered(eye, store)
    assert not await eye.broken(store), "told once"


async def answered(eye: Continuity, store: Store) -> bool:
    """What it says once the store can be reached again."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await eye.broken(store)
            except StoreUnavailable:
                await asyncio.sleep(0.1)


async def test_a_promotion_on_a_cluster(at: Open, own_cluster: Cluster) -> None:
    """A replica that takes its primary's place; the others are what they were."""
    store = at(own_cluster.url)
    eye = Continuity()
    assert not await eye.broken(store)
    assert not await eye.broken(store)
    heir = own_cluster.replica_of(own_cluster.primaries[0])
    heir("CLUSTER", "FAILOVER")
    await asyncio.to_thread(wait_until, lambda: heir.role() == "master", "it is promoted")
    async with asyncio.timeout(10):
        while not await eye.broken(store):
            await asyncio.sleep(0.1)


async def test_a_server_that_hides_itself(at: Open, pair: tuple[Member, Member]) -> None:
    """Without the right to INFO nothing is known, and nothing fails."""
    primary, _ = pair
    primary("ACL", "SETUSER", "blind", "on", ">x", "~*", "+@all", "-info")
    store = at(f"redis://blind:x@{primary.place}")
    eye = Continuity()
    for _ in range(2):
        assert not await eye.broken(store)


def of(run: str, history: str, follows: bool = False) -> Server:
    return Server(run.encode(), history.encode(), follows)


@pytest.mark.parametrize(
    ("known", "now", "is_broken"),
    [
        pytest.param({of("a", "1")}, {of("a", "1")}, False, id="nothing happened"),
        pytest.param({of("a", "1")}, {of("a", "2")}, False, id="a first replica"),
        pytest.param({of("a", "1")}, {of("b", "2")}, True, id="a restart"),
        pytest.param({of("a", "1")}, {of("a", "2", True)}, True, id="a replica for a while, and promoted"),
        pytest.param({of("a", "1", True)}, {of("a", "1", True)}, False, id="promoted long ago"),
        pytest.param({of("a", "1")}, {of("a", "1"), of("b", "2")}, False, id="a primary joins"),
        pytest.param({of("a", "1")}, {of("a", "1"), of("b", "2", True)}, True, id="promoted before its primary is given up"),
        pytest.param({of("a", "1"), of("b", "2")}, {of("a", "1")}, False, id="a primary leaves"),
        pytest.param({of("a", "1"), of("b", "2")}, {of("a", "1"), of("c", "3")}, True, id="one in the place of another"),
    ],
)
def test_what_is_taken_for_a_break(known: set[Server], now: set[Server], is_broken: bool) -> None:
    assert _is_broken(known, now) == is_broken
