"""Near caches by their public verbs while notices are lost, connections die in one direction, slots move, loops stand still:
nothing older than the bound is served, and it is near again afterwards."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from observatory import Cache, Observatory, StoreUnavailable
from observatory.clock import monotonic
from observatory.features.cache.versions import digest_of
from observatory.settings import Settings
from observatory.store.cluster import slot_of_key
from tests.features.nearby import Judge
from tests.features.test_cache_near import heard, until, warm
from tests.proxy import proxy
from tests.servers import Server
from tests.store.test_cluster import move
from tests.topologies import Cluster

BOUND = 0.5
Opening = Callable[..., Awaitable[Observatory]]


@pytest.fixture
async def at(namespace: str) -> AsyncIterator[Opening]:
    """Clients of a URL, with a bound."""
    async with AsyncExitStack() as stack:

        async def opened(url: str, bound: float = BOUND) -> Observatory:
            settings = Settings().replace(cache_near_bound=bound)
            one = Observatory("test", redis_url=url, namespace=namespace, settings=settings)
            return await stack.enter_async_context(one)

        yield opened


class Versions:
    """One process changes a key without end, another reads what is near of it."""

    def __init__(self, reader: Cache[int], writer: Cache[int]) -> None:
        self.reader, self.writer = reader, writer
        self.judge = Judge()
        self.version = 0
        self.near = 0

    async def writing(self) -> None:
        """By every verb that ends what was: set, delete, a tag, clear."""
        while True:
            self.version += 1
            version = self.version
            verb = version % 4
            with suppress(StoreUnavailable):
                if verb == 1:
                    await self.writer.set("k", version, tags=["t"])
                elif verb == 2:
                    await self.writer.delete("k")
                    self.version += 2
                    await self.writer.set("k", self.version, tags=["t"])
                    version = self.version
                elif verb == 3:
                    await self.writer.invalidate("t")
                else:
                    await self.writer.clear()
                self.judge.wrote("k", version)
            await asyncio.sleep(0.04)

    async def reading(self) -> None:
        while True:
            asked_at, before = monotonic(), (await self.reader.stats(fleet=False)).near_hits
            value = await self.reader.get("k")
            if value is not None:
                self.judge.saw("k", value, asked_at)
                self.near += (await self.reader.stats(fleet=False)).near_hits - before
            await asyncio.sleep(0.001)

    async def during(self, change: Callable[[], Awaitable[object]]) -> None:
        tasks = [asyncio.ensure_future(self.writing()), asyncio.ensure_future(self.reading())]

        async def used(more: int) -> None:
            had = self.near

            async def is_near() -> bool:
                assert not any(task.done() for task in tasks), tasks
                return self.near > had + more

            await until(is_near, "near", 10)

        try:
            await used(20)
            await change()
            await used(20)
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert not [error for error in ended if isinstance(error, Exception)]
        assert self.judge.oldest() <= BOUND


@pytest.mark.parametrize("how", ["FLUSHALL", "kill"])
async def test_lost_notices(own_server: Server, at: Opening, how: str) -> None:
    """Everything flushed, or all connections killed with the change's notice on its way: heard of long before the bound."""
    one, other = await at(own_server.url, 30.0), await at(own_server.url)
    reader, writer = one.cache(str, name="lost"), other.cache(str, name="lost")
    await writer.set("k", "old", tags=["t"])
    await warm(reader, "k")
    began = time.monotonic()
    if how == "FLUSHALL":
        await other.store.command("FLUSHALL")
    else:
        await other.store.command("CLIENT", "KILL", "SKIPME", "yes", "TYPE", "normal")

        async def cleared() -> bool:
            with suppress(StoreUnavailable):
                return await writer.clear()
            return False

        await until(cleared, "cleared")
    await heard(reader, "k", None)
    assert time.monotonic() - began < 5
    await writer.set("k", "new")
    await warm(reader, "k")
    assert await reader.get("k") == "new"
    await writer.set("k", "newer")
    await heard(reader, "k", "newer")


