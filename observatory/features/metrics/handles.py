"""Metrics with labels bound once: what is recorded often."""

from decimal import Decimal
from typing import Any

from ...clock import monotonic
from ...names import Kind
from .recorder import Labels, Recorder
from .tables import FOLD_AT, ROUGH_BELOW, SMALL

_NOTHING: Labels = {}


class _Handle:
    """A metric with labels bound once. Its series is found once, and stays: no flush, fork or closing replaces it."""

    kind: Kind

    def __init__(self, recorder: Recorder, name: str, labels: Labels = _NOTHING) -> None:
        self._recorder = recorder
        self._name = name
        self._labels = labels
        self._series: Any = None

    def _with(self, labels: Labels) -> Labels:
        return {**self._labels, **labels} if self._labels else labels

    def _long(self, value: Any) -> None:
        # None again where the series cannot be kept: what goes into the overflow series is counted each time.
        self._series = self._recorder.add(self._name, self.kind, value, self._labels)


class Counter(_Handle):
    """Only grows."""

    kind = "counter"

    def add(self, value: float | Decimal = 1, **labels: str) -> None:
        if labels:
            return self._recorder.increment_counter(self._name, value, self._with(labels))
        found = self._series
        plain = 0 <= value <= SMALL if type(value) is int else type(value) is float and 0.0 <= value < ROUGH_BELOW
        if plain and found is not None and monotonic() < self._recorder.until:
            pending = found.pending
            pending.append(value)
            if len(pending) >= FOLD_AT:
                self._recorder.fold(found)
            return None
        return self._long(value)

    def bind(self, /, **labels: str) -> "Counter":
        return Counter(self._recorder, self._name, self._with(labels))


class Gauge(_Handle):
    """Stands somewhere now; the last value of each process."""

    kind = "gauge"

    def set(self, value: float, **labels: str) -> None:
        self._recorder.set_gauge(self._name, value, self._with(labels))

    def add(self, value: float, **labels: str) -> None:
        self._recorder.adjust(self._name, value, self._with(labels))

    def bind(self, /, **labels: str) -> "Gauge":
        return Gauge(self._recorder, self._name, self._with(labels))


class Histogram(_Handle):
    """How values are spread."""

    kind = "histogram"

    def record(self, value: float, **labels: str) -> None:
        if labels:
            return self._recorder.record_histogram(self._name, value, self._with(labels))
        found = self._series
        plain = type(value) is float or type(value) is int
        if plain and 1e-9 <= value < ROUGH_BELOW and found is not None and monotonic() < self._recorder.until:
            pending = found.pending
            pending.append(value)
            if len(pending) >= FOLD_AT:
                self._recorder.fold(found)
            return None
        return self._long(value)

    def bind(self, /, **labels: str) -> "Histogram":
        return Histogram(self._recorder, self._name, self._with(labels))
