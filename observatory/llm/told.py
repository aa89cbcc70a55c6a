"""What is told of a call when it is over: its metrics and its event, its span, and whoever collects calls."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Final, NamedTuple, Protocol

from opentelemetry.trace import Span, StatusCode

from .. import units
from ..tracing import Tracing, trace_id
from . import conventions
from .call import Record
from .collecting import Blocks, Call, hand
from .content import Texts, answered
from .desk import Desk
from .wire import Reading

OUTRUN: Final = "outrun"
"""What a call's error says that was sent twice, and was the slower one."""
_SHORT: Final = 0.1
"""Seconds: who waits less has not stood in line."""


class Turn:
    """Which try of a call it is. fallback: its number; 0: at whom was asked. hedged: beside one that was under way already.
    outrun: the other one was faster. spared: it comes again since we did not let it in, which is no retry."""

    __slots__ = ("fallback", "hedged", "outrun", "spared")

    def __init__(self, *, fallback: int = 0, hedged: bool = False, spared: bool = False) -> None:
        self.fallback = fallback
        self.hedged = hedged
        self.spared = spared
        self.outrun = False


class Subject(Protocol):
    """A call that is over."""

    desk: Desk
    provider: str
    model: str
    operation: str
    attempt: int
    id: str | None
    turn: Turn
    status: int | None
    cached: bool
    refused_by: str | None
    content: Texts | None
    waited: float
    began: float
    started_us: int
    known: Mapping[str, str]
    span: Span | None
    around: Blocks

    @property
    def begun(self) -> bool: ...


class Ended(NamedTuple):
    """How. latency: seconds."""

    reading: Reading
    nano_usd: int | None
    latency: float
    why: str | None
    error: BaseException | None


def tell(call: Subject, ended: Ended) -> None:
    """Once."""
    reading, why, span = ended.reading, ended.why, call.span
    # Who stops listening to an answer has had no failure.
    stopped = why == OUTRUN or (why == "cancelled" and call.begun)
    record = Record(
        call.provider,
        call.model,
        call.operation,
        ended.latency,
        None if reading.first_token_at is None else max(0.0, reading.first_token_at - call.began),
        reading.usage,
        None if ended.nano_usd is None else Decimal(ended.nano_usd).scaleb(-9) or Decimal(0),
        "refused" if call.refused_by else "success" if why is None or stopped else "error",
        why,
        trace_id(span),
        reading.response_model,
        call.status,
        reading.estimated,
        call.cached,
        call.turn.fallback,
        call.turn.hedged,
    )
    event = call.desk.calls().put(record, ended.nano_usd, call.known, call.id)
    if span is not None:
        try:
            _trace(call, span, ended, record, call.desk.tracing())
        finally:
            span.end()
    if call.around:
        hand(_call(call, event, record, reading), call.around)


def _call(call: Subject, event: str, record: Record, reading: Reading) -> Call:
    return Call(
        id=event,
        provider=call.provider,
        model=call.model,
        operation=call.operation,
        started_at=units.moment(call.started_us),
        latency=record.latency or 0.0,
        time_to_first_token=record.time_to_first_token,
        usage=record.usage,
        cost_usd=record.cost_usd,
        attempts=call.attempt + 1,
        status=call.status,
        error=record.error,
        dimensions=dict(call.known),
        trace_id=record.trace_id,
        response_model=reading.response_model,
        finish_reasons=tuple(reading.finish_reasons),
        estimated=reading.estimated,
        cached=call.cached,
        refused_by=call.refused_by,
        waited=call.waited,
        fallback=call.turn.fallback,
        hedged=call.turn.hedged,
    )


def _trace(call: Subject, span: Span, ended: Ended, record: Record, tracing: Tracing) -> None:
    if not span.is_recording():
        return
    beside = {
        "http.response.status_code": call.status,
        "gen_ai.response.time_to_first_chunk": record.time_to_first_token,
        "error.type": record.error,
        "observatory.waited": call.waited if call.waited > _SHORT else None,
        "observatory.cached": call.cached or None,
        "observatory.refused_by": call.refused_by,
        "observatory.fallback": call.turn.fallback or None,
        "observatory.hedged": call.turn.hedged or None,
    }
    said = conventions.answered(call.provider, ended.reading)
    said.update((name, value) for name, value in beside.items() if value is not None)
    span.set_attributes(said)
    if call.content is not None and (messages := answered(call.content, ended.reading.finish_reasons)):
        tracing.content(span, "gen_ai.output.messages", messages)
    if record.cost_usd is not None:
        tracing.spent(span, record.cost_usd)
    if isinstance(ended.error, Exception):
        tracing.noted(span, ended.error)
    elif record.status == "error":
        span.set_status(StatusCode.ERROR, record.error)
