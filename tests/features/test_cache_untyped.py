"""Entries without a type beside those of classes: who finds what, who ends whom, and what never reaches a reader."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from observatory import Cache, CacheMiss, InvalidArgument, NotEncodable, Observatory, StoreUnavailable
from observatory.features.cache import UntypedCache
from observatory.features.cache.generations import UNTYPED
from observatory.settings import Settings
from tests.conftest import Open
from tests.servers import Server
from tests.topologies import Cluster


class Old(msgspec.Struct):
    """Of a release."""

    text: str


class New(msgspec.Struct):
    """Of the next."""

    text: str
    score: float = 0.0


class Other(msgspec.Struct):
    """Nothing of the kind."""

    number: int


class Delicate(msgspec.Struct):
    """Whose own check fails in a way that it never expected."""

    items: list[int]

    def __post_init__(self) -> None:
        self.items[3]


@pytest.fixture(params=["valkey", "redis", "cluster"])
async def fleet(request: pytest.FixtureRequest, namespace: str) -> AsyncIterator[tuple[Observatory, Observatory]]:
    """Two clients of one namespace."""
    if request.param == "cluster":
        cluster: Cluster = request.getfixturevalue("cluster")
        url = cluster.url
    else:
        url = request.getfixturevalue("servers")(request.param).url
    first, second = (Observatory("test", redis_url=url, namespace=namespace) for _ in range(2))
    async with first, second:
        yield first, second


async def found(cache: UntypedCache, key: str) -> Any:
    """The value, or "miss"."""
    try:
        return (await cache.find(key)).value
    except CacheMiss:
        return "miss"


async def test_what_has_no_type_is_read_by_every_type_that_it_fits(fleet: tuple[Observatory, Observatory]) -> None:
    """Before any class has ever written too. What it does not fit has a miss, which is no corruption. A write by either side
    ends the other's."""
    one, two = fleet
    old, new = two.cache(Old, name="c"), one.cache(New, name="c")
    third = Observatory("third", settings=one.settings)
    async with third:
        other = third.cache(Other, name="c")
        with one.untyped_caches.of("c", {}) as door:
            await door.set("k", {"text": "door", "score": 2}, tags=["t"])
            assert (await old.get("k"), await new.get("k")) == (Old("door"), New("door", 2.0))
            assert await two.cache(Old, name="c").exists("k")
            assert await other.get("k", "miss") == "miss"
            assert not await other.exists("k")
            await door.set("number", {"number": 1})
            assert await other.get("number") == Other(1)
            assert (await other.stats(fleet=False)).corrupt == 0
            await new.set("k", New("python"))
            assert await old.get("k") is None, "the door's is gone with it"
            assert await found(door, "k") == {"text": "python", "score": 0.0}
            await door.set("k", {"text": "again"}, tags=["t"])
            assert (await old.get("k"), await new.get("k")) == (Old("again"), New("again"))
            await old.invalidate("t")
            assert (await old.get("k"), await new.get("k"), await found(door, "k")) == (None, None, "miss")
            await door.set("k", {"text": "last"})
            assert await new.delete("k") == 1
            assert (await old.get("k"), await found(door, "k")) == (None, "miss")
            await door.set("k", {"text": "last"})
            await new.clear()
            assert (await old.get("k"), await found(door, "k")) == (None, "miss")
            await old.set("k", Old("x"))
            assert await door.delete("k") == 1
            assert await door.delete("k") == 0
            assert await old.get("k") is None


async def test_the_newest_of_all_generations_is_found(fleet: tuple[Observatory, Observatory]) -> None:
    """Of what several classes have computed for themselves; and the others', when it ends."""
    one, two = fleet
    old, new = one.cache(Old, name="c"), two.cache(New, name="c")

    async def compute_old() -> Old:
        return Old("old")

    async def compute_new() -> New:
        return New("new")

    with one.untyped_caches.of("c", {}) as door:
        await old.get_or_compute("k", compute_old)
        entry = (await old._room.shelf.read(old._room.place("k"))).entry
        async with asyncio.timeout(10):  # two clients' clocks differ by some microseconds
            while entry is None or two.caches.now_us() <= entry.made_us:
                await asyncio.sleep(0.001)
        await new.get_or_compute("k", compute_new)
        assert await found(door, "k") == {"text": "new", "score": 0.0}
        await two.store.command("UNLINK", new._room.place("k").entry)
        assert await found(door, "k") == {"text": "old"}
        await two.store.command("SET", new._room.place("k").entry, b"junk", "PX", 60_000)
        assert await found(door, "k") == {"text": "old"}
        assert (await door.stats(fleet=False)).corrupt == 1


