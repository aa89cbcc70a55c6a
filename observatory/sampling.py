"""Which traces leave: a share of them, the same in every process; and those in which something went wrong, slowly or dearly."""

import threading
from collections import OrderedDict
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.sampling import AlwaysRecordSampler, ParentBasedTraceIdRatio, Sampler
from opentelemetry.trace import SpanContext, StatusCode, TraceFlags

from .names import SPAN_COST as COST

KEPT = "observatory.kept"
"""The attribute that says why a span was sent although its trace was not sampled."""
MAX_TRACES = 1000
"""Unsampled traces that wait for their end here, and as many whose end is known; of further ones the oldest is forgotten."""
MAX_SPANS = 256
"""Spans that wait per trace: the first ones."""


def sampler(ratio: float) -> Sampler:
    """Whoever began a trace decides, by its id; all others follow. Nothing is thrown away before its end is known."""
    return AlwaysRecordSampler(ParentBasedTraceIdRatio(ratio))


class Tail(SpanProcessor):
    """Sampled spans pass. Of an unsampled trace, what this process saw waits; it is sent when one of its spans fails, is slow
    or dear, and forgotten when the last one has ended well.

    slow_after: seconds. expensive_usd: dollars, by the attribute COST. out: the processor that sends.
    """

    def __init__(self, out: Any, *, slow_after: float, expensive_usd: float) -> None:
        self._out = out
        self._slow_after_ns = slow_after * 1e9
        self._expensive_usd = expensive_usd
        self._lock = threading.Lock()
        self._open: OrderedDict[int, int] = OrderedDict()
        """Spans that have begun and not ended, by trace."""
        self._waiting: dict[int, list[ReadableSpan]] = {}
        self._kept: OrderedDict[int, str] = OrderedDict()
        """Traces that are sent, and why."""
        self.forgotten = 0
        """Spans that were let go before the end of their trace was known, since too many waited."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        context = span.get_span_context()
        if context.trace_flags.sampled:
            self._out.on_start(span, parent_context)
            return
        with self._lock:
            self._open[context.trace_id] = self._open.get(context.trace_id, 0) + 1
            if len(self._open) > MAX_TRACES:
                forgotten, _ = self._open.popitem(last=False)
                self.forgotten += len(self._waiting.pop(forgotten, ()))

    def on_end(self, span: ReadableSpan) -> None:
        context = span.context
        if context is None:
            return
        if context.trace_flags.sampled:
            self._out.on_end(span)
            return
        trace_id, why = context.trace_id, self._why(span)
        with self._lock:
            left = self._open.get(trace_id, 1) - 1
            if left > 0:
                self._open[trace_id] = left
            else:
                self._open.pop(trace_id, None)
            if (known := self._kept.get(trace_id)) is None and why is not None:
                known = self._kept[trace_id] = why
                if len(self._kept) > MAX_TRACES:
                    self._kept.popitem(last=False)
            if known is not None:
                sent = [*self._waiting.pop(trace_id, ()), span]
            else:
                sent = []
                self._wait(trace_id, span, left)
        for one in sent:
            self._out.on_end(_sampled(one, known or ""))

    def _wait(self, trace_id: int, span: ReadableSpan, left: int) -> None:
        if left <= 0:
            self._waiting.pop(trace_id, None)  # it ended well
        elif len(waiting := self._waiting.setdefault(trace_id, [])) < MAX_SPANS:
            waiting.append(span)
        else:
            self.forgotten += 1

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
