"""What a cache keeps near, by its public verbs: who is told of what, how long it serves, and what when Redis is away."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from observatory import ConfigurationError, InvalidArgument, Observatory, StoreUnavailable
from observatory.features.cache.versions import digest_of
from observatory.names import CACHE_NEAR_ENTRIES, Metric
from observatory.settings import Settings
from tests.conftest import Open
from tests.features.caching import heard, until, warm
from tests.servers import Server

Fleet = tuple[Observatory, Observatory]
SLOW = Settings().replace(cache_near_bound=30.0)
"""What comes before the bound came by a notice."""


async def test_a_near_hit_asks_nobody(fleet: Fleet) -> None:
    """And a write, delete, tag or clear of any process ends it, by a notice and not by the bound."""
    far = fleet[1].cache(str, name="c")
    async with Observatory(
        "x", redis_url=fleet[0].settings.redis.url, namespace=fleet[0].settings.namespace, settings=SLOW
    ) as obs:
        cache = obs.cache(str, name="c")
        for key in "abcd":
            await far.set(key, "1", tags=["t"] if key == "c" else [])
        await warm(cache, *"abcd")
        misses = (await cache.stats(fleet=False)).misses
        await far.set("a", "2")
        await heard(cache, "a", "2")
        await far.delete("b")
        await heard(cache, "b", None)
        await far.invalidate("t")
        await heard(cache, "c", None)
        assert (await cache.stats(fleet=False)).misses == misses + 2
        await warm(cache, "d")
        await far.clear()
        await heard(cache, "d", None)


async def test_what_is_written_here_is_read_here(obs: Observatory) -> None:
    """At once, whatever else is kept."""
    cache = obs.cache(int, name="own")
    await cache.set("k", 0, tags=["t"])
    await warm(cache, "k")
    for number in range(1, 100):
        await cache.set("k", number, tags=["t"])
        assert await cache.get("k") == number
    assert await cache.increment("k") == 100
    assert await cache.get("k") == 100
    await warm(cache, "k")
    await cache.invalidate("t")
    assert await cache.get("k") is None
    await cache.set("k", 1)
    await warm(cache, "k")
    await cache.clear()
    assert await cache.get("k") is None
    assert await cache.get_or_compute("k", _answer(7)) == 7
    await warm(cache, "k")
    await cache.delete("k")
    assert await cache.get_or_compute("k", _answer(8)) == 8


def _answer(value: Any) -> Callable[[], Awaitable[Any]]:
    async def compute() -> Any:
        return value

    return compute


async def test_near_values_end_with_their_entry(obs: Observatory) -> None:
    """And with `expire`; the stale ones are no hits."""
    cache = obs.cache(str, name="short", ttl=0.4, stale_for=60)
    await cache.set("k", "v")
    await warm(cache, "k")
    until_ = time.monotonic() + 0.4
    while await cache.get("k") == "v":
        assert time.monotonic() < until_ + 0.1
        await asyncio.sleep(0.01)
    long = obs.cache(str, name="long", ttl=60)
    await long.set("k", "v")
    await warm(long, "k")
    await long.expire("k", 0.05)
    await asyncio.sleep(0.1)
    assert await long.get("k") is None


async def test_dear_values_leave_before_their_end(obs: Observatory, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that one of those who ask makes them anew in time: a near hit would hide that."""
    cache = obs.cache(str, ttl=60)
    calls: list[int] = []

    async def compute() -> str:
        calls.append(1)
        await asyncio.sleep(0.1)
        return str(len(calls))

    assert await cache.get_or_compute("k", compute) == "1"
    monkeypatch.setattr("math.log", lambda _: -400.0)  # 0.1 s, 400 times
    await warm(cache, "k")
    monkeypatch.setattr("math.log", lambda _: -1000.0)
    assert await cache.get_or_compute("k", compute) == "1"
    assert len(calls) == 1, "near"
    await cache.expire("k", 50)
    assert await cache.get_or_compute("k", compute) == "1"

    async def anew() -> bool:
        return await cache.get("k") == "2"

    await until(anew, "made anew")


@pytest.mark.parametrize("value", [{"a": [1]}, {"text": "x" * 50_000}])
async def test_what_can_be_changed_is_everybodys_own(obs: Observatory, value: dict[str, Any]) -> None:
    """Also when it was compressed."""
    cache = obs.cache(dict[str, Any])
    await cache.set("k", value)
    await warm(cache, "k")
    first, second = await cache.get("k"), await cache.get("k")
    assert first == second == value
    assert first is not second


