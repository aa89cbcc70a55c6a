"""The breaker's scripts against the same law in plain Python, on a clock that only the test moves."""

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from observatory import ConfigurationError, Observatory
from observatory.features.breaker import calls
from observatory.features.breaker.calls import Batch
from observatory.features.breaker.machine import FAILS, GIVEN_BACK, WORKS, Machine
from observatory.features.breaker.terms import Terms
from observatory.settings import BreakerSettings
from tests.conftest import Open

START_US = 1_800_000_000_000_000
NAME = "openai"

TERMS = st.builds(
    Terms,
    failure_ppm=st.sampled_from([1, 300_000, 500_000, 1_000_000]),
    min_calls=st.integers(1, 12),
    consecutive=st.integers(0, 6),
    window_us=st.sampled_from([1000, 10_000, 1_000_003]),
    open_us=st.sampled_from([1000, 5000]),
    slow_after=st.none(),
)
COUNTS = st.integers(1, 6).flatmap(lambda n: st.tuples(st.just(n), st.just(n) | st.integers(0, n)))
TICKS = st.tuples(st.just("tick"), st.sampled_from([0, 1, 100, 999, 1000, 1001, 5000, 7000, 90_000]))
CALLS = st.tuples(st.just("calls"), COUNTS, st.integers(0, 6), st.sampled_from([0, 0, 0, 0, 0, -1, 1]))
PROBES = st.tuples(st.just("probe"), st.sampled_from(["a", "b"]))
OUTCOMES = st.tuples(
    *(st.just("outcome"), st.sampled_from([WORKS, FAILS, GIVEN_BACK]), st.sampled_from(["a", "b"]), st.sampled_from([0, 0, -1]))
)
HANDS = st.tuples(st.just("force"), st.sampled_from(["open", "closed", "auto", "auto"]))
STEPS = st.lists(st.one_of(TICKS, CALLS, PROBES, TICKS, CALLS, OUTCOMES, CALLS, TICKS, HANDS), min_size=10, max_size=60)


async def play(obs: Observatory, terms: Terms, steps: list[Any]) -> list[str]:
    """Both do the same; they answer the same. The states that were met."""
    store, twin, now_us = obs.store, Machine(), START_US
    met: list[str] = []
    await store.command("DEL", store.keys.breaker(NAME), store.keys.breakers_forced(), store.keys.breakers_version())
    for kind, *said in steps:
        match kind:
            case "tick":
                now_us += said[0]
                continue
            case "calls":
                (number, failures), tail, off = said
                batch = Batch(twin.epoch + off, number, failures, min(tail, failures), open_us=terms.open_us)
                expected = twin.report(now_us, terms, **batch._asdict())
                view = await calls.report(store, NAME, terms, batch, now_us)
            case "outcome":
                outcome, token, off = said
                batch = Batch(twin.epoch + off, outcome=outcome, token=token, open_us=terms.open_us + 7)
                expected = twin.report(now_us, terms, **batch._asdict())
                view = await calls.report(store, NAME, terms, batch, now_us)
            case "probe":
                allowed = twin.try_probe(now_us, said[0], terms.open_us)
                expected = twin.view(now_us)
                granted, view = await calls.probe(store, NAME, said[0], terms.open_us, now_us)
                assert granted == allowed
            case _:
                expected = twin.force(now_us, said[0], "because")
                view = await calls.force(store, NAME, said[0], "because", now_us)
        assert view == expected, (kind, said)
        met.append(view.state)
        looked = await calls.look(store, [NAME], "", now_us)
        assert looked.views == (view,)
    return met


