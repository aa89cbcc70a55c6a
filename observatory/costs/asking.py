"""From a question about costs to the span that answers it and the numbers of each group, to the last unit."""

import asyncio
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .. import names, units
from ..errors import InvalidArgument
from ..features.metrics import query
from ..features.metrics.matchers import grouped_by, matchers, named
from ..features.metrics.span import Span
from ..names import OVERFLOW, Metric
from ..store.store import Store
from ..types import Moment
from .periods import period

Where = Mapping[str, str | Sequence[str]] | str
Group = tuple[str, ...]
OWN = ("provider", "model")
"""Labels that every call has; the others are `metrics.dimensions`."""


def span_of(
    since: Moment | None, until: Moment | None, name: str | None, timezone: str, now_us: int, *, step: float | None = None
) -> Span:
    """What is answered for. A period is answered for exactly, or refused; since and until are rounded to what is kept."""
    if name is None:
        if timezone != "UTC":
            raise InvalidArgument("timezone is of a period", remedy='Write since and until with their offset, or period="…"')
        return Span.of("7d" if since is None else since, "now" if until is None else until, step, now_us)
    if since is not None or until is not None:
        raise InvalidArgument("period stands in place of since and until", remedy="Leave them out, or the period")
    begins, length = period(name, timezone, now_us)
    ends = min(begins + length, now_us)
    found = Span.of(units.moment(begins), units.moment(ends), step, now_us)
    if found.since_us != begins or found.until_us != ends:
        raise InvalidArgument(
            f"period {name} begins at {units.moment(begins):%Y-%m-%dT%H:%M}Z and ends at {units.moment(ends):%Y-%m-%dT%H:%M}Z: "
            "of so long ago nothing so fine is kept",
            remedy='Ask in timezone="UTC", or with since and until, which are rounded to what is kept (and say to what)',
        )
    return found


class Numbers:
    """What one group has of each metric."""

    __slots__ = ("calls", "estimated", "input", "latency", "nano", "output", "unpriced", "untyped")

    def __init__(self) -> None:
        self.calls = self.input = self.output = self.untyped = self.nano = self.unpriced = self.estimated = 0
        self.latency: Any = None

    def add(self, other: "Numbers") -> None:
        """Of counters; latencies are of one group each."""
        for field in ("calls", "input", "output", "untyped", "nano", "unpriced", "estimated"):
            setattr(self, field, getattr(self, field) + getattr(other, field))


class Found(NamedTuple):
    """By step and group. folded: the same of series that were too many. strange: labels of the question that the settings
    here do not know, where nothing was seen that could have carried them."""

    groups: dict[int, dict[Group, Numbers]]
    folded: Numbers
    strange: tuple[str, ...]


async def ask(
    store: Store, span: Span, by: Sequence[str] | str, where: Where, dimensions: Sequence[str], *, latency: bool = False
) -> tuple[tuple[str, ...], Found]:
    """The labels, and the numbers. InvalidArgument names a label that calls do not carry."""
    by = grouped_by(by)
    wanted, fits = {"by": by, "where": named(where)}, matchers(where)
    seen: set[str] = set()

    def those(labels: Mapping[str, str]) -> bool:
        seen.update(labels)
        return OVERFLOW in labels or fits(labels)

    asked: dict[str, str] = {
        Metric.REQUESTS_TOTAL: "status",
        Metric.TOKENS_PROCESSED: "type",
        Metric.TOTAL_COST_USD: "",
        names.UNPRICED_CALLS: "",
        names.ESTIMATED_CALLS: "",
        **({Metric.REQUEST_LATENCY: ""} if latency else {}),
    }
    told = await asyncio.gather(
        *(query.added(store, metric, (*by, OVERFLOW, kind or "provider"), those, span) for metric, kind in asked.items())
    )
    found = Found({}, Numbers(), _strange(wanted, seen, dimensions))
    for metric, steps in zip(asked, told, strict=True):
        for at, table in steps.items():
            for (*group, folded, kind), value in table.items():
                into = found.folded if folded else found.groups.setdefault(at, {}).setdefault(tuple(group), Numbers())
                _count(into, metric, kind, value)
    return by, found


def _strange(wanted: Mapping[str, Sequence[str]], seen: set[str], dimensions: Sequence[str]) -> tuple[str, ...]:
    """Labels that nobody knows. InvalidArgument, unless nothing was seen: then it may be that they are only known elsewhere."""
    known, strange = (*OWN, *(name for name in dimensions if name not in OWN)), dict[str, None]()
    for field, name in ((field, name) for field, names_ in wanted.items() for name in names_):
        if name not in ("status", "type"):
            if name in known or name in seen:
                continue
            if not seen:
                strange[name] = None
                continue
        near = difflib.get_close_matches(name, known, n=1)
        guess = f'Did you mean "{near[0]}"? ' if near else ""
        raise InvalidArgument(
            f"{field}: {name!r:.70} is no label of costs: calls carry {', '.join(known)}",
            remedy=f'{guess}[metrics] dimensions = ["{name:.64}"] makes what is bound a label, from then on',
        )
    return tuple(strange)


def _count(into: Numbers, metric: str, kind: str, value: Any) -> None:
    match metric:
        case Metric.REQUEST_LATENCY:
            if into.latency is None:
                into.latency = type(value)()
            into.latency.merge(value)
        case Metric.REQUESTS_TOTAL:
            # What was folded has no status and no type any more.
            into.calls += value // units.NANO if kind != "refused" else 0
        case Metric.TOKENS_PROCESSED:
            if kind == "output":
                into.output += value // units.NANO
            elif kind == "input":
                into.input += value // units.NANO
            else:
                into.untyped += value // units.NANO
        case Metric.TOTAL_COST_USD:
            into.nano += value
        case names.UNPRICED_CALLS:
            into.unpriced += value // units.NANO
        case _:
            into.estimated += value // units.NANO
