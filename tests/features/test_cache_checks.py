"""What a cache is told: refused by the name of the argument, with what to write instead, before anything is sent."""

import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from observatory import InvalidArgument, Observatory
from tests.servers import Server


async def one() -> str:
    return "1"


ASKED: dict[str, tuple[str, Callable[[Any], Awaitable[Any]]]] = {
    "keys: a list": ("keys", lambda c: c.get_many([["a"]])),
    "keys: a string": ("keys", lambda c: c.get_many("abc")),
    "keys: bytes": ("keys", lambda c: c.get_many(b"abc")),
    "keys: none": ("keys", lambda c: c.get_many(None)),
    "keys: an empty one": ("keys", lambda c: c.get_many([""])),
    "keys: of multi_get": ("keys", lambda c: c.multi_get("abc")),
    "entries: a list": ("entries", lambda c: c.set_many([("a", "b")])),
    "entries: none": ("entries", lambda c: c.set_many(None)),
    "pairs: a number": ("pairs", lambda c: c.multi_set(5)),
    "pairs: of three": ("pairs", lambda c: c.multi_set([("a", "b", "c")])),
    "pairs: unhashable": ("pairs", lambda c: c.multi_set([([], "b")])),
    "tags: a number": ("tags", lambda c: c.set("k", "v", tags=5)),
    "tags: none": ("tags", lambda c: c.set("k", "v", tags=None)),
    "tags: a string": ("tags", lambda c: c.set("k", "v", tags="abc")),
    "tags: a list": ("tags", lambda c: c.set("k", "v", tags=[["a"]])),
    "tags: an empty one": ("tags", lambda c: c.set("k", "v", tags=[""])),
    "tags: too many": ("tags", lambda c: c.set("k", "v", tags=[str(number) for number in range(65)])),
    "tags: of get_or_compute": ("tags", lambda c: c.get_or_compute("k", one, tags=5)),
    "tags: a list to invalidate": ("tags", lambda c: c.invalidate(["a"])),
    "tags: a list, second": ("tags", lambda c: c.invalidate("a", ["b"])),
    "tags: none to invalidate": ("tags", lambda c: c.invalidate()),
    "ttl": ("ttl", lambda c: c.expire("k", None)),
    "fail_for": ("fail_for must be seconds of at least 0", lambda c: c.get_or_compute("k", one, fail_for=None)),
    "stale_for": ("stale_for must be seconds of at least 0", lambda c: c.get_or_compute("k", one, stale_for=None)),
}


@pytest.mark.parametrize("name", ASKED)
async def test_a_verb_refuses(obs: Observatory, name: str) -> None:
    """And has written and computed nothing."""
    cache = obs.cache(str)
    what, ask = ASKED[name]
    with pytest.raises(InvalidArgument, match=what) as caught:
        await ask(cache)
    assert caught.value.remedy
    assert await cache.get("k") is None


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("by", 5),
        ("by", [["a"]]),
        ("by", [""]),
        ("near", "off"),
        ("near", 0),
        ("compress_over", True),
        ("compress_over", -1),
        ("compress_over", 1.5),
        ("max_entries", 0),
        ("max_bytes", True),
        ("stale_for", None),
    ],
)
def test_a_cache_refuses(what: str, said: Any) -> None:
    """Before there is one."""
    obs = Observatory("x", redis_url="redis://127.0.0.1:1")
    with pytest.raises(InvalidArgument, match=what) as caught:
        obs.cache(str, name="c", **{what: said})
    assert caught.value.remedy
    for near, kept in ((None, True), (True, True), (False, False)):
        assert (obs.cache(str, name=f"c{near}", near=near)._room.near is not None) == kept
    assert obs.cache(str, name="by", by=("team", "tenant"), compress_over=0)._compress_over == 0


async def test_what_is_right_is_taken(obs: Observatory) -> None:
    """Any iterable, and an empty one."""
    cache = obs.cache(str)
    await cache.set_many({})
    await cache.set_many({"a": "1", "b": "2"}, tags=(tag for tag in "xyx"))
    assert await cache.get_many(key for key in "abca") == {"a": "1", "b": "2"}
    assert await cache.get_many([]) == {}
    assert await cache.multi_get(["b", "c", "b"]) == ["2", None, "2"]
    assert await cache.multi_set({"a": "3"}.items())
    await cache.invalidate("y")
    assert await cache.get_many({"a": 0, "b": 0}) == {"a": "3"}


async def test_very_many_keys_are_no_outage(obs: Observatory) -> None:
    """A healthy store answers for all of them, however many are asked for in one call."""
    cache = obs.cache(int, name="many", near=False)
    many = {f"key {number}": number for number in range(20_000)}
    await cache.set_many(many)
    assert await cache.get_many(many) == many
    seen = await cache.stats(fleet=False)
    assert (seen.hits, seen.misses, seen.errors) == (20_000, 0, 0)


async def test_very_many_keys_wait_for_an_outage_once(own_server: Server, namespace: str) -> None:
    """A store that stands still is not asked again for each some hundred of them."""
    async with Observatory("test", redis_url=own_server.url, namespace=namespace) as obs:
        cache = obs.cache(int, near=False)
        await cache.set("key 1", 1)
        own_server.signal(signal.SIGSTOP)
        try:
            began = time.monotonic()
            assert await cache.get_many(f"key {number}" for number in range(20_000)) == {}
            assert time.monotonic() - began < 20 * obs.settings.redis.max_wait, "not once for each of 79 parts"
        finally:
            own_server.signal(signal.SIGCONT)
        seen = await cache.stats(fleet=False)
        assert (seen.misses, seen.errors) == (20_000, 20_000)
