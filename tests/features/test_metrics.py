"""Metrics: what is recorded is read back as the fleet's, exact, by any label, and bounded."""

import math
import random
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observatory import InvalidArgument, Metric, Observatory
from observatory.features.metrics import matchers, query, series
from observatory.features.metrics.blocks import Value
from tests.conftest import Open

COUNTER = "test_things_total"


async def total(obs: Observatory, metric: str = COUNTER, /, **where: str) -> float | None:
    return (await obs.metrics.query(metric, "total", where=where)).value


async def test_nobody_can_spoil_the_fleets_numbers(obs: Observatory) -> None:
    """A description that is no text is refused; one that lies in the store hides only itself; a gauge stays finite."""
    with pytest.raises(InvalidArgument, match="unit must be a text"):
        obs.metrics.counter("test_odd_total", unit=6)  # type: ignore[arg-type]
    for _ in range(2):
        obs.metrics.gauge("test_huge").add(1e308)
    obs.metrics.increment_counter(COUNTER)
    await obs.flush()
    await obs.store.command("HSET", obs.store.keys.metric_names(0), "test_spoilt", '{"kind": 7}')
    text = await obs.metrics.exposition()
    assert "test_huge 1" in text
    assert await total(obs) == 1


async def test_labels_in_any_order_are_one_series(obs: Observatory) -> None:
    """And odd values survive."""
    odd = 'a,b={c}"\\\n|é'
    obs.metrics.increment_counter(COUNTER, 1, {"x": odd, "y": "2"})
    obs.metrics.increment_counter(COUNTER, 2, {"y": "2", "x": odd})
    obs.metrics.counter(COUNTER).bind(x=odd).add(4, y="2")
    await obs.flush()
    found = await obs.metrics.query(COUNTER, by=("x", "y"))
    assert [(dict(one.labels), one.value) for one in found.series] == [({"x": odd, "y": "2"}, 7.0)]


labels_strategy = st.dictionaries(st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True), st.text(max_size=20), max_size=4)


@given(labels=labels_strategy)
def test_series_text_comes_back(labels: dict[str, str]) -> None:
    """Whatever the values, spelled and read they are the same (a lone surrogate is refused)."""
    try:
        text = series.text(labels)
    except ValueError:
        assert any("\ud800" <= letter <= "\udfff" for value in labels.values() for letter in value)
        return
    assert series.labels(text) == labels


@settings(max_examples=300)
@given(value=st.one_of(st.floats(1e-6, 3600), st.integers(-30, 30).map(lambda power: 2.0**power)))
def test_bucket_holds_its_value(value: float) -> None:
    """(base^i, base^(i+1)], exact at powers of two; the middle is within 1.1 %."""
    index = series.bucket(value)
    assert series.upper(index - 1) * (1 - 1e-12) <= value <= series.upper(index) * (1 + 1e-12)
    assert abs(series.middle(index) - value) / value <= 0.011
    if math.frexp(value)[0] == 0.5:
        assert series.upper(index) == value


def test_quantiles_are_within_the_promised_error() -> None:
    """10,000 long-tailed values: p50 to p99.9 within 1.1 % of the exact ones."""
    dice = random.Random(7)
    values = sorted(dice.lognormvariate(-1, 2) for _ in range(10_000))
    value = Value()
    value.count = len(values)
    for one in values:
        index = series.bucket(one)
        value.buckets[index] = value.buckets.get(index, 0) + 1
    for fraction in (0.01, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0):
        exact = values[max(math.ceil(Fraction(str(fraction)) * len(values)) - 1, 0)]
        found = query.quantile(value, fraction)
        assert found is not None
        assert abs(found - exact) / exact <= 0.011


async def test_histogram_of_the_fleet(opening: Open) -> None:
    """Count, sum and quantiles over two processes; zero is a value; no data is None."""
    first, second = await opening(), await opening()
    for obs, values in ((first, [0.0, 0.1]), (second, [0.2, 0.4])):
        for value in values:
            obs.metrics.record_histogram(Metric.REQUEST_LATENCY, value, {"model": "m"})
        await obs.flush()

    async def ask(stat: str, **where: str) -> float | None:
        return (await first.metrics.query(Metric.REQUEST_LATENCY, stat, where=where)).value

    assert await ask("count") == 4
    assert await ask("sum") == pytest.approx(0.7)
    assert await ask("p25") == 0.0
    assert await ask("p100") == pytest.approx(0.4, rel=0.011)
    assert await ask("p99", model="other") is None


async def test_money_is_exact(obs: Observatory) -> None:
    """Ten times ten cents is a dollar, to the nano-dollar."""
    for _ in range(10):
        obs.metrics.increment_counter(Metric.TOTAL_COST_USD, 0.1)
    obs.metrics.increment_counter(Metric.TOTAL_COST_USD, Decimal("0.000000001"))
    await obs.flush()
    assert "observatory_cost_usd_total 1.000000001\n" in await obs.metrics.exposition()


