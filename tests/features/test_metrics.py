"""Metrics: recorded locally, counted once whatever is lost on the way, read back as the fleet's."""

import asyncio
import math
import random
import sys
import threading
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observatory import InvalidArgument, Metric, Observatory, StoreUnavailable
from observatory.features.metrics import query, series
from observatory.features.metrics.read import Value
from observatory.features.metrics.recorder import Recorder
from tests.conftest import Open
from tests.proxy import proxy
from tests.servers import Server

COUNTER = "test_things_total"


async def total(obs: Observatory, metric: str = COUNTER, /, **where: str) -> float | None:
    return (await obs.metrics.query(metric, "total", where=where)).value


async def test_two_processes_are_one_total(opening_any: Open) -> None:
    """Any instance answers for the fleet."""
    first, second = await opening_any(), await opening_any()
    first.metrics.increment_counter(COUNTER, 3, {"a": "1"})
    second.metrics.increment_counter(COUNTER, 4, {"a": "1"})
    await first.flush()
    await second.flush()
    assert await total(first) == await total(second) == 7


async def test_lost_replies_count_once(opening: Open, server: Server, tmp_path: Path) -> None:
    """The store applies a batch and its answer is lost; sent again, it counts once."""
    async with proxy(server.path, tmp_path / "p") as between:
        obs = await opening(redis_url=between.url)
        for _ in range(5):
            obs.metrics.increment_counter(COUNTER)
            obs.events.record({"type": "thing"})
            between.swallow_replies = True
            flushing = asyncio.gather(obs.metrics.flush(), obs.events.flush(), return_exceptions=True)
            await asyncio.sleep(0.1)
            between.cut()
            assert {type(error) for error in await flushing} == {StoreUnavailable}
            between.swallow_replies = False
            obs.metrics.increment_counter(COUNTER)
            await obs.flush()
        assert await total(obs) == 10
        assert (await obs.events.lag())["accepted"] == 5


async def test_cancelled_flush_counts_once(opening: Open) -> None:
    """A flush that is cancelled at any moment leaves nothing behind and doubles nothing."""
    obs = await opening()
    for number in range(200):
        obs.metrics.increment_counter(COUNTER)
        task = asyncio.create_task(obs.metrics.flush())
        for _ in range(number % 12):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await obs.metrics.flush()
    assert await total(obs) == 200


async def test_batches_that_a_failover_lost_are_sent_again(obs: Observatory) -> None:
    """The store goes back to an earlier moment, watermark and data together; the writer refills it."""
    outbox = obs.metrics._outbox
    keys, partition = obs.store.keys, obs._lifetime.partition()
    touched = [keys.metric_writer(partition, outbox.writer), keys.metric_total(partition, COUNTER)]
    obs.metrics.increment_counter(COUNTER, 1)
    await obs.metrics.flush()
    earlier = [await obs.store.command("DUMP", key) for key in touched]
    for _ in range(3):
        obs.metrics.increment_counter(COUNTER, 10)
        await obs.metrics.flush()
    for key, dump in zip(touched, earlier, strict=True):
        await obs.store.command("RESTORE", key, 86_400_000 if "writer" in key else 0, dump, "REPLACE")
    obs.metrics.increment_counter(COUNTER, 100)
    await obs.metrics.flush()
    assert await obs.store.command("HGET", touched[1], "w|") == b"131"
    assert outbox.lost == 0


