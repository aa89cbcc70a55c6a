"""The short way of recording: what takes no lock loses nothing, and counts as the long way does."""

import faulthandler
import gc
import math
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from observatory import Observatory
from observatory.features.metrics import handles, series, tables
from observatory.features.metrics.recorder import Recorder
from observatory.names import Definition
from tests.conftest import Open

COUNTER, SECONDS = "test_things_total", "test_seconds"
NANO = 10**9
FIELD = 'w|a="b"'


@contextmanager
def switching() -> Iterator[None]:
    """Threads take turns as often as the interpreter lets them."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


def sums(recorder: Recorder) -> Counter[tuple[str, str]]:
    """Everything recorded since the last time, by metric and field."""
    found: Counter[tuple[str, str]] = Counter()
    for group in recorder.freeze():
        for field, number in group.additions:
            found[group.metric, field] += number
    return found


def counter(recorder: Recorder, name: str = COUNTER) -> handles.Counter:
    recorder.describe(name, Definition("counter"))
    return handles.Counter(recorder, name)


def histogram(recorder: Recorder, name: str = SECONDS) -> handles.Histogram:
    recorder.describe(name, Definition("histogram"))
    return handles.Histogram(recorder, name)


def test_many_threads_lose_nothing_on_any_way() -> None:
    """Eight threads, every way there is, one counter and one histogram, and somebody who freezes all the time."""
    recorder = Recorder()
    bound, spread = counter(recorder).bind(a="b"), histogram(recorder).bind(a="b")
    rounds, together = 4_000, threading.Barrier(9)
    found: Counter[tuple[str, str]] = Counter()

    def work() -> None:
        together.wait()
        for _ in range(rounds):
            bound.add(3)
            counter(recorder).add(5, a="b")
            recorder.increment_counter(COUNTER, 7, {"a": "b"})
            recorder.add(COUNTER, "counter", 11, {"a": "b"})
            spread.record(0.3)
            recorder.record_histogram(SECONDS, 0.7, {"a": "b"})

    threads = [threading.Thread(target=work) for _ in range(8)]
    with switching():
        for thread in threads:
            thread.start()
        together.wait()
        while any(thread.is_alive() for thread in threads):
            found += sums(recorder)
        for thread in threads:
            thread.join()
    found += sums(recorder)
    times = 8 * rounds
    assert found[COUNTER, 'w|a="b"'] == 26 * times
    assert found[SECONDS, 'c|a="b"'] == 2 * times
    assert found[SECONDS, 's|a="b"'] * NANO + found[SECONDS, 't|a="b"'] == NANO * times
    for value in (0.3, 0.7):
        assert found[SECONDS, f'b{series.bucket(value)}|a="b"'] == times


class Busy(list[float]):
    """A list to which another thread appends whenever somebody has looked at it."""

    def __getitem__(self, which: Any) -> Any:
        taken = super().__getitem__(which)
        self.append(1)
        return taken


@pytest.mark.parametrize("kind", [tables.CounterSeries, tables.HistogramSeries])
def test_what_comes_while_it_is_folded_stays(kind: type[tables.Series]) -> None:
    """Between reading what is pending and dropping it another thread may record: that is for the next time."""
    one = kind("")
    one.pending = Busy([1, 1])
    one.fold()
    assert list(one.pending) == [1]
    one.fold()
    assert dict(one.take()) == ({"w|": 3} if kind is tables.CounterSeries else {"c|": 3, "s|": 3, "b-1|": 3})


value_strategy = st.one_of(
    st.floats(1e-9, 1e6, exclude_max=True),
    st.integers(1, 999_999),
    st.builds(
        lambda power, ulps: math.ldexp(1.0, power) * (1 + ulps * sys.float_info.epsilon),
        st.integers(-29, 19),
        st.integers(-2, 2).map(lambda ulps: ulps / 2 if ulps < 0 else ulps),
    ),
)


@given(values=st.lists(value_strategy, min_size=1, max_size=50))
@example(values=[999_999.999999999] * 500)
@example(values=[0.5, math.nextafter(1024.0, 2000.0), math.nextafter(1024.0, 0.0), 1024.0])
def test_folded_together_is_as_one_by_one(values: list[float]) -> None:
    """The same fields and numbers, to the billionth, and every value in its bucket, at powers of two as well."""
    together, alone = tables.HistogramSeries("x"), tables.HistogramSeries("x")
    together.pending.extend(values)
    together.fold()
    for value in values:
        alone.put(value, tables.counted(value))
    assert together.pending == []
    assert dict(together.take()) == dict(alone.take())
    for value in values:
        if math.frexp(value)[0] == 0.5:
            assert series.upper(series.bucket(value)) == value
            assert series.bucket(math.nextafter(value, math.inf)) == series.bucket(value) + 1


@given(values=st.lists(st.one_of(st.floats(0, 1e6, exclude_max=True), st.integers(0, 2**52)), min_size=1, max_size=20))
@example(values=[0.1] * 10)
@example(values=[2**52, 1e-9])
def test_counter_of_whole_numbers_and_fractions_is_exact(values: list[float]) -> None:
    """Each to its billionth, then added as whole numbers."""
    together = tables.CounterSeries("x")
    together.pending.extend(values)
    together.fold()
    assert together.nano == sum(tables.counted(value) for value in values)


@pytest.mark.parametrize("value", [0, 0.0, 1e-10, 1e-9, 0.999e-9, 1e6, 1e12, 5, True, 2**52])
def test_every_number_counts_alike_on_both_ways(value: float) -> None:
    """Zero is a zero, the large are exact, and a truth value is no number, also through a series that is known."""
    short, long = Recorder(), Recorder()
    for recorder in (short, long):
        recorder.record_histogram(SECONDS, 0.25, {"a": "b"})
        recorder.increment_counter(COUNTER, 1, {"a": "b"})
    short.record_histogram(SECONDS, value, {"a": "b"})
    short.increment_counter(COUNTER, value, {"a": "b"})
    long.add(SECONDS, "histogram", value, {"a": "b"})
    long.add(COUNTER, "counter", value, {"a": "b"})
    assert sums(short) == sums(long)


@pytest.mark.parametrize("value", [-1, -0.5, math.nan, math.inf, -math.inf, "1", None, 10**40, 2**52 + 1, True, [1]])
def test_what_is_refused_is_refused_on_the_short_way_too(value: float) -> None:
    """A series that is known and a handle that has found its own refuse as a new one does."""
    recorder = Recorder()
    bound, spread = counter(recorder).bind(a="b"), histogram(recorder).bind(a="b")
    for _ in range(2):
        bound.add(1)
        spread.record(1.5)
    bound.add(value)
    recorder.increment_counter(COUNTER, value, {"a": "b"})
    spread.record(value)
    recorder.record_histogram(SECONDS, value, {"a": "b"})
    bound.add(1)
    found = sums(recorder)
    refused = "observatory_values_refused_total"
    assert (found[refused, f'w|metric="{COUNTER}"'], found[refused, f'w|metric="{SECONDS}"']) == (2, 2)
    assert (found[COUNTER, 'w|a="b"'], found[SECONDS, 'c|a="b"']) == (3, 2)


def test_recording_waits_for_nobody_and_what_is_pending_is_bounded() -> None:
    """While somebody holds the lock, a known series is recorded all the same; the next one folds what has come together."""
    recorder = Recorder()
    bound = counter(recorder).bind(a="b")
    bound.add(1)
    pending = recorder._tables[COUNTER].series['a="b"'].pending
    for _ in range(1000):
        bound.add(1)
        assert len(pending) < tables.FOLD_AT
    with recorder._lock:
        for _ in range(1000):
            bound.add(1)
    assert len(pending) >= 1000
    bound.add(1)
    assert len(pending) == 0
    assert sums(recorder)[COUNTER, 'w|a="b"'] == 2002


def test_bound_handle_that_overflows_is_counted_each_time() -> None:
    """What it adds goes into the one series that is left, and shows as folded; the sum is whole."""
    recorder = Recorder(max_series=2)
    for number in range(5):
        bound = counter(recorder).bind(n=str(number))
        for _ in range(3):
            bound.add(2)
    found = sums(recorder)
    assert found[COUNTER, 'w|observatory_overflow="true"'] == 18
    assert found["observatory_series_folded_total", f'w|metric="{COUNTER}"'] == 9
    assert found[COUNTER, 'w|n="0"'] == found[COUNTER, 'w|n="1"'] == 6


def test_bound_handle_goes_on_in_a_forked_child() -> None:
    """The child adds to its own; the parent's pending additions are the parent's."""
    recorder = Recorder()
    bound, spread = counter(recorder).bind(a="b"), histogram(recorder).bind(a="b")
    recorder.set_gauge("test_depth", 3.0)
    for _ in range(10):
        bound.add(1)
        spread.record(0.5)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            recorder.forget()
            bound.add(100)
            found = sums(recorder)
            os.write(writing, f"{found[COUNTER, FIELD]} {len(found)} {recorder.gauges()}".encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    assert os.read(reading, 100) == b"100 1 []"
    os.close(reading)
    bound.add(1)
    found = sums(recorder)
    assert (found[COUNTER, 'w|a="b"'], found[SECONDS, 'c|a="b"']) == (11, 10)


async def test_bound_handle_survives_closing_and_reopening(opening: Open) -> None:
    """One handle over two openings and several flushes: everything is there."""
    obs: Observatory = await opening()
    bound = obs.metrics.counter(COUNTER).bind(a="b")
    bound.add(1)
    bound.add(2)
    await obs.flush()
    bound.add(4)
    await obs.aclose()
    bound.add(8)
    await obs.open()
    bound.add(16)
    await obs.flush()
    assert (await obs.metrics.query(COUNTER)).value == 31


@pytest.mark.parametrize("way", ["verb", "bound"])
def test_window_turns_on_the_short_way(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """What comes after the window's end is in the next, without anybody freezing between."""
    now = [1_000_000.0]
    for module in ("recorder", "handles"):
        monkeypatch.setattr(f"observatory.features.metrics.{module}.monotonic", lambda: now[0])
    recorder = Recorder()
    bound = counter(recorder).bind()
    record: Callable[[int], None] = bound.add if way == "bound" else lambda value: recorder.increment_counter(COUNTER, value)
    for number in range(3):
        record(10**number)
        now[0] += 9.9
        record(10**number)
        now[0] += 0.1
    taken = recorder.windows(int(now[0] * 1e6))
    assert [group.additions for window in taken for group in window.groups] == [[("w|", 2)], [("w|", 20)], [("w|", 200)]]
    assert [window.at_us % 10_000_000 // 1_000_000 for window in taken] == [5, 5, 5]


def test_a_finalizer_may_record_whenever_it_comes() -> None:
    """The collector runs in the middle of anything, also of recording and of a flush; so does a signal handler."""
    recorder = Recorder(max_series=100_000)
    counter, gauge = handles.Counter(recorder, "test_freed_total"), handles.Gauge(recorder, "test_open")

    class Connection:
        def __init__(self) -> None:
            gauge.add(1)
            self.itself = self  # a cycle: freed by the collector

        def __del__(self) -> None:
            gauge.add(-1)
            counter.add(1, by="collector")

    def interrupt(number: int, frame: object) -> None:
        recorder.add("test_signals_total", "counter", 1, {"number": str(number)})

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    threshold = gc.get_threshold()
    gc.set_threshold(50)
    made = 20_000
    freed = 0
    try:
        with watchdog():
            for number in range(made):
                Connection()
                recorder.add("test_made_total", "counter", 1, {"n": str(number % 5000), "z": "a", "b": "c"})
                if number % 500 == 0:
                    freed += _freed(recorder)
            gc.collect()
            freed += _freed(recorder)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.set_threshold(*threshold)
    assert freed == made
    assert [value for metric, _, _, value in recorder.gauges() if metric == "test_open"] == [0.0]


def _freed(recorder: Recorder) -> int:
    freed = [group for group in recorder.freeze() if group.metric == "test_freed_total"]
    return sum(number for group in freed for field, number in group.additions if field.startswith("w"))


@contextmanager
def watchdog() -> Iterator[None]:
    """A deadlock is a failure of this test, not of the machine."""
    faulthandler.dump_traceback_later(60, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