async def test_tenants_are_apart(obs: Observatory) -> None:
    """By what is bound when it is asked, near as well."""
    cache = obs.cache(str, name="tenants", by="tenant")
    for tenant in ("a", "b"):
        with obs.bound(tenant=tenant):
            await cache.set("k", tenant)
            await warm(cache, "k")
    for tenant in ("a", "b", "a"):
        with obs.bound(tenant=tenant):
            assert await cache.get("k") == tenant
            assert await cache.get_or_compute("k", _answer("x")) == tenant
    with obs.bound(tenant="c"):
        assert await cache.get("k") is None
    with pytest.raises(InvalidArgument, match="tenant is not bound"):
        await cache.get("k")


async def test_bounds_hold(obs: Observatory) -> None:
    """Entries and bytes, each cache its own; what is too large is not kept at all."""
    few = obs.cache(str, name="few", max_entries=10, max_bytes=100_000)
    large = obs.cache(bytes, name="large", max_bytes=100_000, compress_over=1 << 30)
    for number in range(30):
        await few.set(f"k{number}", "v")
    await warm(few, *(f"k{number}" for number in range(10)))
    for number in range(30):
        await few.get(f"k{number}")
    stats = await few.stats(fleet=False)
    assert stats.near_entries == 10
    assert stats.near_evictions >= 20
    for number in range(5):
        await large.set(f"k{number}", bytes(40_000))
        await large.get(f"k{number}")
    await large.set("huge", bytes(200_000))
    assert await large.get("huge") == bytes(200_000)
    assert await large.get("huge") == bytes(200_000)
    stats = await large.stats(fleet=False)
    assert 1 <= stats.near_entries <= 2
    assert stats.near_bytes <= 100_000


async def test_nobody_is_told_of_what_nobody_keeps(obs: Observatory, opening: Open) -> None:
    """A cache that is not near costs no notices, wherever it is written; one that is opened later is told of like the first."""
    other = await opening()
    far = obs.cache(str, name="far", near=False)
    near = obs.cache(str, name="near")
    await near.set("k", "1")
    await warm(near, "k")
    told: list[bytes] = []
    vicinity, listened = obs.caches.vicinity, obs.caches.vicinity.changed
    vicinity.changed = lambda keys: (told.extend(keys), listened(keys))[1]  # type: ignore[method-assign, func-returns-value]
    await other.cache(str, name="far", near=False).set("k", "1")
    assert await far.get("k") == "1"
    await other.cache(str, name="near").set("k", "2")
    await heard(near, "k", "2")
    assert told
    assert all(b":cache:near:" in key for key in told)
    later = obs.cache(str, name="later")
    await later.set("k", "1")
    await warm(later, "k")
    await warm(near, "k")
    await other.cache(str, name="later").set("k", "2")
    await other.cache(str, name="near").set("k", "3")
    await heard(later, "k", "2")
    await heard(near, "k", "3")


async def test_a_record_that_lives_on_costs_nobody_what_is_near(opening: Open) -> None:
    """Each process that writes sees to it once an hour; only what would end is touched."""
    obs, *others = [await opening() for _ in range(4)]
    cache = obs.cache(str, name="record")
    await cache.set("k", "v", tags=["t"])
    await warm(cache, "k")
    for number, other in enumerate(others):
        await other.cache(str, name="record").set(f"other {number}", "v", tags=["t"])
    await asyncio.sleep(0.1)
    before = await cache.stats(fleet=False)
    assert await cache.get("k") == "v"
    assert (await cache.stats(fleet=False)).near_hits == before.near_hits + 1


async def test_hits_are_counted(obs: Observatory) -> None:
    """Here at once, in the fleet with the flush."""
    cache = obs.cache(str, name="counted")
    await cache.set("k", "v")
    await warm(cache, "k")
    here = await cache.stats(fleet=False)
    for _ in range(1000):
        await cache.get("k")
    now = await cache.stats(fleet=False)
    assert now.near_hits - here.near_hits == now.hits - here.hits == 1000
    assert now.near_entries == 1
    await obs.flush()
    fleet_ = await cache.stats()
    assert (fleet_.hits, fleet_.near_hits, fleet_.misses) == (now.hits, now.near_hits, now.misses)
    hits = await obs.metrics.query(Metric.CACHE_HITS, where={"cache": "counted", "tier": "near"})
    assert hits.value == now.near_hits

    async def told() -> bool:
        return (await obs.metrics.query(CACHE_NEAR_ENTRIES, "sum", where={"cache": "counted"})).value == 1

    await until(told, "the gauge")


