"""What others have done to our keys, and what is too large or too odd: a miss, an error of ours, never a crash or a wait."""

import asyncio
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from observatory import Cache, CacheComputationFailed, NotEncodable, Observatory, ValueTooLarge
from observatory.features.cache.versions import digest_of
from observatory.names import CACHE_CORRUPT
from tests.features.test_cache_tags import fleet

__all__ = ["fleet"]

Fleet = tuple[Observatory, Observatory]
TYPES: dict[str, tuple[str | int, ...]] = {
    "RPUSH": ("x",),
    "HSET": ("f", "v"),
    "XADD": ("*", "f", "v"),
    "SADD": ("m",),
    "ZADD": (1, "m"),
}
HALF_A_GIGABYTE = 512 * 2**20


def computing(value: Any) -> Callable[[], Awaitable[Any]]:
    async def compute() -> Any:
        return value

    return compute


def keys_of(obs: Observatory, cache: Cache[Any]) -> dict[str, str]:
    """All that stands in Redis for the entry k with the tag t."""
    place = cache._room.place("k")
    tag = obs.store.keys.cache_tag(cache.name, digest_of("t").hex())
    return {"entry": place.entry, "record": place.record, "tag": tag, "lease": place.lease}


@pytest.mark.parametrize("where", ["entry", "record", "tag", "lease"])
async def test_a_key_of_another_type_is_a_miss(fleet: Fleet, where: str) -> None:
    """A list, a hash, a stream … where something of ours was: every verb goes on, and what it writes is read by the others."""
    obs = fleet[0]
    one, two = (each.cache(int, name="odd", near=False) for each in fleet)
    keys = keys_of(obs, one)
    verbs: dict[str, tuple[Callable[[], Awaitable[object]], int | None]] = {
        "get": (lambda: one.get("k", "miss"), None),
        "exists": (lambda: one.exists("k"), None),
        "get_many": (lambda: one.get_many(["k"]), None),
        "get_or_compute": (lambda: one.get_or_compute("k", computing(7), tags=["t"]), 7),
        "set": (lambda: one.set("k", 7, tags=["t"]), 7),
        "add": (lambda: one.add("k", 7, tags=["t"]), 7),
        "increment": (lambda: one.increment("k", 7), 7),
        "expire": (lambda: one.expire("k", 50), None),
        "delete": (lambda: one.delete("k"), None),
        "invalidate": (lambda: one.invalidate("t"), None),
        "clear": (one.clear, None),
    }
    for command, arguments in TYPES.items():
        for verb, (does, left) in verbs.items():
            await two.set("k", 1, tags=["t"])
            if where == "lease":
                await two.delete("k")
            await asyncio.gather(*(obs.store.command("DEL", key) for key in (keys["lease"], keys[where])))
            await obs.store.command(command, keys[where], *arguments)
            await obs.store.command("PEXPIRE", keys[where], 60_000)
            async with asyncio.timeout(5):
                answer = await does()
            expected: dict[str, list[object]] = {
                "get": ["miss"],
                "exists": [False],
                "get_many": [{}],
                "get_or_compute": [7],
                "increment": [7],
                "expire": [False],
                "delete": [0, 1],
                "invalidate": [None],
            }
            assert answer in expected.get(verb, [True]), (command, verb)
            assert await two.get("k") == left, (command, verb)
    await obs.flush()
    if where == "entry":
        assert ((await obs.metrics.query(CACHE_CORRUPT, where={"cache": "odd"})).value or 0) >= len(TYPES)


async def test_each_flipped_byte_is_a_miss_and_a_count(obs: Observatory) -> None:
    """And each length that it may be cut to; in the entry, and in the versions that it rests on."""
    cache = obs.cache(str, name="flipped", near=False)
    keys = keys_of(obs, cache)
    await cache.set("k", "value", tags=["t"])
    for where in ("entry", "record", "tag"):
        whole: bytes = await obs.store.command("GET", keys[where])
        spoilt = [whole[:length] for length in range(len(whole))]
        spoilt += [whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :] for at in range(len(whole))]
        spoilt.append(whole + b"\x00")
        before = (await cache.stats(fleet=False)).corrupt
        for bad in spoilt:
            await obs.store.command("SET", keys[where], bad, "PX", 60_000)
            found = await cache.get("k", "miss")
            # What follows the version in a record names generations: it says nothing about the entry.
            intact = where == "record" and bad[:16].lower() == whole[:16] and bad[16:17] in b" "
            assert found == "miss" or intact, bad
        await obs.store.command("SET", keys[where], whole, "PX", 60_000)
        assert await cache.get("k") == "value"
        # The version stands in the entry's own sum; that of its cache or tag is another one then, which is a plain miss.
        assert (await cache.stats(fleet=False)).corrupt - before == (len(spoilt) if where == "entry" else 0)


