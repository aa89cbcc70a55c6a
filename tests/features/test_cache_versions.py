"""A version lives longer than whatever rests on it, whoever made it, and for whatever that was."""

from collections.abc import Awaitable

from observatory import Cache, Observatory
from observatory.features.cache.versions import digest_of
from tests.features.test_cache_tags import fleet

__all__ = ["fleet"]

YEAR = 360 * 86_400


async def lives(obs: Observatory, name: str) -> tuple[int, int, int]:
    """Milliseconds left to the entry k, the record and the tag t."""
    place = obs.cache(str, name=name)._room.place("k")
    tag = obs.store.keys.cache_tag(name, digest_of("t").hex())
    first, second, third = [await obs.store.command("PTTL", key) for key in (place.entry, place.record, tag)]
    return first, second, third


async def computed(cache: Cache[str]) -> None:
    async def compute() -> str:
        return "computed"

    assert await cache.get_or_compute("k", compute, tags=["t"]) == "computed"


async def test_another_writer_s_versions_are_made_to_live_as_long(fleet: tuple[Observatory, Observatory]) -> None:
    """What this process knows of one version says nothing of the next, which was made for shorter entries."""
    one, two = fleet
    dear, brief = one.cache(str, name="c", ttl=YEAR), two.cache(str, name="c", ttl=60)
    for write in (lambda: dear.set("k", "v", tags=["t"]), lambda: computed(dear)):
        await dear.delete("k")
        written: Awaitable[object] = write()
        await written
        entry, record, tag = await lives(one, "c")
        assert min(record, tag) > 1.4 * entry
        await brief.clear()
        await brief.invalidate("t")
        await brief.set("other", "v", tags=["t"])
        assert await dear.get("k") is None
        again: Awaitable[object] = write()
        await again
        entry, record, tag = await lives(one, "c")
        assert min(record, tag) > 1.4 * entry, "also of versions that somebody else has made"


async def test_a_longer_life_takes_the_versions_along(fleet: tuple[Observatory, Observatory]) -> None:
    """Else a year's entry would end after a month. What does not count any more is not brought back."""
    one, two = fleet
    cache, far = (obs.cache(str, name="c", ttl=60) for obs in fleet)
    await cache.set("k", "v", tags=["t"])
    assert await far.expire("k", YEAR)
    entry, record, tag = await lives(one, "c")
    assert entry > YEAR * 999
    assert min(record, tag) > 1.4 * entry
    assert await cache.get("k") == "v"
    await cache.invalidate("t")
    assert not await far.expire("k", YEAR)
    assert await far.get("k") is None
    await cache.set("k", "v", tags=["t"])
    await two.store.command("DEL", one.store.keys.cache_record("c"))
    assert not await far.expire("k", YEAR)
    assert await cache.get("k") is None
