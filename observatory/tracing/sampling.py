"""Which traces leave: a share of them, the same in every process; and those in which something went wrong, slowly or dearly."""

import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.sampling import Decision, ParentBasedTraceIdRatio, Sampler, SamplingResult
from opentelemetry.trace import SpanContext, StatusCode, TraceFlags

from ..clock import monotonic
from ..names import SPAN_COST as COST

KEPT = "observatory.kept"
"""The attribute that says why a span was sent although its trace was not sampled."""
MAX_TRACES = 1000
"""Unsampled traces that are looked after, and as many whose end is known; of further ones the oldest is forgotten."""
MAX_SPANS = 256
"""Spans that wait per trace: the first ones."""
MAX_WAITING = 20_000
"""Spans that wait in all; beyond, the oldest trace is forgotten."""
WAITS_FOR = 60.0
"""Seconds after its last span here that a trace waits for what others tell of it."""


class _Recorded(Sampler):
    """What another sampler would drop is recorded, and not marked as sampled."""

    def __init__(self, decides: Sampler) -> None:
        self._decides = decides

    def should_sample(
        self,
        parent_context: Any,
        trace_id: int,
        name: str,
        kind: Any = None,
        attributes: Any = None,
        links: Any = None,
        trace_state: Any = None,
    ) -> SamplingResult:
        found = self._decides.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)
        if found.decision is not Decision.DROP:
            return found
        return SamplingResult(Decision.RECORD_ONLY, attributes, found.trace_state)

    def get_description(self) -> str:
        return f"Recorded{{{self._decides.get_description()}}}"


def sampler(ratio: float) -> Sampler:
    """Whoever began a trace decides, by its id; all others follow. Nothing is thrown away before its end is known."""
    return _Recorded(ParentBasedTraceIdRatio(ratio))


class _Trace:
    """What this process saw of an unsampled trace."""

    __slots__ = ("ended_at", "open", "spans")

    def __init__(self) -> None:
        self.open = 0
        """Spans that have begun and not ended."""
        self.spans: list[ReadableSpan] = []
        self.ended_at = 0.0