@pytest.mark.parametrize("junk", [b"", b"x", b"!", b"!\xff\xff", b"!\x92\xa1x"])
async def test_junk_for_a_lease_keeps_nobody_waiting(obs: Observatory, junk: bytes) -> None:
    """A lease always ends: one that does not, or in a day, is nobody's. A failure that says nothing is one."""
    cache = obs.cache(str, name="leased", near=False)
    lease = keys_of(obs, cache)["lease"]
    for end in (["KEEPTTL"], ["EX", "86400"]) if not junk.startswith(b"!") else (["KEEPTTL"],):
        await obs.store.command("DEL", lease)
        await obs.store.command("SET", lease, junk, *end)
        async with asyncio.timeout(10):
            assert await cache.get_or_compute("k", computing("v")) == "v"
        await cache.delete("k")
    if junk.startswith(b"!"):
        await obs.store.command("SET", lease, junk, "PX", 60_000)
        with pytest.raises(CacheComputationFailed, match="failed with an error"):
            await cache.get_or_compute("k", computing("v"))
        await cache.set("k", "v")
        assert await cache.get("k") == "v"


class Page(msgspec.Struct):
    """With a part that may be huge."""

    text: str
    more: Any = None


@pytest.mark.parametrize("nested", [False, True])
async def test_half_a_gigabyte_is_refused_before_it_is_copied(obs: Observatory, nested: bool) -> None:
    """At once where the value is a text; in a Struct when it is encoded, and never decoded or spelled out."""
    text = "x" * HALF_A_GIGABYTE
    cache: Cache[Any] = obs.cache(Page if nested else str, name="huge")
    tracemalloc.start()
    try:
        for value in (Page(text), Page(text, object())) if nested else (text,):
            for verb in (cache.set("k", value), cache.get_or_compute(str(id(value)), computing(value))):
                with pytest.raises((ValueTooLarge, NotEncodable)):
                    await verb
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < (HALF_A_GIGABYTE * 1.6 if nested else 1_000_000)
    assert await cache.get("k") is None


async def test_keys_that_look_like_ours(obs: Observatory) -> None:
    """Entries, leases, versions, of this cache and of others, of tenants: to a user's key they are text."""
    cache, private = obs.cache(str, name="text"), obs.cache(str, name="private", by="tenant")
    with obs.bound(tenant="a"):
        await private.set("secret", "of a", tags=["t"])
        theirs = private._room.place("secret")
    keys = obs.store.keys
    looks = [
        *theirs[2:],
        keys.cache_record("text"),
        keys.cache_tag("text", digest_of("t").hex()),
        keys.cache_tag("private", digest_of("t").hex(), theirs.scope),
        keys.entry("text", cache._room.codec.fingerprint, "k"),
        keys.computing(keys.entry("text", cache._room.codec.fingerprint, "k")),
        f"{theirs.scope}:secret",
        "record:",
        "tag::" + digest_of("t").hex(),
        "*",
        "{c00000000}",
        "\x00",
        "k" * 65_536,
        "é" * 65_536,
    ]
    for number, key in enumerate(looks):
        assert await cache.get(key) is None, key
        assert await cache.get_or_compute(key, computing(str(number)), tags=[key]) == str(number)
    await cache.set("k", "v")
    assert await cache.get_many(looks) == {key: str(number) for number, key in enumerate(looks)}
    for key in looks:
        assert await cache.delete(key) == 1
    with obs.bound(tenant="b"):
        for key in looks:
            assert await private.get(key) is None
            await private.set(key, "of b", tags=["t"])
            await private.delete(key)
        await private.clear()
    with obs.bound(tenant="a"):
        assert await private.get("secret") == "of a"
    assert await cache.get("k") == "v"


class Moody(msgspec.Struct):
    """Whose own check may begin to raise what nobody expects of it."""

    number: int

    def __post_init__(self) -> None:
        if self.number in UNLOVED:
            raise KeyError("region")


UNLOVED: set[int] = set()


@pytest.mark.parametrize("near", [False, True])
async def test_whatever_a_type_s_own_check_raises_is_a_miss(obs: Observatory, near: bool) -> None:
    """Of an entry that was fine when it was written, counted as corrupt; and nothing is written that could not be read."""
    cache = obs.cache(Moody, name="moody", near=near)
    try:
        await cache.set_many({"k": Moody(1), "fine": Moody(2)})
        async with asyncio.timeout(10):
            while near and not (await cache.stats(fleet=False)).near_hits:
                assert await cache.get_many(["k", "fine"])
                await asyncio.sleep(0.01)
        refused = Moody(1)
        UNLOVED.add(1)
        assert await cache.get("k", "miss") == "miss"
        assert await cache.get_many(["k", "fine"]) == {"fine": Moody(2)}
        assert not await cache.exists("k")
        assert not await cache.expire("k", 5)
        assert (await cache.stats(fleet=False)).corrupt == 4
        with pytest.raises(NotEncodable, match="region"):
            await cache.set("k", refused)
        assert await cache.get_or_compute("k", computing(Moody(3))) == Moody(3)
        assert await cache.get("k") == Moody(3)
    finally:
        UNLOVED.clear()
