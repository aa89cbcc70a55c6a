"""Keys of another type, and events that nobody can read: nothing is done by half, and nothing is counted twice."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from observatory import Observatory
from observatory.envelope import Envelope, encoded, new_id, packed
from observatory.errors import InvalidArgument, StoreError, StoreUnavailable
from observatory.features import survey
from observatory.keys import Key, Keys
from observatory.worker import Worker
from tests.conftest import Open
from tests.servers import Server, find
from tests.worker.events import call, settled, until, working

APPLIED = "observatory_events_applied_total"


@pytest.fixture
async def alone(opening: Open, monkeypatch: pytest.MonkeyPatch) -> Observatory:
    """One partition."""
    monkeypatch.setenv("OBSERVATORY_EVENTS_PARTITIONS", "1")
    return await opening(role="worker")


async def spoil(obs: Observatory, key: Key) -> Key:
    """Another type lies there now; what lay there waits under the name that is given back."""
    aside = Key(f"{key}:aside")
    if await obs.store.command("EXISTS", key):
        await obs.store.command("RENAME", key, aside)
    await obs.store.command("SET", key, "foreign", "PX", 60_000)
    return aside


async def mend(obs: Observatory, key: Key, aside: Key) -> None:
    await obs.store.command("DEL", key)
    if await obs.store.command("EXISTS", aside):
        await obs.store.command("RENAME", aside, key)


SPOILT: dict[str, Callable[[Keys], Key]] = {
    "dead": lambda keys: keys.dead(0),
    "ledger": lambda keys: keys.ledger(0),
    "open": lambda keys: keys.open_windows(0),
    "names": lambda keys: keys.metric_names(0),
    "sizes": lambda keys: keys.metric_sizes(0),
}


@pytest.mark.parametrize("which", SPOILT)
async def test_what_cannot_be_applied_adds_nothing(alone: Observatory, which: str) -> None:
    """However often the worker tries; and once, when the key is well again."""
    keys = alone.store.keys
    await alone.events.accept([(new_id(), b"\xc1"), *(call() for _ in range(10))])
    key = SPOILT[which](keys)
    aside = await spoil(alone, key)
    worker = Worker(alone, ["events"])
    async with working(worker):
        await until(lambda: "WRONGTYPE" in worker.streams.troubles.get(0, ""), "the store refuses it")
        await asyncio.sleep(0.6)
        assert not await alone.store.command("EXISTS", keys.metric_total(0, APPLIED))
        assert not await alone.store.command("EXISTS", keys.offset(0))
        await mend(alone, key, aside)
        found = await settled(alone, 11)
    assert (found["applied"], found["dead"]) == (10, 1)
    assert (await alone.metrics.query(APPLIED)).value == 10


@pytest.mark.parametrize("which", ["stream", "ledger"])
@pytest.mark.parametrize("way", ["record", "accept"])
async def test_what_cannot_be_taken_is_no_duplicate_later(alone: Observatory, which: str, way: str) -> None:
    """The resend of a batch, or of ids, that a spoilt key refused is taken when the key is well."""
    keys = alone.store.keys
    key = keys.stream(0) if which == "stream" else keys.ledger(0)
    posted = [call() for _ in range(3)]

    async def send() -> None:
        if way == "record":
            await alone.events.flush()
        else:
            await alone.events.accept(posted)

    if way == "record":
        for _ in range(3):
            alone.events.record({"type": "thing"})
    aside = await spoil(alone, key)
    for _ in range(2):
        with pytest.raises(StoreError):
            await send()
    await mend(alone, key, aside)
    await send()
    found = await alone.events.lag()
    assert (found["accepted"], found["waiting"]) == (3, 3)
    assert await survey.drift(alone.store, 0) == (0, 0)


async def test_foreign_letter_stops_no_replay(alone: Observatory) -> None:
    """What somebody else wrote among the dead stays there; the others are moved whole, also when asked for twice."""
    keys = alone.store.keys
    await alone.events.accept([(new_id(), b"\xc1") for _ in range(3)])
    async with working(Worker(alone, ["events"])):
        await settled(alone, 3)
    foreign = (await alone.store.command("XADD", keys.dead(0), "*", "note", "hello")).decode()
    ids = [one.id for one in (await alone.dead_letters.list()).letters]
    assert f"0:{foreign}" in ids
    moved = await alone.dead_letters.replay(*ids, f"0:0{ids[0][2:]}")
    assert (moved.done, moved.missing) == (3, 2)
    assert [row[0].decode() for row in await alone.store.command("XRANGE", keys.dead(0), "-", "+")] == [foreign]
    assert (await alone.events.lag())["waiting"] == 3


@pytest.mark.parametrize("which", ["stream", "ledger"])
async def test_letters_stay_where_they_are_when_they_cannot_be_moved(alone: Observatory, which: str) -> None:
    """Neither replayed nor dropped by half."""
    keys = alone.store.keys
    await alone.events.accept([(new_id(), b"\xc1") for _ in range(3)])
    async with working(Worker(alone, ["events"])):
        await settled(alone, 3)
    key = keys.stream(0) if which == "stream" else keys.ledger(0)
    aside = await spoil(alone, key)
    with pytest.raises(StoreError):
        await alone.dead_letters.replay_all()
    if which == "ledger":
        with pytest.raises(StoreError):
            await alone.dead_letters.drop_all()
    await mend(alone, key, aside)
    assert await survey.drift(alone.store, 0) == (0, 0)
    assert (await alone.events.lag())["dead"] == 3


@pytest.mark.parametrize("which", ["stream", "offset"])
async def test_partition_that_cannot_be_read_stops_itself_alone(
    opening: Open, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """The others are worked off; liveness tells of it once they have nothing more; and it goes on when it is well again."""
    monkeypatch.setattr("observatory.worker.worker.STALLED_AFTER", 1.0)
    obs = await opening(role="worker")
    keys = obs.store.keys
    await obs.events.accept([call() for _ in range(400)])
    key = keys.stream(2) if which == "stream" else keys.offset(2)
    aside = await spoil(obs, key)
    worker = Worker(obs, ["events"])
    async with working(worker):
        await until(lambda: len(worker.partitions.held()) == 4, "it has all")
        for _ in range(2):
            for partition in (0, 1, 3):
                async with asyncio.timeout(10):
                    while await obs.store.command("XLEN", keys.stream(partition)):
                        await asyncio.sleep(0.02)
            await asyncio.sleep(0.7)
            assert list(worker.streams.troubles) == [2]
            more = (call() for _ in range(400))
            await obs.events.accept([one for one in more if keys.partition_of(one[0]) != 2])
        assert await worker.stuck() is None, "a restart would help nobody while the others go on"
        async with asyncio.timeout(10):
            while "wait on partitions 2: the store answered: " not in (await worker.stuck() or ""):
                await asyncio.sleep(0.05)
        await mend(obs, key, aside)
        accepted = (await obs.events.lag())["accepted"]
        assert (await settled(obs, accepted))["applied"] == accepted > 900
        assert await worker.stuck() is None
        assert not worker.streams.troubles


async def test_full_server_is_emptied(tmp_path: Path) -> None:
    """Nothing new is taken; workers come, take partitions, apply what lies there, and then something new is."""
    server = Server(find("valkey"), tmp_path, "--maxmemory", "24mb", "--maxmemory-policy", "noeviction")
    server.start()
    try:
        async with Observatory("test", redis_url=server.url) as obs:
            big = encoded(Envelope("blob", 0, packed({"text": "x" * 20_000})))

            async def fill() -> None:
                while True:
                    await obs.events.accept([(new_id(), big) for _ in range(50)])

            with pytest.raises(StoreUnavailable, match="OOM"):
                await fill()
            async with Observatory("late", redis_url=server.url, role="worker") as late, working(Worker(late, ["events"])):
                accepted = (await obs.events.lag())["accepted"]
                assert (await settled(obs, accepted))["applied"] == accepted > 500
                assert (await obs.events.accept([(new_id(), big)])).accepted == 1
    finally:
        server.stop()


async def test_nesting_buries_an_event_and_not_the_worker(alone: Observatory) -> None:
    """20,000 arrays within each other, from a stranger; who records hears of it at once."""
    deep = b"\x83\xa4type\xa1x\xa5at_us\x00\xa4data" + b"\x91" * 20_000 + b"\x00"
    await alone.events.accept([(new_id(), deep), call(), (new_id(), deep), call()])
    async with working(Worker(alone, ["events"])):
        found = await settled(alone, 4)
    assert (found["applied"], found["dead"]) == (2, 2)
    assert all(one.reason.startswith("RecursionError") for one in (await alone.dead_letters.list()).letters)
    nested: list[object] = []
    for _ in range(98):
        nested = [nested]
    alone.events.record({"type": "thing", "data": {"within": nested}})
    endless: list[object] = []
    endless += [endless, endless]
    for deeper in ([{"within": nested}], endless):
        with pytest.raises(InvalidArgument, match="deeper than 100"):
            alone.events.record({"type": "thing", "data": deeper})
    await alone.flush()
    async with working(Worker(alone, ["events"])):
        assert (await settled(alone, 5))["applied"] == 3


async def test_impossible_place_of_a_letter_is_no_fault_of_the_store(alone: Observatory) -> None:
    """A number that no stream reaches is the caller's mistake, wherever it stands."""
    impossible = "0:99999999999999999999-0"
    letters = alone.dead_letters
    for wrong in (impossible, "0:0-18446744073709551616"):
        for asked in (letters.show(wrong), letters.replay(wrong), letters.drop(wrong), letters.list(cursor=wrong)):
            with pytest.raises(InvalidArgument, match="is none"):
                await asked
    assert (await letters.list(cursor="0:18446744073709551615-0")).letters == ()


