"""Recording: sync, local, from any thread. Never blocks on Redis, never raises into the caller."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from ... import names
from ...clock import monotonic
from ...errors import InvalidArgument
from ...keys import WINDOW_US
from ...logs import INTERNAL
from ...names import OURS, Definition, Kind
from ...units import NANO, shown
from . import series
from .tables import (
    FOLD_AT,
    ROUGH_BELOW,
    SMALL,
    CounterSeries,
    GaugeSeries,
    HistogramSeries,
    Series,
    Spelled,
    Table,
    counted,
    finite,
)
from .turn import Turn
from .waiting import Group, Waiting, Window

Labels = Mapping[str, str]
_NOTHING: Labels = {}
MAX_METRICS = 1000
_CACHED_SPELLINGS = 4
MOST_MISSED = 6
"""Windows in which nobody recorded or flushed, and gauges still count as standing. Beyond: the machine may have slept."""


class Recorder:
    """What was recorded and not yet frozen. Bounded: `max_series` a metric, the rest fold into one series and are counted.

    A value belongs to the 10 s window of the server's clock in which it was recorded, however long it waits (see waiting.py);
    one that is being recorded at the very turn of a window may fall on either side.

    The three verbs have a short way for what is usual: a known series, a plain number, a window that is not over. It takes no
    lock (see tables.py). Whatever else goes the long way, `add`.
    """

    def __init__(self, max_series: int = 2000) -> None:
        self._max_series = max_series
        self._lock = Turn()
        self._tables: dict[str, Table] = {}
        self._counters: dict[str, dict[Spelled, CounterSeries]] = {}
        self._gauges: dict[str, dict[Spelled, GaugeSeries]] = {}
        self._histograms: dict[str, dict[Spelled, HistogramSeries]] = {}
        self._complained: set[str] = set()
        self._waiting = Waiting()
        self._shift_us = 0
        """From our clock to the server's, as of the last freeze."""
        self._begin(monotonic())

    def increment_counter(self, metric: str, value: Any = 1, labels: Labels | None = None) -> None:
        """Add to a counter."""
        try:
            found = self._counters[metric][tuple(labels.items()) if labels else ()]
            if (
                0 <= value <= SMALL if type(value) is int else type(value) is float and 0.0 <= value < ROUGH_BELOW
            ) and monotonic() < self.until:
                pending = found.pending
                pending.append(value)
                if len(pending) >= FOLD_AT:
                    self.fold(found)
                return
        except Exception:  # noqa: S110 (the long way tells what is wrong, if anything is)
            pass
        self.add(metric, "counter", value, labels)

    def record_histogram(self, metric: str, value: Any, labels: Labels | None = None) -> None:
        """Add to a histogram."""
        try:
            found = self._histograms[metric][tuple(labels.items()) if labels else ()]
            plain = type(value) is float or type(value) is int
            if plain and 1e-9 <= value < ROUGH_BELOW and monotonic() < self.until:
                pending = found.pending
                pending.append(value)
                if len(pending) >= FOLD_AT:
                    self.fold(found)
                return
        except Exception:  # noqa: S110
            pass
        self.add(metric, "histogram", value, labels)

    def set_gauge(self, metric: str, value: Any, labels: Labels | None = None) -> None:
        """Set a gauge."""
        try:
            found = self._gauges[metric][tuple(labels.items()) if labels else ()]
            if type(value) is float and -math.inf < value < math.inf and monotonic() < self.until:
                found.value = value
                return
        except Exception:  # noqa: S110
            pass
        self.add(metric, "gauge", value, labels)

    def add(self, metric: str, kind: Kind, value: Any, labels: Labels | None = None) -> Any:
        """Record one value. What is not acceptable is counted, and logged once per metric.

        Returns its series, for whoever wants to keep it; None where every value has to come this way.
        """
        if self._lock.is_mine:
            self._lock.leave(partial(self.add, metric, kind, value, labels))
            return None
        try:
            table = self._tables.get(metric)
            if table is None or table.definition.kind != kind:
                table = self._table(metric, kind)
            if kind == "gauge":
                value, nano = finite(value), 0
            else:
                nano = counted(value)
            with self._lock:
                if monotonic() >= self.until:
                    self._close()
                found, kept = self._find(table, labels or _NOTHING)
                found.put(value, nano)
        except Exception as error:  # whatever it was given: nobody's request fails for a metric
            self._refuse(metric, error)
            return None
        return found if kept else None

    def adjust(self, metric: str, by: float, labels: Labels | None = None) -> None:
        """Move a gauge by so much."""
        if self._lock.is_mine:
            return self._lock.leave(partial(self.adjust, metric, by, labels))
        try:
            table = self._table(metric, "gauge")
            if not math.isfinite(by):
                raise ValueError(f"{by!r} is not a finite number")
            with self._lock:
                if monotonic() >= self.until:
                    self._close()
                found, _ = self._find(table, labels or _NOTHING)
                moved = (found.value or 0.0) + by
                if not math.isfinite(moved):
                    raise ValueError(f"{by!r} more is not a finite number")
                found.value = moved
        except Exception as error:
            self._refuse(metric, error)

    def fold(self, found: Series) -> None:
        """Fold what is pending. Whoever finds the lock held leaves it to the next one: recording waits for nobody."""
        if self._lock.free():
            try:
                found.fold()
            finally:
                self._lock.__exit__(None, None, None)

    def describe(self, metric: str, definition: Definition) -> None:
        """Say what a metric is, before it is recorded. InvalidArgument when the name is not acceptable."""
        names.metric_name(metric)
        for text, what in ((definition.unit, "unit"), (definition.description, "description")):
            if not isinstance(text, str) or len(text) > 500:
                raise InvalidArgument(f"metric {metric}: {what} must be a text of at most 500 characters, got {text!r:.80}")
        with self._lock:
            table = self._tables.get(metric) or self._enter(str(metric), OURS.get(metric, definition))
        if (known := table.definition.kind) != definition.kind:
            raise InvalidArgument(
                f"metric {metric} is a {known} here, and cannot be a {definition.kind} too", remedy="Give it another name"
            )

    @property
    def size(self) -> int:
        """About how many additions all of it makes: what a script that adds it has to do. A metric costs like four."""
        with self._lock:
            return sum(4 + sum(found.size for found in table.series.values()) for table in self._tables.values())

    def _enter(self, metric: str, definition: Definition) -> Table:
        table = self._tables[metric] = Table(metric, definition)
        known: dict[Kind, dict[str, Any]] = {"counter": self._counters, "gauge": self._gauges, "histogram": self._histograms}
        known[definition.kind][metric] = table.known
        return table

    def _table(self, metric: str, kind: Kind) -> Table:
        with self._lock:
            table = self._tables.get(metric)
            if table is None:
                names.metric_name(metric)
                if len(self._tables) >= MAX_METRICS:
                    raise ValueError(f"more than {MAX_METRICS} metrics")
                definition = OURS.get(metric, Definition(kind))
                if definition.kind != kind:
                    raise TypeError(f"it is a {definition.kind}, not a {kind}")
                table = self._enter(str(metric), definition)
        if table.definition.kind != kind:
            raise TypeError(f"it is a {table.definition.kind}, not a {kind}")
        return table

    def _find(self, table: Table, labels: Labels) -> tuple[Any, bool]:
        """The series of these labels, and whether it is theirs for good; while holding the lock."""
        spelled = tuple(labels.items())
        found = table.known.get(spelled)
        if found is not None:
            return found, True
        text = series.text(labels)
        found = table.series.get(text)
        if found is None:
            if len(table.series) >= self._max_series:
                text = series.text({names.OVERFLOW: "true"})
                self._count(names.SERIES_FOLDED, {"metric": table.name})
                found = table.series.get(text)
            if found is None:
                found = table.begin(text)
        # What is folded into the overflow series is counted each time, so its labels are never known.
        kept = names.OVERFLOW not in text
        if kept and len(table.known) < self._max_series * _CACHED_SPELLINGS:
            table.known[spelled] = found
        return found, kept

    def _count(self, metric: str, labels: Labels, times: int = 1) -> None:
        """Count something of our own, while holding the lock."""
        if not times:
            return
        table = self._tables.get(metric) or self._enter(metric, OURS[metric])
        text = series.text(labels)
        found = table.series.get(text)
        if found is None and len(table.series) < MAX_METRICS:
            found = table.begin(text)
        if found is not None:
            found.nano += NANO * times

    def _refuse(self, metric: str, error: Exception) -> None:
        told = metric if isinstance(metric, str) and metric in self._tables else "unknown"
        with self._lock:
            self._count(names.VALUES_REFUSED, {"metric": told})
            first = told not in self._complained and len(self._complained) < MAX_METRICS
            self._complained.add(told)
        if first:
            INTERNAL.warning("metric %s: a value was refused and counted (%s)", shown(metric), error)

    def _begin(self, now: float) -> None:
        """A window begins, in the middle of one of the server's or at its start."""
        self._since = now
        self.until = now + (WINDOW_US - (int(now * 1e6) + self._shift_us) % WINDOW_US) / 1e6

    def _close(self) -> None:
        """What was added since the last time, into the windows that wait; while holding the lock."""
        now = monotonic()
        taken = ((table, table.take()) for table in tuple(self._tables.values()))
        groups = [Group(table.name, table.definition, additions) for table, additions in taken if additions]
        over = now >= self.until
        stood = self._stood() if over else []
        if groups or stood:
            # The middle: the server's clock may be known a little better by the time that it is asked which window this is.
            self._wait((self._since + min(self.until, now)) / 2, groups + stood)
        if over and stood:
            # Nobody came by at the end of these: gauges stood there all the same.
            for number in range(min(int((now - self.until) * 1e6) // WINDOW_US, MOST_MISSED)):
                self._wait(self.until + (number + 0.5) * WINDOW_US / 1e6, stood)
        self._begin(now)

    def _stood(self) -> list[Group]:
        """One sample of every gauge, at the end of a window."""
        taken = ((table, table.sample()) for table in tuple(self._tables.values()) if table.definition.kind == "gauge")
        return [Group(table.name, table.definition, additions) for table, additions in taken if additions]

    def _wait(self, at: float, groups: list[Group]) -> None:
        folded = self._waiting.put(Window(int(at * 1e6), groups))
        self._count(names.WINDOWS_FOLDED, {}, folded)

    def windows(self, now_us: int) -> list[Window]:
        """Take everything that was added since the last time, by windows of the server's clock, which says `now_us`."""
        with self._lock:
            self._shift_us = now_us - int(monotonic() * 1e6)
            self._close()
            return [Window(window.at_us + self._shift_us, window.groups) for window in self._waiting.take()]

    def freeze(self) -> list[Group]:
        """As `windows`, where time does not matter."""
        return [group for window in self.windows(0) for group in window.groups]

    def unfrozen(self) -> list[Group]:
        """As `freeze`, and they stay."""
        with self._lock:
            self._close()
            return [group for window in self._waiting for group in window.groups]

    def gauges(self) -> list[tuple[str, Definition, str, float]]:
        """Every gauge as it stands: metric, definition, series, value."""
        with self._lock:
            return [
                (table.name, table.definition, found.text, found.value)
                for table in self._tables.values()
                if table.definition.kind == "gauge"
                for found in table.series.values()
                if found.value is not None
            ]

    def forget(self) -> None:
        """A forked child: what was recorded before is its parent's. The lock may have been held by a thread that is gone.

        The series stay, empty: whoever has bound one goes on with it.
        """
        self._lock = Turn()
        for table in self._tables.values():
            for found in table.series.values():
                found.clear()
        self._waiting = Waiting()
        self._begin(monotonic())