@pytest.mark.parametrize("way", ["swallow_replies", "deaf"])
async def test_a_connection_that_is_silent_in_one_direction(server: Server, at: Opening, tmp_path: Path, way: str) -> None:
    """Nothing comes, or nothing arrives, and nothing says so: near values end within the bound, and reads within theirs."""
    async with proxy(server.path, tmp_path / "p") as between:
        one, other = await at(between.url), await at(server.url)
        reader, writer = one.cache(int, name="silent"), other.cache(int, name="silent")
        versions = Versions(reader, writer)
        slowest = 0.0

        async def silence() -> None:
            nonlocal slowest
            setattr(between, way, True)
            lost = time.monotonic()
            while time.monotonic() < lost + BOUND + 1.0:
                began = time.monotonic()
                await reader.get("k")
                slowest = max(slowest, time.monotonic() - began)
                await asyncio.sleep(0.005)
            setattr(between, way, False)
            between.cut()

        await versions.during(silence)
        assert slowest < Settings().redis.max_wait + 1.0


async def test_a_loop_that_stands_still_longer_than_the_bound(server: Server, at: Opening, namespace: str) -> None:
    """What changed meanwhile is not served in the tick in which it wakes, though its notice is unread still."""
    one = await at(server.url)
    reader = one.cache(int, name="blocked")
    await reader.set("k", 1, tags=["t"])
    await reader.set("j", 1)
    await warm(reader, "k", "j")
    changed = threading.Event()

    async def change() -> None:
        async with Observatory("other", redis_url=server.url, namespace=namespace) as other:
            await other.cache(int, name="blocked").invalidate("t")
            await other.cache(int, name="blocked").set("j", 2)
        changed.set()

    thread = threading.Thread(target=lambda: asyncio.run(change()))
    thread.start()
    assert changed.wait(10)
    time.sleep(BOUND)  # noqa: ASYNC251 (the loop stands still)
    assert await reader.get("j") == 2
    assert await reader.get("k") is None
    thread.join()


@pytest.mark.parametrize("which", ["entry", "record", "tag"])
async def test_a_slot_moves(cluster: Cluster, at: Opening, which: str) -> None:
    """Of the entry, or of one of the versions that it counts under, which are elsewhere: each changes all the while."""
    one, other = await at(cluster.url), await at(cluster.url)
    reader, writer = (obs.cache(int, name="moving") for obs in (one, other))
    place = reader._room.place("k")
    tag = reader._room.shelf.versions.keys_of("", [(digest_of("t"), b"")])[0]
    slot = slot_of_key({"entry": place.entry, "record": place.record, "tag": tag}[which])

    async def there_and_back() -> None:
        home = cluster.owner(slot)
        for target in (next(each for each in cluster.primaries if each is not home), home):
            await asyncio.to_thread(move, cluster, slot, target, lambda: time.sleep(0.01))

            async def agreed(target: Any = target) -> bool:
                return cluster.owner(slot) is target

            await until(agreed, "they agree on the owner")
            await asyncio.sleep(0.3)

    await Versions(reader, writer).during(there_and_back)


async def test_what_was_refused_is_not_kept_near(server: Server, at: Opening) -> None:
    """A delete during the computation, here or elsewhere: the caller has his value, and nobody has it near."""
    one, other = await at(server.url, 30.0), await at(server.url)
    cache, far = one.cache(str, name="refused"), other.cache(str, name="refused")
    await cache.set("warm", "v")
    await warm(cache, "warm")
    changes: tuple[Callable[[], Awaitable[object]], ...] = (
        lambda: far.delete("k"),
        lambda: cache.delete("k"),
        far.clear,
        cache.clear,
        lambda: far.invalidate("t"),
        lambda: cache.invalidate("t"),
    )
    for number, change in enumerate(changes):
        begun, going = asyncio.Event(), asyncio.Event()

        async def compute(begun: asyncio.Event = begun, going: asyncio.Event = going, number: int = number) -> str:
            begun.set()
            await going.wait()
            return f"old {number}"

        asking = asyncio.ensure_future(cache.get_or_compute("k", compute, tags=["t"]))
        await begun.wait()
        await change()
        going.set()
        assert await asking == f"old {number}"
        for _ in range(20):
            assert await cache.get("k") is None
            assert await far.get("k") is None
        await warm_again(cache)


async def warm_again(cache: Cache[str]) -> None:
    """What `clear` took."""
    await cache.set("warm", "v")
    await warm(cache, "warm")


