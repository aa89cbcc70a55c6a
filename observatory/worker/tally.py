"""What many events add up to: counted in plain numbers per kind of call, and spelled as fields once for all of them.

A recorder spells labels for every value, since its values come one at a time; a worker has thousands in hand. What is added is
the same as `llm.call.measure` would add for each (tests/worker/test_tally.py holds the two together).
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from .. import names, units
from ..features.metrics import series
from ..features.metrics.waiting import Group
from ..names import OURS, Metric

Text = Annotated[str, Meta(min_length=1, max_length=256)]
Seconds = Annotated[float, Meta(ge=0, le=4_503_599_627.0)]
Tokens = Annotated[int, Meta(ge=0, le=units.MAX_EXACT)]


class Used(msgspec.Struct, frozen=True):
    """Of a call's usage, what the metrics take; the bounds are those of `llm.call.Usage`."""

    input_tokens: Tokens = 0
    output_tokens: Tokens = 0
    cache_read_input_tokens: Tokens = 0
    cache_write_input_tokens: Tokens = 0
    reasoning_output_tokens: Tokens = 0
    audio_input_tokens: Tokens = 0
    audio_output_tokens: Tokens = 0


class Call(msgspec.Struct, frozen=True):
    """A call as it lies on the stream, checked while it is decoded; the bounds are those of `llm.call.CallData`."""

    provider: Text
    model: Text
    operation: Text = "chat"
    latency: Seconds | None = None
    time_to_first_token: Seconds | None = None
    usage: Used | None = None
    cost_usd: Decimal | None = None
    status: Literal["success", "error", "refused"] = "success"
    error: str | None = None


class _Spread:
    """A histogram on its way: exact sum, count, and buckets (series.py)."""

    __slots__ = ("buckets", "count", "nano", "zero")

    def __init__(self) -> None:
        self.count = self.nano = self.zero = 0
        self.buckets: dict[int, int] = {}

    def add(self, value: float) -> None:
        nano = units.nano(value)
        self.count += 1
        self.nano += nano
        if nano == 0:
            self.zero += 1
            return
        index = series.bucket(value)
        self.buckets[index] = self.buckets.get(index, 0) + 1


class _Alike:
    """Calls that differ in numbers only."""

    __slots__ = ("count", "first_token", "latency", "nano", "priced", "read", "texts", "unpriced", "written")

    def __init__(self, base: Mapping[str, str], status: str, error: str | None) -> None:
        self.texts = {Metric.REQUESTS_TOTAL: series.text({**base, "status": status})}
        if status == "error":
            self.texts[Metric.ERRORS_TOTAL] = series.text({"code": (error or "unknown")[:200], "module": "llm"})
        self.texts[Metric.REQUEST_LATENCY] = series.text(base)
        self.count = self.read = self.written = self.nano = self.priced = self.unpriced = 0
        self.latency = _Spread()
        self.first_token = _Spread()


class Tally:
    """What the events of one window add up to. max_series: of a metric; further ones fold into one, and are counted."""

    def __init__(self, labels: tuple[str, ...], max_series: int) -> None:
        self._labels = labels
        self._max_series = max_series
        self._calls: dict[tuple[str | None, ...], _Alike] = {}
        self._types: dict[str, int] = {}
        self._type_texts: dict[str, str] = {}
        self._sums: dict[str, dict[str, int]] = {}
        self._known: dict[str, set[str]] = {}

    def call(self, call: Call, dimensions: Mapping[str, str]) -> None:
        """One call. InvalidArgument: nothing was added."""
        status, usage = call.status, call.usage
        nano = None if call.cost_usd is None else units.units(call.cost_usd, "usd", "cost_usd")
        error = call.error if status == "error" else None
        key = (call.provider, call.model, status, error, *[dimensions.get(name) for name in self._labels])
        alike = self._calls.get(key)
        if alike is None:
            base = {"provider": call.provider, "model": call.model}
            base.update((name, dimensions[name]) for name in self._labels if name in dimensions)
            alike = self._calls[key] = _Alike(base, status, error)
        alike.count += 1
        if status == "refused":
            return
        if call.latency is not None:
            alike.latency.add(call.latency)
        if call.time_to_first_token is not None:
            alike.first_token.add(call.time_to_first_token)
        if usage is not None:
            alike.read += usage.input_tokens
            alike.written += usage.output_tokens
        if nano is not None:
            alike.nano += nano
            alike.priced += 1
        elif usage is not None:
            alike.unpriced += 1

    def event(self, kind: str) -> None:
        """One event, of whatever type. InvalidArgument: the type is none."""
        count = self._types.get(kind)
        if count is None:
            self._type_texts[kind] = series.text({"type": kind})
            count = 0
        self._types[kind] = count + 1

    def groups(self) -> list[Group]:
        """All of it, as fields to be added to. Asked once."""
        for kind, count in self._types.items():
            self._count(names.EVENTS_APPLIED, self._type_texts[kind], count)
        for alike in self._calls.values():
            base = alike.texts[Metric.REQUEST_LATENCY]
            for metric in (Metric.REQUESTS_TOTAL, Metric.ERRORS_TOTAL):
                if metric in alike.texts:
                    self._count(metric, alike.texts[metric], alike.count)
            self._spread(Metric.REQUEST_LATENCY, base, alike.latency)
            self._spread(names.FIRST_TOKEN, base, alike.first_token)
            for kind, tokens in (("input", alike.read), ("output", alike.written)):
                if tokens:
                    text = series.text({**series.labels(base), "type": kind})
                    self._count(Metric.TOKENS_PROCESSED, text, tokens, alike.count)
            if alike.nano:
                self._money(base, alike)
            if alike.unpriced:
                self._count(names.UNPRICED_CALLS, base, alike.unpriced)
        return [Group(metric, OURS[metric], list(fields.items())) for metric, fields in self._sums.items()]

    def _place(self, metric: str, text: str, times: int) -> tuple[dict[str, int], str]:
        """Where a series' fields are, and what it is called there."""
        known = self._known.setdefault(metric, set())
        if text not in known:
            if len(known) >= self._max_series:
                text = series.text({names.OVERFLOW: "true"})
                self._count(names.SERIES_FOLDED, series.text({"metric": metric}), times)
            else:
                known.add(text)
        return self._sums.setdefault(metric, {}), text

    def _count(self, metric: str, text: str, number: int, times: int | None = None) -> None:
        fields, text = self._place(metric, text, number if times is None else times)
        fields[f"w|{text}"] = fields.get(f"w|{text}", 0) + number

    def _money(self, text: str, alike: _Alike) -> None:
        fields, text = self._place(Metric.TOTAL_COST_USD, text, alike.priced)
        for part, number in zip("wn", divmod(alike.nano, units.NANO), strict=True):
            if number:
                fields[f"{part}|{text}"] = fields.get(f"{part}|{text}", 0) + number

    def _spread(self, metric: str, text: str, spread: _Spread) -> None:
        if not spread.count:
            return
        fields, text = self._place(metric, text, spread.count)
        whole, nano = divmod(spread.nano, units.NANO)
        parts = [("c", spread.count), ("z", spread.zero), ("s", whole), ("t", nano)]
        parts += [(f"b{index}", count) for index, count in spread.buckets.items()]
        for part, number in parts:
            if number:
                fields[f"{part}|{text}"] = fields.get(f"{part}|{text}", 0) + number
