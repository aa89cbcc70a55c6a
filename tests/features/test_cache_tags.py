"""Tags, clear, tenants, generations of a class: what counts, for whom, and until when."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from observatory import ConfigurationError, InvalidArgument, Observatory
from observatory.features.cache.versions import digest_of
from observatory.settings import Settings
from tests.conftest import Open
from tests.topologies import Cluster

FAR = Settings().replace(cache_near="off")
"""What one process writes the other reads at once."""


@pytest.fixture(params=["valkey", "redis", "cluster"])
async def fleet(request: pytest.FixtureRequest, namespace: str) -> AsyncIterator[tuple[Observatory, Observatory]]:
    """Two clients of one namespace."""
    if request.param == "cluster":
        cluster: Cluster = request.getfixturevalue("cluster")
        url = cluster.url
    else:
        url = request.getfixturevalue("servers")(request.param).url
    first, second = (Observatory("test", redis_url=url, namespace=namespace, settings=FAR) for _ in range(2))
    async with first, second:
        yield first, second


Fleet = tuple[Observatory, Observatory]


async def test_a_tag_takes_what_was_set_with_it(fleet: Fleet) -> None:
    """Everywhere at once, and nothing else; what is set afterwards counts."""
    one, two = (obs.cache(str, name="tagged") for obs in fleet)
    await one.set("a", "1", tags=["x"])
    await one.set("b", "2", tags=["x", "y"])
    await one.set("c", "3", tags=("y",))
    await one.set("d", "4")
    assert await two.get_many(list("abcd")) == {"a": "1", "b": "2", "c": "3", "d": "4"}
    await two.invalidate("x")
    assert await one.get_many(list("abcd")) == {"c": "3", "d": "4"}
    assert await two.get_many(list("abcd")) == {"c": "3", "d": "4"}
    assert not await one.exists("a")
    assert not await one.expire("a", 5)
    await one.set("a", "5", tags=["x"])
    assert await two.get("a") == "5"
    assert await two.add("b", "6")
    await two.invalidate("x", "y", "nobody's")
    assert await one.get_many(list("abcd")) == {"b": "6", "d": "4"}
    with pytest.raises(InvalidArgument, match="at least one"):
        await two.invalidate()
    assert await one.get("d") == "4"


async def test_clear_takes_all_of_one_cache(fleet: Fleet) -> None:
    """In one step, however many there are; other caches stay."""
    one, two = (obs.cache(int, name="cleared") for obs in fleet)
    other = fleet[0].cache(int, name="other")
    await one.set_many({f"k{number}": number for number in range(50)})
    await other.set("k1", 1)
    assert await two.clear()
    assert await one.get_many([f"k{number}" for number in range(50)]) == {}
    assert await other.get("k1") == 1
    await one.set("k1", 2)
    assert await two.get("k1") == 2
    assert await two.delete("k2") == 0


class Old(msgspec.Struct):
    """Of a release."""

    text: str


class New(msgspec.Struct):
    """Of the next."""

    text: str
    score: float = 0.0


async def test_generations_of_a_class_live_and_end_together(fleet: Fleet) -> None:
    """In a rolling deploy each reads its own; a delete, a set, a tag, a clear in one is felt by the other."""
    old, new = fleet[0].cache(Old, name="rolling"), fleet[1].cache(New, name="rolling")

    async def both() -> None:
        for cache, kind in ((old, Old), (new, New)):

            async def compute(kind: type = kind) -> object:
                return kind("x")

            await cache.get_or_compute("k", compute, tags=["t"])  # type: ignore[arg-type]
        assert await old.get("k") == Old("x")
        assert await new.get("k") == New("x")

    await both()
    assert await new.delete("k") == 1
    assert await old.get("k") is None
    await both()
    await old.set("k", Old("y"))
    assert await new.get("k") is None
    await both_again(old, new)
    await old.invalidate("t")
    assert (await old.get("k"), await new.get("k")) == (None, None)
    await both()
    await new.clear()
    assert (await old.get("k"), await new.get("k")) == (None, None)


async def both_again(old: object, new: object) -> None:
    """The other generation computes for itself."""

    async def compute() -> New:
        return New("z")

    assert await new.get_or_compute("k", compute, tags=["t"]) == New("z")  # type: ignore[attr-defined]
    assert await old.get("k") == Old("y")  # type: ignore[attr-defined]
    await old.set("k", Old("y"), tags=["t"])  # type: ignore[attr-defined]


async def test_a_lost_version_revives_nothing(opening_any: Open) -> None:
    """Evicted or expired: misses, and never what was invalidated before."""
    obs = await opening_any()
    cache = obs.cache(str, name="evicted")
    await cache.set("k", "old", tags=["t"])
    await cache.invalidate("t")
    await cache.set("other", "v", tags=["t"])
    keys = obs.store.keys
    for key in (keys.cache_record("evicted"), keys.cache_tag("evicted", digest_of("t").hex())):
        assert await obs.store.command("DEL", key) == 1
        assert await cache.get("k") is None
        assert await cache.get("other") is None
        await cache.set("other", "v", tags=["t"])
        assert await cache.get("other") == "v"
        assert await cache.get("k") is None
    assert await obs.store.command("PTTL", keys.cache_record("evicted")) > 29 * 86_400_000
    await cache.set("long", "v", ttl=90 * 86_400)
    assert await obs.store.command("PTTL", keys.cache_record("evicted")) > 179 * 86_400_000


async def test_a_record_that_is_not_ours_is_replaced(obs: Observatory) -> None:
    """Bytes of anybody's: misses, no crash."""
    cache = obs.cache(str, name="foreign")
    await cache.set("k", "v")
    await obs.store.command("SET", obs.store.keys.cache_record("foreign"), b"\xff junk", "PX", 60_000)
    assert await cache.get("k") is None
    await cache.set("k", "w")
    assert await cache.get("k") == "w"