class Tail(SpanProcessor):
    """Sampled spans pass. Of an unsampled trace, what this process saw waits. It is sent when one of its spans fails, is slow
    or dear, here or, as far as others are heard of, elsewhere; it is forgotten when all has ended well.

    slow_after: seconds. expensive_usd: dollars, by the attribute COST. out: the processor that sends.
    """

    def __init__(self, out: Any, *, slow_after: float, expensive_usd: float) -> None:
        self._out = out
        self._slow_after_ns = slow_after * 1e9
        self._expensive_usd = expensive_usd
        self._lock = threading.Lock()
        self._traces: OrderedDict[int, _Trace] = OrderedDict()
        """By when this process first saw them."""
        self._waiting = 0
        self._kept: OrderedDict[int, str] = OrderedDict()
        """Traces that are sent, and why."""
        self._untold: OrderedDict[int, None] = OrderedDict()
        self._hears = False
        """Whether somebody tells what others send. Otherwise nothing waits beyond its last span here."""
        self.forgotten = 0
        """Spans that were let go before the end of their trace was known, since too many waited."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        context = span.get_span_context()
        if context.trace_flags.sampled:
            self._out.on_start(span, parent_context)
            return
        with self._lock:
            self._traces.setdefault(context.trace_id, _Trace()).open += 1
            while len(self._traces) > MAX_TRACES:
                self.forgotten += len(self._forget(next(iter(self._traces))))

    def on_end(self, span: ReadableSpan) -> None:
        context = span.context
        if context is None:
            return
        if context.trace_flags.sampled:
            self._out.on_end(span)
            return
        why = self._why(span)
        with self._lock:
            sent, known = self._ended(context.trace_id, span, why)
        for one in sent:
            self._out.on_end(_sampled(one, known))

    def _ended(self, trace_id: int, span: ReadableSpan, why: str | None) -> tuple[list[ReadableSpan], str]:
        trace = self._traces.get(trace_id)
        if trace is not None:
            trace.open -= 1
        known = self._kept.get(trace_id)
        if known is None and why is not None:
            known = why
            self._keep(trace_id, why)
            self._untold[trace_id] = None
            if len(self._untold) > MAX_TRACES:
                self._untold.popitem(last=False)
        if known is not None:
            waiting = self._drain(trace_id)
            if trace is not None and trace.open <= 0:
                self._forget(trace_id)
            return [*waiting, span], known
        if trace is not None:
            self._wait(trace_id, trace, span)
        return [], ""

    def _wait(self, trace_id: int, trace: _Trace, span: ReadableSpan) -> None:
        now = monotonic()
        if trace.open <= 0 and not self._hears:
            self._forget(trace_id)  # it ended well
            return
        trace.ended_at = now
        if len(trace.spans) < MAX_SPANS:
            trace.spans.append(span)
            self._waiting += 1
        else:
            self.forgotten += 1
        while self._traces:
            oldest, first = next(iter(self._traces.items()))
            late = first.open <= 0 and first.ended_at < now - WAITS_FOR
            if not late and self._waiting <= MAX_WAITING:
                break
            spans = self._forget(oldest)
            self.forgotten += 0 if late else len(spans)

    def _keep(self, trace_id: int, why: str) -> None:
        self._kept[trace_id] = why
        if len(self._kept) > MAX_TRACES:
            self._kept.popitem(last=False)

    def _drain(self, trace_id: int) -> list[ReadableSpan]:
        trace = self._traces.get(trace_id)
        if trace is None:
            return []
        spans, trace.spans = trace.spans, []
        self._waiting -= len(spans)
        return spans

    def _forget(self, trace_id: int) -> list[ReadableSpan]:
        spans = self._drain(trace_id)
        self._traces.pop(trace_id, None)
        return spans

    # what the fleet is told, and tells
    @property
    def concerned(self) -> bool:
        """Whether anything waits, or is to be told."""
        return bool(self._waiting or self._untold)

    def listen(self) -> None:
        """From now on somebody tells what others send."""
        self._hears = True

    def told(self) -> list[str]:
        """Traces that are sent from here and that nobody was told of yet."""
        with self._lock:
            traces, self._untold = self._untold, OrderedDict()
        return [f"{trace_id:032x}" for trace_id in traces]

    def untold(self, traces: Iterable[str]) -> None:
        """They could not be told."""
        with self._lock:
            for one in traces:
                self._untold[int(one, 16)] = None

    def heard(self, traces: Iterable[str]) -> None:
        """Others send these: what waits of them here is sent too, and what comes of them later."""
        sent: list[ReadableSpan] = []
        with self._lock:
            for one in traces:
                trace_id = int(one, 16)
                if trace_id not in self._kept:
                    self._keep(trace_id, "elsewhere")
                    sent += self._drain(trace_id)
        for span in sent:
            self._out.on_end(_sampled(span, "elsewhere"))

    def _why(self, span: ReadableSpan) -> str | None:
        if span.status.status_code is StatusCode.ERROR:
            return "error"
        if span.start_time is not None and span.end_time is not None and span.end_time - span.start_time >= self._slow_after_ns:
            return "slow"
        cost = (span.attributes or {}).get(COST)
        return "expensive" if isinstance(cost, int | float) and cost >= self._expensive_usd else None

    def shutdown(self) -> None:
        self._out.shutdown()

    def force_flush(self, timeout_millis: int | None = None) -> bool:
        return bool(self._out.force_flush(timeout_millis))


def _sampled(span: ReadableSpan, why: str) -> ReadableSpan:
    """The same span as one that a backend takes, and that says why it came."""
    context = span.context
    if context is None:
        return span
    flags = TraceFlags(context.trace_flags | TraceFlags.SAMPLED)
    return ReadableSpan(
        name=span.name,
        context=SpanContext(context.trace_id, context.span_id, context.is_remote, flags, context.trace_state),
        parent=span.parent,
        resource=span.resource,
        attributes={**(span.attributes or {}), KEPT: why},
        events=span.events,
        links=span.links,
        kind=span.kind,
        status=span.status,
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )
