"""The attempts of one call: timed, noted, waited between.

The loop is tenacity's, from the first failure on: a call that succeeds at once costs none of it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Literal, NamedTuple, Protocol, Self

import tenacity

from ... import replies
from ...clock import RoomClock, Timer
from ...logs import INTERNAL

_test_attempts: ContextVar[int | None] = ContextVar("observatory_retry_testing", default=None)
_SPREAD = 0.1
"""Of a wait that the other side asked for, at most so much is added at random: not everybody comes back at one moment."""

Outcome = Literal["retried", "gave_up", "over_budget"]


class RetryDetails(NamedTuple):
    """What a hook is told before the wait. retry_num: 1 is the first retry. Seconds."""

    name: str
    retry_num: int
    wait_for: float
    waited_so_far: float
    caused_by: Exception


class Policy(Protocol):
    """What attempts need of a policy."""

    @property
    def clock(self) -> RoomClock: ...
    @property
    def attempts(self) -> int: ...
    @property
    def timeout(self) -> float | None: ...
    @property
    def attempt_timeout(self) -> float | None: ...
    @property
    def wait_max(self) -> float: ...
    @property
    def wait_jitter(self) -> float: ...
    @property
    def hooks(self) -> tuple[Callable[[RetryDetails], object], ...]: ...

    def asked(self, error: Exception) -> bool | float: ...
    def backoff(self, number: int) -> float: ...
    @property
    def spreads(self) -> bool: ...
    async def affords(self, label: str) -> bool: ...
    def count(self, label: str, outcome: Outcome) -> None: ...


@contextmanager
def in_tests(most: int) -> Iterator[None]:
    """In this task and those that it starts: no waits, at most so many attempts, and no budget."""
    token = _test_attempts.set(most)
    try:
        yield
    finally:
        _test_attempts.reset(token)


class Cut:
    """Cancels the current task at a moment of the timers' clock, as asyncio.timeout_at does, at a third of its cost."""

    __slots__ = ("_cancelling", "_fired", "_handle", "_task")

    def __init__(self, clock: RoomClock, when: float) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a timeout needs a task")
        self._task = task
        self._cancelling = task.cancelling()
        self._fired = False
        self._handle: Timer = clock.call_at(when, self._fire)

    def _fire(self) -> None:
        self._fired = True
        self._task.cancel()

    def end(self, error: BaseException | None) -> BaseException | None:
        """The error that it came to: a TimeoutError where this cut it, and nobody else has cancelled."""
        if not self._fired:
            self._handle.cancel()
            return error
        # Somebody else's cancellation is not ours to swallow.
        if self._task.uncancel() <= self._cancelling and isinstance(error, asyncio.CancelledError):
            made = TimeoutError("out of time")
            made.__cause__ = error
            return made
        return error


class Attempt:
    """`with attempt:` around the call. num: 1 is the first. next_wait: seconds, without jitter, if this one fails."""

    __slots__ = ("_clock", "_cut", "_ended", "_limit", "error", "next_wait", "num")

    def __init__(self, num: int, next_wait: float, limit: float | None, clock: RoomClock) -> None:
        self._clock = clock
        self.num = num
        self.next_wait = next_wait
        self._limit = limit
        self._cut: Cut | None = None
        self._ended = False
        self.error: Exception | None = None

    @property
    def succeeded(self) -> bool:
        return self._ended and self.error is None

    def __enter__(self) -> Self:
        self._ended, self.error = False, None
        self._cut = None if self._limit is None else Cut(self._clock, self._limit)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> bool:
        met = error if self._cut is None else self._cut.end(error)
        if met is not None and not isinstance(met, Exception):
            return False
        self._ended, self.error = True, met
        return met is not None