async def test_get_or_compute_uses_what_fits_and_computes_beside_what_does_not(obs: Observatory, opening: Open) -> None:
    """Which is no business of those whom it fits."""
    fits, differs = obs.cache(New, name="c"), (await opening()).cache(Other, name="c")
    computed = 0

    async def compute() -> Any:
        nonlocal computed
        computed += 1
        return Other(computed)

    with obs.untyped_caches.of("c", {}) as door:
        await door.set("k", {"text": "door"})
        assert await fits.get_or_compute("k", compute) == New("door")
        assert computed == 0
        assert await differs.get_or_compute("k", compute) == Other(1)
        assert await differs.get_or_compute("k", compute) == Other(1)
        assert await fits.get("k") == New("door"), "a computed value ends its own generation's only"


async def test_who_waits_gets_what_was_written_at_the_door_meanwhile(obs: Observatory) -> None:
    """A computation that lost against a write tells nobody who came after the write."""
    cache = obs.cache(Other, name="c")
    began, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> Other:
        began.set()
        await go_on.wait()
        return Other(99)

    first = asyncio.create_task(cache.get_or_compute("k", slow))
    await began.wait()
    second = asyncio.create_task(cache.get_or_compute("k", slow))
    async with asyncio.timeout(5):
        while next(iter(cache._room.flights._flights.values())).waiting < 2:
            await asyncio.sleep(0)
    with obs.untyped_caches.of("c", {}) as door:
        await door.set("k", {"number": 5})
        go_on.set()
        assert await first == Other(99), "who began it has what he asked for"
        assert await second == Other(5)
        assert await found(door, "k") == {"number": 5}
        # What was just computed never stands then, and what is written next replaces nothing of its own.
        look = await cache._room.flights.look(cache._room.place("k"))
        assert look.entry is not None
        assert look.beside
        assert look.head == b""


async def test_a_type_whose_own_check_fails_has_a_miss(obs: Observatory) -> None:
    """Whatever its __post_init__ raises; it was never promised that the value is one of its own."""
    cache = obs.cache(Delicate, name="c")
    with obs.untyped_caches.of("c", {}) as door:
        await door.set("k", {"items": [1]})
        assert await cache.get("k", "miss") == "miss"
        assert await cache.get_many(["k"]) == {}
        await door.set("k", {"items": [1, 2, 3, 4]})
        assert await cache.get("k") == Delicate([1, 2, 3, 4])


async def test_add_sees_what_the_door_wrote(obs: Observatory) -> None:
    """As get does: what fits exists, what does not is written over. expire knows Python's own only."""
    cache = obs.cache(Other, name="c")
    with obs.untyped_caches.of("c", {}) as door:
        await door.set("k", {"number": 1})
        with pytest.raises(ValueError, match="exists already"):
            await cache.add("k", Other(2))
        assert not await cache.expire("k", 5)
        await door.set("k", "another shape")
        assert await cache.add("k", Other(2))
        assert await found(door, "k") == {"number": 2}


async def test_add_replaces_what_has_ended_at_the_door(obs: Observatory, opening: Open) -> None:
    """An entry that is stale there is no value for `add`, and it does not stand in its way."""
    cache = obs.cache(str, name="c")
    far: Cache[Any] = (await opening()).cache(Any, name="c", stale_for=60)
    await far.set("k", "door", ttl=0.05)
    async with asyncio.timeout(10):
        while await far.get("k") is not None:
            await asyncio.sleep(0.01)
    assert (await cache._room.flights.look(cache._room.place("k"))).beside, "it is there still"
    assert await cache.add("k", "python")
    assert (await cache.get("k"), await far.get("k", "miss")) == ("python", "miss")


async def test_a_cache_of_anything_is_the_untyped_one(obs: Observatory) -> None:
    """`obs.cache(Any)` and the doors have the same entries."""
    cache: Cache[Any] = obs.cache(Any, name="c")
    with obs.untyped_caches.of("c", {}) as door:
        await door.set("k", [1, None, {"a": "b"}])
        assert await cache.get("k") == [1, None, {"a": "b"}]
        assert cache._room.codec.fingerprint == UNTYPED
        await cache.set("k", {"x": 1})
        assert await found(door, "k") == {"x": 1}


async def test_what_was_spoilt_is_a_miss_and_counted(obs: Observatory) -> None:
    """Of the untyped generation, for readers with a type too."""
    cache = obs.cache(Other, name="c")
    with obs.untyped_caches.of("c", {}) as door:
        await door.set("k", {"number": 1})
        await obs.store.command("SET", door._room.place("k").entry, b"x" * 60, "PX", 60_000)
        assert await cache.get("k") is None
        assert (await cache.stats(fleet=False)).corrupt == 1
        assert await found(door, "k") == "miss"
        assert (await door.stats(fleet=False)).corrupt == 1