async def test_gauges_are_of_the_live(opening: Open) -> None:
    """The last value per process, summed over those who are there."""
    first, second = await opening(), await opening()
    first.metrics.set_gauge("test_depth", 5)
    first.metrics.set_gauge("test_depth", 3)
    gauge = second.metrics.gauge("test_depth")
    gauge.set(10)
    gauge.add(-2.5)
    await first.flush()
    await second.flush()
    for stat, expected in (("sum", 10.5), ("total", 10.5), ("max", 7.5), ("min", 3), ("avg", 5.25)):
        assert (await first.metrics.query("test_depth", stat)).value == expected


@pytest.mark.parametrize(
    ("record", "value"),
    [
        ("increment_counter", -1),
        ("increment_counter", float("nan")),
        ("increment_counter", float("inf")),
        ("increment_counter", "1"),
        ("increment_counter", None),
        ("increment_counter", 10**40),
        ("record_histogram", -0.1),
        ("record_histogram", float("nan")),
        ("set_gauge", float("inf")),
        ("set_gauge", "x"),
    ],
)
async def test_wrong_value_is_counted_and_never_raises(obs: Observatory, record: str, value: Any) -> None:
    """The caller's request goes on; the mistake shows in a metric of its own."""
    getattr(obs.metrics, record)("test_wrong", value)
    getattr(obs.metrics, record)("test_wrong", 1)
    await obs.flush()
    assert await total(obs, "observatory_values_refused_total") == 1


async def test_wrong_kind_or_label_is_counted(obs: Observatory) -> None:
    """A counter is no gauge; a label's name has a form, and its value an end."""
    obs.metrics.set_gauge(Metric.REQUESTS_TOTAL, 1)
    obs.metrics.increment_counter(COUNTER, 1, {"no spaces": "x"})
    obs.metrics.increment_counter(COUNTER, 1, {"x": "y" * 5000})
    obs.metrics.increment_counter(COUNTER, 1, {"x": 5})  # type: ignore[dict-item]
    obs.metrics.increment_counter("no spaces", 1)
    await obs.flush()
    assert await total(obs, "observatory_values_refused_total") == 5


