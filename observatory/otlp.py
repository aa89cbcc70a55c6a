"""The way out by OTLP: where the standard OTEL_* variables want spans and lines to be sent, by what, and how that is closed."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from logging import CRITICAL, DEBUG, ERROR, INFO, WARNING, LogRecord
from typing import Any, Literal

from opentelemetry import context, trace

Signal = Literal["traces", "logs"]


_muted = 0


def is_muted() -> bool:
    """Whether nothing may leave the process now."""
    return _muted > 0


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Nothing that begins in this block leaves the process, whatever the variables say."""
    global _muted  # noqa: PLW0603
    _muted += 1
    try:
        yield
    finally:
        _muted -= 1


def endpoint(signal: Signal) -> str | None:
    """Where the signal goes; None: nowhere."""
    if _muted or os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if os.environ.get(f"OTEL_{signal.upper()}_EXPORTER", "otlp").strip().lower() not in ("otlp", ""):
        return None
    return os.environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")


def exporter(signal: Signal) -> Any:
    """The exporter that the variables ask for, or None. gRPC where they say so, else HTTP."""
    if not endpoint(signal):
        return None
    protocol = os.environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    match signal, protocol:
        case "traces", "grpc":
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpans

            return GrpcSpans()
        case "logs", "grpc":
            from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcLines

            return GrpcLines()
        case "traces", _:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Spans

            return Spans()
        case _:
            from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as Lines

            return Lines()


def resource(service: str, instance: str) -> Any:
    """Who sends: the service and the instance, beside what OTEL_RESOURCE_ATTRIBUTES says."""
    from opentelemetry.sdk.resources import Resource

    return Resource.create({"service.name": service, "service.instance.id": instance})


async def close(provider: Any, timeout: float) -> None:
    """Send what is buffered and stop, within `timeout` seconds: an exporter blocks for as long as its backend is silent."""
    loop, closed = asyncio.get_running_loop(), asyncio.Event()

    def end() -> None:
        with contextlib.suppress(Exception):
            provider.shutdown()
        with contextlib.suppress(RuntimeError):  # the loop did not wait that long
            loop.call_soon_threadsafe(closed.set)

    # A daemon, since a pool's thread would keep the process from ending.
    threading.Thread(target=end, daemon=True, name="observatory closing").start()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            await closed.wait()


_SEVERITY = {DEBUG: 5, INFO: 9, WARNING: 13, ERROR: 17, CRITICAL: 21}
"""Of the OpenTelemetry log data model."""


class LinesOut:
    """Log lines as OTLP records, from a bounded queue that a thread of its own empties. Handing over never blocks."""

    def __init__(self, service: str, instance: str) -> None:
        from opentelemetry.sdk._logs import LoggerProvider
        from opentelemetry.sdk._logs.export import BatchLogRecordProcessor

        self.provider = LoggerProvider(resource=resource(service, instance), shutdown_on_exit=False)
        self.provider.add_log_record_processor(BatchLogRecordProcessor(exporter("logs")))
        self._logger = self.provider.get_logger("observatory")

    def emit(self, record: LogRecord, said: Mapping[str, Any]) -> None:
        """said: what the line says, cleaned."""
        from opentelemetry._logs import LogRecord as Sent
        from opentelemetry._logs import SeverityNumber

        fields = dict(said)
        body, trace_id, span_id = fields.pop("message"), fields.pop("trace_id", None), fields.pop("span_id", None)
        for name in ("timestamp", "level", "service", "instance"):
            fields.pop(name, None)
        if (exception := fields.pop("exception", None)) is not None:
            fields["exception.stacktrace"] = exception
            if record.exc_info and record.exc_info[0] is not None:
                fields["exception.type"] = record.exc_info[0].__qualname__
        if trace_id is not None and not _hex(trace_id, 32):
            fields["trace_id"] = trace_id  # somebody's own: not of W3C's form
        moment = int(record.created * 1e6) * 1000
        self._logger.emit(
            Sent(
                timestamp=moment,
                observed_timestamp=moment,
                context=_context(trace_id, span_id),
                severity_number=SeverityNumber(_SEVERITY.get(record.levelno, 9)),
                severity_text=record.levelname,
                body=body,
                attributes=fields,
            )
        )


def _context(trace_id: object, span_id: object) -> Any:
    """The trace that the line speaks of, which need not be the one around it."""
    current = trace.get_current_span().get_span_context()
    one = int(str(trace_id), 16) if _hex(trace_id, 32) else 0
    other = int(str(span_id), 16) if _hex(span_id, 16) else 0
    flags = current.trace_flags if current.trace_id == one else trace.TraceFlags.get_default()
    return trace.set_span_in_context(trace.NonRecordingSpan(trace.SpanContext(one, other, False, flags)), context.Context())


def _hex(text: object, digits: int) -> bool:
    return isinstance(text, str) and len(text) == digits and all(letter in "0123456789abcdef" for letter in text)
