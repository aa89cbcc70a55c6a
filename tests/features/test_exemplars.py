"""Examples: of series that there are, in bounded numbers, from any thread; what goes wrong with one is its own loss."""

import asyncio
import sys
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import redis

from observatory import Observatory, StoreError
from observatory.features.metrics import exemplars, points
from observatory.keys import Key
from tests.conftest import Open
from tests.servers import Server


@pytest.fixture
async def quiet(opening: Open) -> Observatory:
    """Nothing is flushed but by the test."""
    obs = await opening()
    assert obs._lifetime._background
    await obs._lifetime._background.stop()
    return obs


def place(obs: Observatory) -> Key:
    generation = (obs.store.server_us() or 0) // exemplars.GENERATION_US
    return obs.store.keys.exemplars(obs._lifetime.partition(), generation)


def record(obs: Observatory, *numbers: int) -> None:
    with obs.span("call"):
        for number in numbers:
            labels = {"n": str(number)}
            obs.metrics.record_histogram("test_seconds", 0.5, labels)
            obs.metrics.exemplify("test_seconds", 0.5, labels)


async def kept(obs: Observatory) -> int:
    return int(await obs.store.command("HLEN", place(obs)))


async def test_examples_are_of_series_that_there_are(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels that share the overflow series leave none; however many generations of processes tell of others."""
    monkeypatch.setenv("OBSERVATORY_METRICS_MAX_SERIES", "10")
    monkeypatch.setenv("OBSERVATORY_EVENTS_PARTITIONS", "1")
    obs = await opening()
    for life in range(3):
        one = await opening() if life else obs
        record(one, *range(life * 100, life * 100 + 100))
        await one.metrics.flush()
        assert await kept(obs) == 10
    assert 0 < await obs.store.command("PTTL", place(obs)) <= 3 * exemplars.GENERATION_US // 1000
    told = (await obs.metrics._exemplars.fleet())["test_seconds"]
    assert set(told) == {f'n="{number}"' for number in range(10)}


async def test_there_is_room_for_so_many(quiet: Observatory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there already is replaced; what is new waits for the next generation."""
    monkeypatch.setattr(exemplars, "MOST", 300)
    record(quiet, *range(300))
    await quiet.metrics.flush()
    record(quiet, *range(290, 590))
    before = {text: one.trace_id for text, one in (await quiet.metrics._exemplars.fleet())["test_seconds"].items()}
    await quiet.metrics.flush()
    after = {text: one.trace_id for text, one in (await quiet.metrics._exemplars.fleet())["test_seconds"].items()}
    assert await kept(quiet) == len(after) == 300
    assert sorted(text for text in after if after[text] != before.get(text)) == [f'n="{n}"' for n in range(290, 300)]


async def test_what_the_store_refused_is_sent_later(quiet: Observatory) -> None:
    """All of it; newer examples of the same series stand in its place."""
    await quiet.store.command("SET", place(quiet), "somebody else's", "PX", 60_000)
    record(quiet, *range(400))
    await quiet.metrics.flush()
    with pytest.raises(StoreError):
        await quiet.metrics._exemplars.deliver()
    await quiet.store.command("DEL", place(quiet))
    record(quiet, 7)
    newer = quiet.metrics._exemplars._kept["test_seconds", 'n="7"']
    await quiet.metrics.flush()
    assert await kept(quiet) == 400
    assert not quiet.metrics._exemplars._kept
    assert (await quiet.metrics._exemplars.fleet())["test_seconds"]['n="7"'].trace_id == newer.trace_id


@pytest.fixture
def busy_switching() -> Iterator[None]:
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("busy_switching")
async def test_threads_may_tell_of_examples_while_they_are_sent(quiet: Observatory) -> None:
    stop = threading.Event()

    def run(thread: int) -> None:
        number = 0
        with quiet.span("call"):
            while not stop.is_set():
                number += 1
                quiet.metrics.exemplify("test_seconds", 0.5, {"n": f"{number % 997:0100}", "of": str(thread)})

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for one in threads:
        one.start()
    try:
        for _ in range(200):
            await quiet.metrics.flush()
            await asyncio.sleep(0.005)  # for as many as there may be
    finally:
        stop.set()
        for one in threads:
            one.join()


@pytest.mark.parametrize("value", ["x", None, float("nan"), float("inf"), 10**400])
async def test_an_odd_value_is_no_example(quiet: Observatory, value: Any) -> None:
    with quiet.span("call"):
        quiet.metrics.exemplify("test_seconds", value, {"n": "1"})
        quiet.metrics.exemplify("test_seconds", 1.0, {"n": 1})  # type: ignore[dict-item]
    assert not quiet.metrics._exemplars._kept


async def test_spoilt_examples_are_passed_over(quiet: Observatory, server: Server) -> None:
    """Another's trace id in the exposition would end it for whoever reads it; a key of another type likewise."""
    record(quiet, 1)
    await quiet.metrics.flush()
    with redis.Redis.from_url(server.url) as admin:
        for number, spoilt in enumerate((["x" * 32, "0" * 16, 1], ["0" * 32 + "\n", "0" * 16, 1], ["0" * 32, "0" * 16, -1]), 2):
            admin.hset(place(quiet), f'test_seconds|n="{number}"', msgspec.json.encode([0.5, *spoilt]))
        families = await quiet.metrics.families()
        (family,) = [one for one in families if one.name == "test_seconds"]
        assert set(family.exemplars) == {'n="1"'}
        points.data(families, points.Moments(0, 1), "n")
        admin.set(place(quiet), "x", px=60_000)
    assert "test_seconds_count" in await quiet.metrics.exposition(form="openmetrics")
