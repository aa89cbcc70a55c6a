"""The cache: typed, shared, always with an end."""

import asyncio
from typing import Any

import msgspec
import pytest
from aiocache import BaseCache

from observatory import ConfigurationError, InvalidArgument, Metric, NotEncodable, Observatory, StoreUnavailable, ValueTooLarge
from tests.conftest import Open
from tests.servers import Server


class Answer(msgspec.Struct, frozen=True):
    text: str
    score: float = 0.0


async def test_entries_are_shared_by_processes(opening_any: Open) -> None:
    """Same name, same entries; another name, others; delete is for all."""
    first, second = await opening_any(), await opening_any()
    await first.cache(Answer, name="answers").set("k", Answer("yes"))
    assert await second.cache(Answer, name="answers").get("k") == Answer("yes")
    assert await second.cache(Answer, name="others").get("k") is None
    assert await second.cache(Answer, name="answers").delete("k") == 1
    assert await first.cache(Answer, name="answers").get("k", "gone") == "gone"


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (str, "x"),
        (bytes, b"\x00"),
        (int, 2**60),
        (dict[str, list[int]], {"a": [1]}),
        (Answer | None, None),
        (tuple[int, ...], (1, 2)),
    ],
)
async def test_types_come_back_as_they_were(obs: Observatory, kind: Any, value: Any) -> None:
    """Also None, which is a value."""
    cache = obs.cache(kind)
    await cache.set("k", value)
    assert await cache.get("k", "missing") == value
    assert await cache.exists("k")


async def test_entry_ends_after_its_ttl(obs: Observatory) -> None:
    """And never later than asked; jitter only shortens."""
    cache = obs.cache(str, ttl=100)
    await cache.set("own", "x")
    await cache.set("short", "x", ttl=0.05)
    key = obs.store.keys.entry("default", cache._room.codec.fingerprint, "own")
    assert 89_000 < await obs.store.command("PTTL", key) <= 100_000
    await asyncio.sleep(0.06)
    assert await cache.get("short") is None
    assert await cache.expire("own", 5)
    assert await obs.store.command("PTTL", key) <= 5_000
    assert not await cache.expire("short", 5)


async def test_add_many_and_set_many(obs: Observatory) -> None:
    """add refuses what exists; get_many has hits only."""
    cache = obs.cache(int)
    await cache.set_many({"a": 1, "b": 2})
    with pytest.raises(ValueError, match="exists already"):
        await cache.add("a", 5)
    assert await cache.add("c", 3)
    assert await cache.get_many(["a", "b", "c", "d"]) == {"a": 1, "b": 2, "c": 3}


async def test_changed_type_is_a_miss_and_not_a_crash(opening: Open) -> None:
    """Old and new class live side by side; foreign bytes are a miss."""
    first, second = await opening(), await opening()
    await first.cache(Answer, name="x").set("k", Answer("old"))
    assert await second.cache(dict[str, str], name="x").get("k") is None
    cache = first.cache(Answer, name="x")
    await first.store.command("SET", first.store.keys.entry("x", cache._room.codec.fingerprint, "k"), b"\xff\xff", "PX", 60_000)
    assert await cache.get("k") is None


async def test_wrong_values_are_refused_before_they_are_written(obs: Observatory) -> None:
    """Type, size, key, ttl: each by its name."""
    cache = obs.cache(Answer)
    with pytest.raises(NotEncodable):
        await cache.set("k", "a string")  # type: ignore[arg-type]
    with pytest.raises(ValueTooLarge, match="8388608"):
        await cache.set("k", Answer("x" * 9_000_000))
    for ttl in (None, 0, -1, float("nan"), "soon"):
        with pytest.raises(InvalidArgument, match="ttl"):
            await cache.set("k", Answer("x"), ttl=ttl)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="cache key"):
        await cache.get("")
    with pytest.raises(ConfigurationError, match="Give it another name"):
        obs.cache(str)
    with pytest.raises(InvalidArgument, match="cache name"):
        obs.cache(str, name="no spaces")
    with pytest.raises(NotEncodable):
        obs.cache(object(), name="impossible")
    assert await cache.get("k") is None


@pytest.mark.parametrize("key", ["{}", "a:b", "a\nb", "x" * 10_000, "é", "\x00"])
async def test_any_key_is_a_key_of_its_own(obs: Observatory, key: str) -> None:
    """No key of a user leaves its place."""
    cache = obs.cache(str)
    await cache.set(key, "mine")
    await cache.set(key + "x", "other")
    assert await cache.get(key) == "mine"


async def test_hits_and_misses_reach_the_metrics(obs: Observatory) -> None:
    """By cache and tier."""
    cache = obs.cache(str, name="counted", near=False)
    await cache.get("k")
    await cache.set("k", "v")
    await cache.get("k")
    await cache.get("k")
    await obs.flush()
    assert (await obs.metrics.query(Metric.CACHE_HITS, where={"cache": "counted", "tier": "shared"})).value == 2
    assert (await obs.metrics.query(Metric.CACHE_MISSES, where={"cache": "counted"})).value == 1


async def test_entries_may_live_in_a_store_of_their_own(
    opening: Open, own_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cache.redis_url: coordination here, entries there."""
    monkeypatch.setenv("OBSERVATORY_CACHE_REDIS_URL", own_server.url)
    obs = await opening()
    cache = obs.cache(str)
    await cache.set("k", "v")
    assert await cache.get("k") == "v"
    own_server.stop()
    assert await cache.get("k") is None, "a miss"
    with pytest.raises(StoreUnavailable):
        await cache.set("k", "v")
    assert await obs.rate_limiter.check("api"), "the limits do not need it"


def test_it_is_an_aiocache_cache() -> None:
    """isinstance holds for whoever asks for one."""
    cache = Observatory("x", redis_url="redis://127.0.0.1:1").cache(str)
    assert isinstance(cache, BaseCache)


async def test_reads_miss_before_the_store_was_ever_reached(caplog: pytest.LogCaptureFixture) -> None:
    """As in any outage, and counted."""
    async with Observatory("x", redis_url="redis://127.0.0.1:1") as obs:
        cache = obs.cache(int)
        assert await cache.get("k") is None
        assert await cache.get_many(["k"]) == {}
        assert not await cache.exists("k")
        seen = await cache.stats(fleet=False)
        assert (seen.misses, seen.errors) == (2, 3)
        with pytest.raises(StoreUnavailable):
            await cache.set("k", 1)
    assert "opens without its store" in caplog.text
