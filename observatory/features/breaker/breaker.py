"""One breaker in one process: lets calls through, times and counts them, and knows how the fleet stands."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from functools import wraps
from types import TracebackType
from typing import Literal, NamedTuple, ParamSpec, Protocol, Self, TypeVar

from ... import replies
from ...clock import RoomClock, monotonic
from ...errors import CircuitOpen, InvalidArgument, ObservatoryError, StoreError
from ...logs import INTERNAL
from .blocks import entered, without
from .calls import Batch
from .machine import FAILS, GIVEN_BACK, WORKS, Machine, State, View
from .terms import Terms, decided

P = ParamSpec("P")
T = TypeVar("T")

_AGAIN_AFTER = 1.0
"""Seconds, at most, after which somebody who was refused because of a running probe is told to come again."""


class Desk(Protocol):
    """What a breaker needs of the room: scripts, and somebody who sends its counts."""

    clock: RoomClock

    async def probe(self, name: str, token: str, lease_us: int) -> tuple[bool, View]: ...
    async def force(self, name: str, to: str, reason: str) -> View: ...
    def soon(self, breaker: "Breaker", /) -> None: ...
    def refused(self, name: str) -> None: ...
    def shows(self, name: str, is_open: bool) -> None: ...


class Let(NamedTuple):
    """A call that was let through. token: it is the probe."""

    epoch: int
    began: float
    token: str


def verdict(error: BaseException | None) -> bool | None:
    """Whether a call tells that what it called works; None: it says nothing about that.

    Works: a value, and HTTP 4xx. Fails: nobody answered, or not in time, 408 and 5xx. Nothing: 429 (which is what pauses are
    for), a cancellation, an error of ours, a bug.
    """
    if error is None:
        return True
    if isinstance(error, ObservatoryError) or not isinstance(error, Exception):
        return None
    status = replies.status(error)
    if status is not None:
        return None if status == 429 else status != 408 and status < 500
    return False if replies.from_network(error) else None


class Breaker:
    """As context manager around a call, as decorator, or `execute`. CircuitOpen: the call was not made.

    While closed nothing is asked and nobody waited for. Several tasks may use one at the same time. What counts as a failure:
    no answer, or none in time, HTTP 408 and 5xx, and whatever took longer than `slow_after`. A timeout belongs inside.
    """

    def __init__(self, name: str, terms: Terms, desk: Desk) -> None:
        self.name = name
        self._desk = desk
        self._clock = desk.clock
        self._machine = Machine()
        self._outcomes: list[Batch] = []
        self._asking = False
        self._probing_until = 0.0
        self._changed_at = 0.0
        self._closed = True
        self._epoch = 0
        self._calls = self._failures = self._tail = 0
        self.use(terms)

    def use(self, terms: Terms) -> None:
        """From the next call on."""
        self.terms = terms
        self._timed = terms.slow_after is not None

    @property
    def state(self) -> State:
        """As far as this process knows; asks nobody."""
        return self._machine.view(self._now_us()).state

    @property
    def idle(self) -> bool:
        """Whether nothing would be lost without it: it lets every call through, and the fleet knows all that it does."""
        return not (self._calls or self._outcomes or self._asking) and self.state != "open"

    # around calls
    async def execute(self, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call, if the breaker lets it through."""
        token = "" if self._closed else await self._admit()
        epoch = self._epoch
        began = self._clock.monotonic() if self._timed else 0.0
        try:
            value = await fn(*args, **kwargs)
        except BaseException as error:
            self._ended(Let(epoch, began, token), error)
            raise
        if token or began:
            self._ended(Let(epoch, began, token), None)
        elif epoch == self._epoch:
            self._calls += 1
            self._tail = 0
        return value

    def __call__(self, fn: Callable[P, Awaitable[T]], /) -> Callable[P, Awaitable[T]]:
        if not callable(fn):
            raise InvalidArgument(f"a breaker decorates an async function, got {fn!r:.80}")

        @wraps(fn)
        async def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
            return await self.execute(fn, *args, **kwargs)

        return guarded

    async def __aenter__(self) -> Self:
        token = "" if self._closed else await self._admit()
        entered.set((self, self._epoch, self._clock.monotonic() if self._timed else 0.0, token, entered.get()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        inside = entered.get()
        if inside is None:  # entered in another context, which has it still: nothing is known of when
            return
        if inside[0] is not self:
            inside = without(inside, self)
            if inside is None:
                return
        _, epoch, began, token, outer = inside
        entered.set(outer)
        if error is None and not token and not began:
            if epoch == self._epoch:
                self._calls += 1
                self._tail = 0
        else:
            self._ended(Let(epoch, began, token), error)

    # around calls that no block can be put around
    async def begin(self) -> Let:
        """Lets a call through: what `end` is told, once. CircuitOpen: it must not be made."""
        token = "" if self._closed else await self._admit()
        return Let(self._epoch, self._clock.monotonic() if self._timed else 0.0, token)

    def slow(self, let: Let) -> bool:
        """Whether a call has taken longer than `slow_after` already."""
        slow_after = self.terms.slow_after
        return bool(let.began) and slow_after is not None and self._clock.monotonic() - let.began > slow_after

    def end(self, let: Let, works: bool | None) -> None:
        """What the call has told of what it called; None: nothing."""
        if let.token:
            self._probed(let, works)
        elif works is not None and let.epoch == self._epoch:
            self._calls += 1
            if works:
                self._tail = 0
            else:
                self._failures += 1
                self._tail += 1
                self._desk.soon(self)

    def _ended(self, let: Let, error: BaseException | None) -> None:
        # Slow has failed, also when it was cancelled: somebody has waited so long in vain.
        self.end(let, False if self.slow(let) else verdict(error))

    # while it is not closed
    async def _admit(self) -> str:
        """The token of a probe, or "" where it has been closed meanwhile. CircuitOpen otherwise."""
        machine = self._machine
        if machine.forced:
            reason = machine.forced.split(" ", 2)[-1]
            raise self._refusal(f"breaker {self.name} is held open: {reason}", None)
        asked_at, now = monotonic(), self._clock.monotonic()
        wait = machine.reopen_us / 1e6 - now
        if wait > 0:
            raise self._refusal(f"breaker {self.name} is open for another {wait:.1f} s", wait)
        wait = self._probing_until - now
        if wait > 0 or self._asking:
            raise self._refusal(f"breaker {self.name} is being tried by another call", min(max(wait, 0.01), _AGAIN_AFTER))
        token, lease_us = secrets.token_hex(8), self.terms.open_us
        self._asking = True
        try:
            granted, view = await self._desk.probe(self.name, token, lease_us)
        except StoreError:
            now_us = self._now_us()
            granted, view = machine.try_probe(now_us, token, lease_us), machine.view(now_us)
        except asyncio.CancelledError:
            # Whether it was granted is unknown; whoever comes next need not wait for the lease to end.
            self._conclude(Batch(self._epoch, outcome=GIVEN_BACK, token=token))
            raise
        else:
            if granted:  # what an older probe has found is of another epoch than this one's
                self._outcomes, self._changed_at = [], 0.0
            self.adopt(view, asked_at)
        finally:
            self._asking = False
        if granted:
            self._probing_until = self._clock.monotonic() + lease_us / 1e6
            INTERNAL.info("breaker %s: one call tries whether it works again", self.name)
            return token
        if self._closed:
            return ""
        self._probing_until = self._clock.monotonic() + min(view.probing_us / 1e6, _AGAIN_AFTER)
        raise self._refusal(
            f"breaker {self.name} is open", max(min(view.left_us or view.probing_us, 1e6 * _AGAIN_AFTER) / 1e6, 0.01)
        )

    def _refusal(self, message: str, retry_after: float | None) -> CircuitOpen:
        self._desk.refused(self.name)
        return CircuitOpen(message, retry_after=retry_after, context={"breaker": self.name})

    def _probed(self, let: Let, works: bool | None) -> None:
        """What the probe has found, here at once and for the fleet as soon as it can be told."""
        self._probing_until = 0.0
        outcome = GIVEN_BACK if works is None else WORKS if works else FAILS
        batch = Batch(let.epoch, outcome=outcome, token=let.token, open_us=self.terms.opening_us(self._clock.spread))
        said = self._machine.report(
            self._now_us(), self.terms, epoch=let.epoch, outcome=outcome, token=let.token, open_us=batch.open_us
        )
        self._changed_at = monotonic()
        self._settle(said)
        self._conclude(batch)

    def _conclude(self, batch: Batch) -> None:
        self._outcomes = [*self._outcomes[-9:], batch]
        self._desk.soon(self)

    # between the fleet and this process
    def adopt(self, view: View, asked_at: float) -> None:
        """What the fleet says; unless it was asked before something changed here that it has not heard of."""
        if asked_at < self._changed_at or self._outcomes:
            return
        self._machine.adopt(view, self._now_us())
        probing = min(view.probing_us / 1e6, _AGAIN_AFTER) * bool(view.open)
        self._probing_until = max(self._probing_until, self._clock.monotonic() + probing)
        self._settle(view)

    def _settle(self, view: View) -> None:
        closed = view.state == "closed"
        if view.epoch != self._epoch:
            # What was counted before is of another state.
            self._epoch = view.epoch
            self._calls = self._failures = self._tail = 0
        if closed != self._closed:
            self._closed = closed
            self._probing_until = 0.0
            self._desk.shows(self.name, not closed)
            if closed:
                INTERNAL.info("breaker %s is closed", self.name)
            else:
                INTERNAL.warning("breaker %s is open", self.name)

    def take(self) -> list[Batch]:
        """What is to be told now: outcomes of probes, then what was counted since."""
        batches, self._outcomes = self._outcomes, []
        if self._calls:
            batches.append(
                Batch(self._epoch, self._calls, self._failures, self._tail, open_us=self.terms.opening_us(self._clock.spread)),
            )
            self._calls = self._failures = self._tail = 0
        return batches

    def alone(self, batch: Batch) -> None:
        """The store did not take it: this process goes on by itself, from what it knew last. What a probe has found is told
        again later, since telling it twice changes nothing; counts are not, since they might count twice."""
        if batch.outcome:
            self._outcomes.append(batch)
        else:
            said = self._machine.report(
                self._now_us(),
                self.terms,
                epoch=batch.epoch,
                calls=batch.calls,
                failures=batch.failures,
                tail=batch.tail,
                open_us=batch.open_us,
            )
            self._settle(said)

    async def force(self, state: Literal["closed", "open", "auto"], *, reason: str | None = None) -> None:
        """Hold it open or closed for the whole fleet, with a reason, or let it go again (auto). StoreError: whether it is held
        is unknown."""
        asked_at = monotonic()
        self.adopt(await self._desk.force(self.name, *decided(state, reason)), asked_at)

    def forget(self) -> None:
        """A forked child: what was counted is the parent's."""
        self._outcomes = []
        self._asking, self._probing_until = False, 0.0
        self._calls = self._failures = self._tail = 0

    def afresh(self) -> None:
        """Another store, another clock: nothing is known."""
        self.forget()
        self._machine = Machine()
        self._closed, self._epoch, self._changed_at = True, 0, 0.0

    def _now_us(self) -> int:
        return int(self._clock.monotonic() * 1e6)
