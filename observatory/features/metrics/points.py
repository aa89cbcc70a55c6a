"""The fleet's totals as OpenTelemetry's data points: cumulative, exponential histograms intact. Loaded when they are sent."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import opentelemetry.sdk.metrics as sdk
from opentelemetry.sdk.metrics._internal.point import Buckets
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Gauge,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from ...version import __version__
from . import series
from .blocks import Value
from .exemplars import Exemplar
from .export import Family

_EXACT = 2**53
"""Up to here a float holds every whole number."""


class Moments(NamedTuple):
    """Of one export, in nanoseconds of the server's clock."""

    start_ns: int
    """Since when the totals count: the same whoever sends them."""
    now_ns: int


def data(families: Iterable[Family], moments: Moments, namespace: str) -> MetricsData:
    """One request. It is the fleet that speaks: nothing in the resource says which process sent it, so a new leader goes on
    with the same series."""
    resource = Resource({"service.name": "observatory", "service.namespace": namespace})
    scope = InstrumentationScope("observatory", __version__)
    metrics = [_metric(family, moments) for family in families]
    return MetricsData([ResourceMetrics(resource, [ScopeMetrics(scope, metrics, "")], "")])


def _metric(family: Family, moments: Moments) -> Metric:
    definition = family.definition
    shape: Sum | Gauge | ExponentialHistogram
    match definition.kind:
        case "counter":
            shape = Sum(list(_sums(family, moments)), AggregationTemporality.CUMULATIVE, is_monotonic=True)
        case "gauge":
            shape = Gauge(list(_levels(family, moments)))
        case "histogram":
            shape = ExponentialHistogram(list(_spreads(family, moments)), AggregationTemporality.CUMULATIVE)
    return Metric(family.name, definition.description, definition.unit, shape)


def _plain(nano: int) -> int | float:
    """Of one type for one series as long as that can be: a float, unless it would not hold a whole number."""
    whole, rest = divmod(nano, 1_000_000_000)
    return nano / 1_000_000_000 if rest or whole <= _EXACT else whole


def _sums(family: Family, moments: Moments) -> Iterator[NumberDataPoint]:
    for text, value in family.table.items():
        yield NumberDataPoint(series.labels(text), moments.start_ns, moments.now_ns, _plain(value.nano))


def _levels(family: Family, moments: Moments) -> Iterator[NumberDataPoint]:
    for text, value in family.gauges.items():
        yield NumberDataPoint(series.labels(text), 0, moments.now_ns, value)


def _spreads(family: Family, moments: Moments) -> Iterator[ExponentialHistogramDataPoint]:
    nothing = Buckets(0, [])
    for text, value in family.table.items():
        yield ExponentialHistogramDataPoint(
            attributes=series.labels(text),
            start_time_unix_nano=moments.start_ns,
            time_unix_nano=moments.now_ns,
            count=value.count,
            sum=value.nano / 1_000_000_000,
            scale=series.SCALE,
            zero_count=value.zero,
            positive=_buckets(value),
            negative=nothing,
            flags=0,
            # The smallest and the largest of a life are not known, and optional.
            min=None,  # type: ignore[arg-type]
            max=None,  # type: ignore[arg-type]
            exemplars=[_example(one)] if (one := family.exemplars.get(text)) else [],
        )


def _example(one: Exemplar) -> sdk.Exemplar:
    return sdk.Exemplar({}, one.value, one.at_us * 1000, int(one.span_id, 16), int(one.trace_id, 16))


def _buckets(value: Value) -> Buckets:
    if not value.buckets:
        return Buckets(0, [])
    # Each of them is an index that a double can have (blocks.py): whatever the store says, this is bounded.
    first, last = min(value.buckets), max(value.buckets)
    return Buckets(first, [value.buckets.get(index, 0) for index in range(first, last + 1)])
