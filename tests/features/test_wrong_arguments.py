"""Whatever a caller hands in: recording never raises, and everything else says by an error of ours what is wrong."""

import asyncio
import threading
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from observatory import CacheError, InvalidArgument, NotOpen, Observatory, Usage

HUGE = 10**5000


def kind(value: object) -> str:
    """Names a case whose value cannot be spelled."""
    return type(value).__name__


@pytest.mark.parametrize(
    "record",
    [
        lambda metrics: metrics.increment_counter(["x"]),
        lambda metrics: metrics.increment_counter({}),
        lambda metrics: metrics.increment_counter(HUGE),
        lambda metrics: metrics.increment_counter("test_total", 1, 5),
        lambda metrics: metrics.increment_counter("test_total", 1, ["a"]),
        lambda metrics: metrics.increment_counter("test_total", 1, {5: "a"}),
        lambda metrics: metrics.increment_counter("test_total", 1, {("a",): ["b"]}),
        lambda metrics: metrics.increment_counter("test_total", HUGE),
        lambda metrics: metrics.increment_counter("test_total", -HUGE),
        lambda metrics: metrics.increment_counter("test_total", Decimal("1e99999")),
        lambda metrics: metrics.record_histogram("test_seconds", HUGE),
        lambda metrics: metrics.set_gauge("test_open", HUGE),
        lambda metrics: metrics.gauge("test_open").add(10**400),
        lambda metrics: metrics.gauge("test_open").add("x"),
        lambda metrics: metrics.gauge("test_open").add(1, n=5),
    ],
)
async def test_recording_never_raises(obs: Observatory, record: Callable[[Any], None]) -> None:
    """It is counted, and the rest goes on."""
    record(obs.metrics)
    obs.metrics.increment_counter("test_others_total")
    await obs.metrics.flush()
    assert (await obs.metrics.query("observatory_values_refused_total")).value == 1
    assert (await obs.metrics.query("test_others_total")).value == 1


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"where": 5}, "where must be a mapping or a text, got 5"),
        ({"where": ["model"]}, "where must be a mapping"),
        ({"where": {"model": 5}}, "where: model must be a text or several, got 5"),
        ({"where": {"model": ["a", 5]}}, "where: model must be a text or several"),
        ({"where": {5: "a"}}, "label name 5"),
        ({"by": 5}, "by must be a label or several, got 5"),
        ({"by": [5]}, "label name 5"),
        ({"stat": 5}, "stat must be a text"),
        ({"stat": ["p95"]}, "stat must be a text"),
        ({"metric": 5}, "metric name 5"),
        ({"since": HUGE}, "since must be an aware datetime or a string, got a whole number of 16,610 bits"),
        ({"step": HUGE}, "step must be between 0 and 142 years, got a whole number of"),
        ({"step": "often"}, "step: 'often' is not a duration"),
        ({"top": HUGE}, "not there"),
        ({"top": -HUGE}, "top must be a whole number above 0, got a whole number of"),
    ],
    ids=kind,
)
async def test_wrong_questions(obs: Observatory, asked: dict[str, Any], says: str) -> None:
    """The parameter is named."""
    obs.metrics.increment_counter("test_total")
    await obs.metrics.flush()
    if says == "not there":
        assert (await obs.metrics.query(**{"metric": "test_total", **asked})).value == 1
        return
    with pytest.raises(InvalidArgument, match=says):
        await obs.metrics.query(**{"metric": "test_total", **asked})


