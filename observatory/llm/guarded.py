"""LLM calls that are not HTTP: the same steps around a block of code."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import wraps
from types import TracebackType
from typing import Final, ParamSpec, TypeVar

from .. import replies
from ..clock import monotonic
from ..envelope import new_id
from ..errors import InvalidArgument, ObservatoryError
from ..features.breaker.breaker import verdict
from ..types import Amount, Dimensions, Unit
from .call import Usage, nano
from .desk import Desk, quietly
from .exchange import Exchange
from .facts import spent_of
from .gate import Spent
from .outputs import LARGEST
from .wire import Reading, Recognised
from .wire.used import Used

P = ParamSpec("P")
T = TypeVar("T")
_EMBEDDINGS: Final = "embeddings"


class Local(Recognised, frozen=True):
    """A call that somebody says is one. tokens: of its input. most: of its output; None: what others had."""

    kind: str = "chat"
    tokens: int = 0
    most: int | None = None

    @property
    def operation(self) -> str:
        return self.kind

    @property
    def where(self) -> str:
        return self.provider

    def input_tokens(self) -> int:
        return self.tokens

    @property
    def max_output_tokens(self) -> int | None:
        return 0 if self.kind == _EMBEDDINGS and self.most is None else self.most


def local(provider: str, model: str, operation: str, tokens: int, most: int | None) -> Local:
    for name, text in (("provider", provider), ("model", model), ("operation", operation)):
        if not isinstance(text, str) or not 0 < len(text) <= 256:
            raise InvalidArgument(f"{name} must be a text of 1 to 256 characters, got {text!r:.80}")
    for name, count in (("tokens", tokens), ("output_tokens", 0 if most is None else most)):
        if type(count) is not int or not 0 <= count <= LARGEST:
            raise InvalidArgument(f"{name} must be a whole number from 0 to {LARGEST:,}, got {count!r:.40}")
    return Local(provider, "chat", model, False, "", None, {}, None, 0, kind=operation, tokens=tokens, most=most)


class _Inside(Exchange):
    """What was used, is said by whoever makes the call."""

    __slots__ = ("begun_at", "cancelled", "nano_usd", "usage")

    def __init__(self, desk: Desk, call: Local, extra: Dimensions) -> None:
        super().__init__(desk, call, extra)
        self.id = new_id()
        self.usage: Usage | None = None
        self.nano_usd: int | None = None
        self.begun_at: float | None = None
        self.cancelled = False

    @property
    def over(self) -> bool:
        return self._done

    @property
    def begun(self) -> bool:
        return self.begun_at is not None

    def begins(self) -> None:
        """The first token: what is slow has been slow by now, and a probe has found what it was sent for."""
        self.begun_at = monotonic()
        if self._passed is not None:
            self._passed.answered(200, {})

    def failed(self, error: BaseException) -> None:
        if isinstance(error, Exception) and not isinstance(error, ObservatoryError) and not self._done:
            with quietly:
                self.status = replies.status(error)
                if self.status is not None and self._passed is not None:  # a pause that somebody else's service asks for
                    self._passed.answered(self.status, replies.headers(error))
        super().failed(error)

    def _read(self, *, cut: bool) -> Reading:
        reading = Reading()
        reading.used = None if self.usage is None else Used(self.usage)
        reading.first_token_at = self.begun_at
        return reading

    def _cost(self, reading: Reading) -> int | None:
        if self.cancelled:
            return 0
        return super()._cost(reading) if self.nano_usd is None else self.nano_usd

    def _works(self, why: str | None, error: BaseException | None) -> bool | None:
        return verdict(error)

    def _spent(self, reading: Reading, nano_usd: int | None, error: BaseException | None) -> Spent:
        if self.cancelled:
            return "nothing"
        spent: dict[Unit, Amount] = {}
        if reading.used is not None:
            self.desk.outputs.learn(self.provider, self.model, reading.used.usage.output_tokens)
            spent.update(spent_of(reading.used, nano_usd))
        elif self.nano_usd is not None:
            spent["usd"] = spent_of(Used(Usage()), self.nano_usd)["usd"]
        return spent or "estimate"


class GuardedCall:
    """A call that was let in. Whatever is not said by the end of the block is charged as it was estimated."""

    __slots__ = ("_exchange",)

    def __init__(self, exchange: _Inside) -> None:
        self._exchange = exchange

    @property
    def id(self) -> str:
        """Of its event, and of the Call that `collect` gives."""
        return self._exchange.id or ""

    def used(self, usage: Usage | None = None, *, cost_usd: Amount | None = None) -> None:
        """What it has used so far, in all: said again, it takes the place of what was said before; None leaves that as it was.

        cost_usd: dollars, where the prices do not say them. InvalidArgument: a value is none, or the call is over.
        """
        exchange = self._open()
        if usage is not None and not isinstance(usage, Usage):
            raise InvalidArgument(f"used takes a Usage, got {usage!r:.80}")
        cost = nano(cost_usd)
        if usage is not None:
            exchange.usage = usage
        if cost is not None:
            exchange.nano_usd = cost
        exchange.cancelled = False

    def first_token(self) -> None:
        """It has begun to answer. Only the first time counts."""
        exchange = self._open()
        if exchange.begun_at is None:
            exchange.begins()

    def cancel(self) -> None:
        """Nothing was used: all that is held is given back at the end of the block, unless `used` says otherwise later."""
        exchange = self._open()
        exchange.usage = exchange.nano_usd = None
        exchange.cancelled = True

    def _open(self) -> _Inside:
        if self._exchange.over:
            raise InvalidArgument("the call is over", remedy="Say what it used inside of the block")
        return self._exchange


@asynccontextmanager
async def _guarding(desk: Desk, call: Local, wait: float | None, extra: Dimensions) -> AsyncIterator[GuardedCall]:
    exchange = _Inside(desk, call, extra)
    with exchange.current():
        try:
            await exchange.enter(desk.gate.wait if wait is None else wait)
        except ObservatoryError as error:
            exchange.refused(error, None)
            raise
        yield GuardedCall(exchange)
    exchange.end()


class Guard:
    """Around a block, once; or around an async function, of which each call is a call of its own."""

    def __init__(self, desk: Desk, call: Local, wait: float | None, extra: Dimensions) -> None:
        self._made: Callable[[], AbstractAsyncContextManager[GuardedCall]] = lambda: _guarding(desk, call, wait, extra)
        self._open: AbstractAsyncContextManager[GuardedCall] | None = None

    async def __aenter__(self) -> GuardedCall:
        if self._open is not None:
            raise InvalidArgument("this guard is around a call already", remedy="Write obs.llm.guard(...) for each")
        self._open = self._made()
        return await self._open.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if self._open is not None:
            await self._open.__aexit__(kind, error, trace)

    def __call__(self, fn: Callable[P, Awaitable[T]], /) -> Callable[P, Awaitable[T]]:
        if not callable(fn):
            raise InvalidArgument(f"a guard decorates an async function, got {fn!r:.80}")

        @wraps(fn)
        async def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
            async with self._made():
                return await fn(*args, **kwargs)

        return guarded
