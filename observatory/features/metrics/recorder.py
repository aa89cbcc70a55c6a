"""Recording: sync, local, from any thread. Never blocks on Redis, never raises into the caller."""

import math
import threading
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from ... import names, units
from ...clock import monotonic
from ...errors import InvalidArgument
from ...keys import WINDOW_US
from ...logs import INTERNAL
from ...names import OURS, Definition, Kind
from . import series
from .waiting import Group, Waiting, Window

Labels = Mapping[str, str]
_NOTHING: Labels = {}
_LARGEST = units.MAX_EXACT * units.NANO
MAX_METRICS = 1000
_CACHED_SPELLINGS = 4


class _Series:
    """The unflushed additions of one series. Held by the recorder's lock."""

    __slots__ = ("buckets", "count", "nano", "text", "value", "zero")

    def __init__(self, text: str) -> None:
        self.text = text
        self.nano = 0
        self.count = 0
        self.zero = 0
        self.buckets: dict[int, int] = {}
        self.value: float | None = None

    def take(self, kind: Kind) -> Iterator[tuple[str, int]]:
        whole, nano = divmod(self.nano, units.NANO)
        parts = ("w", whole), ("n", nano)
        if kind == "histogram":
            parts = ("s", whole), ("t", nano)
            if self.count:
                yield f"c|{self.text}", self.count
            if self.zero:
                yield f"z|{self.text}", self.zero
            for index, count in self.buckets.items():
                yield f"b{index}|{self.text}", count
            self.count = self.zero = 0
            self.buckets = {}
        for part, number in parts:
            if number:
                yield f"{part}|{self.text}", number
        self.nano = 0


class _Table:
    """All series of one metric, found by their labels as the caller spells them."""

    __slots__ = ("definition", "known", "name", "series")

    def __init__(self, name: str, definition: Definition) -> None:
        self.name = name
        self.definition = definition
        self.series: dict[str, _Series] = {}
        self.known: dict[tuple[tuple[str, str], ...], _Series] = {}