async def test_batches_that_are_gone_are_counted(obs: Observatory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failover that lost more than what is kept: the rest goes on under another identity, and the loss is a metric."""
    monkeypatch.setattr("observatory.store.outbox.KEEP_FOR", -1.0)
    outbox, keys, partition = obs.metrics._outbox, obs.store.keys, obs._lifetime.partition()
    for _ in range(5):
        obs.metrics.increment_counter(COUNTER)
        await obs.metrics.flush()
    before = outbox.writer
    await obs.store.command("SET", keys.metric_writer(partition, before), 2, "PX", 60_000)
    for _ in range(3):
        obs.metrics.increment_counter(COUNTER, 10)
        await obs.metrics.flush()
    assert outbox.writer != before
    assert outbox.lost == 3
    await obs.metrics.flush()
    assert await total(obs) == 35
    assert await total(obs, "observatory_batches_lost_total", feature="metrics") == 3


async def test_watermark_that_expired_in_a_quiet_week_doubles_nothing(
    obs: Observatory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a long quiet the writer takes another identity; and an old acknowledged batch is never sent again."""
    outbox, keys, partition = obs.metrics._outbox, obs.store.keys, obs._lifetime.partition()
    obs.metrics.increment_counter(COUNTER)
    await obs.metrics.flush()
    before = outbox.writer
    for expired in (False, True):
        if expired:
            await obs.store.command("DEL", keys.metric_writer(partition, outbox.writer))
        monkeypatch.setattr("observatory.store.outbox.RENEW_AFTER", 10**9 if expired else -1.0)
        monkeypatch.setattr("observatory.store.outbox.KEEP_FOR", -1.0)
        obs.metrics.increment_counter(COUNTER)
        await obs.metrics.flush()
    assert outbox.writer != before
    assert await total(obs) == 3


async def test_reopening_counts_nothing_again(opening: Open, server: Server, namespace: str) -> None:
    """Five openings of one process: its writer, its number and its partition stay what they were."""
    obs = Observatory("x", redis_url=server.url, namespace=namespace)
    for _ in range(5):
        async with obs:
            obs.metrics.increment_counter(COUNTER)
            obs.events.record({"type": "thing"})
    eye = await opening()
    assert await total(eye) == 5
    assert (await eye.events.lag())["accepted"] == 5


async def test_outage_longer_than_ten_seconds_loses_nothing(obs: Observatory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was acknowledged just before it is still there to be sent again just after it."""
    clock = [1000.0]
    monkeypatch.setattr("observatory.store.outbox.monotonic", lambda: clock[0])
    outbox, keys, partition = obs.metrics._outbox, obs.store.keys, obs._lifetime.partition()
    for _ in range(2):
        obs.metrics.increment_counter(COUNTER)
        await obs.metrics.flush()
    clock[0] += 60
    await obs.store.command("SET", keys.metric_writer(partition, outbox.writer), 1, "PX", 60_000)
    await obs.store.command("HINCRBY", keys.metric_total(partition, COUNTER), "w|", -1)
    obs.metrics.increment_counter(COUNTER)
    await obs.metrics.flush()
    assert outbox.lost == 0
    assert await obs.store.command("HGET", keys.metric_total(partition, COUNTER), "w|") == b"3"


async def test_gauges_leave_with_their_process(opening: Open, server: Server, namespace: str) -> None:
    """An orderly close takes them along at once; opened again, they stand again."""
    eye, leaving = await opening(), Observatory("x", redis_url=server.url, namespace=namespace)
    async with leaving:
        leaving.metrics.set_gauge("test_open", 5)
        await leaving.flush()
        assert (await eye.metrics.query("test_open", "sum")).value == 5
    assert "test_open" not in await eye.metrics.exposition()
    async with leaving:
        leaving.metrics.increment_counter(COUNTER)
        await leaving.flush()
        assert (await eye.metrics.query("test_open", "sum")).value == 5


async def test_flush_says_so_when_the_store_was_never_reached() -> None:
    """Nothing was acknowledged, so it does not return as if."""
    obs = Observatory("x", redis_url="unix:///nowhere/s")
    async with obs:
        obs.metrics.increment_counter(COUNTER)
        with pytest.raises(StoreUnavailable):
            await obs.metrics.flush()


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


async def test_flushed_store_gets_the_last_seconds_again(opening: Open, own_server: Server) -> None:
    """FLUSHALL: what was counted in the last seconds comes back, and the fleet agrees on one record again."""
    obs = await opening(own_server)
    obs.metrics.increment_counter(COUNTER, 5)
    await obs.metrics.flush()
    await obs.store.command("FLUSHALL")
    obs.metrics.increment_counter(COUNTER, 7)
    await obs.metrics.flush()
    assert await obs.store.command("HGET", obs.store.keys.metric_total(obs._lifetime.partition(), COUNTER), "w|") == b"12"
    other = await opening(own_server)
    await obs._lifetime.presence.beat()  # type: ignore[union-attr]
    await other._lifetime.presence.beat()  # type: ignore[union-attr]
    assert obs.store.proposed_salt == other.store.proposed_salt


async def test_what_is_recorded_without_a_store_arrives_later(opening: Open, own_server: Server) -> None:
    """Opened with the store away: it opens, records, and delivers when the store is there."""
    own_server.stop()
    obs = await opening(own_server)
    obs.metrics.increment_counter(COUNTER, 5)
    obs.record_request("openai", "gpt-4o", latency=0.1)
    with pytest.raises(StoreUnavailable):
        await obs.rate_limiter.check("api")
    own_server.start()
    await obs.ready()
    await obs.flush()
    assert await total(obs) == 5
    assert (await obs.events.lag())["accepted"] == 1


async def test_close_flushes_also_when_cancelled(opening: Open, server: Server, namespace: str) -> None:
    """The body is cancelled, and closing is too: what was recorded is there."""
    reader = await opening()

    opened: list[Observatory] = []

    async def body() -> None:
        async with Observatory("x", redis_url=server.url, namespace=namespace) as obs:
            opened.append(obs)
            obs.metrics.increment_counter(COUNTER)
            await asyncio.sleep(60)

    for cancels in (1, 2, 3):
        task = asyncio.create_task(body())
        await asyncio.sleep(0.15)
        for _ in range(cancels):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert opened[-1]._lifetime._store is None, "it is closed when the caller hears of the cancellation"
    assert await total(reader) == 3


async def test_close_ends_in_two_seconds_with_the_store_away(own_server: Server, namespace: str) -> None:
    """Nobody's shutdown hangs on a dead Redis."""
    obs = Observatory("x", redis_url=own_server.url, namespace=namespace)
    await obs.open()
    obs.metrics.increment_counter(COUNTER)
    own_server.signal(19)  # SIGSTOP: half-open, the worst kind of away
    loop = asyncio.get_running_loop()
    began = loop.time()
    await obs.aclose()
    assert loop.time() - began < 2.9
    own_server.signal(18)


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


def test_recording_from_many_threads_loses_nothing() -> None:
    """Eight threads, one series, 80,000 additions."""
    recorder = Recorder()
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def work() -> None:
        for _ in range(10_000):
            recorder.add(COUNTER, "counter", 1, {"a": "b"})

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    taken = [group.additions for _ in range(20) for group in recorder.freeze()]
    for thread in threads:
        thread.join()
    sys.setswitchinterval(usual)
    taken += [group.additions for group in recorder.freeze()]
    assert sum(number for additions in taken for _, number in additions) == 80_000


async def test_wide_batches_go_in_pieces(obs: Observatory) -> None:
    """5,000 series of several metrics arrive whole, at most 2,000 fields a call."""
    for number in range(1_700):
        for metric in ("test_a_total", "test_b_total", "test_c_total"):
            obs.metrics.increment_counter(metric, 2, {"n": str(number)})
    await obs.flush()
    for metric in ("test_a_total", "test_b_total", "test_c_total"):
        assert await total(obs, metric) == 3_400


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
        ({"since": "400d"}, "at most"),
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
    fits = query.matchers('model=~"(a+)+"')
    assert not fits({"model": "a" * 1000 + "b"})