async def test_series_are_bounded_and_what_is_folded_is_counted(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The 101st series of a metric shares one with the 102nd; the sum is whole."""
    monkeypatch.setenv("OBSERVATORY_METRICS_MAX_SERIES", "100")
    obs = await opening()
    for number in range(150):
        obs.metrics.increment_counter(COUNTER, 1, {"user": str(number)})
    await obs.flush()
    assert await total(obs) == 150
    assert await total(obs, "observatory_series_folded_total", metric=COUNTER) == 50
    assert await total(obs, observatory_overflow="true") == 50


async def test_query_groups_matches_and_steps(obs: Observatory) -> None:
    """by, where as mapping and as PromQL matchers, top, step; sums of points are the total."""
    for model, count in (("gpt-4o", 3), ("gpt-4o-mini", 5), ("claude", 7)):
        obs.metrics.increment_counter(COUNTER, count, {"model": model})
    await obs.flush()
    ask = obs.metrics.query
    assert [one.value for one in (await ask(COUNTER, by="model")).series] == [7, 5, 3]
    assert (await ask(COUNTER, where={"model": ["gpt-4o", "claude"]})).value == 10
    assert (await ask(COUNTER, where='model=~"gpt-.*",model!="gpt-4o"')).value == 5
    assert (await ask(COUNTER, where='{model!~"gpt.*"}')).value == 7
    topped = await ask(COUNTER, by="model", top=1)
    assert (len(topped.series), topped.truncated) == (1, True)
    stepped = await ask(COUNTER, step=10, since="5m")
    assert sum(point.value for point in stepped.series[0].points) == 15
    rate = await ask(COUNTER, "rate", since="100s")
    assert rate.value == pytest.approx(15 / (rate.until - rate.since).total_seconds())


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"stat": "p95"}, "is not for test_things_total, a counter; it knows total, rate"),
        ({"stat": "nonsense"}, "stat 'nonsense'"),
        ({"since": "now"}, "since must be before until"),
        ({"since": "yesterday"}, "not a moment"),
        ({"since": "4000d"}, "at most 730 d ago"),
        ({"step": 7}, "multiple of 10 s"),
        ({"where": "model"}, "not a matcher"),
        ({"where": 'model=~"("'}, "regular expression"),
        ({"where": 'model=~"' + "(" * 2000 + '"'}, "regular expression"),
        ({"where": 'model=~"a{99999999}"'}, "regular expression"),
        ({"since": "9" * 5000 + "d"}, "not a moment"),
        ({"since": "0001-01-01T00:00:00Z"}, "between 1970 and 9892"),
        ({"since": "99999999999w"}, "between 0 and 142 years"),
        ({"by": "no spaces"}, "label name"),
        ({"top": 0}, "top must be"),
        ({"metric": "test_thing_total"}, 'Did you mean "test_things_total"'),
    ],
)
async def test_wrong_question_says_what_is_wrong(obs: Observatory, asked: dict[str, Any], says: str) -> None:
    """The error names the parameter, and what would do."""
    obs.metrics.increment_counter(COUNTER)
    await obs.flush()
    with pytest.raises(InvalidArgument, match=says):
        await obs.metrics.query(**{"metric": COUNTER, **asked})


@pytest.mark.parametrize(
    ("asked", "says", "remedy"),
    [
        ({"since": "2026-01-01T00:00:00"}, "does not say its time zone", 'Write "2026-01-01T00:00:00Z" for UTC'),
        ({"until": "20260101T1200"}, "until: '20260101T1200' does not say", 'Write "2026-01-01T12:00:00Z" for UTC'),
        ({"since": datetime(2026, 1, 1)}, "must be an aware datetime", "Give it a time zone"),  # noqa: DTZ001
        ({"since": "1h", "until": "2h"}, "since must be before until: it is at 20", "an earlier since"),
        ({"since": "9000-01-01"}, "since must be before until: it is in the future", "an earlier since"),
        ({"since": "4000d"}, "at most 730 d ago", 'write "730d"'),
        ({"where": 'model=~"("'}, "is not a regular expression", 'model=~"gpt-.*"'),
        ({"top": -1}, "top must be a whole number above 0, got -1", "Leave top out"),
        ({"since": "2d", "step": 1e-6}, "step must be a multiple of", "Ask with step="),
    ],
)
async def test_wrong_question_says_what_would_do(obs: Observatory, asked: dict[str, Any], says: str, remedy: str) -> None:
    """In words of its own, not in ours."""
    obs.metrics.increment_counter(COUNTER)
    await obs.flush()
    with pytest.raises(InvalidArgument) as refused:
        await obs.metrics.query(**{"metric": COUNTER, **asked})
    assert says in refused.value.message
    assert remedy in (refused.value.remedy or "")


async def test_record_request_writes_every_metric(obs: Observatory) -> None:
    """Requests, latency, tokens, cost, first token, errors; an unknown price is counted and not guessed; an id counts once."""
    from observatory import Usage

    for _ in range(2):
        obs.record_request(
            *("openai", "gpt-4o"),
            latency=0.5,
            tokens=Usage(100, 20),
            cost_usd=0.01,
            time_to_first_token=0.1,
            id="same",
        )
    obs.record_request("openai", "gpt-4o", latency=0.1, success=False, error="timeout")
    obs.record_request("openai", "new", latency=0.1, tokens=7)
    await obs.flush()
    assert await total(obs, Metric.REQUESTS_TOTAL, status="success") == 2
    assert await total(obs, Metric.REQUESTS_TOTAL, status="error") == 1
    assert await total(obs, Metric.ERRORS_TOTAL, code="timeout", module="llm") == 1
    assert await total(obs, Metric.TOKENS_PROCESSED, type="input") == 107
    assert await total(obs, Metric.TOKENS_PROCESSED, type="output") == 20
    assert await total(obs, Metric.TOTAL_COST_USD) == pytest.approx(0.01)
    assert await total(obs, "observatory_unpriced_calls_total", model="new") == 1
    assert (await obs.metrics.query(Metric.REQUEST_LATENCY, "count")).value == 3
    assert (await obs.metrics.query("observatory_time_to_first_token_seconds", "count")).value == 1
    assert (await obs.events.lag())["accepted"] == 3


@pytest.mark.parametrize(
    "wrong",
    [{"latency": -1}, {"latency": float("nan")}, {"tokens": -5}, {"tokens": 1.5}, {"cost_usd": -1}, {"id": "no spaces please"}],
)
async def test_wrong_request_writes_nothing(obs: Observatory, wrong: dict[str, Any]) -> None:
    """InvalidArgument names the field, before anything was written."""
    with pytest.raises(InvalidArgument):
        obs.record_request("p", "m", **{"latency": 1.0, **wrong})
    await obs.flush()
    assert await total(obs, Metric.REQUESTS_TOTAL) is None
    assert (await obs.events.lag())["accepted"] == 0


async def test_dimensions_become_labels_where_the_settings_say(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """team is a label, user is not."""
    monkeypatch.setenv("OBSERVATORY_METRICS_DIMENSIONS", "team")
    obs = await opening()
    with obs.bound(team="search", user="ann"):
        obs.record_request("p", "m", latency=1.0)
    await obs.flush()
    found = await obs.metrics.query(Metric.REQUESTS_TOTAL, by=("team", "user"))
    assert [dict(one.labels) for one in found.series] == [{"team": "search"}]


def test_matchers_take_linear_time() -> None:
    """An expression that would take a backtracking engine for ever."""
    fits = matchers.matchers('model=~"(a+)+"')
    assert not fits({"model": "a" * 1000 + "b"})