async def test_scripts_are_the_law(opening_any: Open) -> None:
    """Any history of calls, probes, outcomes (also of other epochs) and hands, on both kinds of server."""
    obs = await opening_any()
    states: set[str] = set()
    loop = asyncio.get_running_loop()

    @settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
    @given(terms=TERMS, steps=STEPS)
    @example(  # what is found at random need not be half open when it is looked at
        terms=Terms(500_000, 1, 1, 1_000_003, 1000, None),
        steps=[("calls", (1, 1), 1, 0), ("tick", 1001), ("calls", (1, 0), 0, -1)],
    )
    def compare(terms: Terms, steps: list[Any]) -> None:
        states.update(asyncio.run_coroutine_threadsafe(play(obs, terms, steps), loop).result(60))

    await asyncio.to_thread(compare)
    assert states == {"closed", "open", "half_open"}


async def test_version_changes_with_every_change_and_only_then(obs: Observatory) -> None:
    """Who watches it hears of openings, closings, hands and pauses; counts alone say nothing."""
    store, terms = obs.store, Terms(500_000, 4, 0, 1_000_000, 1000, None)
    seen = ["0"]

    async def changed(now_us: int) -> bool:
        version = (await calls.look(store, [], "", now_us)).version
        seen.append(version)
        return version != seen[-2]

    await calls.report(store, NAME, terms, Batch(0, 3, 3, 3, open_us=1000), START_US)
    assert not await changed(START_US)
    await calls.report(store, NAME, terms, Batch(0, 1, 1, 1, open_us=1000), START_US)
    assert await changed(START_US)
    token = "t"
    assert (await calls.probe(store, NAME, token, 1000, START_US + 1000))[0]
    assert not await changed(START_US + 1000)
    await calls.report(store, NAME, terms, Batch(1, outcome=WORKS, token=token, open_us=1000), START_US)
    assert await changed(START_US), "the clock stood still, and the version went on"
    await calls.force(store, NAME, "open", "x", START_US - 5)
    assert await changed(START_US), "the clock went back, and the version on"
    assert await calls.pause(store, "whose", 500, 10, START_US) == 500
    assert await changed(START_US)
    assert await calls.pause(store, "whose", 400, 10, START_US) == 500
    assert not await changed(START_US)
    assert (await calls.look(store, [NAME], seen[-1], START_US)).pauses is None


async def test_a_hand_begins_the_count_anew(obs: Observatory) -> None:
    """Failures of before are not continued."""
    terms = Terms(1_000_000, 100, 2, 1_000_000, 1000, None)
    failure = Batch(0, 1, 1, 1, open_us=1000)
    assert not (await calls.report(obs.store, NAME, terms, failure, START_US)).open
    epoch = (await calls.force(obs.store, NAME, "auto", "x", START_US)).epoch
    failure = failure._replace(epoch=epoch)
    assert not (await calls.report(obs.store, NAME, terms, failure, START_US)).open
    assert (await calls.report(obs.store, NAME, terms, failure, START_US)).open


async def test_pauses_are_bounded_and_never_shortened(obs: Observatory) -> None:
    """Those that end soonest make room; what is over is not told."""
    store = obs.store
    for number in range(6):
        await calls.pause(store, f"w{number}", 1000 * (number + 1), 4, START_US)
    assert (await calls.look(store, [], "", START_US)).pauses == {"w5": 6000, "w4": 5000, "w3": 4000, "w2": 3000}
    assert (await calls.look(store, [], "", START_US + 4500)).pauses == {"w5": 1500, "w4": 500}
    await calls.pause(store, "w5", 0, 4, START_US + 4500)
    assert (await calls.look(store, [], "", START_US + 4500)).pauses == {"w4": 500}


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("failure_rate", 0.0),
        ("failure_rate", 1.5),
        ("failure_rate", float("nan")),
        ("min_calls", 0),
        ("consecutive", -1),
        ("window", 0),
        ("window", "soon"),
        ("open_for", "2d"),
        ("slow_after", -1),
    ],
)
def test_wrong_settings_are_refused(field: str, wrong: Any) -> None:
    """By name and field."""
    with pytest.raises(ConfigurationError, match=rf"breakers\.{NAME}\.{field}"):
        Terms.of(NAME, BreakerSettings(**{field: wrong}))
