"""Recording beside its peers; what a flush and a query cost the store; what grows with series and writers.

python -m benchmarks.bench_metrics [--rounds 7] [--seconds 0.2] [--quick] [--write]
"""

import gc
import random
import shutil
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from statistics import median
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client import Counter as PrometheusCounter

from observatory import Observatory, Settings
from observatory.units import moment

from .bench_growth import _together
from .contest import Server, private_server
from .elsewhere import elsewhere
from .harness import Benchmark, Plan, Study, main, reached, spread
from .recorders import BOUND, COUNTERS, HISTOGRAMS, OTEL, OURS, REQUESTS, Recorder, compare, otel, ours

SERIES = (100, 1_000, 10_000)
WRITERS = (1, 2, 4, 8)
CHANGED = 10_000
_WINDOW_US = 10_000_000


def _recorded(found: dict[str, list[float]], reference: str) -> list[str]:
    lines = [f"| contender | µs | times as long as {reference} |", "|---|---:|---:|"]
    for name, values in found.items():
        ratios = [one / base for one, base in zip(values, found[reference], strict=True)]
        lines.append(f"| {name} | {spread(values, '.3f')} | {'1' if name == reference else spread(ratios, '.1f')} |")
    return lines


def _per_round(plan: Plan) -> int:
    """A turn is short, so there are many: medians settle."""
    return 2 if plan.quick else plan.rounds * 3


async def _counter(_: Server, plan: Plan) -> list[str]:
    found = compare(COUNTERS, _per_round(plan))
    times = [theirs / one for theirs, one in zip(found[OTEL], found[OURS], strict=True)]
    return [
        *(*_recorded(found, OURS), ""),
        *(reached("µs of increment_counter with two labels", found[OURS], 0.5, at_most=True, form=".3f"), ""),
        *(reached("times as fast as opentelemetry-sdk", times, 15, form=".1f"), ""),
        reached("µs of a bound counter", found[BOUND], 0.25, at_most=True, form=".3f"),
    ]


async def _histogram(_: Server, plan: Plan) -> list[str]:
    found = compare(HISTOGRAMS, _per_round(plan))
    return [
        *(*_recorded(found, OURS), ""),
        reached("µs of record_histogram with two labels", found[OURS], 0.6, at_most=True, form=".3f"),
    ]


async def _request(_: Server, plan: Plan) -> list[str]:
    found = compare(REQUESTS, _per_round(plan))
    return [reached("µs of record_request", found[OURS], 6, at_most=True)]


async def _threads(_: Server, plan: Plan) -> list[str]:
    lines = ["| contender | threads | µs per recording, all threads together | times as long |", "|---|---:|---:|---:|"]
    contenders: tuple[Recorder, ...] = (*COUNTERS[:4],)
    alone, together = (compare(contenders, _per_round(plan), threads) for threads in (1, 4))
    for name, values in together.items():
        lines.append(f"| {name} | 1 | {spread(alone[name], '.3f')} | 1 |")
        lines.append(f"| {name} | 4 | {spread(values, '.3f')} | {median(values) / median(alone[name]):.2f} |")
    return lines


def _our_series(number: int) -> tuple[Callable[[Any], None], Any]:
    obs = ours(max_series=2 * max(SERIES))
    return lambda labels: obs.metrics.increment_counter("bench_total", 1, labels), obs


def _otel_series(number: int) -> tuple[Callable[[Any], None], Any]:
    meter, reader = otel()
    counter = meter.create_counter("bench_total")
    return lambda labels: counter.add(1, labels), (meter, reader)


def _prometheus_series(number: int) -> tuple[Callable[[Any], None], Any]:
    counter = PrometheusCounter("bench", "b", ["model", "user"], registry=CollectorRegistry())
    return lambda labels: counter.labels(**labels).inc(), counter


