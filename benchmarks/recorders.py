"""Recording in this process: ours and its peers, timed in turns, none of them without proof that it counted everything."""

import gc
import random
import threading
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice, repeat
from typing import Any, NamedTuple

from ddsketch import DDSketch
from opentelemetry.sdk.metrics import Histogram as OtelHistogram
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from prometheus_client import CollectorRegistry
from prometheus_client import Counter as PrometheusCounter
from prometheus_client import Histogram as PrometheusHistogram

from observatory import Observatory, Settings, Usage

from .loop import BrokenContender

LABELS = {"model": "gpt-4o", "provider": "openai"}
_dice = random.Random(7)
LATENCIES = [_dice.lognormvariate(-0.5, 1.0) for _ in range(4096)]
"""Seconds, as calls of language models take them."""


class Recording(NamedTuple):
    """run(times) does the operation so many times; counted() says how many it knows of, over all runs."""

    run: Callable[[int], None]
    counted: Callable[[], float]


class Recorder(NamedTuple):
    """One way of recording. make: a fresh one, with nothing recorded."""

    name: str
    make: Callable[[], Recording]


def ours(max_series: int = 2000) -> Observatory:
    """Not opened: recording needs no store."""
    settings = Settings.load(environ={}, redis_url="redis://127.0.0.1:1/0", metrics_max_series=max_series, log_level="error")
    return Observatory("bench", settings=settings)


def sums(obs: Observatory, metric: str, parts: tuple[str, ...] = ("w", "c")) -> int:
    """What was recorded of a metric since the last time: whole units of a counter, recordings of a histogram."""
    groups = [group for window in obs.metrics._recorder.windows(0) for group in window.groups if group.metric == metric]
    return sum(number for group in groups for field, number in group.additions if field.split("|")[0] in parts)


def _our_counter() -> Recording:
    obs = ours()
    increment = obs.metrics.increment_counter

    def run(times: int) -> None:
        for _ in repeat(None, times):
            increment("bench_total", 1, LABELS)

    return Recording(run, _growing(lambda: sums(obs, "bench_total")))


def _our_bound() -> Recording:
    obs = ours()
    handle = obs.metrics.counter("bench_total").bind(**LABELS)

    def run(times: int) -> None:
        for _ in repeat(None, times):
            handle.add(1)

    return Recording(run, _growing(lambda: sums(obs, "bench_total")))


def _our_histogram() -> Recording:
    obs = ours()
    record = obs.metrics.record_histogram

    def run(times: int) -> None:
        for value in islice(cycle(LATENCIES), times):
            record("bench_seconds", value, LABELS)

    return Recording(run, _growing(lambda: sums(obs, "bench_seconds")))


def _our_bound_histogram() -> Recording:
    obs = ours()
    handle = obs.metrics.histogram("bench_seconds").bind(**LABELS)

    def run(times: int) -> None:
        for value in islice(cycle(LATENCIES), times):
            handle.record(value)

    return Recording(run, _growing(lambda: sums(obs, "bench_seconds")))


def _our_request() -> Recording:
    obs = ours()

    def run(times: int) -> None:
        for value in islice(cycle(LATENCIES), times):
            obs.record_request("openai", "gpt-4o", latency=value, tokens=Usage(1000, 200), cost_usd=0.0123)

    return Recording(run, _growing(lambda: sums(obs, "observatory_requests_total")))


def _growing(taken: Callable[[], float]) -> Callable[[], float]:
    """Ours tells what is new since the last time."""
    known = [0.0]

    def counted() -> float:
        known[0] += taken()
        return known[0]

    return counted


def otel(*views: View) -> tuple[Any, InMemoryMetricReader]:
    """A meter, and what it has counted."""
    reader = InMemoryMetricReader()
    return MeterProvider(metric_readers=[reader], views=views, shutdown_on_exit=False).get_meter("bench"), reader


def _otel_point(reader: InMemoryMetricReader) -> Any:
    data: Any = reader.get_metrics_data()
    return data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points[0]


def _otel_counter() -> Recording:
    meter, reader = otel()
    counter = meter.create_counter("bench_total")

    def run(times: int) -> None:
        for _ in repeat(None, times):
            counter.add(1, LABELS)

    return Recording(run, lambda: float(_otel_point(reader).value))


