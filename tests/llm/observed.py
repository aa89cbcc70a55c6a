"""What an Observatory says of the calls that its clients have made."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from observatory import Metric, Observatory


class Spans:
    """Those of one Observatory, as an exporter would get them."""

    def __init__(self, obs: Observatory) -> None:
        self._memory = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._memory))
        obs.tracing._tracer = provider.get_tracer("test")

    def taken(self) -> list[ReadableSpan]:
        """All since last time."""
        found = list(self._memory.get_finished_spans())
        self._memory.clear()
        return found

    def only(self) -> tuple[ReadableSpan, dict[str, Any]]:
        """The one, and its attributes."""
        (span,) = self.taken()
        return span, dict(span.attributes or {})


async def total(obs: Observatory, metric: Metric | str, **labels: str) -> float:
    """Of the fleet, by labels; flushed first."""
    await obs.flush()
    return float((await obs.metrics.query(metric, where=labels)).value or 0)


@contextlib.asynccontextmanager
async def closing(*clients: Any) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for one in clients:
            await (one.aclose() if hasattr(one, "aclose") else one.close())
