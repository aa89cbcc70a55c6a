"""Near values where another server comes behind the address, and where more is tracked than before."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from observatory.errors import StoreUnavailable
from observatory.store.tracking import Tracking
from tests.features.nearby import BOUND, PREFIX, Client, closing, gone, where
from tests.proxy import proxy
from tests.servers import Server, find
from tests.store.load import store_at

NEVER = 30.0
"""A bound that no test waits for: what comes before it came by a notice."""


@pytest.fixture
def other_server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "other").mkdir()
    server = Server(find("valkey"), tmp_path / "other")
    server.start()
    yield server
    server.stop()


@pytest.mark.parametrize("how", ["demoted", "primary"])
async def test_another_server_behind_the_address(own_server: Server, other_server: Server, tmp_path: Path, how: str) -> None:
    """Demoted in place, or a primary for itself until the reads go to the other: kept values end, and are near again."""
    async with proxy(own_server.path, tmp_path / "p") as between:
        one, before, after = Client(store_at(between.url)), Client(store_at(own_server.url)), Client(store_at(other_server.url))
        with closing(one, before, after):
            await before.set("k", "old")
            await after.set("k", "new")
            await one.warm("k")
            between._server = other_server.path
            if how == "demoted":
                await before.store.command("REPLICAOF", "127.0.0.1", "1")
            else:
                one.store.link("values").leave(StoreUnavailable("cut"))
                async with asyncio.timeout(5):
                    while await answered(one) != b"new":
                        await asyncio.sleep(0.01)
            assert await gone(one, "k", 5.0) < BOUND + 0.5
            async with asyncio.timeout(10):
                while await answered(one) != b"new":
                    await asyncio.sleep(0.01)
            await one.warm("k", within=10)
            assert one.near.lookup("k") == "new"
            await after.set("k", "newer")
            await gone(one, "k", 2.0)
            assert await one.get("k") == "newer"


async def answered(client: Client) -> bytes | None:
    try:
        return await client.read(where("k"))
    except StoreUnavailable:
        return None


OTHER = PREFIX.replace("cache", "other")


async def test_more_prefixes_cost_nothing_that_is_kept(any_server: Server) -> None:
    """The lease goes on; keys of the new prefix have none before the server announces them, and then the same."""
    one, other = Client(store_at(any_server.url), NEVER), Client(store_at(any_server.url))
    with closing(one, other):
        await other.set("k", "1")
        await one.warm("k")
        (tracking,) = one.trackings
        lease = tracking.lease(where("k"))
        assert lease is not None
        tracking.include(OTHER)
        tracking.include(OTHER)
        assert tracking.lease(OTHER + "k") is None, "nobody would tell us yet"
        assert tracking.lease(where("k")) is lease
        assert one.near.lookup("k") == "1"
        async with asyncio.timeout(5):
            while tracking.lease(OTHER + "k") is not lease:
                await asyncio.sleep(0)
        heard: list[bytes] = []
        listened = one.vicinity.changed
        one.vicinity.changed = lambda keys: (heard.extend(keys), listened(keys))[1]  # type: ignore[func-returns-value, method-assign]
        await other.store.command("SET", OTHER + "k", "1", "PX", 60_000)
        async with asyncio.timeout(5):
            while (OTHER + "k").encode() not in heard:
                await asyncio.sleep(0.01)
        assert one.near.lookup("k") == "1"
        await other.set("k", "2")
        await gone(one, "k", 2.0)
        one.tracker._wire.leave(StoreUnavailable("cut"))
        async with asyncio.timeout(5):
            while (now := tracking.lease(OTHER + "k")) is None or now is lease or now.until < 0:
                await asyncio.sleep(0.01)


async def test_more_prefixes_while_it_connects(server: Server) -> None:
    """Whenever they come, they are asked for once."""
    one = Client(store_at(server.url), NEVER)
    with closing(one):
        await one.set("k", "1")
        reading = asyncio.ensure_future(one.warm("k"))
        names = [f"{OTHER}{number}:" for number in range(40)]
        for name in names:
            await asyncio.sleep(0)
            if one.trackings:
                one.trackings[0].include(name)
        await reading
        (tracking,) = one.trackings
        for name in names:
            tracking.include(name)
        async with asyncio.timeout(5):
            while not all(held(tracking, name) for name in names):
                await one.get("k")
                await asyncio.sleep(0.01)
        assert tracking.generations == 0


def held(tracking: Tracking, name: str) -> bool:
    lease = tracking.lease(name + "k")
    return lease is not None and lease.until > 0


async def test_server_that_refuses_more_is_left(own_server: Server) -> None:
    """Nothing is promised by half."""
    one = Client(store_at(own_server.url), NEVER)
    with closing(one):
        await one.set("k", "1")
        await one.warm("k")
        await one.store.command("ACL", "SETUSER", "default", "-client|tracking")
        one.trackings[0].include(OTHER)
        await gone(one, "k", 5.0)
        assert one.trackings[0].generations == 1