async def test_values_in_json(obs: Observatory) -> None:
    """Every kind that Python writes, and what JSON has no form for."""
    cache: Cache[Any] = obs.cache(Any, name="c")
    moment = datetime(2026, 11, 23, 10, tzinfo=UTC)
    kinds: tuple[tuple[Any, bytes], ...] = (
        (b"\x00\xff", b'"AP8="'),
        (moment, b'"2026-11-23T10:00:00Z"'),
        ([float("nan"), float("inf"), 1.5], b"[null,null,1.5]"),
        ({1: "a", 2.5: "b"}, b'{"1":"a","2.5":"b"}'),
        (None, b"null"),
        (2**64 - 1, b"18446744073709551615"),
    )
    for value, text in kinds:
        await cache.set("k", value)
        with obs.untyped_caches.of("c", {}) as door:
            assert (await door.find("k")).json() == text
    formless: tuple[Any, ...] = (msgspec.msgpack.Ext(5, b"x"), {(1, 2): 3}, {None: 1}, {True: 1})
    for value in formless:
        await cache.set("k", value)
        with obs.untyped_caches.of("c", {}) as door, pytest.raises(NotEncodable, match="no form in JSON"):
            (await door.find("k")).json()


async def test_an_outage_is_no_miss_at_the_door(opening: Open, own_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """And names that nobody wrote to are not counted: they come from outside, and each would be a series."""
    monkeypatch.setenv("OBSERVATORY_CACHE_REDIS_URL", own_server.url)
    obs = await opening()
    with obs.untyped_caches.of("known", {}) as known, obs.untyped_caches.of("made-up", {}) as unknown:
        await known.set("k", 1)
        assert await found(known, "k") == 1
        assert await found(known, "other") == "miss"
        assert await found(unknown, "k") == "miss"
        own_server.stop()
        for cache in (known, unknown):
            with pytest.raises(StoreUnavailable):
                await cache.find("k")
            with pytest.raises(StoreUnavailable):
                await cache.set("k", 1)
        seen = await known.stats(fleet=False)
        assert (seen.hits, seen.misses, seen.errors) == (1, 1, 1)
        seen = await unknown.stats(fleet=False)
        assert (seen.misses, seen.errors) == (0, 0)
    await obs.flush()
    assert [one.cache for one in await obs.untyped_caches.reports()] == ["known"]


async def test_dimensions_are_a_place_of_their_own(obs: Observatory) -> None:
    """The same that a cache `by` them has; no name, value or key leads out of it."""
    private = obs.cache(str, name="private", by=("team", "tenant"))
    with obs.bound(tenant="acme", team="a,tenant=b"):
        await private.set("k", "secret")
    with obs.untyped_caches.of("private", {"team": "a,tenant=b", "tenant": "acme"}) as door:
        assert await found(door, "k") == "secret"
    for whose in (
        {},
        {"tenant": "acme"},
        {"team": "a,tenant=b"},
        {"team": "a", "tenant": "b,tenant=acme"},
        {"team": "a%2Ctenant%3Db", "tenant": "acme"},
        {"team": "a,tenant=b", "tenant": "acme", "user": "x"},
    ):
        with obs.untyped_caches.of("private", whose) as door:
            for key in ("k", ":k", "tenant=acme:k", "team=a%2Ctenant%3Db,tenant=acme:k"):
                assert await found(door, key) == "miss"
            await door.clear()
    with obs.bound(tenant="acme", team="a,tenant=b"):
        assert await private.get("k") == "secret"
    for wrong in ({"a b": "x"}, {"tenant": ""}, {"a:b": "x"}):
        with pytest.raises(InvalidArgument), obs.untyped_caches.of("private", wrong):
            pass
    for name in ("private:tenant=acme", "", "a/b", "private:"):
        with pytest.raises(InvalidArgument, match="cache name"), obs.untyped_caches.of(name, {}):
            pass


async def test_near_values_end_when_the_door_writes(opening: Open) -> None:
    """Within the bound; and what the door wrote is never kept near, so the next of its writes is seen at once."""
    patient = Settings().replace(redis_max_wait=5.0)
    one, two = await opening(settings=patient), await opening(settings=patient)
    cache = one.cache(Other, name="near", near=True)

    async def seen_near() -> bool:
        before = (await cache.stats(fleet=False)).near_hits
        await cache.get("k")
        return (await cache.stats(fleet=False)).near_hits > before

    await cache.set("k", Other(0))
    async with asyncio.timeout(10):
        while not await seen_near():
            await asyncio.sleep(0.01)
    with two.untyped_caches.of("near", {}) as door:
        await door.set("k", {"number": 1})
        async with asyncio.timeout(10):
            while await cache.get("k") != Other(1):
                await asyncio.sleep(0.01)
        for number in range(2, 30):
            await door.set("k", {"number": number})
            assert await cache.get("k") == Other(number)
            assert await cache.get("k") == Other(number)
        assert not await seen_near()
        await door.delete("k")
        assert await cache.get("k") is None
