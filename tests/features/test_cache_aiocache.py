"""It is an aiocache cache: its decorators take the class, its plugins hear of it, its tests of a backend hold."""

import asyncio
from typing import Any

import aiocache
import pytest
from aiocache import BaseCache
from aiocache.lock import RedLock
from aiocache.plugins import HitMissRatioPlugin, TimingPlugin

from observatory import Cache, InvalidArgument, Observatory
from tests.conftest import Open


async def test_cached_takes_the_class(obs: Observatory) -> None:
    """With keywords; entries are those of obs.cache of that name."""
    calls: list[int] = []

    @aiocache.cached(cache=Cache, obs=obs, type=str, name="answers", ttl=60, key_builder=lambda _, q: q)  # type: ignore[untyped-decorator]
    async def answer(q: str) -> str:
        calls.append(1)
        return f"to {q}"

    assert [await answer("q") for _ in range(3)] == ["to q"] * 3
    assert len(calls) == 1
    assert await obs.cache(str, name="answers").get("q") == "to q"
    assert isinstance(answer.cache, BaseCache)


async def test_multi_cached_asks_for_what_is_missing(obs: Observatory) -> None:
    """And writes it."""
    asked: list[list[str]] = []

    @aiocache.multi_cached("ids", cache=Cache, obs=obs, type=int, name="many")  # type: ignore[untyped-decorator]
    async def load(ids: list[str]) -> dict[str, int]:
        asked.append(list(ids))
        return {one: int(one) for one in ids}

    assert await load(["1", "2"]) == {"1": 1, "2": 2}
    assert await load(["2", "3"]) == {"2": 2, "3": 3}
    assert asked == [["1", "2"], ["3"]]


async def test_cached_stampede_computes_once_in_a_process(obs: Observatory) -> None:
    """Across processes aiocache's lock does not hold; ours is get_or_compute."""
    calls: list[int] = []

    @aiocache.cached_stampede(lease=2, cache=Cache, obs=obs, type=str, name="stampede", key="k")  # type: ignore[untyped-decorator]
    async def answer() -> str:
        calls.append(1)
        await asyncio.sleep(0.05)
        return "v"

    assert await asyncio.gather(*(answer() for _ in range(20))) == ["v"] * 20
    assert len(calls) == 1


async def test_a_lock_is_released_by_who_holds_it(opening: Open) -> None:
    """And by nobody else; it is no entry."""
    first, second = await opening(), await opening()
    cache, other = first.cache(str, near=False), second.cache(str, near=False)
    async with RedLock(cache, "k", 5):
        with pytest.raises(ValueError, match="locked"):
            await other._add("k-lock", "mine", 5)
        assert await other._redlock_release("k-lock", "not mine") == 0
        assert await cache.get("k-lock") is None
    assert await other._add("k-lock", "mine", 5)


async def test_plugins_hear_of_every_verb(obs: Observatory) -> None:
    """Ratio and timing."""
    cache = Cache[str](obs=obs, type=str, name="heard", plugins=[HitMissRatioPlugin(), TimingPlugin()])
    await cache.set("k", "v")
    assert [await cache.get("k"), await cache.get("x")] == ["v", None]
    assert await cache.multi_get(["k", "x"]) == ["v", None]
    ratio: dict[str, Any] = cache.hit_miss_ratio
    assert (ratio["total"], ratio["hits"], ratio["hit_ratio"]) == (4, 2, 0.5)
    assert cache.profiling["get_total"] == 2
    assert cache.profiling["set_max"] > 0


async def test_what_a_backend_does(opening_any: Open) -> None:
    """The behaviours that aiocache's own acceptance tests ask of every backend."""
    obs = await opening_any()
    async with obs.cache(str, name="a") as cache:
        assert await cache.set("k", "v")
        assert await cache.get("missing") is None
        assert await cache.get("missing", default=1) == 1
        assert await cache.multi_get(["k", "missing"]) == ["v", None]
        assert await cache.multi_set([("a", "1"), ("b", "2")], ttl=1)
        with pytest.raises(ValueError):  # noqa: PT011 (aiocache's contract)
            await cache.add("k", "w")
        assert await cache.exists("k")
        assert not await cache.exists("missing")
        assert await cache.delete("k") == 1
        assert await cache.delete("k") == 0
        assert await cache.expire("a", ttl=1)
        assert not await cache.expire("missing", 1)
        await cache.clear()
        assert await cache.get("a") is None
    numbers = obs.cache(int, name="n")
    assert await numbers.increment("i") == 1
    assert await numbers.increment("i", delta=4) == 5
    assert await numbers.increment("i", -7) == -2
    assert await numbers.get("i") == -2
    await cache.set("text", "v")
    with pytest.raises(TypeError):
        await cache.increment("text")
    assert await cache.close()


async def test_increments_are_not_lost(opening_any: Open) -> None:
    """Of two processes at once; the time to live stays."""
    first, second = await opening_any(), await opening_any()
    caches = [obs.cache(int, name="n", ttl=50, near=False) for obs in (first, second)]
    await caches[0].set("i", 0, ttl=20, tags=["t"])
    await asyncio.gather(*(cache.increment("i") for cache in caches for _ in range(25)))
    assert await caches[1].get("i") == 50
    assert 0 < await first.store.command("PTTL", caches[0]._room.place("i").entry) <= 20_000
    await caches[1].invalidate("t")
    assert await caches[0].increment("i", 3) == 3


async def test_namespaces_and_key_builders(obs: Observatory) -> None:
    """aiocache's words for how keys are spelled."""
    cache = Cache[str](obs=obs, type=str, name="spelled", namespace="ns:")
    await cache.set("k", "v")
    assert await obs.cache(str, name="spelled").get("ns:k") == "v"
    built = Cache[str](obs=obs, type=str, name="spelled", key_builder=lambda key, _=None: f"built {key}")
    await built.set("k", "w")
    assert await obs.cache(str, name="spelled").get("built k") == "w"
    with pytest.raises(InvalidArgument, match="serializer"):
        Cache(obs=obs, type=str, serializer=object())  # type: ignore[arg-type]
