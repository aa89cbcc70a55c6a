"""What the calls of a process have in common: where they are written down, who lets them in, what answers are expected."""

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Final, Protocol

from .. import names
from ..logs import INTERNAL
from ..names import Metric
from ..tracing import Tracing
from .call import Calls, Spreading
from .collecting import Blocks
from .gate import Gate
from .outputs import Outputs
from .prices import Prices
from .retries import Retries

MAX_METERS: Final = 1000


class Metering(Protocol):
    """What calls need of the metrics."""

    def histogram(self, name: str) -> Spreading: ...
    def gauge(self, name: str) -> Any: ...


class Desk:
    """Rooms are asked for when they are needed."""

    def __init__(
        self,
        *,
        calls: Callable[[], Calls],
        metrics: Callable[[], Metering],
        tracing: Callable[[], Tracing],
        prices: Callable[[], Prices],
        now_us: Callable[[], int],
        gate: Gate,
        retries: Retries,
        captures: Callable[[], bool],
        output_tokens: Callable[[], int],
    ) -> None:
        self.calls = calls
        self.metrics = metrics
        self.tracing = tracing
        self.prices = prices
        self.now_us = now_us
        self.gate = gate
        self.retries = retries
        self.captures = captures
        """Whether prompts and answers are on spans."""
        self.outputs = Outputs(output_tokens)
        self._gaps: dict[tuple[str, str], Spreading] = {}
        self._open: Any = None
        self.everything: Blocks = ()
        """Where every call is told, whoever asks."""
        self.answering: Callable[[Any], Awaitable[Any]] | None = None
        """Who answers requests in place of the network; None: the network does."""

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

    async def aclose(self) -> None:
        """What is held is settled."""
        await self.gate.aclose()

    def forget(self) -> None:
        """A forked child begins anew."""
        self._gaps.clear()
        self._open = None
        self.gate.forget()
        self.retries.forget()


class _Quietly:
    """A class, since a generator takes four times as long, and every call comes by many times."""

    __slots__ = ()

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if not isinstance(error, Exception):
            return False
        INTERNAL.warning("an LLM call could not be recorded: %s", type(error).__name__, exc_info=error)
        return True


quietly: Final = _Quietly()
"""What is recorded must never break the call: errors of ours, or of somebody's tokenizer, sampler, exporter, are lines."""
