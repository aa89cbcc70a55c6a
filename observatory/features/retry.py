"""Trying again: backoff with jitter under a deadline. The loop is tenacity's; what to retry, and how long, is ours."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar, overload

import msgspec
import tenacity

from .. import units
from ..errors import InvalidArgument, ObservatoryError
from ..names import Metric
from ..settings import RetrySettings

P = ParamSpec("P")
T = TypeVar("T")

On = type[BaseException] | tuple[type[BaseException], ...] | Callable[[Exception], bool | float]
_RETRYABLE = frozenset({408, 409, 425, 429, *range(500, 600)})


class Recording(Protocol):
    """What retrying needs of the metrics."""

    def increment_counter(self, metric: str, value: int = 1, labels: Mapping[str, str] | None = None) -> None: ...


def retryable(error: Exception) -> bool | float:
    """What is tried again when nothing else is said; a number is the wait the other side asked for.

    Our own retryable errors, errors of the system and of the network, and HTTP 408 409 425 429 5xx.
    """
    if isinstance(error, ObservatoryError):
        return error.retryable if error.retry_after is None else (error.retryable and error.retry_after)
    status = getattr(getattr(error, "response", None), "status_code", getattr(error, "status_code", None))
    if isinstance(status, int):
        return status in _RETRYABLE
    if isinstance(error, OSError | TimeoutError):
        return True
    return any(kind.__name__ == "TransportError" and kind.__module__.startswith("httpx") for kind in type(error).__mro__)


class _Unclear(InvalidArgument):
    """`on` answered something that means nothing."""


class Retry(msgspec.Struct, frozen=True):
    """A policy: a frozen value. Parameter names are stamina's; seconds. Calling it makes another policy, or decorates.

    attempts: calls in all. timeout: deadline over all attempts, waits included; a wait that would pass it is not begun.
    attempt_timeout: of each. wait_max: longest wait, after jitter. The original exception comes out, with a note.
    """

    metrics: Recording
    attempts: int = 3
    timeout: float | None = 30.0
    attempt_timeout: float | None = None
    wait_initial: float = 0.1
    wait_max: float = 10.0
    wait_jitter: float = 1.0
    wait_exp_base: float = 2.0
    on: On = retryable
    name: str | None = None

    @classmethod
    def of(cls, metrics: Recording, settings: RetrySettings) -> "Retry":
        """The policy that the settings say."""
        return cls(metrics, **{field: getattr(settings, field) for field in RetrySettings.__struct_fields__})

    def __post_init__(self) -> None:
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int) or self.attempts < 1:
            raise InvalidArgument(f"attempts must be a whole number above 0, got {units.shown(self.attempts, 40)}")
        units.timeout(self.timeout)
        units.timeout(self.attempt_timeout, "attempt_timeout")
        for field in ("wait_initial", "wait_max", "wait_jitter", "wait_exp_base"):
            units.seconds(getattr(self, field), field)
        kinds = self.on if isinstance(self.on, tuple) else (self.on,)
        if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds) and not callable(self.on):
            raise InvalidArgument(
                f"on must be an exception, several, or a function, got {units.shown(self.on)}", remedy="Write on=TimeoutError"
            )

    @overload
    def __call__(self, fn: Callable[P, Awaitable[T]], /) -> Callable[P, Awaitable[T]]: ...
    @overload
    def __call__(
        self,
        /,
        *,
        on: On = ...,
        attempts: int = ...,
        timeout: float | None = ...,
        attempt_timeout: float | None = ...,
        wait_initial: float = ...,
        wait_max: float = ...,
        wait_jitter: float = ...,
        wait_exp_base: float = ...,
        name: str | None = ...,
    ) -> "Retry": ...
    def __call__(self, fn: Any = None, /, **changes: Any) -> Any:
        if fn is None:
            unknown = set(changes) - set(self.__struct_fields__) | ({"metrics"} & set(changes))
            if unknown:
                raise InvalidArgument(f"retry has no {min(unknown)!r}")
            return msgspec.structs.replace(self, **changes)
        decorated = fn

        @wraps(decorated)
        async def retried(*args: Any, **kwargs: Any) -> Any:
            return await self.execute(decorated, *args, **kwargs)

        return retried

    async def execute(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call until it succeeds, or the policy says stop; then the original exception, with a note of what was tried.

        Cancellation is immediate and never retried.
        """
        label = self.name or str(getattr(fn, "__qualname__", type(fn).__name__))
        stops = [tenacity.stop_after_attempt(self.attempts)]
        if self.timeout is not None:
            stops.append(tenacity.stop_before_delay(self.timeout))  # type: ignore[arg-type]
        loop = tenacity.AsyncRetrying(
            sleep=asyncio.sleep,
            stop=tenacity.stop_any(*stops),
            wait=self._wait,
            retry=tenacity.retry_if_exception(lambda error: self._asked(error) is not False),
            before_sleep=lambda state: self._count(label, "retried"),
            reraise=True,
        )

        async def once() -> T:
            if self.attempt_timeout is None:
                return await fn(*args, **kwargs)
            async with asyncio.timeout(self.attempt_timeout):
                return await fn(*args, **kwargs)

        if not callable(fn):
            raise InvalidArgument(f"execute takes an async function, got {fn!r:.80}")
        try:
            return await loop(once)
        except _Unclear:
            raise
        except Exception as error:
            tried = int(loop.statistics.get("attempt_number", 1))
            if self._asked(error) is not False:
                self._count(label, "gave_up")
                error.add_note(f"observatory: gave up {label} after {tried} of {self.attempts} attempts")
            raise

    def _asked(self, error: BaseException) -> bool | float:
        """False: not to be retried. True: with our backoff. A number: after so many seconds."""
        if not isinstance(error, Exception):
            return False
        if isinstance(self.on, type | tuple):
            return isinstance(error, self.on)
        asked: object = self.on(error)
        if isinstance(asked, bool):
            return asked
        if not isinstance(asked, int | float) or not -units.MAX_EXACT <= asked <= units.MAX_EXACT:
            raise _Unclear(
                f"on said {units.shown(asked)}", remedy="It says True (try again), False (do not), or seconds to wait"
            ) from error
        return asked

    def _wait(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        asked = self._asked(error) if error is not None else True
        if not isinstance(asked, bool):
            return max(float(asked), 0.0)
        try:
            backoff = self.wait_initial * self.wait_exp_base ** (state.attempt_number - 1)
        except OverflowError:
            backoff = self.wait_max
        return float(min(backoff + random.uniform(0, self.wait_jitter), self.wait_max))

    def _count(self, label: str, outcome: str) -> None:
        self.metrics.increment_counter(Metric.RETRY_ATTEMPTS, 1, {"name": label[:200], "outcome": outcome})
