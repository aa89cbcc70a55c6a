"""What stands in Redis: compressed, bounded, checked; and what comes of bytes that nobody wrote."""

import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observatory import InvalidArgument, NotEncodable, Observatory, ValueTooLarge
from observatory.features.cache.codec import MISSING, Codec
from observatory.features.cache.entry import COMPRESSED, HEAD_SIZE, Entry, pack, unpack
from observatory.names import CACHE_CORRUPT

ENTRIES = st.builds(
    Entry,
    st.integers(0, 2**60),
    st.integers(0, 2**60),
    st.integers(0, 2**32 - 1),
    st.binary(min_size=8, max_size=8),
    st.lists(st.tuples(st.binary(min_size=16, max_size=16), st.binary(min_size=8, max_size=8)), max_size=64).map(tuple),
    st.integers(0, 3),
    st.binary(max_size=200),
)


@given(ENTRIES)
def test_entries_come_back(entry: Entry) -> None:
    """All of them, as they were."""
    assert unpack(pack(entry)) == entry


@given(ENTRIES, st.data())
def test_changed_bytes_are_noticed(entry: Entry, data: st.DataObject) -> None:
    """One bit, anywhere; or the end missing; or anything at all."""
    packed = bytearray(pack(entry))
    place = data.draw(st.integers(0, len(packed) - 1))
    packed[place] ^= 1 << data.draw(st.integers(0, 7))
    assert unpack(bytes(packed)) is None
    assert unpack(pack(entry)[: data.draw(st.integers(0, HEAD_SIZE - 1))]) is None
    assert unpack(pack(entry)[:-1]) is None


def test_a_layout_to_come_is_a_miss() -> None:
    """Though its checksum may be right."""
    packed = bytearray(pack(Entry(1, 2, 3, bytes(8), (), 0, b"payload")))
    packed[0] += 1
    head, rest = bytes(packed[: HEAD_SIZE - 4]), bytes(packed[HEAD_SIZE:])
    assert unpack(head + zlib.crc32(rest, zlib.crc32(head)).to_bytes(4) + rest) is None


@given(st.binary(max_size=300))
def test_any_bytes_are_no_crash(stored: bytes) -> None:
    """Whoever wrote them."""
    assert unpack(stored) is None
    Codec(dict[str, int], 1000).decode(stored, 0)
    Codec(str, 1000).decode(stored, COMPRESSED)


async def test_corrupted_bytes_are_a_miss_and_a_count(obs: Observatory) -> None:
    """And are written over by whoever computes."""
    cache = obs.cache(str, name="spoilt")
    key = cache._room.place("k").entry
    for junk in (b"", b"\xff", b"x" * 500, b"\x01" * 40):
        await cache.set("k", "v")
        await obs.store.command("SET", key, junk, "PX", 60_000)
        assert await cache.get("k", "miss") == "miss"
        assert not await cache.exists("k")

        async def compute() -> str:
            return "again"

        assert await cache.get_or_compute("k", compute) == "again"
        assert await cache.get("k") == "again"
        await obs.store.command("SET", key, junk, "PX", 60_000)
        assert await cache.add("k", "added")
    assert (await cache.stats(fleet=False)).corrupt >= 12
    await obs.flush()
    assert ((await obs.metrics.query(CACHE_CORRUPT, where={"cache": "spoilt"})).value or 0) >= 12


async def test_large_values_are_compressed_when_asked(obs: Observatory) -> None:
    """And only when it makes them smaller; each handle as it was told, every handle reads both."""
    plain, small = obs.cache(str, name="size", compress_over=1 << 30), obs.cache(str, name="size", compress_over=1000)
    key = plain._room.place("k").entry

    async def stored() -> int:
        return int(await obs.store.command("STRLEN", key))

    await plain.set("k", "x" * 5000)
    assert await stored() > 5000
    assert await small.get("k") == "x" * 5000
    await small.set("k", "x" * 5000)
    assert await stored() < 200
    assert await plain.get("k") == "x" * 5000
    assert await small.expire("k", 50)
    assert await plain.get("k") == "x" * 5000
    noise = "".join(map(chr, random.Random(1).choices(range(0x4E00, 0x9FFF), k=2000)))
    await small.set("k", noise)
    assert await plain.get("k") == noise
    await small.set("k", "x" * 900)
    assert await stored() > 900
    with pytest.raises(InvalidArgument, match="compress_over"):
        obs.cache(str, compress_over=-1)


def test_a_few_bytes_that_promise_gigabytes_are_a_miss() -> None:
    """No more is inflated than a value may have."""
    codec: Codec[bytes] = Codec(bytes, 1000)
    roomy: Codec[bytes] = Codec(bytes, 20_000_000)
    payload, flags = roomy.encode(b"\x00" * 10_000_000, compress_over=10)
    assert len(payload) < 100_000
    assert codec.decode(payload, flags) is MISSING
    assert codec.decode(b"junk", COMPRESSED) is MISSING


async def test_bad_input(obs: Observatory) -> None:
    """Half a gigabyte, what cannot be encoded, keys of 64 kB, keys that are none."""
    cache = obs.cache(str)
    with pytest.raises(ValueTooLarge):
        await cache.set("k", "x" * 512 * 2**20)
    for wrong in (object(), 5, "\ud800", ["x"]):
        with pytest.raises(NotEncodable):
            await cache.set("k", wrong)  # type: ignore[arg-type]
    with pytest.raises(NotEncodable):
        await obs.cache(int, name="n").set("k", 2**70)
    with pytest.raises(NotEncodable):
        await cache.set_many({"good": "v", "bad": 5})  # type: ignore[dict-item]
    assert await cache.get("good") is None
    long = "k" * 65_536
    await cache.set(long, "long")
    await cache.set(long + "x", "longer")
    assert await cache.get_many([long, long + "x", long[:-1]]) == {long: "long", long + "x": "longer"}
    for key in ("", None, 5, b"k", "k" * (2**20 + 1)):
        with pytest.raises(InvalidArgument, match="cache key"):
            await cache.get(key)  # type: ignore[arg-type]
    for delta in (True, 1.5, "1"):
        with pytest.raises(InvalidArgument, match="delta"):
            await cache.increment("k", delta)  # type: ignore[arg-type]
    for ttl in (1e30, "x", -1, float("nan")):
        with pytest.raises(InvalidArgument, match="ttl"):
            await cache.set("k", "v", ttl=ttl)  # type: ignore[arg-type]