async def test_a_clear_of_one_tenant(server: Server, at: Opening) -> None:
    """Ends what is near of it in every process, and nothing of the others."""
    one, other = await at(server.url, 30.0), await at(server.url)
    cache, far = (obs.cache(str, name="tenants", by="tenant") for obs in (one, other))
    for tenant in ("a", "b"):
        with one.bound(tenant=tenant):
            await cache.set("k", f"of {tenant}", tags=["t"])
            await warm(cache, "k")
    for end in (far.clear, lambda: far.invalidate("t"), lambda: far.delete("k")):
        with other.bound(tenant="a"):
            await end()
        with one.bound(tenant="a"):
            await heard(cache, "k", None)
            await cache.set("k", "of a", tags=["t"])
            await warm(cache, "k")
        with one.bound(tenant="b"):
            before = (await cache.stats(fleet=False)).near_hits
            assert await cache.get("k") == "of b"
            assert (await cache.stats(fleet=False)).near_hits == before + 1


class Old(msgspec.Struct, frozen=True):
    """Of a release."""

    text: str


class New(msgspec.Struct, frozen=True):
    """Of the next."""

    text: str
    score: float = 0.0


async def test_generations_end_each_others_near_values(server: Server, at: Opening) -> None:
    """A set or delete by the old class is heard of by the new one."""
    one, other = await at(server.url, 30.0), await at(server.url)
    old, new = one.cache(Old, name="rolling"), other.cache(New, name="rolling")

    async def compute() -> New:
        return New("new")

    await old.set("k", Old("old"))
    ends: tuple[Callable[[], Awaitable[object]], ...] = (
        lambda: old.set("k", Old("older")),
        lambda: old.delete("k"),
        lambda: old.expire("k", 50),
    )
    for end in ends:
        assert await new.get_or_compute("k", compute) == New("new")
        await warm(new, "k")
        assert await old.set("j", Old("j"))
        await end()
        await heard(new, "k", None)
        await old.set("k", Old("old"))


async def test_own_changes_wait_for_no_notice(server: Server, at: Opening) -> None:
    """Each verb that changes something ends what this process keeps of it, though nothing is ever heard."""
    obs = await at(server.url, 30.0)
    cache = obs.cache(int, name="mute")
    obs.caches.vicinity.changed = lambda keys: None  # type: ignore[method-assign]
    changes: dict[str, tuple[Callable[[], Awaitable[object]], int | None]] = {
        "set": (lambda: cache.set("k", 2), 2),
        "set_many": (lambda: cache.set_many({"k": 2}), 2),
        "increment": (lambda: cache.increment("k"), 2),
        "expire": (lambda: cache.expire("k", 0.001), None),
        "delete": (lambda: cache.delete("k"), None),
        "invalidate": (lambda: cache.invalidate("t"), None),
        "clear": (cache.clear, None),
    }
    for verb, (change, left) in changes.items():
        await cache.set("k", 1, tags=["t"])
        await warm(cache, "k")
        reading = [asyncio.ensure_future(cache.get("k")) for _ in range(3)]
        await change()
        if verb == "expire":
            await asyncio.sleep(0.005)
        assert await cache.get("k") == left, verb
        await asyncio.gather(*reading)
        assert await cache.get("k") == left, verb


async def test_what_was_deleted_in_a_gap_is_not_served_in_an_outage(own_server: Server, at: Opening) -> None:
    """The notices had a gap, and the store went on: what was near before is not served again, on_store_down="stale" or not."""
    one, other = await at(own_server.url), await at(own_server.url)
    reader, writer = one.cache(str, name="gap", on_store_down="stale"), other.cache(str, name="gap")
    again = one.cache(str, name="again", on_store_down="stale")
    await again.set("k", "new")
    await writer.set("deleted", "old")
    await writer.set("invalidated", "old", tags=["t"])
    await warm(reader, "deleted", "invalidated")
    tracking: Any = one.caches.vicinity._leases
    (tracker,) = tracking._trackers.values()
    connect, gate = tracker._connect, asyncio.Event()

    async def later() -> Any:
        await gate.wait()
        return await connect()

    tracker._connect = later
    tracker._wire.leave(StoreUnavailable("cut"))
    await writer.delete("deleted")
    await writer.invalidate("t")
    gate.set()

    async def promised() -> bool:
        return bool(tracker.lease.until > monotonic())

    await until(promised, "tracked again")
    await warm(again, "k")
    own_server.signal(19)
    try:
        async with asyncio.timeout(5):
            while tracker.lease.until > monotonic():
                await asyncio.sleep(0.01)
        assert [await reader.get(key) for key in ("deleted", "invalidated")] == [None, None]
        assert await again.get("k") == "new", "read after the gap"
    finally:
        own_server.signal(18)
