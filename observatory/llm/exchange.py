"""One LLM call, from its request to its last byte: what it is, what it takes, how it ends; told once.

    exchange = Exchange(desk, recognised, dimensions) it is known
    with exchange.current():                          what goes wrong is told
        await exchange.enter(wait)                    it is estimated, and let in
        response = await ...                          it is sent
    exchange.answering(status, headers)               the head is there
    exchange.heard(chunk)                             each chunk, before it is handed on
    exchange.end() | failed(error) | closed() | refused(error)          once

What goes wrong in what is recorded is a line in the log.
"""

import asyncio
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.trace import Span

from .. import dimensions, replies
from ..clock import monotonic
from ..errors import ObservatoryError
from ..logs import INTERNAL
from ..types import Amount, Dimensions, Unit
from . import conventions
from .call import Usage
from .collecting import blocks
from .content import Texts, asked
from .desk import Desk, quietly
from .facts import NOTHING, Via, bound_to, facts, spent_of
from .gate import Asked, Passed, Spent, works
from .outputs import LARGEST
from .told import OUTRUN, Ended, Turn, tell
from .wire import Reader, Reading, Recognised
from .wire.used import Used

_AZURE = "azure.ai.openai"
_UNREAD = "unreadable"
"""Why a call ended that we could not read: nothing against its provider."""
_UNSENT = frozenset(
    {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol", "LocalProtocolError"}
)
"""Errors of the transports before a provider has heard anything of a request."""
_ONLY = Turn()
_FAULT = re.compile(r"truncated|invalid_response|server|overload|internal|timeout|unavailable|^5\d\d$|^api_error$")
"""Codes by which a stream that had begun well ends, that are the provider's fault."""
_OURS = frozenset({"PoolTimeout", "UnsupportedProtocol", "LocalProtocolError"})
"""And of these a provider has no part."""


class Exchange:
    """See the module. turn: which try of a call it is. ago: seconds since it was asked. Not for two threads."""

    __slots__ = (
        "_call",
        "_counted",
        "_done",
        "_expected",
        "_key",
        "_passed",
        "_reader",
        "around",
        "attempt",
        "began",
        "cached",
        "content",
        "desk",
        "endpoint",
        "id",
        "known",
        "last_at",
        "model",
        "operation",
        "provider",
        "refused_by",
        "span",
        "started_us",
        "status",
        "tokenizer",
        "turn",
        "via",
        "waited",
        "where",
    )

    def __init__(self, desk: Desk, call: Recognised, extra: Dimensions, turn: Turn = _ONLY, *, ago: float = 0.0) -> None:
        self.desk = desk
        self.turn = turn
        self.via: Via | None = None
        """What it is sent by."""
        self.id: str | None = None
        """Of its event; None: whatever is given then."""
        self.provider, self.model, self.operation = call.provider, call.model, call.operation
        self.endpoint, self.tokenizer, self.attempt, self.where = call.endpoint, call.tokenizer, call.attempt, call.where
        self._call: Recognised | None = call
        """Until a stream begins, which may last, or all is over: an answer that breaks off does not say what it took."""
        self._counted = 0
        self._expected = desk.outputs.expected(call.provider, call.model, call.max_output_tokens)
        self.status: int | None = None
        self.last_at: float | None = None
        self.cached = False
        """The answer is not from the provider, and costs nothing."""
        self.waited = 0.0
        self.content: Texts | None = None
        """The answer's, where it is captured."""
        self._passed: Passed | None = None
        self.refused_by: str | None = None
        self._key = call.key or ""
        self.known: Mapping[str, str] = bound_to(call, extra)
        self.around = (*blocks(), *desk.everything)
        self._reader: Reader | None = None
        self._done = False
        self.span: Span | None = None
        with quietly:
            desk.open(1)
            self.span = desk.tracing().started(
                conventions.name(call), {**extra, **conventions.asked(call)}, kind="client", ago=ago
            )
            if call.attempt:
                self.span.set_attribute("http.request.resend_count", call.attempt)
            if desk.captures() and self.span.is_recording():
                self.content = Texts()
                for attribute, said in asked(call.document).items():
                    desk.tracing().content(self.span, attribute, said)
        self.started_us = desk.now_us() - int(ago * 1e6)
        self.began = monotonic() - ago

    def estimate(self) -> int:
        """Tokens of the request. A tokenizer may take long: only where somebody asks."""
        return self._counted if self._call is None else min(self._call.input_tokens(), LARGEST)

    @contextmanager
    def current(self) -> Iterator[None]:
        """While it is under way, the call's span is the current one."""
        try:
            if self.span is None:
                yield
            else:
                with trace.use_span(self.span, record_exception=False, set_status_on_exception=False):
                    yield
        except BaseException as error:
            self.failed(error)
            raise

    async def enter(self, wait: float) -> None:
        """See Gate.enter; RetryBudgetExceeded. From here on its time runs."""
        gate = self.desk.gate
        known = dimensions.Known(self.known)
        known.update(facts(self))
        asked = Asked(self.where, self.model, self._key, known, {})
        if gate.limits:
            with quietly:  # what cannot be estimated is counted when it is known, and refused to nobody
                cost, is_priced = self._cost_estimated()
                asked = asked._replace(cost=cost, is_priced=is_priced)
        try:
            self._passed = await gate.enter(asked, wait)
        finally:
            now = monotonic()
            self.waited, self.began = max(0.0, now - self.began), now

    def _cost_estimated(self) -> tuple[Mapping[Unit, Amount], bool]:
        """By unit; and whether it has a price: else it holds nothing of a budget. Azure's: that of who answered last."""
        used = Used(Usage(self.estimate(), self._expected))
        name = self.desk.outputs.name(self.where, self.model) if self.provider == _AZURE else self.model
        nano_usd = self._price(used, (name,), None)
        return spent_of(used, nano_usd), nano_usd is not None or name is None

    def answering(self, status: int, headers: Mapping[str, str]) -> None:
        """The head of the response is there."""
        self.status = status
        with quietly:
            if self._passed is not None:
                self._passed.answered(status, headers)
            kind, encoding = headers.get("content-type", ""), headers.get("content-encoding", "")
            self._reader = Reader(self.endpoint, status, kind, encoding, tokenizer=self.tokenizer, content=self.content)
            if self._call is not None and self._call.stream:
                self._counted, self._call = self.estimate(), None

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
                    self.desk.gaps(self.provider, self.model).record(now - last)
        except Exception as error:
            self._reader = None
            INTERNAL.warning("the answer of an LLM call could not be read: %s", type(error).__name__, exc_info=True)

    @property
    def begun(self) -> bool:
        """Whether an answer has."""
        return self.status is not None and self.status < 400

    # how it ends
    def moved(self, status: int) -> None:
        """It is to be asked elsewhere: the call is the one that is made there."""
        self._done, self._call = True, None
        with quietly:
            self.desk.open(-1)
            if self._passed is not None:
                self._passed.leave(True, "nothing")
            if self.span is not None:
                self.span.set_attribute("http.response.status_code", status)
                self.span.end()

    def refused(self, error: ObservatoryError, status: int | None) -> None:
        """It was not let in. status: how that is said in HTTP."""
        self.refused_by = error.context.get("limit") or error.code
        self.status = status
        self._finish(error, cut=True)

    def end(self) -> None:
        """All of it was there."""
        self._finish(None, cut=False)

    def failed(self, error: BaseException) -> None:
        """It broke off: by an error of the connection, or because whoever waited was cancelled."""
        self._finish(error, cut=True)

    @property
    def over(self) -> bool:
        return self._done

    def closed(self) -> None:
        """Nobody reads on. With the answer complete that is how some clients end."""
        self._finish(None, cut=True)

    def _finish(self, error: BaseException | None, *, cut: bool) -> None:
        if self._done:
            return
        self._done = True
        latency = max(0.0, monotonic() - self.began)
        with quietly:
            self.desk.open(-1)
        reading = Reading()
        nano_usd: int | None = None
        why: str | None = _UNREAD
        with quietly:
            reading = self._read(cut=cut)
            why = self._why(reading, error, cut=cut)
            nano_usd = 0 if self.cached else self._cost(reading)
        if self._passed is not None:
            spent: Spent = "estimate"
            with quietly:
                spent = self._spent(reading, nano_usd, error)
            with quietly:  # whatever went wrong above: what is held must never stay held
                self._passed.leave(self._works(why, error), spent)
        with quietly:
            tell(self, Ended(reading, nano_usd, latency, why, error))

    def _read(self, *, cut: bool) -> Reading:
        reader, self._reader = self._reader, None
        try:
            return Reading() if reader is None else reader.end(estimate=self.estimate, cut=cut)
        finally:
            self._call = None

    def _works(self, why: str | None, error: BaseException | None) -> bool | None:
        """What it says of the provider."""
        if self.via is not None and self.via.closing:
            return None  # whoever asked has hung up
        if self.status is None:
            if error is None or type(error).__name__ in _OURS:
                return None
            return False if replies.from_network(error) else None
        if self.status >= 400:
            return works(self.status)
        if why is None or why == "cancelled":
            return True
        # In its middle: what was wrong with the question, or too much of it, is not the provider's failure.
        return False if (error is not None and replies.from_network(error)) or _FAULT.search(why) else None

    def _spent(self, reading: Reading, nano_usd: int | None, error: BaseException | None) -> Spent:
        if reading.used is not None:
            if not reading.estimated:
                self.desk.outputs.learn(self.provider, self.model, reading.used.usage.output_tokens)
            self.desk.outputs.called(self.where, self.model, reading.response_model)
            return spent_of(reading.used, nano_usd)
        if self.status is not None and self.status >= 400:
            return NOTHING
        return "nothing" if type(error).__name__ in _UNSENT else "estimate"

    def _why(self, reading: Reading, error: BaseException | None, *, cut: bool) -> str | None:
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            if self.turn.outrun:
                return OUTRUN
            return reading.error or (None if reading.over else "cancelled")
        if isinstance(error, ObservatoryError):
            return error.code
        if error is not None:
            return reading.error or type(error).__name__
        if reading.error is None and cut and not reading.over:
            return "cancelled"
        return reading.error

    def _cost(self, reading: Reading) -> int | None:
        if reading.used is None:
            return None
        # The name of an Azure deployment is anybody's choice, also another model's name.
        models = (reading.response_model, None if self.provider == _AZURE else self.model)
        return self._price(reading.used, models, reading.service_tier)

    def _price(self, used: Used, models: tuple[str | None, ...], tier: str | None) -> int | None:
        return self.desk.prices().cost(
            self.provider, models, used, at_us=self.started_us, tenant=self.known.get("tenant"), tier=tier
        )
