"""OTLP: a real receiver gets what the ledger holds, from one process of the fleet at a time."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import redis

from observatory import Metric, Observatory
from observatory.clock import monotonic
from observatory.features.leases import Lease
from observatory.features.metrics import OtlpExport, otlp, series
from observatory.features.metrics.collector import Destination, destination
from observatory.keys import instances
from tests.conftest import Open
from tests.receiver import Receiver
from tests.servers import Server, environment, free_port, process, wait_until

SOON = {"OTEL_METRIC_EXPORT_INTERVAL": "500", "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT": "1"}


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    one = Receiver(tmp_path, "metrics")
    with one.running():
        yield one


@pytest.fixture
def sending(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Names the collector for every client that is opened from now on in this process."""

    def to(endpoint: str) -> None:
        for name, text in {**SOON, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}.items():
            monkeypatch.setenv(name, text)

    return to


@pytest.fixture
def serving(server: Server, namespace: str) -> Iterator[Callable[..., int]]:
    """Starts a service that exports, and returns its process id."""
    with ExitStack() as stack:

        def start(**variables: str) -> int:
            given = {"OBSERVATORY_REDIS_URL": server.url, "OBSERVATORY_NAMESPACE": namespace}
            env = environment(**given, OBSERVATORY_SERVE_DRAIN_FOR="0.1", **SOON, **variables)
            one = stack.enter_context(process(["-m", "observatory", "serve", "--port", "0"], env))
            assert one.stdout
            assert "http" in one.stdout.readline()
            return one.pid

        yield start


async def leader(obs: Observatory) -> str:
    """Which process holds the lease; an instance's name has its process id."""
    held = await obs.store.command("GET", obs.store.keys.lease("otlp"))
    return "" if held is None else str(held.decode().split("-")[-2])


async def until(fact: Callable[[], Any], timeout: float = 15) -> None:
    await asyncio.to_thread(wait_until, fact, "what the test waits for", timeout)


def more(receiver: Receiver) -> Callable[[], bool]:
    """Whether anything was received since now."""
    seen = len(receiver.told("test_total"))
    return lambda: len(receiver.told("test_total")) > seen


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_received_is_the_ledger(
    obs: Observatory, opening: Open, receiver: Receiver, serving: Callable[..., int], protocol: str
) -> None:
    """Two processes record, a third sends: sums, every bucket, names, units; the fleet speaks, and no instance of it."""
    other = await opening()
    odd = 'a,b={c}"\\é'
    values = [0.0, 1e-6, 0.3, 0.3, 0.31, 1.0, 7.5, 3600.0]
    for one in (obs, other):
        one.metrics.increment_counter(Metric.TOTAL_COST_USD, Decimal("0.000000001"), {"model": odd})
        one.metrics.increment_counter("test_things", 2**52, {"model": "m"})
        one.metrics.set_gauge("test_level", 1.25, {"kind": "x"})
        for value in values:
            one.metrics.record_histogram(Metric.REQUEST_LATENCY, value, {"model": "m"})
        await one.flush()
    endpoint = receiver.grpc if protocol == "grpc" else receiver.http
    serving(OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_EXPORTER_OTLP_PROTOCOL=protocol)
    await until(lambda: len(receiver.told("test_level")) >= 2)
    told = {one.name: one for one in receiver.told()}
    for metric in told.values():
        assert metric.resource == {"service.name": "observatory", "service.namespace": obs.settings.namespace}
    cost = told["observatory_cost_usd_total"]
    assert (cost.kind, cost.unit, cost.temporality) == ("Sum", "{USD}", "CUMULATIVE")
    assert (cost.points[0].labels, cost.points[0].value) == ({"model": odd}, 2e-9)
    assert told["test_things"].points[0].value == 2**53
    assert (told["test_level"].kind, told["test_level"].points[0].value) == ("Gauge", 2.5)
    latency = told["observatory_request_latency_seconds"]
    assert (latency.kind, latency.unit, latency.temporality) == ("ExponentialHistogram", "s", "CUMULATIVE")
    point = latency.points[0]
    assert point.samples == 16
    assert point.value == pytest.approx(2 * sum(values), rel=1e-12)
    expected: dict[float, int] = {0.0: 2}
    for value in values[1:]:
        bound = series.upper(series.bucket(value))
        expected[bound] = expected.get(bound, 0) + 2
    assert list(point.buckets) == pytest.approx(sorted(expected), rel=1e-9)
    assert list(point.buckets.values()) == [expected[bound] for bound in sorted(expected)]
    families = {family.name: family for family in await obs.metrics.families()}
    ledger = families[Metric.REQUEST_LATENCY].table['model="m"']
    assert (ledger.count, ledger.zero, sum(ledger.buckets.values())) == (16, 2, 14)