async def _series(_: Server, plan: Plan) -> list[str]:
    lines = ["| contender | series | µs per recording | bytes per series |", "|---|---:|---:|---:|"]
    makers = {OURS: _our_series, OTEL: _otel_series, "prometheus-client, labels()": _prometheus_series}
    for name, make in makers.items():
        for number in SERIES[: 2 if plan.quick else None]:
            labels = [{"model": "gpt-4o", "user": f"u{one}"} for one in range(number)]
            gc.collect()
            tracemalloc.start()
            record, kept = make(number)
            empty, _peak = tracemalloc.get_traced_memory()
            for one in labels:
                record(one)
            held = (tracemalloc.get_traced_memory()[0] - empty) / number
            tracemalloc.stop()
            random.shuffle(labels)
            times = [_around(record, labels) for _ in range(_per_round(plan))]
            lines.append(f"| {name} | {number:,} | {spread(times, '.3f')} | {held:,.0f} |")
            del record, kept
    return lines


def _around(record: Callable[[Any], None], labels: Sequence[Any]) -> float:
    rounds = max(10_000 // len(labels), 1)
    begun = time.thread_time()
    for _ in range(rounds):
        for one in labels:
            record(one)
    return (time.thread_time() - begun) / rounds / len(labels) * 1e6


@contextmanager
def _servers(server: Server) -> Iterator[list[tuple[str, Server]]]:
    """The harness' Valkey, and a Redis where there is one."""
    program = shutil.which("redis-server")
    if program is None:
        yield [(server.version(), server)]
        return
    with private_server(program) as redis:
        yield [(server.version(), server), (redis.version(), redis)]


@asynccontextmanager
async def _wide(url: str) -> AsyncIterator[Observatory]:
    settings = Settings.load(environ={}, redis_url=url, namespace="bench", log_level="error", metrics_flush_every=3600)
    async with Observatory("bench", settings=settings) as obs:
        yield obs


class _Flushed(NamedTuple):
    """What the server says of one flush, in milliseconds, and how many script calls it was."""

    all: float
    longest: float
    calls: int


async def _flushed(server: Server, obs: Observatory) -> _Flushed:
    server.admin.config_resetstat()
    server.admin.slowlog_reset()
    await obs.metrics.flush()
    said = server.admin.info("commandstats")["cmdstat_evalsha"]
    longest = max(one["duration"] for one in server.admin.slowlog_get(2048) if one["command"].startswith(b"EVALSHA"))
    return _Flushed(said["usec"] / 1000, longest / 1000, said["calls"])


async def _flush(server: Server, plan: Plan) -> list[str]:
    lines = [
        "| server | kind | changed series | server ms | longest script call, ms | script calls |",
        "|---|---|---:|---:|---:|---:|",
    ]
    goals: list[str] = []
    with _servers(server) as servers:
        for name, one in servers:
            one.admin.config_set("slowlog-log-slower-than", 0)
            one.admin.config_set("slowlog-max-len", 2048)
            for kind, number in (("counters", CHANGED), ("histograms", CHANGED // 10)):
                one.empty()
                found = []
                async with _wide(one.tcp_url) as obs:
                    for _ in range(plan.rounds + 1):
                        _change(obs, kind, number)
                        found.append(await _flushed(one, obs))
                found = found[1:]  # the first makes the hashes
                cells = spread([it.all for it in found], ".1f"), spread([it.longest for it in found], ".2f")
                lines.append(
                    f"| {name} | {kind} | {number:,} | {cells[0]} | {cells[1]} | {median(it.calls for it in found):.0f} |"
                )
                if kind == "counters":
                    whole, longest = [it.all for it in found], [it.longest for it in found]
                    goals += ["", reached(f"server ms of a flush, {name}", whole, 60, at_most=True, form=".1f")]
                    goals += ["", reached(f"ms of its longest script call, {name}", longest, 2, at_most=True)]
            one.admin.config_set("slowlog-log-slower-than", 10_000)
    return lines + goals


def _change(obs: Observatory, kind: str, number: int) -> None:
    """So many series, over metrics of a thousand. A histogram's has ten values, as a second of traffic may have."""
    for one in range(number):
        labels = {"model": "gpt-4o", "user": f"u{one % 1000}"}
        if kind == "counters":
            obs.metrics.increment_counter(f"bench_{one // 1000}_total", 1, labels)
        else:
            for _ in range(10):
                obs.metrics.record_histogram(f"bench_{one // 1000}_seconds", random.lognormvariate(-0.5, 1.0), labels)


async def _past(obs: Observatory, windows: int, record: Callable[[], None]) -> int:
    """Fill windows that are over, through the real flush: the client is told another time, window by window.

    Returns the moment behind the last.
    """
    store: Any = obs.store
    now_us = store.server_us()
    assert now_us is not None
    try:
        for back in range(windows, 0, -1):
            store.server_us = lambda moved=now_us - back * _WINDOW_US: moved
            record()
            await obs.metrics.flush()
    finally:
        del store.server_us
    return int(now_us)


async def _query(server: Server, plan: Plan) -> list[str]:
    lines = ["| server | queries | median ms | p99 ms |", "|---|---:|---:|---:|"]
    goals: list[str] = []
    labels = [{"user": f"u{number}"} for number in range(100)]
    windows, queries = (36, 10) if plan.quick else (360, 200)
    with _servers(server) as servers:
        for name, one in servers:
            one.empty()
            async with _wide(one.tcp_url) as obs:

                def record(obs: Observatory = obs) -> None:
                    for each in labels:
                        obs.metrics.increment_counter("bench_total", 3, each)

                until_us = await _past(obs, windows, record)
                while await obs.metrics.compact():
                    pass
                since, until = moment(until_us - windows * _WINDOW_US), moment(until_us)
                asked: dict[str, Any] = {"by": "user", "since": since, "until": until, "step": 60}
                answer = await obs.metrics.query("bench_total", "total", **asked)
                counted = sum(point.value or 0 for each in answer.series for point in each.points)
                assert counted == 300 * windows, f"{300 * windows} were recorded, the query says {counted}"
                times = []
                for _ in range(queries):
                    begun = time.perf_counter()
                    await obs.metrics.query("bench_total", "total", **asked)
                    times.append((time.perf_counter() - begun) * 1000)
            times.sort()
            p99 = times[min(int(len(times) * 0.99), len(times) - 1)]
            lines.append(f"| {name} | {queries} | {median(times):.1f} | {p99:.1f} |")
            goals += ["", reached(f"p99 in ms, {name}", [p99], 30, at_most=True, form=".1f")]
    return lines + goals


async def _bytes(server: Server, plan: Plan) -> list[str]:
    lines = ["| kind | resolution | keys | windows | bytes per series and window |", "|---|---|---:|---:|---:|"]
    labels = [{"model": "gpt-4o", "user": f"u{number}"} for number in range(100)]
    windows = 60 if plan.quick else 900
    for kind in ("counters", "histograms"):
        server.empty()
        async with _wide(server.tcp_url) as obs:

            def record(obs: Observatory = obs, kind: str = kind) -> None:
                for each in labels:
                    if kind == "counters":
                        obs.metrics.increment_counter("bench_total", 3, each)
                    else:
                        for _ in range(10):
                            obs.metrics.record_histogram("bench_seconds", random.lognormvariate(-0.5, 1.0), each)

            await _past(obs, windows, record)
            found = _measured(server, ("window",))
            while await obs.metrics.compact():
                pass
            found |= _measured(server, ("10s", "1m", "1h", "total"))
        for what, (size, keys, held) in found.items():
            lines.append(f"| {kind} | {_RESOLUTIONS[what]} | {keys} | {held} | {size / max(held, 1) / 100:,.0f} |")
    return lines


_RESOLUTIONS = {
    "window": "10 s, open (for two minutes)",
    "10s": "10 s",
    "1m": "1 min",
    "1h": "1 h",
    "total": "lifetime",
}


def _measured(server: Server, kinds: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """Bytes, keys and windows of each kind of key."""
    found: dict[str, tuple[int, int, int]] = {}
    for key in server.admin.scan_iter(match="*:metrics:*bench_*", count=1000):
        what = key.decode().split("}:", 1)[1].split(":")[0]
        if what in kinds:
            size, keys, held = found.get(what, (0, 0, 0))
            # A block of the finest holds the six of a minute.
            here = server.admin.hlen(key) * (6 if what == "10s" else 1) if what in ("10s", "1m", "1h") else 1
            found[what] = (size + server.admin.memory_usage(key, samples=0), keys + 1, held + here)
    return {what: found[what] for what in kinds if what in found}


async def _writers(server: Server, plan: Plan) -> list[str]:
    lines = ["| writers | additions/s | ratio to 1 |", "|---:|---:|---:|"]
    server.empty()
    found: dict[int, list[float]] = {number: [] for number in WRITERS}
    async with AsyncExitStack() as stack:
        children = [await stack.enter_async_context(elsewhere("child_writer", server.tcp_url)) for _ in range(max(WRITERS))]
        await children[0].ask("verify", start_at=0.0, keys=1)
        await _together(children, 1, 0.1, 1000)
        for _ in range(plan.rounds):
            for number in random.sample(WRITERS, len(WRITERS)):
                found[number].append(1000 * await _together(children[:number], 1, plan.seconds, 1000))
    for number, values in found.items():
        ratios = [one / first for one, first in zip(values, found[1], strict=True)]
        lines.append(f"| {number} | {spread(values, ',.0f')} | {spread(ratios, '.2f')} |")
    return lines


BENCHMARK = Benchmark(
    name="bench_metrics",
    title="Metrics: recording, flushing, asking",
    about="""\
Recording happens in the process and needs no store: contenders have turns of 20 ms in one process, one thread unless a table
says otherwise, three times as many rounds as below. Time is that of the thread's CPU, so that busy neighbours count as little
as possible; with four threads it is the clock on the wall. What each did is counted afterwards, and a count that is off is no
figure. Ours folds what it has recorded as it goes, which is in its figures; making a batch of it is the flush's.""",
    parts=(
        Study("Counter, two labels", "The same two labels each time; *bound*: they are given once, beforehand.", _counter),
        Study(
            "Histogram, two labels",
            """\
4,096 log-normal latencies in turn. Ours and OpenTelemetry's are exponential, ours of a fixed scale, its own with 160 buckets
that grow coarser as they must; ddsketch is set to 1 %.""",
            _histogram,
        ),
        Study("record_request", "Five metrics and an event: `Usage(...)`, a latency and a price, made in the call.", _request),
        Study("Four threads on one series", "All of them at once, on the same two labels.", _threads),
        Study("Growth with series", "A counter; series in random order. Bytes: tracemalloc's, labels left out.", _series),
        Study(
            f"Flush of {CHANGED:,} changed series",
            """\
In one go, over metrics of 1,000 series each, as by a process that changes them all within a second. Server time is the
server's own (`INFO commandstats`, `evalsha`), the longest call its slow log's. A histogram has ten new values a series.""",
            _flush,
        ),
        Study(
            "Query: an hour of 100 series in steps of 60 s", "`obs.metrics.query(..., by=..., step=60)`, one at a time.", _query
        ),
        Study(
            "Memory",
            "`MEMORY USAGE` of the keys of one metric with 100 series, two and a half hours of them, rolled up.",
            _bytes,
        ),
        Study(
            "Writers",
            "Processes that change and flush 1,000 counters as fast as they can, on one server and the same cores.",
            _writers,
        ),
    ),
    libraries=("observatory-fleet", "opentelemetry-sdk", "prometheus-client", "ddsketch", "redis", "hiredis"),
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
