"""What somebody else has written into our keys costs itself: it is told once, and everything else is answered."""

import logging
from collections.abc import Callable

import msgspec
import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

from observatory import Observatory, StoreUnavailable
from observatory.features.metrics import blocks, points, read, series, spoilt
from observatory.features.metrics.blocks import Value
from observatory.features.metrics.export import Family
from observatory.keys import Key, Keys
from observatory.names import Definition
from tests.conftest import Open
from tests.servers import Server

Spoil = Callable[[redis.Redis, Keys, int, str], None]


def _bad(keys: Keys, partition: int) -> Key:
    return keys.metric_total(partition, "bad_total")


def other_type(admin: redis.Redis, keys: Keys, partition: int, writer: str) -> None:
    admin.set(_bad(keys, partition), "x")


def no_part(admin: redis.Redis, keys: Keys, partition: int, writer: str) -> None:
    admin.hset(_bad(keys, partition), "|x", 1)


def no_series(admin: redis.Redis, keys: Keys, partition: int, writer: str) -> None:
    admin.hset(_bad(keys, partition), 'w|a="1"\nb 7', 1)


def no_number(admin: redis.Redis, keys: Keys, partition: int, writer: str) -> None:
    admin.hset(_bad(keys, partition), 'w|a="1"', "9" * 400)


def no_text(admin: redis.Redis, keys: Keys, partition: int, writer: str) -> None:
    admin.hset(keys.metric_names(partition), b"\xff\xfe", '{"kind":"counter"}')


def no_name(admin: redis.Redis, keys: Keys, partition: int, writer: str) -> None:
    admin.hset(keys.metric_names(partition), "a metric\n", '{"kind":"counter"}')


def no_gauge(admin: redis.Redis, keys: Keys, partition: int, writer: str) -> None:
    admin.hset(keys.gauges(partition, writer), 'level|a="1"', "abc")


def no_gauge_text(admin: redis.Redis, keys: Keys, partition: int, writer: str) -> None:
    admin.hset(keys.gauges(partition, writer), b"level|\xff=", "1")


def infinite_gauge(admin: redis.Redis, keys: Keys, partition: int, writer: str) -> None:
    admin.hset(keys.gauges(partition, writer), 'level|a="1"', "nan")


def gauges_of_other_type(admin: redis.Redis, keys: Keys, partition: int, writer: str) -> None:
    admin.zadd(keys.gauge_writers(partition), {b"\xff": 2e15})
    admin.zadd(keys.gauge_writers(partition), {"other": 2e15})
    admin.set(keys.gauges(partition, "other"), "x", px=60_000)


def huge_bucket(admin: redis.Redis, keys: Keys, partition: int, writer: str) -> None:
    admin.hset(keys.metric_total(partition, "seconds"), "b99999999|", 1)


ALL = [
    other_type, no_part, no_series, no_number, no_text, no_name, no_gauge, no_gauge_text, infinite_gauge, gauges_of_other_type,
    huge_bucket,
]  # fmt: skip


@pytest.mark.parametrize("spoil", ALL)
async def test_everything_else_is_answered(
    obs: Observatory, server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, spoil: Spoil
) -> None:
    """Exposition, queries of other metrics, the list of all, the roll-up; one line in the log."""
    monkeypatch.setattr(spoilt, "_told", set())
    for metric in ("good_total", "bad_total"):
        obs.metrics.increment_counter(metric, 5)
    obs.metrics.record_histogram("seconds", 0.5)
    obs.metrics.set_gauge("level", 2.0)
    await obs.metrics.flush()
    with redis.Redis.from_url(server.url) as admin:
        spoil(admin, obs.store.keys, obs._lifetime.partition(), obs.metrics._outbox.writer)
    with caplog.at_level(logging.ERROR, "observatory"):
        for _ in range(2):
            text = await obs.metrics.exposition()
            assert {"good_total 5", "seconds_count 1", "level 2"} <= set(text.splitlines())
            found = {family.name: family for family in text_string_to_metric_families(text)}
            whole = [sample.value for sample in found["bad"].samples] if "bad" in found else []
            assert whole == ([] if spoil is other_type else [5])
            assert (await obs.metrics.query("good_total")).value == 5
            assert (await obs.metrics.query("level")).value == 2
            assert (await obs.metrics.query("seconds", "count")).value == 1
            assert {"good_total", "level", "seconds"} <= set(await read.known(obs.store))
            await obs.metrics.compact()
    told = [record.message for record in caplog.records]
    assert len(told) == len(set(told)) == 1
    assert told[0].endswith("; it is passed over")


async def test_a_counter_does_not_ask_for_gauges(obs: Observatory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose hashes are many, and another's."""
    obs.metrics.increment_counter("test_total", 5)
    await obs.metrics.flush()
    monkeypatch.setattr(read, "gauges", lambda store: pytest.fail("nobody asked for gauges"))
    assert (await obs.metrics.query("test_total")).value == 5


async def test_a_store_that_is_away_is_not_taken_for_a_spoilt_key(opening: Open, own_server: Server) -> None:
    obs = await opening(own_server)
    obs.metrics.increment_counter("test_total", 5)
    await obs.metrics.flush()
    own_server.stop()
    with pytest.raises(StoreUnavailable):
        await read.totals(obs.store, ["test_total"])


@pytest.mark.parametrize("row", [[], [1], [1, 2, 3, 4], [1, 2, 0, 10**8, 1], ["x", 1], None, {"a": 1}, [1, True], b"x"])
def test_an_odd_row_of_a_block_is_passed_over(row: object) -> None:
    """The rows beside it are read, in whatever order they stand."""
    content = {'a="1"': [1, 0, 0, 3, 2], 'a="2"': row, 'a="3"': [5, 0]}
    table: dict[str, Value] = {}
    blocks.into(table, blocks.decoded(b"m" + msgspec.msgpack.encode(content)), "histogram")
    assert {text: (value.nano, value.count) for text, value in table.items()} == {
        'a="1"': (10**9, 2),
        'a="3"': (5 * 10**9, 0),
    }
    fine = blocks.decoded_fine(b"m" + msgspec.msgpack.encode({3: content, 4: row, "x": content}))
    table = {}
    blocks.into(table, fine[3], "histogram")
    assert set(table) == {'a="1"', 'a="3"'}


@pytest.mark.parametrize("row", [[1, 0, 1, 0.5, 2.0, 1, 0], [1, 0, 0, 0.5, 2.0, 1, 0, 7], []])
def test_an_odd_row_of_a_gauge_is_passed_over(row: list[float]) -> None:
    table: dict[str, blocks.Sampled] = {}
    whole = [1, 0, 1, 0.5, 2.0, 1, 0, 7]
    blocks.into(table, blocks.decoded(blocks.encoded({"": row, 'a="1"': whole})), "gauge")
    assert {text: value.row() for text, value in table.items()} == {'a="1"': whole}


def test_a_request_is_bounded_whatever_the_store_says() -> None:
    """Every bucket between the lowest and the highest is written: at most as many as a double has."""
    table = blocks.fields([(f"b{index}|".encode(), b"1") for index in (-(10**9), -10, 5, 10**8)])
    assert table[""].buckets == {-10: 1, 5: 1}
    data = points.data([Family("x", Definition("histogram"), table, {})], points.Moments(0, 1), "n")
    (metric,) = data.resource_metrics[0].scope_metrics[0].metrics
    assert len(metric.data.data_points[0].positive.bucket_counts) == 16  # type: ignore[union-attr]
    assert series.bucket(5e-324) in series.BUCKETS
    assert series.bucket(1.7e308) in series.BUCKETS