async def test_one_of_two_sends_and_the_other_takes_over(
    obs: Observatory, receiver: Receiver, serving: Callable[..., int]
) -> None:
    """While both run, all requests come from one; it is killed, and the other goes on from the same start, no sum lower."""
    pids = {str(serving(OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=f"{receiver.http}/v1/metrics")) for _ in range(2)}
    for _ in range(4):
        obs.metrics.increment_counter("test_total", 10)
        await obs.flush()
        await until(more(receiver))
    first = await leader(obs)
    assert first in pids
    for one in await obs.store.command("HKEYS", obs.store.keys.fences()):
        fence = int(await obs.store.command("HGET", obs.store.keys.fences(), one))
        assert (one, fence) == (b"otlp", 1), "nobody else was ever elected"
    before = receiver.told("test_total")
    os.kill(int(first), signal.SIGKILL)
    obs.metrics.increment_counter("test_total", 2)
    await obs.flush()
    await until(lambda: receiver.told("test_total")[-1].points[0].value == 42)
    after = receiver.told("test_total")[len(before) :]
    assert {first, await leader(obs)} == pids
    points = [one.points[0] for one in (*before, *after)]
    assert len({point.start for point in points}) == 1
    assert [point.at for point in points] == sorted({point.at for point in points}), "never two at one time"
    assert [point.value for point in points] == sorted(point.value for point in points)
    assert points[0].start <= points[0].at


async def test_a_worker_has_a_role_for_it(obs: Observatory, receiver: Receiver, server: Server) -> None:
    """`observatory worker --roles otlp` sends; without that role a worker never does."""
    obs.metrics.increment_counter("test_total", 5)
    await obs.flush()
    given = {"OBSERVATORY_REDIS_URL": server.url, "OBSERVATORY_NAMESPACE": obs.settings.namespace}
    env = environment(**given, **SOON, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.http)
    with process(["-m", "observatory", "worker", "--roles", "compaction"], env):
        await asyncio.to_thread(wait_until, lambda: receiver.told() or others(server, obs), "another instance is here")
        await asyncio.sleep(2.5)
        assert receiver.told() == []
    with process(["-m", "observatory", "worker", "--roles", "otlp"], env):
        await until(lambda: receiver.told("test_total"))
        assert receiver.told("test_total")[0].points[0].value == 5


def others(server: Server, obs: Observatory) -> bool:
    """Whether a second instance has said what it is."""
    with redis.Redis.from_url(server.url) as client:
        return int(client.hlen(instances(obs.settings.namespace))) > 1


async def test_an_orderly_leader_hands_over_at_once(
    receiver: Receiver, opening: Open, sending: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sends what is new and gives the lease back when it closes. Who has no collector's address never leads."""
    bystander = await opening()
    sending(receiver.http)
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "60000")
    monkeypatch.setattr(otlp, "LAST_WORDS", 10.0)  # a busy machine is none to fail for
    settings = {"redis_url": bystander.settings.redis.url, "namespace": bystander.settings.namespace}
    async with Observatory("leader", **settings) as one:  # type: ignore[arg-type]
        one.metrics.increment_counter("test_total", 1)
        await one.flush()
        await until(lambda: one.otlp.sent)
        assert one.otlp.leads
        one.metrics.increment_counter("test_total", 6)
    await until(lambda: [told.points[0].value for told in receiver.told("test_total")] == [1, 7])
    assert await leader(bystander) == ""
    assert (bystander.otlp.leads, bystander.otlp.jobs != ()) == (False, True)


