"""Writes that count only once replicas have them: WAIT right behind the write, on its own connection."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from observatory.errors import StoreUnavailable
from observatory.store.cluster import slot_of_key
from tests.servers import Server, wait_until
from tests.store.conftest import Open
from tests.store.load import ADD
from tests.topologies import Cluster, Member, Sentinels


@contextmanager
def standing_still(*members: Member) -> Iterator[None]:
    """Replicas that are attached, and acknowledge nothing."""
    for member in members:
        member.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for member in members:
            member.signal(signal.SIGCONT)


def in_step(group: Sentinels | Cluster, of_each: int) -> None:
    wait_until(lambda: all(len(member("ROLE")[2]) == of_each for member in group.primaries), "the replicas are attached")


async def test_replicas_have_it_when_it_returns(sentinels: Sentinels, at: Open) -> None:
    """Two of two; and the script is loaded where nobody has it yet."""
    store = at(sentinels.url)
    in_step(sentinels, 2)
    sentinels.primary("SCRIPT", "FLUSH")
    sentinels.primary("DEL", "strict")
    for number in range(1, 20):
        assert await store.send(ADD, ["strict"], [], replicas=2) == number
        for replica in sentinels.replicas:
            assert int(replica("GET", "strict")) == number
    assert set(store._links) == {"durable"}


async def test_too_few_say_how_many(sentinels: Sentinels, at: Open) -> None:
    """One stands still: it is unavailable for whoever wants two, in less than max_wait, and the write stands."""
    store = at(sentinels.url, max_wait=0.4)
    in_step(sentinels, 2)
    sentinels.primary("DEL", "strict")
    assert await store.send(ADD, ["strict"], [], replicas=2) == 1
    loop = asyncio.get_running_loop()
    with standing_still(sentinels.replicas[0]):
        began = loop.time()
        with pytest.raises(StoreUnavailable, match=r"1 of 2 replicas acknowledged in time; the write stands") as caught:
            await store.send(ADD, ["strict"], [], replicas=2)
        assert 0.1 < loop.time() - began < 0.5
        assert caught.value.context["acknowledged"] == "1"
        assert await store.send(ADD, ["strict"], [], replicas=1) == 3
    assert await store.command("GET", "strict") == b"3"


async def test_many_share_one_wait(sentinels: Sentinels, at: Open) -> None:
    """Hundreds of callers at once take a few waits, each of which covers all that was written before it."""
    store, primary = at(sentinels.url, max_wait=2.0), sentinels.primary
    in_step(sentinels, 2)
    primary("DEL", "strict")
    primary("CONFIG", "RESETSTAT")
    calls = [store.send(ADD, ["strict"], [], replicas=1 + number % 2) for number in range(400)]
    assert sorted(await asyncio.gather(*calls)) == list(range(1, 401))
    assert all(int(replica("GET", "strict")) == 400 for replica in sentinels.replicas)
    waits = int(primary("INFO", "commandstats").decode().partition("cmdstat_wait:calls=")[2].partition(",")[0])
    assert waits < 8


async def test_nothing_is_written_for_who_gave_up(sentinels: Sentinels, at: Open) -> None:
    """No replica answers, and callers keep coming: what was not written when its caller gave up never is."""
    store, primary = at(sentinels.url, max_wait=0.25), sentinels.primary
    in_step(sentinels, 2)
    primary("DEL", "strict")
    await store.send(ADD, ["strict"], [], replicas=2)
    loop = asyncio.get_running_loop()

    async def ask() -> str:
        began = loop.time()
        with pytest.raises(StoreUnavailable) as caught:
            await store.send(ADD, ["strict"], [], replicas=2)
        assert loop.time() - began < 0.6
        return str(caught.value)

    value_then = int(primary("GET", "strict"))
    with standing_still(*sentinels.replicas):
        calls = []
        for _ in range(200):
            calls.append(asyncio.ensure_future(ask()))
            await asyncio.sleep(0.005)
        given_up = [store.send(ADD, ["strict"], [], replicas=2) for _ in range(2)]
        for call in given_up:
            call.cancel()
        said = await asyncio.gather(*calls)
        assert value_then + len(said) >= int(primary("GET", "strict")), "nobody wanted more"
        value = int(primary("GET", "strict"))
        assert value - 1 >= sum("stands on the primary" in text for text in said)
        await asyncio.sleep(0.5)
        assert int(primary("GET", "strict")) == value


async def test_fast_callers_do_not_wait_behind_it(sentinels: Sentinels, at: Open) -> None:
    """They have another connection."""
    store = at(sentinels.url, max_wait=0.5)
    in_step(sentinels, 2)
    await store.run(ADD, ["fast"], [])
    loop = asyncio.get_running_loop()
    with standing_still(*sentinels.replicas):
        strict = store.send(ADD, ["strict"], [], replicas=1)
        began = loop.time()
        for _ in range(20):
            await store.run(ADD, ["fast"], [])
        assert loop.time() - began < 0.2
        assert not strict.done()
        with pytest.raises(StoreUnavailable, match="0 of 1"):
            await strict


async def test_no_replica_at_all(server: Server, at: Open) -> None:
    """A standalone server: said, not assumed."""
    store = at(server.url, max_wait=0.5)
    with pytest.raises(StoreUnavailable, match=r"0 of 1|did not answer"):
        await store.send(ADD, ["strict"], [], replicas=1)
    with pytest.raises(StoreUnavailable, match="0 of 1"):
        await store.send(ADD, ["strict"], [], replicas=1)
    assert int(await store.command("DEL", "strict")) == 1


async def test_errors_of_the_script_come_as_they_are(sentinels: Sentinels, at: Open) -> None:
    """Not covered by the wait behind them."""
    from observatory.errors import StoreError

    store = at(sentinels.url)
    await store.command("SET", "text", "x", "PX", 60_000)
    with pytest.raises(StoreError, match="not an integer"):
        await store.send(ADD, ["text"], [], replicas=1)


async def test_the_node_that_took_the_write_is_asked(cluster: Cluster, at: Open) -> None:
    """Also when the write was sent on from another: its replicas count, not those of the first."""
    store = at(cluster.url, max_wait=1.0)
    in_step(cluster, 1)
    key = "strict{3}"
    owner = cluster.owner(slot_of_key(key))
    replica = cluster.replica_of(owner)
    assert await store.send(ADD, [key], [], replicas=1) == 1
    assert store._cluster is not None
    # The map is wrong from here on.
    wrong = next(member for member in cluster.primaries if member is not owner)

    def mislead() -> None:
        assert store._cluster is not None
        store._cluster._served[slot_of_key(key)] = store._cluster._nodes[wrong.place]

    mislead()
    assert await store.send(ADD, [key], [], replicas=1) == 2
    mislead()
    with standing_still(replica), pytest.raises(StoreUnavailable, match="0 of 1 replicas"):
        await store.send(ADD, [key], [], replicas=1)
    mislead()
    others = cluster.replica_of(wrong)
    with standing_still(others):
        # A wait for the wrong one's replica would not end.
        assert await store.send(ADD, [key], [], replicas=1) == 4
    assert int(owner("GET", key)) == 4
    owner("DEL", key)