async def test_labels_may_be_one_text(obs: Observatory) -> None:
    """by="model,provider", as the command line and HTTP have it."""
    obs.metrics.increment_counter("test_total", 1, {"model": "m", "provider": "p"})
    await obs.metrics.flush()
    found = await obs.metrics.query("test_total", by="model, provider")
    assert [dict(one.labels) for one in found.series] == [{"model": "m", "provider": "p"}]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"latency": HUGE}, "latency must be between 0 and 142 years"),
        ({"tokens": HUGE}, "input_tokens must be a whole number from 0 to"),
        ({"cost_usd": HUGE}, "cost_usd must be at most"),
        ({"cost_usd": -HUGE}, "cost_usd must not be negative"),
        ({"time_to_first_token": HUGE}, "time_to_first_token must be between"),
        ({"error": HUGE}, "error must be a text"),
        ({"provider": HUGE}, "provider must be a text"),
        ({"tokens": [HUGE]}, "tokens must be a whole number or a Usage"),
    ],
    ids=kind,
)
async def test_wrong_calls(obs: Observatory, wrong: dict[str, Any], says: str) -> None:
    """Numbers of thousands of digits are measured before they are spelled."""
    with pytest.raises(InvalidArgument, match=says):
        obs.record_request(**{"provider": "p", "model": "m", "latency": 1.0, **wrong})
    with pytest.raises(InvalidArgument):
        Usage(output_tokens=HUGE)


@pytest.mark.parametrize("lease", [0, -1, float("inf"), float("nan"), HUGE, "soon", None, True, 0.0001], ids=kind)
async def test_wrong_leases(obs: Observatory, lease: Any) -> None:
    """A lease has a length, and its owner's belief about its end is what the store believes."""
    with pytest.raises(InvalidArgument, match="lease"):
        await obs.leases.acquire("n", lease)
    for name in (5, "", "x" * 1000):
        with pytest.raises(InvalidArgument, match="a lease's name"):
            await obs.leases.acquire(name, 5)  # type: ignore[arg-type]


async def test_what_a_cache_has_not(obs: Observatory) -> None:
    """The rest of aiocache's verbs: some do what they say, the others say what would."""
    cache = obs.cache(str)
    assert await cache.multi_set([("a", "1"), ("b", "2")])
    assert await cache.multi_get(["b", "nothing", "a"]) == ["2", None, "1"]
    for verb in (cache.increment("a"), cache.raw("GET", "a")):
        with pytest.raises(CacheError, match="cache default") as caught:
            await verb
        assert caught.value.remedy
    for ttl in (HUGE, -1, 0, float("nan")):
        with pytest.raises(InvalidArgument, match="ttl"):
            await cache.set("a", "1", ttl)


async def test_the_store_belongs_to_a_loop(obs: Observatory) -> None:
    """Asked for from a thread without one: NotOpen, not asyncio's error."""
    found: list[BaseException] = []

    def ask() -> None:
        try:
            assert obs.store
        except BaseException as error:
            found.append(error)

    await asyncio.to_thread(ask)
    assert [type(error) for error in found] == [NotOpen]


def test_rooms_are_made_once() -> None:
    """Threads that come first at the same moment get one Metrics, and lose no recording in another."""
    for _ in range(50):
        obs, together = Observatory("x"), threading.Barrier(4)
        found: list[object] = []

        def first(obs: Observatory = obs, together: threading.Barrier = together, found: list[object] = found) -> None:
            together.wait()
            found.append(obs.metrics)

        threads = [threading.Thread(target=first) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(map(id, found))) == 1


@pytest.mark.parametrize(
    ("where", "meant"),
    [
        ("team=search", 'team="search"'),
        ("model='gpt-4o'", 'model="gpt-4o"'),
        ("{model=~gpt-.*}", 'model=~"gpt-.*"'),
        ('provider="a",team!=search', 'team!="search"'),
    ],
)
async def test_a_matcher_without_its_quotes_is_given_back_with_them(obs: Observatory, where: str, meant: str) -> None:
    """In the words of who wrote it, and as a shell leaves them."""
    with pytest.raises(InvalidArgument) as caught:
        await obs.metrics.query("observatory_requests_total", where=where)
    assert caught.value.remedy == f"Write {meant}, in a shell '{meant}'"
    with pytest.raises(InvalidArgument, match=r'Write model="gpt-4o"$'):
        await obs.metrics.query("observatory_requests_total", where="= 5")
