"""One question, one answer: a metric, a statistic, labels to group by, matchers, a span of time."""

import asyncio
import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from itertools import chain
from typing import Any

import msgspec

from ... import names, units
from ...errors import InvalidArgument
from ...keys import WINDOW_US
from ...names import Definition, Kind
from ...store.store import Store
from ...types import Duration, Moment
from . import read, series, spoilt
from .blocks import Sampled, Value
from .matchers import Matcher, grouped_by, matchers
from .read import Found
from .span import Span

STATS = {
    "counter": ("total", "rate"),
    "gauge": ("sum", "avg", "min", "max", "last"),
    "histogram": ("count", "sum", "avg", "rate", "p50", "p95", "p99", "p99.9"),
}
AT_ONCE = 128 * 1024
"""Bytes of blocks that are read on the loop; more, and a thread does it."""
ALL_SERIES = "Leave top out for all series"
_QUANTILE = re.compile(r"p(\d{1,2}(?:\.\d{1,4})?|100)")

Group = tuple[str, ...]


class Point(msgspec.Struct, frozen=True, gc=False):
    """A value of one step, which begins at `at`."""

    at: datetime
    value: float


class Series(msgspec.Struct, frozen=True):
    """One group's answer."""

    labels: Mapping[str, str]
    value: float | None
    """None = no data, never 0; also where there are points."""
    points: tuple[Point, ...] = ()


class Result(msgspec.Struct, frozen=True):
    """The answer to a query. since, until: what it covers, whole windows around what was asked, up to now. step: seconds
    between points; None: one value per series."""

    metric: str
    stat: str
    unit: str
    since: datetime
    until: datetime
    series: tuple[Series, ...]
    step: float | None = None
    truncated: bool = False

    @property
    def value(self) -> float | None:
        """Of the one series of an ungrouped query."""
        return self.series[0].value if self.series else None