async def test_tenants_do_not_meet(obs: Observatory) -> None:
    """Whatever their names and keys look like; a clear, a tag, a delete is one tenant's."""
    cache = obs.cache(str, name="private", by="tenant")
    tenants = ["a", "a:k", "a,b", "a%2Cb", "tenant=a", "~" + "0" * 32, "x" * 300, "é", "\x00", "{a}"]
    keys = ["k", "a:k", ":k", "tenant=a:k", "k:lease", "~" + "0" * 32]
    for tenant in tenants:
        with obs.bound(tenant=tenant):
            for key in keys:
                assert await cache.get(key) is None, (tenant, key)
                await cache.set(key, f"{tenant}/{key}", tags=["t"])
    for tenant in tenants:
        with obs.bound(tenant=tenant):
            assert await cache.get_many(keys) == {key: f"{tenant}/{key}" for key in keys}
    with obs.bound(tenant="a"):
        await cache.clear()
    with obs.bound(tenant="a:k"):
        await cache.invalidate("t")
    with obs.bound(tenant="a,b"):
        assert await cache.delete("k") == 1
    for tenant in tenants:
        with obs.bound(tenant=tenant):
            left = {"a": 0, "a:k": 0, "a,b": 5}.get(tenant, 6)
            assert len(await cache.get_many(keys)) == left, tenant


async def test_a_tenant_must_be_bound(obs: Observatory) -> None:
    """And a name is kept by one thing in a process."""
    cache = obs.cache(str, name="private", by=("team", "tenant"))

    async def compute() -> str:
        return "v"

    with obs.bound(tenant="a"):
        for asked in (
            cache.get("k"),
            cache.set("k", "v"),
            cache.delete("k"),
            cache.clear(),
            cache.get_or_compute("k", compute),
        ):
            with pytest.raises(InvalidArgument, match="team is not bound"):
                await asked
    assert obs.cache(str, name="private", by=("tenant", "team"))
    with pytest.raises(ConfigurationError, match="kept by"):
        obs.cache(str, name="private")
    with pytest.raises(InvalidArgument):
        obs.cache(str, name="wrong", by="no word")


async def test_computations_of_tenants_are_their_own(obs: Observatory) -> None:
    """At the same moment, of the same key."""
    cache = obs.cache(str, name="private", by="tenant")

    async def ask(tenant: str) -> str:
        async def compute() -> str:
            await asyncio.sleep(0.05)
            return obs.dimensions["tenant"]

        with obs.bound(tenant=tenant):
            return await cache.get_or_compute("k", compute)

    assert await asyncio.gather(*(ask(tenant) for tenant in "abcabc")) == list("abcabc")


async def test_wrong_tags_are_refused(obs: Observatory) -> None:
    """A string is not several; nor are a thousand."""
    cache = obs.cache(str)
    for tags in ("tag", [""], [5], [str(number) for number in range(65)]):
        with pytest.raises(InvalidArgument, match="tags"):
            await cache.set("k", "v", tags=tags)  # type: ignore[arg-type]


async def test_places_are_spelled_anew_after_the_store_lost_its_record(opening_any: Open) -> None:
    """After a flush of the server the fleet agrees on another salt, and on other keys."""
    first, second = await opening_any(), await opening_any()
    cache, other = first.cache(str), second.cache(str)
    await cache.set("k", "v")
    before = cache._room.place("k")
    assert cache._room.place("k") is before
    for obs in (first, second):
        obs.store.join(obs.store.keys.partitions, b"another salt 123")
    assert cache._room.place("k").entry != before.entry
    await cache.set("k", "w")
    assert await other.get("k") == "w"
    for number in range(10_050):
        cache._room.place(str(number))
    assert len(cache._room.shelf._places) < 10_001
