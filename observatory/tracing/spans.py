"""OpenTelemetry spans with W3C context in and out. The SDK is loaded only when a span is asked for."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from traceback import format_exception
from typing import Any, Literal

import msgspec
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer

from .. import dimensions, otlp
from ..errors import InvalidArgument
from ..names import SPAN_COST as COST
from ..redaction import Redactor
from ..settings.table import TracingSettings
from ..types import Amount

Kind = Literal["internal", "server", "client", "producer", "consumer"]


def ids() -> dict[str, str]:
    """trace_id and span_id of the current span, or nothing."""
    current = trace.get_current_span().get_span_context()
    if not current.is_valid:
        return {}
    return {"trace_id": f"{current.trace_id:032x}", "span_id": f"{current.span_id:016x}"}


def sampled() -> tuple[str, str] | None:
    """trace_id and span_id of the current span, if its trace is sent."""
    current = trace.get_current_span().get_span_context()
    if not (current.is_valid and current.trace_flags.sampled):
        return None
    return f"{current.trace_id:032x}", f"{current.span_id:016x}"


def trace_id(span: Span | None) -> str | None:
    """Of a span; None where there is none."""
    if span is None:
        return None
    about = span.get_span_context()
    return f"{about.trace_id:032x}" if about.is_valid else None


class Tracing:
    """Spans of one service. Uses the global tracer provider where the application has set one, else one of its own.

    sample_ratio, slow_after, expensive_usd: as in the settings; of our own provider. redactor: for the texts of exceptions.
    """

    def __init__(
        self,
        service: str,
        instance: str,
        *,
        sample_ratio: float = 1.0,
        slow_after: float = 10.0,
        expensive_usd: float = 1.0,
        redactor: Redactor | None = None,
    ) -> None:
        self._service = service
        self._instance = instance
        self._sample_ratio = sample_ratio
        self._slow_after = slow_after
        self._expensive_usd = expensive_usd
        self._redactor = redactor or Redactor()
        self._tracer: Tracer | None = None
        self._provider: Any = None
        self.tail: Any = None
        """What waits of unsampled traces, where spans are sent by us."""

    @classmethod
    def of(cls, service: str, instance: str, kept: TracingSettings, redactor: Redactor) -> "Tracing":
        """As the settings say."""
        return cls(
            service,
            instance,
            sample_ratio=kept.sample_ratio,
            slow_after=kept.slow_after,
            expensive_usd=kept.expensive_usd,
            redactor=redactor,
        )

    def inject(self, headers: dict[str, str]) -> dict[str, str]:
        """Adds traceparent, tracestate and baggage (the bound dimensions) to the headers, and returns them."""
        carried = context.get_current()
        for name, value in dimensions.current().items():
            carried = baggage.set_baggage(name, value, carried)
        propagate.inject(headers, carried)
        return headers

    def carried(self, headers: Mapping[str, str]) -> dict[str, str]:
        """The dimensions that came with headers, as `inject` sends them. Bind them where the sender is trusted."""
        found = {}
        for name, value in baggage.get_all(propagate.extract(_lower(headers), context.Context())).items():
            with contextlib.suppress(InvalidArgument):
                found.update(dimensions.checked({name: value}))
        return dict(list(found.items())[: dimensions.MAX_DIMENSIONS])

    @staticmethod
    def current() -> Span | None:
        """The current span; None outside of one."""
        span = trace.get_current_span()
        return None if span is trace.INVALID_SPAN else span

    @staticmethod
    def spent(span: Span, cost_usd: Amount) -> None:
        """A span cost this much more."""
        if cost_usd and span.is_recording():
            before = (getattr(span, "attributes", None) or {}).get(COST, 0.0)
            span.set_attribute(COST, before + float(cost_usd))

    @property
    def trace_id(self) -> str | None:
        """Of the current span; None outside of one."""
        return trace_id(self.current())

    @contextmanager
    def span(
        self,
        name: str,
        attributes: Mapping[str, Any] | None = None,
        *,
        kind: Kind = "internal",
        parent: Mapping[str, str] | None = None,
    ) -> Iterator[Span]:
        """parent: headers with a traceparent, whose baggage goes on with what is sent from inside; None: the current span."""
        said = {**dimensions.current(), **(attributes or {})}
        token = context.attach(propagate.extract(_lower(parent))) if parent is not None else None
        try:
            # Exceptions are noted here, redacted.
            with (
                self._get().start_as_current_span(
                    name,
                    kind=SpanKind[kind.upper()],
                    attributes=said,
                    record_exception=False,
                    set_status_on_exception=False,
                ) as span,
                self.noting(span),
            ):
                yield span
        finally:
            if token is not None:
                context.detach(token)

    def started(
        self, name: str, attributes: Mapping[str, Any] | None = None, *, kind: Kind = "internal", ago: float = 0.0
    ) -> Span:
        """A span that somebody else makes the current one, and ends. ago: seconds since it began."""
        said = {**dimensions.current(), **(attributes or {})}
        began_ns = time.time_ns() - int(ago * 1e9) if ago else None
        return self._get().start_span(name, kind=SpanKind[kind.upper()], attributes=said, start_time=began_ns)

    def content(self, span: Span, attribute: str, plain: Any) -> None:
        """What was asked or answered, redacted, as JSON."""
        if span.is_recording():
            span.set_attribute(attribute, msgspec.json.encode(self._redactor.deep(plain)).decode())

    @contextmanager
    def noting(self, span: Span) -> Iterator[None]:
        """An exception that passes is the span's: its type, text and traceback, redacted; and that it failed."""
        try:
            yield
        except Exception as error:
            self.noted(span, error)
            raise

    def noted(self, span: Span, error: Exception) -> None:
        """This is why a span failed."""
        with contextlib.suppress(Exception):  # of one that cannot be shown
            self._note(span, error)

    def _note(self, span: Span, error: Exception) -> None:
        if not span.is_recording():
            return
        clean = self._redactor
        message = clean.text(_shown(error))
        stacktrace = clean.traceback("".join(format_exception(error)))
        span.record_exception(error, {"exception.message": message, "exception.stacktrace": stacktrace})
        span.set_status(StatusCode.ERROR, f"{type(error).__name__}: {message}")

    @contextmanager
    def serving(self, name: str, headers: Mapping[str, str], attributes: Mapping[str, Any]) -> Iterator[Span | None]:
        """A request that came in, with the sender's headers: a server span in their trace.

        None is made where nobody takes spans, or an instrumentation around us has begun one; lines carry the ids all the same.
        """
        if trace.get_current_span().get_span_context().is_valid:
            yield None
        elif type(trace.get_tracer_provider()).__name__ != "ProxyTracerProvider" or otlp.endpoint("traces"):
            with self.span(name, attributes, kind="server", parent=headers) as span:
                yield span
        elif headers:
            token = context.attach(propagate.extract(_lower(headers)))
            try:
                yield None
            finally:
                context.detach(token)
        else:
            yield None

    def _get(self) -> Tracer:
        if self._tracer is None:
            provider = trace.get_tracer_provider()
            if type(provider).__name__ == "ProxyTracerProvider":
                provider = self._own()
            self._tracer = provider.get_tracer("observatory")
        return self._tracer

    def _own(self) -> trace.TracerProvider:
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        from .sampling import Tail, sampler

        provider = TracerProvider(
            shutdown_on_exit=False,  # closed by us, within a bound
            sampler=sampler(self._sample_ratio),
            resource=otlp.resource(self._service, self._instance),
        )
        if exporter := otlp.exporter("traces"):
            out = BatchSpanProcessor(exporter)
            self.tail = Tail(out, slow_after=self._slow_after, expensive_usd=self._expensive_usd)
            provider.add_span_processor(self.tail)
        self._provider = provider
        return provider

    async def aclose(self, timeout: float) -> None:
        """Send what is buffered and stop, within `timeout` seconds."""
        provider, self._provider, self._tracer, self.tail = self._provider, None, None, None
        if provider is not None:
            await otlp.close(provider, timeout)

    def forget(self, instance: str) -> None:
        """A forked child is another instance; the exporter's thread did not come along."""
        self._instance = instance
        self._provider = self._tracer = self.tail = None


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    """Names of headers are the same in any case."""
    return {name.lower(): value for name, value in headers.items()}


def _shown(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # an exception of somebody's
        return "<it cannot be shown>"
