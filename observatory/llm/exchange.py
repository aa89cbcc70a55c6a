"""One LLM call over HTTP, from its request to its last byte: what it is, what it takes, how it ends; told once.

    exchange = desk.begin(recognised, dimensions)     it is known, and estimated
    with exchange.sending(): response = await ...     it is sent; what goes wrong is told
    exchange.answering(status, headers)               the head is there
    exchange.heard(chunk)                             each chunk, before it is handed on
    exchange.end() | failed(error) | closed()         once

What goes wrong in what is recorded is a line in the log.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, Protocol

from opentelemetry import trace
from opentelemetry.trace import Span, StatusCode

from .. import dimensions, names, units
from ..clock import monotonic
from ..logs import INTERNAL
from ..names import Metric
from ..tracing import Tracing, trace_id
from ..types import Dimensions
from . import conventions
from .call import Calls, Record, Spreading
from .collecting import Blocks, Call, blocks, hand
from .prices import Prices
from .wire import Reader, Reading, Recognised

MAX_METERS = 1000
_AZURE = "azure.ai.openai"


class Metering(Protocol):
    """What exchanges need of the metrics."""

    def histogram(self, name: str) -> Spreading: ...
    def gauge(self, name: str) -> Any: ...


class Desk:
    """Where the exchanges of a process are written down. Rooms are asked for when they are needed."""

    def __init__(
        self,
        *,
        calls: Callable[[], Calls],
        metrics: Callable[[], Metering],
        tracing: Callable[[], Tracing],
        prices: Callable[[], Prices],
        now_us: Callable[[], int],
    ) -> None:
        self.calls = calls
        self.metrics = metrics
        self.tracing = tracing
        self.prices = prices
        self.now_us = now_us
        self._gaps: dict[tuple[str, str], Spreading] = {}
        self._open: Any = None
        self.everything: Blocks = ()
        """Where every call is told, whoever asks."""
        self.answering: Callable[[Any], Awaitable[Any]] | None = None
        """Who answers requests in place of the network; None: the network does."""

    def begin(self, call: Recognised, extra: Dimensions) -> "Exchange":
        return Exchange(self, call, extra)

    def gaps(self, provider: str, model: str) -> Spreading:
        """The times between tokens of one model."""
        found = self._gaps.get((provider, model))
        if found is None:
            if len(self._gaps) >= MAX_METERS:
                self._gaps.clear()
            found = self.metrics().histogram(names.INTER_TOKEN).bind(provider=provider, model=model)
            self._gaps[provider, model] = found
        return found

    def open(self, more: int) -> None:
        if self._open is None:
            self._open = self.metrics().gauge(Metric.ACTIVE_CONNECTIONS).bind(kind="llm")
        self._open.add(more)

    def forget(self) -> None:
        """A forked child begins anew."""
        self._gaps.clear()
        self._open = None


@contextmanager
def quietly() -> Iterator[None]:
    """What is recorded must never break the call."""
    try:
        yield
    except Exception as error:  # of ours, or of somebody's tokenizer, sampler, exporter
        INTERNAL.warning("an LLM call could not be recorded: %s", type(error).__name__, exc_info=True)


class Exchange:
    """See the module. Not for two threads."""

    __slots__ = (
        "_around",
        "_began",
        "_desk",
        "_done",
        "_known",
        "_reader",
        "_span",
        "_started_us",
        "attempt",
        "endpoint",
        "estimate",
        "last_at",
        "model",
        "operation",
        "provider",
        "status",
        "tokenizer",
    )

    def __init__(self, desk: Desk, call: Recognised, extra: Dimensions) -> None:
        # The request itself is not kept: it may be long, and the answer come slowly.
        self._desk = desk
        self.provider, self.model, self.operation = call.provider, call.model, call.operation
        self.endpoint, self.tokenizer, self.attempt = call.endpoint, call.tokenizer, call.attempt
        self.estimate = call.input_tokens()
        self.status: int | None = None
        self.last_at: float | None = None
        self._known: Mapping[str, str] = {**dimensions.current(), **extra} if extra else dimensions.current()
        self._around = (*blocks(), *desk.everything)
        self._reader: Reader | None = None
        self._done = False
        self._span: Span | None = None
        with quietly():
            desk.open(1)
            self._span = desk.tracing().started(conventions.name(call), {**extra, **conventions.asked(call)}, kind="client")
            if call.attempt:
                self._span.set_attribute("http.request.resend_count", call.attempt)
        self._started_us = desk.now_us()
        self._began = monotonic()

    @contextmanager
    def sending(self) -> Iterator[None]:
        """While it is under way, the call's span is the current one."""
        try:
            if self._span is None:
                yield
            else:
                with trace.use_span(self._span, record_exception=False, set_status_on_exception=False):
                    yield
        except BaseException as error:
            self.failed(error)
            raise

    def answering(self, status: int, headers: Mapping[str, str]) -> None:
        """The head of the response is there."""
        self.status = status
        with quietly():
            kind, encoding = headers.get("content-type", ""), headers.get("content-encoding", "")
            self._reader = Reader(self.endpoint, status, kind, encoding, tokenizer=self.tokenizer)

    def heard(self, chunk: bytes) -> None:
        """A chunk, as it is on the wire."""
        reader = self._reader
        if reader is None:
            return
        try:
            now = monotonic()
            if reader.feed(chunk, now):
                last, self.last_at = self.last_at, now
                if last is not None:
                    self._desk.gaps(self.provider, self.model).record(now - last)
        except Exception as error:
            self._reader = None
            INTERNAL.warning("the answer of an LLM call could not be read: %s", type(error).__name__, exc_info=True)

    # how it ends
    def moved(self, status: int) -> None:
        """It is to be asked elsewhere: the call is the one that is made there."""
        self._done = True
        with quietly():
            self._desk.open(-1)
            if self._span is not None:
                self._span.set_attribute("http.response.status_code", status)
                self._span.end()

    def end(self) -> None:
        """All of it was there."""
        self._finish(None, cut=False)

    def failed(self, error: BaseException) -> None:
        """It broke off: by an error of the connection, or because whoever waited was cancelled."""
        self._finish(error, cut=True)

    def closed(self) -> None:
        """Nobody reads on. With the answer complete that is how some clients end."""
        self._finish(None, cut=True)

    def _finish(self, error: BaseException | None, *, cut: bool) -> None:
        if self._done:
            return
        self._done = True
        latency = max(0.0, monotonic() - self._began)
        with quietly():
            self._desk.open(-1)
        with quietly():
            reader, self._reader = self._reader, None
            reading = Reading() if reader is None else reader.end(estimate=self.estimate, cut=cut)
            self._settle(reading, latency, self._why(reading, error, cut=cut), error)

    def _why(self, reading: Reading, error: BaseException | None, *, cut: bool) -> str | None:
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            return reading.error or (None if reading.over else "cancelled")
        if error is not None:
            return reading.error or type(error).__name__
        if reading.error is None and cut and not reading.over:
            return "cancelled"
        return reading.error

    def _settle(self, reading: Reading, latency: float, why: str | None, error: BaseException | None) -> None:
        first = None if reading.first_token_at is None else max(0.0, reading.first_token_at - self._began)
        nano_usd = self._cost(reading)
        span, known = self._span, self._known
        # Who stops listening to an answer has had no failure.
        stopped = why == "cancelled" and self.status is not None and self.status < 400
        record = Record(
            self.provider,
            self.model,
            self.operation,
            latency,
            first,
            reading.usage,
            None if nano_usd is None else Decimal(nano_usd).scaleb(-9),
            "success" if why is None or stopped else "error",
            why,
            trace_id(span),
            reading.response_model,
            self.status,
            reading.estimated,
        )
        event = self._desk.calls().put(record, nano_usd, known)
        if span is not None:
            self._tell(span, reading, record, error)
        if self._around:
            call = Call(
                id=event,
                provider=self.provider,
                model=self.model,
                operation=self.operation,
                started_at=units.moment(self._started_us),
                latency=latency,
                time_to_first_token=first,
                usage=reading.usage,
                cost_usd=record.cost_usd,
                attempts=self.attempt + 1,
                status=self.status,
                error=why,
                dimensions=dict(known),
                trace_id=record.trace_id,
                response_model=reading.response_model,
                finish_reasons=tuple(reading.finish_reasons),
                estimated=reading.estimated,
            )
            hand(call, self._around)

    def _cost(self, reading: Reading) -> int | None:
        if reading.used is None:
            return None
        # The name of an Azure deployment is anybody's choice, also another model's name.
        models = (reading.response_model, None if self.provider == _AZURE else self.model)
        return self._desk.prices().cost(
            self.provider,
            models,
            reading.used,
            at_us=self._started_us,
            tenant=self._known.get("tenant"),
            tier=reading.service_tier,
        )

    def _tell(self, span: Span, reading: Reading, record: Record, error: BaseException | None) -> None:
        tracing = self._desk.tracing()
        try:
            if span.is_recording():
                said = conventions.answered(self.provider, reading)
                if self.status is not None:
                    said["http.response.status_code"] = self.status
                if record.time_to_first_token is not None:
                    said["gen_ai.response.time_to_first_chunk"] = record.time_to_first_token
                if record.error is not None:
                    said["error.type"] = record.error
                span.set_attributes(said)
                if record.cost_usd is not None:
                    tracing.spent(span, record.cost_usd)
                if isinstance(error, Exception):
                    tracing.noted(span, error)
                elif record.status == "error":
                    span.set_status(StatusCode.ERROR, record.error)
        finally:
            span.end()
