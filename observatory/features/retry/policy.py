"""The policy: what is tried again, how often, how long after, within what time."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar, overload

import msgspec

from ... import replies, units
from ...clock import RoomClock
from ...errors import InvalidArgument, ObservatoryError
from ...names import Metric
from ...settings import RetrySettings
from .attempts import Attempts, Cut, Outcome, RetryDetails, in_tests, limit
from .budget import RetryBudget

P = ParamSpec("P")
T = TypeVar("T")

On = type[BaseException] | tuple[type[BaseException], ...] | Callable[[Exception], bool | float]
Hook = Callable[[RetryDetails], object]
_RETRYABLE = frozenset({408, 409, 425, 429, *range(500, 600)})
_BLOCK = "block"
"""The name of attempts that were given none, and wrap no function."""

_OURS = frozenset({"metrics", "shared", "said"})


class Recording(Protocol):
    """What retrying needs of the metrics."""

    def increment_counter(self, metric: str, value: int = 1, labels: Mapping[str, str] | None = None) -> None: ...


def retryable(error: Exception) -> bool | float:
    """What is tried again when nothing else is said; a number is the wait the other side asked for.

    Our own retryable errors, errors of the system and of the network, and HTTP 408 409 425 429 5xx; `x-should-retry` overrules
    the status. The wait comes from `retry-after-ms`, `Retry-After` or the resets of used-up limits (replies.py).
    """
    if isinstance(error, ObservatoryError):
        return error.retryable if error.retry_after is None else (error.retryable and error.retry_after)
    status = replies.status(error)
    if status is None:
        return replies.from_network(error)
    said = replies.headers(error)
    told = replies.should_retry(said)
    if told is False or (told is None and status not in _RETRYABLE):
        return False
    wait = replies.wait(said)
    return True if wait is None else wait


class _Unclear(InvalidArgument):
    """`on` answered something that means nothing."""


class Retry(msgspec.Struct, frozen=True):
    """A policy: a frozen value. Parameter names are stamina's; seconds. Calling it makes another policy, or decorates.

    attempts: calls in all. timeout: deadline over all attempts, waits included; a wait that would pass it is not begun, and an
    attempt that does is cut (TimeoutError). attempt_timeout: of each. wait_max: longest wait, after jitter; one that the other
    side asks for may be longer. budget: retries are the fleet's, at most a share of the calls of this name. hooks: told of each
    retry before its wait. The original exception comes out, with a note for each attempt.

    As decorator, `.execute(fn, *args)`, or `async for attempt in policy: with attempt: ...`.
    """

    metrics: Recording
    shared: RetryBudget
    attempts: int = 3
    timeout: float | None = 30.0
    attempt_timeout: float | None = None
    wait_initial: float = 0.1
    wait_max: float = 10.0
    wait_jitter: float = 1.0
    wait_exp_base: float = 2.0
    on: On = retryable
    name: str | None = None
    budget: bool = True
    hooks: tuple[Hook, ...] = ()
    said: frozenset[str] = frozenset()
    """What code has said; all else is as the settings have it."""

    @classmethod
    def of(cls, metrics: Recording, shared: RetryBudget, settings: RetrySettings) -> "Retry":
        """The policy that the settings say."""
        return cls(metrics, shared, **{field: getattr(settings, field) for field in _SETTABLE})

    def _staged(self, settings: RetrySettings) -> "Retry":
        """With other settings below what code has said."""
        return msgspec.structs.replace(self, **{field: getattr(settings, field) for field in _SETTABLE - self.said})

    def __post_init__(self) -> None:
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int) or self.attempts < 1:
            raise InvalidArgument(f"attempts must be a whole number above 0, got {units.shown(self.attempts, 40)}")
        units.timeout(self.timeout)
        units.timeout(self.attempt_timeout, "attempt_timeout")
        for field in ("wait_initial", "wait_max", "wait_jitter", "wait_exp_base"):
            units.seconds(getattr(self, field), field)
        if not isinstance(self.hooks, tuple) or not all(map(callable, self.hooks)):
            raise InvalidArgument(f"hooks must be a tuple of functions, got {units.shown(self.hooks)}", remedy="Write (hook,)")
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
        budget: bool = ...,
        hooks: tuple[Hook, ...] = ...,
    ) -> "Retry": ...
    def __call__(self, fn: Any = None, /, **changes: Any) -> Any:
        if fn is None:
            unknown = set(changes) - set(self.__struct_fields__) | (_OURS & set(changes))
            if unknown:
                raise InvalidArgument(f"retry has no {min(unknown)!r}")
            return msgspec.structs.replace(self, **changes, said=self.said | set(changes))
        decorated = fn

        @wraps(decorated)
        async def retried(*args: Any, **kwargs: Any) -> Any:
            return await self.execute(decorated, *args, **kwargs)

        return retried

    async def execute(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call until it succeeds, or the policy says stop; then the original exception, with notes of what was tried.

        Cancellation is immediate and never retried.
        """
        if self.shared.staged is not None:
            self = self._staged(self.shared.staged)  # noqa: PLW0642
        label = self.name or getattr(fn, "__qualname__", None) or type(fn).__name__
        clock = self.shared.clock
        began = clock.time()
        if self.budget:
            self.shared.account(label).calls += 1
        try:
            if self.timeout is None and self.attempt_timeout is None:
                return await fn(*args, **kwargs)
            cut = Cut(clock, limit(self, None if self.timeout is None else began + self.timeout) or began)
            try:
                value = await fn(*args, **kwargs)
            except BaseException as error:
                met = cut.end(error)
                if met is error or met is None:
                    raise
                raise met from error
            cut.end(None)
            return value
        except Exception as error:
            if not callable(fn):
                raise InvalidArgument(f"execute takes an async function, got {fn!r:.80}") from None
            failed = error
        attempts = Attempts(self, label, began, failed)
        del failed
        async for attempt in attempts:
            with attempt:
                return await fn(*args, **kwargs)
        raise AssertionError("attempts end with an answer or an error")

    def __aiter__(self) -> Attempts:
        """Attempts around a block: what fails inside of `with attempt:` is swallowed, and the next step of the loop waits, or
        raises it."""
        if self.shared.staged is not None:
            self = self._staged(self.shared.staged)  # noqa: PLW0642
        label = self.name or _BLOCK
        if self.budget:
            self.shared.account(label).calls += 1
        return Attempts(self, label, self.shared.clock.time())

    @staticmethod
    def testing(most: int = 1) -> AbstractContextManager[None]:
        """For tests: in this task and those that it starts nobody waits, makes more attempts, or asks the budget."""
        return in_tests(most)

    # what attempts ask
    @property
    def clock(self) -> RoomClock:
        return self.shared.clock

    def asked(self, error: Exception) -> bool | float:
        """False: not to be retried. True: with our backoff. A number: after so many seconds."""
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

    def backoff(self, number: int) -> float:
        """Seconds behind an attempt, without jitter."""
        try:
            return min(self.wait_initial * self.wait_exp_base ** (number - 1), self.wait_max)
        except OverflowError:
            return self.wait_max

    @property
    def spreads(self) -> bool:
        """Whether a little is added to a wait that was asked for: not where a function of the user's says how long."""
        return self.on is retryable

    async def affords(self, label: str) -> bool:
        return not self.budget or await self.shared.take(self.shared.account(label))

    def count(self, label: str, outcome: Outcome) -> None:
        self.metrics.increment_counter(Metric.RETRY_ATTEMPTS, 1, {"name": label[:200], "outcome": outcome})


_SETTABLE = frozenset(RetrySettings.__struct_fields__) & frozenset(Retry.__struct_fields__) - {"budget"}
"""Of a policy's fields those that are settings of the same name; `budget` is another thing there."""