async def test_a_collector_that_is_away_hurts_nobody(
    obs: Observatory, opening: Open, sending: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Told once, counted each time, recording goes on; closing does not wait for it; when it comes, it gets everything."""
    sending(f"http://127.0.0.1:{free_port()}")
    settings = {"redis_url": obs.settings.redis.url, "namespace": obs.settings.namespace}
    with caplog.at_level(logging.WARNING):
        async with Observatory("lonely", **settings) as one:  # type: ignore[arg-type]
            one.metrics.increment_counter("test_total", 5)
            failed = 0.0
            while failed < 2:
                await asyncio.sleep(0.2)
                await one.flush()
                found = await obs.metrics.families()
                failed = sum(
                    value.nano / 1e9
                    for family in found
                    if family.name == "observatory_exports_failed_total"
                    for value in family.table.values()
                )
            began = time.monotonic()
        assert time.monotonic() - began < 3
    assert len([record for record in caplog.records if "OTLP collector" in record.message]) == 1
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


async def test_sums_are_held_back_while_the_store_is_refilled(
    obs: Observatory, opening: Open, receiver: Receiver, sending: Callable[[str], None]
) -> None:
    """Nothing is sent from the moment that the store went back until it is where it was."""
    sending(receiver.http)
    one = await opening()
    one.metrics.increment_counter("test_total", 5)
    await one.flush()
    await until(lambda: len(receiver.told("test_total")) >= 2)
    key = one.store.keys.metric_flushes(one._lifetime.partition())
    # More than the batches that come meanwhile.
    await one.store.command("INCRBY", key, 1000)
    await asyncio.sleep(2.5)
    await one.store.command("DECRBY", key, 1000)
    await asyncio.sleep(0.5)
    seen = len(receiver.told())
    await asyncio.sleep(3)
    assert len(receiver.told()) == seen
    await one.store.command("INCRBY", key, 1000)
    await until(lambda: len(receiver.told()) > seen)


async def test_many_series_are_several_requests(
    obs: Observatory, opening: Open, receiver: Receiver, sending: Callable[[str], None]
) -> None:
    """None is missing, none is sent twice, and all of them are of one moment."""
    for number in range(1500):
        obs.metrics.increment_counter("test_total", number + 1, {"n": str(number)})
        obs.metrics.increment_counter("test_other_total", number + 1, {"n": str(number)})
    await obs.flush()
    # Only then: while it is flushed, portions of it are told.
    sending(receiver.http)
    one = await opening()
    await until(lambda: one.otlp.sent)
    told = receiver.told("test_")
    at = told[0].points[0].at
    portions = [metric.points for metric in told if metric.points[0].at == at]
    assert max(map(len, portions)) <= 1000
    points = [point for portion in portions for point in portion]
    assert len(points) == 3000
    assert sum(point.value for point in points) == 2 * sum(range(1, 1501))


class Ending:
    """Gives a lease that is almost over."""

    async def acquire(self, name: str, lease: float) -> Lease:
        return Lease(name, 1, monotonic() + 0.5)

    async def release(self, name: str) -> None:
        return


async def test_nothing_is_sent_when_the_lease_ends_too_soon(
    obs: Observatory, receiver: Receiver, sending: Callable[[str], None]
) -> None:
    """A leader that was stopped and woke up must not speak beside its successor."""
    sending(receiver.http)
    obs.metrics.increment_counter("test_total", 5)
    await obs.flush()
    late = OtlpExport(lambda: obs.store, obs.metrics, Ending())
    await late.step()
    assert (late.sent, receiver.told()) == (0, [])
    await OtlpExport(lambda: obs.store, obs.metrics, obs.leases).step()
    await until(lambda: receiver.told("test_total"))


BOTH = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h:4318"}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        (BOTH, Destination("http/protobuf", 60, 10)),
        ({**BOTH, "OTEL_SDK_DISABLED": "TRUE"}, None),
        ({**BOTH, "OTEL_METRICS_EXPORTER": "none"}, None),
        ({**BOTH, "OTEL_METRICS_EXPORTER": "console, otlp"}, Destination("http/protobuf", 60, 10)),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://h"}, None),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://h"}, Destination("http/protobuf", 60, 10)),
        ({**BOTH, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, Destination("grpc", 60, 10)),
        (
            {**BOTH, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "http/protobuf"},
            Destination("http/protobuf", 60, 10),
        ),
        ({**BOTH, "OTEL_EXPORTER_OTLP_PROTOCOL": "carrier pigeon"}, Destination("http/protobuf", 60, 10)),
        ({**BOTH, "OTEL_METRIC_EXPORT_INTERVAL": "2500"}, Destination("http/protobuf", 2.5, 10)),
        ({**BOTH, "OTEL_METRIC_EXPORT_INTERVAL": "-1"}, Destination("http/protobuf", 60, 10)),
        ({**BOTH, "OTEL_METRIC_EXPORT_INTERVAL": "soon"}, Destination("http/protobuf", 60, 10)),
        (
            {**BOTH, "OTEL_EXPORTER_OTLP_TIMEOUT": "5", "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT": "3"},
            Destination("http/protobuf", 60, 3),
        ),
        ({**BOTH, "OTEL_EXPORTER_OTLP_TIMEOUT": "10000"}, Destination("http/protobuf", 60, 30)),
    ],
)
def test_where_to(variables: dict[str, str], expected: Destination | None) -> None:
    """The standard variables, the ones for metrics first; what is wrong is the default."""
    assert destination(variables) == expected