async def test_stream_is_bounded_in_bytes_too(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond them the oldest go, counted; the bytes in the ledger are those on the stream, whoever takes or puts back."""
    monkeypatch.setenv("OBSERVATORY_EVENTS_PARTITIONS", "1")
    monkeypatch.setenv("OBSERVATORY_EVENTS_MAX_BYTES", "1000000")
    obs = await opening(role="worker")
    keys = obs.store.keys

    async def bytes_there() -> int:
        rows = await obs.store.command("XRANGE", keys.stream(0), "-", "+")
        there = sum(len(payload) for _, fields in rows for payload in fields[1::2])
        assert int(await obs.store.command("HGET", keys.ledger(0), "bytes")) == there
        return there

    big = encoded(Envelope("blob", 0, packed({"text": "x" * 50_000})))
    for number in range(40):
        await obs.events.accept([(new_id(), big) for _ in range(2)])
        obs.events.record({"type": "thing", "text": "x" * (1_000 if number % 2 else 60_000)})
        await obs.events.flush()
        assert await bytes_there() <= 1_000_000
    await obs.events.accept([(new_id(), b"\xc1" * 9) for _ in range(2)])
    found = await obs.events.lag()
    assert found["dropped"] > 50
    assert await survey.drift(obs.store, 0) == (0, 0)
    async with working(Worker(obs, ["events"], concurrency=2)):
        await settled(obs, 122)
    assert await bytes_there() == 0
    assert (await obs.dead_letters.replay_all()).done == 2
    assert await bytes_there() == 18
