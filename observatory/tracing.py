"""OpenTelemetry spans with W3C context in and out. The SDK is loaded only when a span is asked for."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from opentelemetry import baggage, context, propagate, trace
from opentelemetry.trace import Span, SpanKind, Tracer

from . import dimensions

Kind = Literal["internal", "server", "client", "producer", "consumer"]


def ids() -> dict[str, str]:
    """trace_id and span_id of the current span, or nothing."""
    current = trace.get_current_span().get_span_context()
    if not current.is_valid:
        return {}
    return {"trace_id": f"{current.trace_id:032x}", "span_id": f"{current.span_id:016x}"}


class Tracing:
    """Spans of one service. Uses the global tracer provider where the application has set one, else one of its own."""

    def __init__(self, service: str, instance: str, sample_ratio: float) -> None:
        self._service = service
        self._instance = instance
        self._sample_ratio = sample_ratio
        self._tracer: Tracer | None = None
        self._provider: Any = None

    def inject(self, headers: dict[str, str]) -> dict[str, str]:
        """Adds traceparent, tracestate and baggage (the bound dimensions) to the headers, and returns them."""
        carried = context.get_current()
        for name, value in dimensions.current().items():
            carried = baggage.set_baggage(name, value, carried)
        propagate.inject(headers, carried)
        return headers

    @property
    def trace_id(self) -> str | None:
        """Of the current span; None outside of one."""
        current = trace.get_current_span().get_span_context()
        return f"{current.trace_id:032x}" if current.is_valid else None

    @contextmanager
    def span(
        self,
        name: str,
        attributes: Mapping[str, Any] | None = None,
        *,
        kind: Kind = "internal",
        parent: Mapping[str, str] | None,
    ) -> Iterator[Span]:
        """parent: headers with a traceparent; None: the current span."""
        came_with = propagate.extract(dict(parent)) if parent is not None else None
        said = {**dimensions.current(), **(attributes or {})}
        with self._get().start_as_current_span(name, context=came_with, kind=SpanKind[kind.upper()], attributes=said) as span:
            yield span

    @contextmanager
    def serving(self, name: str, headers: Mapping[str, str], attributes: Mapping[str, Any]) -> Iterator[Span | None]:
        """A request that came in, with the sender's headers: a server span in their trace.

        None is made where nobody takes spans, or an instrumentation around us has begun one; lines carry the ids all the same.
        """
        if trace.get_current_span().get_span_context().is_valid:
            yield None
        elif type(trace.get_tracer_provider()).__name__ != "ProxyTracerProvider" or _endpoint():
            with self.span(name, attributes, kind="server", parent=headers) as span:
                yield span
        elif headers:
            token = context.attach(propagate.extract(dict(headers)))
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
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

        provider = TracerProvider(
            shutdown_on_exit=False,  # closed by us, within a bound
            sampler=ParentBasedTraceIdRatio(self._sample_ratio),
            resource=Resource.create({"service.name": self._service, "service.instance.id": self._instance}),
        )
        if exporter := _exporter():
            from opentelemetry.sdk.trace.export import BatchSpanProcessor

            provider.add_span_processor(BatchSpanProcessor(exporter))
        self._provider = provider
        return provider

    async def aclose(self, timeout: float) -> None:
        """Send what is buffered and stop, within `timeout` seconds: an exporter blocks for as long as its backend is silent."""
        provider, self._provider, self._tracer = self._provider, None, None
        if provider is None:
            return
        loop, closed = asyncio.get_running_loop(), asyncio.Event()

        def close() -> None:
            with contextlib.suppress(Exception):
                provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop did not wait that long
                loop.call_soon_threadsafe(closed.set)

        # A daemon, since a pool's thread would keep the process from ending.
        threading.Thread(target=close, daemon=True, name="observatory tracing").start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await closed.wait()

    def forget(self) -> None:
        """A forked child: the exporter's thread did not come along."""
        self._provider = self._tracer = None


def _endpoint() -> str | None:
    """Where the standard OTEL_* variables want spans to be sent."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    return os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")


def _exporter() -> Any:
    """The exporter that the standard OTEL_* variables ask for, or None."""
    if not _endpoint():
        return None
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "")
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Exporter
    else:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # type: ignore[assignment]
            OTLPSpanExporter as Exporter,
        )
    return Exporter()