class Recorder:
    """What was recorded and not yet frozen. Bounded: `max_series` a metric, the rest fold into one series and are counted.

    A value belongs to the 10 s window of the server's clock in which it was recorded, however long it waits (see waiting.py).
    """

    def __init__(self, max_series: int = 2000) -> None:
        self._max_series = max_series
        self._lock = threading.Lock()
        self._tables: dict[str, _Table] = {}
        self._complained: set[str] = set()
        self._waiting = Waiting()
        self._shift_us = 0
        """From our clock to the server's, as of the last freeze."""
        self._begin(monotonic())

    def add(self, metric: str, kind: Kind, value: Any, labels: Labels | None = None) -> None:
        """Record one value. What is not acceptable is counted, and logged once per metric."""
        try:
            table = self._tables.get(metric)
            if table is None or table.definition.kind != kind:
                table = self._table(metric, kind)
            self._record(table, value, labels or _NOTHING)
        except Exception as error:  # whatever it was given: nobody's request fails for a metric
            self._refuse(metric, error)

    def describe(self, metric: str, definition: Definition) -> None:
        """Say what a metric is, before it is recorded. InvalidArgument when the name is not acceptable."""
        names.metric_name(metric)
        for text, what in ((definition.unit, "unit"), (definition.description, "description")):
            if not isinstance(text, str) or len(text) > 500:
                raise InvalidArgument(f"metric {metric}: {what} must be a text of at most 500 characters, got {text!r:.80}")
        with self._lock:
            known = self._tables.setdefault(str(metric), _Table(str(metric), OURS.get(metric, definition))).definition.kind
        if known != definition.kind:
            raise InvalidArgument(
                f"metric {metric} is a {known} here, and cannot be a {definition.kind} too", remedy="Give it another name"
            )

    def _table(self, metric: str, kind: Kind) -> _Table:
        with self._lock:
            table = self._tables.get(metric)
            if table is None:
                names.metric_name(metric)
                if len(self._tables) >= MAX_METRICS:
                    raise ValueError(f"more than {MAX_METRICS} metrics")
                table = _Table(str(metric), OURS.get(metric, Definition(kind)))
                if table.definition.kind == kind:
                    self._tables[str(metric)] = table
        if table.definition.kind != kind:
            raise TypeError(f"it is a {table.definition.kind}, not a {kind}")
        return table

    def _record(self, table: _Table, value: Any, labels: Labels) -> None:
        kind = table.definition.kind
        number, nano = 0.0, 0
        if kind == "gauge":
            number = float(value)
            if not math.isfinite(number):
                raise ValueError(f"{value!r} is not a finite number")
        else:
            nano = value * units.NANO if type(value) is int else units.nano(value)
            if not 0 <= nano <= _LARGEST:
                raise ValueError(f"{units.shown(value, 40)} is negative or too large")
        spelled = tuple(labels.items())
        with self._lock:
            if monotonic() >= self._until:
                self._close()
            found = table.known.get(spelled)
            if found is None:
                found = self._find(table, spelled, labels)
            if kind == "counter":
                found.nano += nano
            elif kind == "gauge":
                found.value = number
            else:
                found.count += 1
                found.nano += nano
                if nano == 0:
                    found.zero += 1
                else:
                    index = series.bucket(float(value))
                    found.buckets[index] = found.buckets.get(index, 0) + 1

    def _find(self, table: _Table, spelled: tuple[tuple[str, str], ...], labels: Labels) -> _Series:
        text = series.text(labels)
        found = table.series.get(text)
        if found is None:
            if len(table.series) >= self._max_series:
                text = series.text({names.OVERFLOW: "true"})
                self._count(names.SERIES_FOLDED, {"metric": table.name})
                if text in table.series:
                    return table.series[text]
            found = table.series[text] = _Series(text)
        if len(table.known) < self._max_series * _CACHED_SPELLINGS and names.OVERFLOW not in text:
            table.known[spelled] = found
        return found

    def _count(self, metric: str, labels: Labels, times: int = 1) -> None:
        """Count something of our own, while holding the lock."""
        if not times:
            return
        table = self._tables.setdefault(metric, _Table(metric, OURS[metric]))
        text = series.text(labels)
        found = table.series.get(text)
        if found is None and len(table.series) < MAX_METRICS:
            found = table.series[text] = _Series(text)
        if found is not None:
            found.nano += units.NANO * times

    def _refuse(self, metric: str, error: Exception) -> None:
        shown = metric if isinstance(metric, str) and metric in self._tables else "unknown"
        with self._lock:
            self._count(names.VALUES_REFUSED, {"metric": shown})
            first = shown not in self._complained and len(self._complained) < MAX_METRICS
            self._complained.add(shown)
        if first:
            INTERNAL.warning("metric %s: a value was refused and counted (%s)", units.shown(metric), error)

    def _begin(self, now: float) -> None:
        """A window begins, in the middle of one of the server's or at its start."""
        self._since = now
        self._until = now + (WINDOW_US - (int(now * 1e6) + self._shift_us) % WINDOW_US) / 1e6

    def _close(self) -> None:
        """What was added since the last time, into the windows that wait; while holding the lock."""
        groups, now = [], monotonic()
        for table in self._tables.values():
            kind = table.definition.kind
            if kind == "gauge":
                continue
            additions = [pair for found in table.series.values() for pair in found.take(kind)]
            if additions:
                groups.append(Group(table.name, table.definition, additions))
        if groups:
            # The middle: the server's clock may be known a little better by the time that it is asked which window this is.
            folded = self._waiting.put(Window(int((self._since + min(self._until, now)) / 2 * 1e6), groups))
            self._count(names.WINDOWS_FOLDED, {}, folded)
        self._begin(now)

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

    def adjust(self, metric: str, by: float, labels: Labels | None = None) -> None:
        """Move a gauge by so much."""
        try:
            table = self._table(metric, "gauge")
            if not math.isfinite(by):
                raise ValueError(f"{by!r} is not a finite number")
            with self._lock:
                found = self._find(table, tuple((labels or _NOTHING).items()), labels or _NOTHING)
                moved = (found.value or 0.0) + by
                if not math.isfinite(moved):
                    raise ValueError(f"{by!r} more is not a finite number")
                found.value = moved
        except Exception as error:
            self._refuse(metric, error)

    def forget(self) -> None:
        """A forked child: what was recorded before is its parent's. The lock may have been held by a thread that is gone."""
        self._lock = threading.Lock()
        self._tables = {name: _Table(name, table.definition) for name, table in self._tables.items()}
        self._waiting = Waiting()


class _Handle:
    """A metric with labels bound once."""

    kind: Kind

    def __init__(self, recorder: Recorder, name: str, labels: Labels = _NOTHING) -> None:
        self._recorder = recorder
        self._name = name
        self._labels = labels

    def _with(self, labels: Labels) -> Labels:
        return {**self._labels, **labels} if labels else self._labels


class Counter(_Handle):
    """Only grows."""

    def add(self, value: float | Decimal = 1, **labels: str) -> None:
        self._recorder.add(self._name, "counter", value, self._with(labels))

    def bind(self, **labels: str) -> "Counter":
        return Counter(self._recorder, self._name, self._with(labels))


class Gauge(_Handle):
    """Stands somewhere now; the last value of each process."""

    def set(self, value: float, **labels: str) -> None:
        self._recorder.add(self._name, "gauge", value, self._with(labels))

    def add(self, value: float, **labels: str) -> None:
        self._recorder.adjust(self._name, value, self._with(labels))

    def bind(self, **labels: str) -> "Gauge":
        return Gauge(self._recorder, self._name, self._with(labels))


class Histogram(_Handle):
    """How values are spread."""

    def record(self, value: float, **labels: str) -> None:
        self._recorder.add(self._name, "histogram", value, self._with(labels))

    def bind(self, **labels: str) -> "Histogram":
        return Histogram(self._recorder, self._name, self._with(labels))