class Attempts(AsyncIterator[Attempt]):
    """Of one call. began: of the timers' clock. first: how the first attempt failed, where it was made without this."""

    def __init__(self, policy: Policy, label: str, began: float, first: Exception | None = None) -> None:
        self._policy = policy
        self._label = label
        self._deadline = None if policy.timeout is None else began + policy.timeout
        self._cap = _test_attempts.get()
        self._most = policy.attempts if self._cap is None else min(policy.attempts, self._cap)
        self._notes: list[str] = []
        self._waited = 0.0
        self._wait = 0.0
        self._since = began
        self._attempt: Attempt | None = None
        self._managers: AsyncIterator[tenacity.AttemptManager] | None = None
        self._manager: tenacity.AttemptManager | None = None
        if first is not None:
            self._attempt = Attempt(1, 0.0, None, policy.clock)
            self._attempt.error = first

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Attempt:
        before = self._attempt
        if before is None:
            return self._next(1)
        error = before.error
        if error is None:  # it succeeded, or was never made
            raise StopAsyncIteration
        if self._managers is None or self._manager is None:
            retrying = tenacity.AsyncRetrying(
                sleep=self._sleep,
                retry=self._again,
                wait=lambda state: self._wait,
                stop=tenacity.stop_never,
            )
            self._managers = aiter(retrying)
            self._manager = await anext(self._managers)
        self._manager.__exit__(type(error), error, error.__traceback__)
        before.error = None
        del error
        self._manager = await anext(self._managers)
        return self._next(before.num + 1)

    def _next(self, num: int) -> Attempt:
        policy = self._policy
        self._since = policy.clock.time()
        self._attempt = Attempt(num, policy.backoff(num), limit(policy, self._deadline), policy.clock)
        return self._attempt

    async def _sleep(self, seconds: float) -> None:
        self._waited += seconds
        await self._policy.clock.pause(seconds)

    async def _again(self, state: tenacity.RetryCallState) -> bool:
        """Whether there is another attempt, and after which wait. False: the error comes out as it is."""
        error = state.outcome.exception() if state.outcome is not None else None
        if not isinstance(error, Exception):
            return False
        policy, number, now = self._policy, state.attempt_number, self._policy.clock.time()
        said = replies.status(error)
        told = f"{type(error).__name__}{'' if said is None else f' (HTTP {said})'}"
        self._notes.append(f"attempt {number} of {self._most}: {told} after {now - self._since:.3f} s")
        asked = policy.asked(error)
        if asked is False:
            return self._over(error, None)
        self._wait = 0.0 if self._cap is not None else self._until_next(asked, number)
        late = self._deadline is not None and now + self._wait >= self._deadline
        if number >= self._most or late:
            return self._over(error, "gave_up")
        if self._cap is None and not await policy.affords(self._label):
            return self._over(error, "over_budget")
        self._notes[-1] += f"; waited {self._wait:.3f} s"
        policy.count(self._label, "retried")
        for hook in policy.hooks:
            try:
                hook(RetryDetails(self._label, number, self._wait, self._waited, error))
            except Exception:
                INTERNAL.exception("a hook of retry %s failed; it goes on", self._label)
        return True

    def _until_next(self, asked: bool | float, number: int) -> float:
        policy = self._policy
        if isinstance(asked, bool):
            return min(policy.backoff(number) + policy.clock.spread(policy.wait_jitter), policy.wait_max)
        spread = min(asked * _SPREAD, policy.wait_jitter) if policy.spreads else 0.0
        return max(float(asked), 0.0) + policy.clock.spread(max(spread, 0.0))

    def _over(self, error: Exception, outcome: Outcome | None) -> bool:
        if outcome is not None:
            self._policy.count(self._label, outcome)
        if outcome is not None or len(self._notes) > 1:
            made = f"{len(self._notes)} of {self._most} attempts"
            why = {"gave_up": "gave up", "over_budget": "over the fleet's retry budget: gave up", None: "failed"}[outcome]
            error.add_note(f"observatory: {why} {self._label} after {made}")
            for note in self._notes:
                error.add_note(f"observatory: {note}")
        return False


def limit(policy: Policy, deadline: float | None) -> float | None:
    """The moment at which an attempt that begins now is cut, on the timers' clock."""
    if policy.attempt_timeout is None:
        return deadline
    own = policy.clock.time() + policy.attempt_timeout
    return own if deadline is None else min(own, deadline)