def _otel_histogram() -> Recording:
    meter, reader = otel(View(instrument_type=OtelHistogram, aggregation=ExponentialBucketHistogramAggregation()))
    histogram = meter.create_histogram("bench_seconds")

    def run(times: int) -> None:
        for value in islice(cycle(LATENCIES), times):
            histogram.record(value, LABELS)

    return Recording(run, lambda: float(_otel_point(reader).count))


def _prometheus_counter() -> Recording:
    registry = CollectorRegistry()
    counter = PrometheusCounter("bench", "b", ["model", "provider"], registry=registry)

    def run(times: int) -> None:
        for _ in repeat(None, times):
            counter.labels(model="gpt-4o", provider="openai").inc()

    return Recording(run, lambda: registry.get_sample_value("bench_total", LABELS) or 0.0)


def _prometheus_bound() -> Recording:
    registry = CollectorRegistry()
    child = PrometheusCounter("bench", "b", ["model", "provider"], registry=registry).labels(**LABELS)

    def run(times: int) -> None:
        for _ in repeat(None, times):
            child.inc()

    return Recording(run, lambda: registry.get_sample_value("bench_total", LABELS) or 0.0)


def _prometheus_histogram() -> Recording:
    registry = CollectorRegistry()
    histogram = PrometheusHistogram("bench_seconds", "b", ["model", "provider"], registry=registry)

    def run(times: int) -> None:
        for value in islice(cycle(LATENCIES), times):
            histogram.labels(model="gpt-4o", provider="openai").observe(value)

    return Recording(run, lambda: registry.get_sample_value("bench_seconds_count", LABELS) or 0.0)


def _ddsketch() -> Recording:
    sketch = DDSketch(0.01)

    def run(times: int) -> None:
        for value in islice(cycle(LATENCIES), times):
            sketch.add(value)

    return Recording(run, lambda: float(sketch.count))


OURS, BOUND, OTEL = "Observatory", "Observatory, bound", "opentelemetry-sdk"
COUNTERS = (
    Recorder(OURS, _our_counter),
    Recorder(BOUND, _our_bound),
    Recorder(OTEL, _otel_counter),
    Recorder("prometheus-client, labels()", _prometheus_counter),
    Recorder("prometheus-client, bound", _prometheus_bound),
)
HISTOGRAMS = (
    Recorder(OURS, _our_histogram),
    Recorder(BOUND, _our_bound_histogram),
    Recorder(f"{OTEL}, exponential", _otel_histogram),
    Recorder("prometheus-client, labels(), 15 buckets", _prometheus_histogram),
    Recorder("ddsketch, 1 %, no labels", _ddsketch),
)
REQUESTS = (Recorder(OURS, _our_request),)

TURN = 0.02
"""Seconds that one contender is timed before the next has its turn."""


def compare(recorders: Sequence[Recorder], rounds: int, threads: int = 1) -> dict[str, list[float]]:
    """Microseconds per recording, per round. In a round every one has its turn, in a new order."""
    made = {one.name: one.make() for one in recorders}
    done = dict.fromkeys(made, 0)
    times = {name: _enough(made[name], done, name) for name in made}
    found: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(rounds):
        for name in random.sample(list(made), len(made)):
            gc.collect()
            found[name].append(_timed(made[name].run, times[name], threads) / times[name] / threads * 1e6)
            done[name] += times[name] * threads
            if name in (OURS, BOUND):  # the flush of a second, which is not the caller's
                _proved(made[name], done[name], name)
    for name, one in made.items():
        _proved(one, done[name], name)
    return found


def _enough(one: Recording, done: dict[str, int], name: str) -> int:
    """How many times take about a turn."""
    times = 1000
    while True:
        took = _timed(one.run, times, 1)
        done[name] += times
        if took >= TURN / 4:
            return max(int(times * TURN / took), 100)
        times *= 2


def _proved(one: Recording, done: int, name: str) -> None:
    if (counted := one.counted()) != done:
        raise BrokenContender(f"{name}: {done} were recorded, {counted:.0f} counted")


def _timed(run: Callable[[int], None], times: int, threads: int) -> float:
    if threads == 1:
        begun = time.thread_time()
        run(times)
        return time.thread_time() - begun
    together = threading.Barrier(threads + 1)

    def work() -> None:
        together.wait()
        run(times)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    together.wait()
    begun = time.perf_counter()
    for worker in workers:
        worker.join()
    return time.perf_counter() - begun
