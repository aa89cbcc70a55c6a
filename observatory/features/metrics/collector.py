"""Where the standard OTEL_* variables want metrics to be sent, and the sending: blocking, on a thread, never in the way."""

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ... import otlp
from ...logs import INTERNAL
from .export import Family

THREAD = "observatory otlp"
DEFAULT_INTERVAL = 60.0
DEFAULT_TIMEOUT = 10.0
MAX_TIMEOUT = 30.0
"""Seconds: leadership lasts longer than a request, and must not last for ever."""
_LIBRARIES = (
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
    "opentelemetry.exporter.otlp.common.http",
)


_CREDENTIALS = "OTEL_PYTHON_EXPORTER_OTLP_HTTP_"


class Destination(NamedTuple):
    """How to send. Endpoint, headers, compression and certificates are read by OpenTelemetry's exporter itself."""

    protocol: str
    interval: float
    timeout: float


def destination(environ: Mapping[str, str] | None = None) -> Destination | None:
    """None: nobody wants them. What is not understood is told once, and taken for the default."""
    environ = os.environ if environ is None else environ

    def said(name: str) -> str:
        return environ.get(f"OTEL_EXPORTER_OTLP_METRICS_{name}") or environ.get(f"OTEL_EXPORTER_OTLP_{name}") or ""

    exporters = {name.strip().lower() for name in (environ.get("OTEL_METRICS_EXPORTER") or "otlp").split(",")}
    if (
        otlp.is_muted()
        or environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
        or "otlp" not in exporters
        or not said("ENDPOINT")
    ):
        return None
    protocol = said("PROTOCOL").strip().lower() or "http/protobuf"
    if protocol not in ("grpc", "http/protobuf"):
        INTERNAL.warning("OTEL_EXPORTER_OTLP_PROTOCOL %r is not known here: using http/protobuf", protocol)
        protocol = "http/protobuf"
    interval = _positive(environ.get("OTEL_METRIC_EXPORT_INTERVAL"), "OTEL_METRIC_EXPORT_INTERVAL", DEFAULT_INTERVAL * 1000)
    # Seconds, as OpenTelemetry's Python exporters read it; what is meant as milliseconds is cut to the bound.
    timeout = _positive(said("TIMEOUT"), "OTEL_EXPORTER_OTLP_TIMEOUT", DEFAULT_TIMEOUT)
    return Destination(protocol, interval / 1000, min(timeout, MAX_TIMEOUT))


def _positive(text: str | None, name: str, default: float) -> float:
    if not text:
        return default
    with contextlib.suppress(ValueError):
        number = float(text)
        if 0 < number < float("inf"):
            return number
    INTERNAL.warning("%s must be a number above 0, got %r: using %g", name, text[:40], default)
    return default


class _Quiet(logging.Filter):
    """OpenTelemetry's exporters complain at every attempt. What ours complain of is told once, by us."""

    def __init__(self) -> None:
        super().__init__()
        self.last = ""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.threadName != THREAD:
            return True
        self.last = record.getMessage()
        return False


class Collector:
    """One receiver of OTLP. Every method blocks, and belongs to the thread named THREAD."""

    def __init__(self, to: Destination) -> None:
        self._to = to
        self._exporter: Any = None
        self._cut: Callable[[], object] | None = None
        self._quiet = _Quiet()

    def send(self, families: Iterable[Family], start_ns: int, now_ns: int, namespace: str) -> str | None:
        """Why it failed, or None. However the collector answers, the request is cut when the timeout is over."""
        late = threading.Event()

        def sever() -> None:
            late.set()
            self._sever()

        # A thread of its own: the loop may be held up just then, and the lease ends all the same.
        watch = threading.Timer(self._to.timeout, sever)
        watch.daemon = True
        watch.start()
        try:
            why = self._sent(families, start_ns, now_ns, namespace, late)
        except Exception as error:  # whatever the exporter does, nobody's work ends for it
            why = f"{type(error).__name__}: {error}"
        watch.cancel()
        if why is not None and late.is_set():
            self.close()
            return f"it did not take a request within {self._to.timeout:g} s"
        return why

    def _sent(
        self, families: Iterable[Family], start_ns: int, now_ns: int, namespace: str, late: threading.Event
    ) -> str | None:
        from opentelemetry import context
        from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY  # as the SDK's own readers do

        from . import points

        request = points.data(families, points.Moments(start_ns, now_ns), namespace)
        if self._exporter is None:
            self._exporter = self._made()
        self._quiet.last = ""
        token = context.attach(context.set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
        try:
            # The first one loads libraries, which may take long.
            if late.is_set():
                return "too late"
            result = self._exporter.export(request)
        finally:
            context.detach(token)
        return None if result.name == "SUCCESS" else self._quiet.last or "it was refused"

    def _made(self) -> Any:
        for name in _LIBRARIES:
            logging.getLogger(name).addFilter(self._quiet)
        if self._to.protocol == "grpc":
            # Its timeout is the call's, not of each read.
            from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as OverGrpc

            return OverGrpc(timeout=self._to.timeout)
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as OverHttp

        if any(name.startswith(_CREDENTIALS) for name in os.environ):
            return OverHttp(timeout=self._to.timeout)  # with a session that somebody else makes
        from .severable import Severable

        adapter = Severable()
        self._cut = adapter.cut
        return OverHttp(timeout=self._to.timeout, session=adapter.session())

    def _sever(self) -> None:
        if (cut := self._cut) is not None:
            cut()

    def close(self) -> None:
        """Stop waiting between attempts, and let go of the connection."""
        self._sever()
        exporter, self._exporter, self._cut = self._exporter, None, None
        for name in _LIBRARIES:
            logging.getLogger(name).removeFilter(self._quiet)
        if exporter is not None:
            with contextlib.suppress(Exception):
                exporter.shutdown()