def quantile(value: Value, fraction: float) -> float | None:
    """The value below which a fraction of the recordings lies, within 1.1 %; None without recordings."""
    if value.count == 0:
        return None
    rank = max(1, -(-int(fraction * 1e6) * value.count // 1_000_000))
    if rank <= value.zero:
        return 0.0
    passed = value.zero
    for index in sorted(value.buckets):
        passed += value.buckets[index]
        if passed >= rank:
            return series.middle(index)
    return series.middle(max(value.buckets)) if value.buckets else 0.0


def _statistic(definition: Definition, stat: str, metric: str) -> Callable[[Any, float], float | None]:
    """(value, seconds) -> number. InvalidArgument lists what the metric's kind knows."""
    simple: dict[str, Callable[[Any, float], float | None]]
    if definition.kind == "histogram":
        simple = {
            "count": lambda value, _: float(value.count),
            "total": lambda value, _: float(value.count),
            "sum": lambda value, _: value.nano / 1e9,
            "avg": lambda value, _: value.nano / 1e9 / value.count if value.count else None,
            "rate": lambda value, seconds: value.count / seconds,
        }
        if stat not in simple and (found := _QUANTILE.fullmatch(stat)):
            fraction = float(found[1]) / 100
            return lambda value, _: quantile(value, fraction)
    elif definition.kind == "gauge":
        simple = {
            "total": _mean_sum,
            "sum": _mean_sum,
            "avg": lambda value, _: value.nano / 1e9 / value.samples,
            "min": lambda value, _: value.low,
            "max": lambda value, _: value.high,
            "last": lambda value, _: value.last / 1e9,
        }
    else:
        simple = {
            "total": lambda nano, _: nano / 1e9,
            "sum": lambda nano, _: nano / 1e9,
            "rate": lambda nano, seconds: nano / 1e9 / seconds,
        }
    if stat not in simple:
        known = ", ".join(STATS[definition.kind])
        raise InvalidArgument(f"stat {stat!r:.40} is not for {metric}, a {definition.kind}; it knows {known}")
    return simple[stat]


def _mean_sum(value: Sampled, seconds: float) -> float:
    """What a gauge's values added up to, as a mean over the windows that are over; where nobody had one it was 0."""
    return value.nano / 1e9 / max(seconds * 1_000_000 // WINDOW_US, 1)


class _Groups:
    """Which group a series belongs to; None: to none. Every series is looked at once."""

    def __init__(self, by: Sequence[str], fits: Matcher) -> None:
        self._by = by
        self._fits = fits
        self._known: dict[str, Group | None] = {}

    def of(self, text: str) -> Group | None:
        try:
            return self._known[text]
        except KeyError:
            labels = series.labels(text)
            group = tuple(labels.get(name, "") for name in self._by) if self._fits(labels) else None
            self._known[text] = group
            return group


async def ask(
    store: Store,
    metric: str,
    stat: str,
    *,
    by: str | Sequence[str],
    where: Mapping[str, str | Sequence[str]] | str,
    since: Moment,
    until: Moment,
    step: Duration | None,
    top: int | None,
) -> Result:
    """See Metrics.query."""
    metric = str(names.metric_name(metric))
    by = grouped_by(by)
    if not isinstance(stat, str):
        raise InvalidArgument(f"stat must be a text, got {units.shown(stat)}", remedy='Write "total", or "p95" of a histogram')
    fits = matchers(where)
    if top is not None and (isinstance(top, bool) or not isinstance(top, int) or top < 1):
        raise InvalidArgument(f"top must be a whole number above 0, got {units.shown(top, 40)}", remedy=ALL_SERIES)
    span = Span.of(since, until, step, store.server_us() or 0)
    groups = _Groups(by, fits)

    definition = await _definition(store, metric)
    number = _statistic(definition, stat, metric)
    if definition.kind == "gauge" and step is None:
        gauges = await read.gauges(store)
        found = _of_gauges(gauges.get(metric, {}), stat, by, groups)
    else:
        told = await read.found(store, metric, definition.kind, span)
        compute = partial(_of_windows, told, definition.kind, number, by, groups, span)
        # Millions of numbers must not keep the loop from its other work.
        large = sum(len(one.block) for one in told) > AT_ONCE
        found = await asyncio.to_thread(compute) if large else compute()
    ordered = sorted(found, key=lambda one: (-_size(one), tuple(one.labels.items())))
    return Result(
        metric=metric,
        stat=stat,
        unit=definition.unit,
        since=units.moment(span.since_us),
        until=units.moment(span.until_us),
        series=tuple(ordered[:top]),
        step=None if span.step_us is None else span.step_us / 1e6,
        truncated=top is not None and len(ordered) > top,
    )


async def added(store: Store, metric: str, by: Sequence[str], fits: Matcher, span: Span) -> dict[int, dict[Group, Any]]:
    """What a span has of a metric of ours, to the last unit: by the start of the step, and by group. Of a counter it is
    billionths, of a histogram a Value. A group is the values of `by`, "" where a series has no such label."""
    kind = names.OURS[metric].kind
    told = await read.found(store, metric, kind, span)
    compute = partial(_steps, told, kind, _Groups(by, fits), span)
    large = sum(len(one.block) for one in told) > AT_ONCE
    return await asyncio.to_thread(compute) if large else compute()


def _size(one: Series) -> float:
    """What the largest are found by: the value, or the mean of the points."""
    if one.points:
        return sum(point.value for point in one.points) / len(one.points)
    return one.value or 0.0


async def _definition(store: Store, metric: str) -> Definition:
    known = await read.definitions(store)
    definition = known.get(metric) or names.OURS.get(metric)
    if definition is None and metric not in (gauges := await read.gauges(store)):
        close = difflib.get_close_matches(metric, {*known, *gauges, *names.OURS}, n=1)
        raise InvalidArgument(
            f"no metric named {metric!r:.130} was ever recorded", remedy=f'Did you mean "{close[0]}"?' if close else None
        )
    return definition or Definition("gauge")


def _count(into: dict[Group, Any], group: Group, row: Sequence[Any]) -> None:
    # A counter is one number: there are thousands in an answer, and nothing else to keep of them.
    into[group] = into.get(group, 0) + row[0] * units.NANO + row[1]


def _take(make: type[Value] | type[Sampled]) -> Callable[[dict[Group, Any], Group, list[Any]], None]:
    def add(into: dict[Group, Any], group: Group, row: list[Any]) -> None:
        value = into.get(group)
        if value is None:
            value = make()
        value.take(row)
        into[group] = value

    return add


_ADDED: dict[Kind, Callable[[dict[Group, Any], Group, list[Any]], None]] = {
    "counter": _count,
    "gauge": _take(Sampled),
    "histogram": _take(Value),
}
"""How a row of a block becomes part of its group."""


def _steps(told: Iterable[Found], kind: Kind, groups: _Groups, span: Span) -> dict[int, dict[Group, Any]]:
    """By the start of the step, and by group."""
    add = _ADDED[kind]
    steps: dict[int, dict[Group, Any]] = {}
    for start_us, found in chain.from_iterable(one.tables() for one in told):
        into = steps.setdefault(span.step_at(start_us), {})
        for text, row in found.items():
            group = groups.of(text)
            if group is not None:
                try:
                    add(into, group, row)
                except (ValueError, IndexError):
                    spoilt.tell(f"a row of the series {text!r:.80}")
    return steps


def _of_windows(
    told: Iterable[Found],
    kind: Kind,
    number: Callable[[Any, float], float | None],
    by: Sequence[str],
    groups: _Groups,
    span: Span,
) -> list[Series]:
    steps = _steps(told, kind, groups, span)
    ordered = [(units.moment(at), span.covered(at), table) for at, table in sorted(steps.items())]
    answers = []
    for group in sorted({group for table in steps.values() for group in table}) or ([] if by else [()]):
        labels = {name: value for name, value in zip(by, group, strict=True) if value}
        values = [(moment, number(table[group], seconds)) for moment, seconds, table in ordered if group in table]
        if span.step_us is None:
            answers.append(Series(labels, values[0][1] if values else None))
        else:
            answers.append(Series(labels, None, tuple(Point(moment, value) for moment, value in values if value is not None)))
    return answers


def _of_gauges(found: dict[str, list[float]], stat: str, by: Sequence[str], groups: _Groups) -> Iterable[Series]:
    """Over the live processes, now."""
    over: dict[str, Callable[[list[float]], float]] = {
        "total": sum,
        "last": sum,
        "sum": sum,
        "avg": lambda values: sum(values) / len(values),
        "min": min,
        "max": max,
    }
    together: dict[Group, list[float]] = {}
    for text, values in found.items():
        group = groups.of(text)
        if group is not None:
            together.setdefault(group, []).extend(values)
    if not together and not by:
        return [Series({}, None)]
    return [
        Series({name: value for name, value in zip(by, group, strict=True) if value}, over[stat](values))
        for group, values in together.items()
    ]