async def test_self_check_compares_values_and_versions(obs: Observatory) -> None:
    """One hit in a thousand; a notice that never came is found, whichever key it was of."""
    cache = obs.cache(str, name="checked")
    near = cache._room.near
    assert near is not None
    await cache.set("k", "v", tags=["t"])
    await warm(cache, "k")
    near._until_check = 1
    await cache.get("k")

    async def checked() -> bool:
        return near.stats.checks == 1

    await until(checked, "a check")
    assert near.stats.mismatches == 0
    obs.caches.vicinity.changed = lambda keys: None  # type: ignore[method-assign]
    tag = cache._room.shelf.versions.keys_of("", [(digest_of("t"), b"")])[0]
    await obs.store.command("SET", tag, b"x" * 8, "PX", 60_000)
    near._until_check = 1
    assert await cache.get("k") == "v"

    async def found() -> bool:
        await cache.get("k")
        return (await cache.stats(fleet=False)).near_mismatches == 1

    await until(found, "the mismatch")


async def test_one_name_is_near_in_one_way(obs: Observatory) -> None:
    """In a process; and what is wrong is said."""
    obs.cache(str, name="a", max_entries=5)
    obs.cache(str, name="a", max_entries=5)
    with pytest.raises(ConfigurationError, match="max_entries=5"):
        obs.cache(str, name="a")
    with pytest.raises(ConfigurationError, match="near=False"):
        obs.cache(str, name="a", near=False)
    for wrong in (0, -1, True, "many", 1.5):
        with pytest.raises(InvalidArgument, match="max_entries"):
            obs.cache(str, name="b", max_entries=wrong)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="max_bytes"):
            obs.cache(str, name="b", max_bytes=wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="on_store_down"):
        obs.cache(str, name="b", on_store_down="open")  # type: ignore[call-overload]
    cache = obs.cache(str, name="b")
    for key in (None, 1, ["k"], b"k", ""):
        with pytest.raises(InvalidArgument, match="key"):
            await cache.get(key)  # type: ignore[arg-type]


class Counted(msgspec.Struct):
    """A value that can be changed."""

    n: int


async def test_while_redis_is_away(own_server: Server) -> None:
    """Near values last for the bound and are misses then; with on_store_down="stale" they go on until their end, and are read
    anew when it is back."""
    settings = Settings().replace(cache_near_bound=0.5)
    async with (
        Observatory("x", redis_url=own_server.url, settings=settings) as obs,
        Observatory("y", redis_url=own_server.url) as far,
    ):
        strict = obs.cache(Counted, name="strict")
        lenient = obs.cache(Counted, name="lenient", on_store_down="stale")
        ended = obs.cache(Counted, name="ended", ttl=1, stale_for=0.2, on_store_down="stale")
        for cache in (strict, lenient, ended):
            await cache.set("k", Counted(1))
            await cache.set("gone", Counted(1), tags=["t"])
            await warm(cache, "k", "gone")
            await cache.invalidate("t")
        own_server.signal(19)
        try:
            lost = time.monotonic()

            async def missed() -> bool:
                return await strict.get("k") is None

            await until(missed, "a miss")
            assert time.monotonic() - lost < 0.5 + 1.0
            assert await lenient.get("k") == Counted(1)
            assert await lenient.get("gone") is None
            assert await lenient.get_or_compute("k", _answer(Counted(2))) == Counted(1)
            assert await strict.get_or_compute("k", _answer(Counted(2))) == Counted(2)
            assert (await lenient.stats(fleet=False)).stale >= 2
            with pytest.raises(StoreUnavailable):
                await lenient.set("k", Counted(3))
            await asyncio.sleep(max(lost + 1.3 - time.monotonic(), 0))
            assert await ended.get("k") is None
        finally:
            own_server.signal(18)

        async def written() -> bool:
            try:
                return await far.cache(Counted, name="lenient").set("k", Counted(4))
            except StoreUnavailable:
                return False

        await until(written, "the server is back", 10)
        await heard(lenient, "k", Counted(4))
        await warm(lenient, "k")


async def test_a_child_keeps_nothing(opening: Open) -> None:
    """Its parent's near values are not its own; it opens and keeps what it reads."""
    obs = await opening()
    cache = obs.cache(str, name="forked")
    await cache.set("k", "v")
    await warm(cache, "k")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            stats = cache._room.near.stats if cache._room.near is not None else None
            code = 0 if stats is not None and (stats.entries, stats.hits) == (0, 0) else 2
        finally:
            os._exit(code)
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert await cache.get("k") == "v"
