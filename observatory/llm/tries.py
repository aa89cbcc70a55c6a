"""Which tries a call has: one after the other at its fallbacks, and two at a time where the first says nothing for long.

Each is a call of its own: let in, sent, settled, told. What is handed on is the first response that is good; else that of the
last one that was sent; else, where nobody was let in, the refusal of the first. The failures before it are closed by then,
however it ends; the slower of two is closed beside the caller's path, which never waits for that. Once a response is handed on
there are no more: not a byte of one answer may be followed by another's.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from .. import replies
from ..errors import CircuitOpen, ObservatoryError, RateLimitExceeded, RetryBudgetExceeded, StoreError
from ..logs import INTERNAL
from .fallback import WHEN, Fallback
from .retries import Retries
from .told import Turn
from .wire import Recognised

_DRAIN: Final = 0.25
"""Seconds for which a failure is read, before somebody else is asked: its code is told, its connection serves again."""
_DRAINED: Final = 65_536
_ELSEWHERE: Final = (RateLimitExceeded, CircuitOpen, StoreError, RetryBudgetExceeded)
"""Refusals that another provider may not have for the same call."""


class Try(NamedTuple):
    """One request."""

    call: Recognised
    request: Any
    turn: Turn


class Made(NamedTuple):
    """A response that came. fallback: whose; 0: of whom was asked."""

    response: Any
    fallback: int


class NotMade(Exception):
    """A call that was not let in, and what is said instead. It passes through the answer cache, whose it is not."""

    def __init__(self, response: Any, error: ObservatoryError) -> None:
        super().__init__("refused")
        self.response = response
        self.error = error


Ready = Callable[[], Awaitable[None]]
Aside = Callable[[Coroutine[Any, Any, None]], None]
"""Does something that nobody waits for but who closes everything."""
Once = Callable[[Try, float, Ready], Awaitable[Any]]
"""Makes one try: its response. Seconds in line; what is awaited when it is let in, before it is sent. NotMade: it was not."""


class Tries:
    """Of one client. hedge_after: seconds without a head, after which a call is sent once more."""

    def __init__(self, fallbacks: Sequence[Fallback], hedge_after: float | None, retries: Retries, aside: Aside) -> None:
        self.fallbacks = tuple(fallbacks)
        self.hedge_after = hedge_after
        self.retries = retries
        self.aside = aside
        self._told = False
        self.poor = frozenset(status for one in fallbacks for status in one.when) if fallbacks else frozenset(WHEN)

    def serving(self, call: Recognised) -> list[tuple[int, Fallback]]:
        """Those that know what to do with a call, with their numbers. Of one that does not a line tells, once."""
        found = [(at, one) for at, one in enumerate(self.fallbacks, 1) if one.serves(call.endpoint)]
        if len(found) < len(self.fallbacks) and not self._told:
            self._told = True
            left = ", ".join(one.base_url.partition("?")[0] for one in self.fallbacks if not one.serves(call.endpoint))
            INTERNAL.warning("no fallback for calls of %s: %s speaks another protocol", call.provider, left)
        return found

    async def made(self, lib: Any, first: Try, wait: float, once: Once) -> Made:
        """wait: seconds in line, for all tries together. NotMade; or what the transport raises."""
        return await _Course(self, lib, first, wait, once).run()


class _Course:
    """Of one call."""

    def __init__(self, tries: Tries, lib: Any, first: Try, wait: float, once: Once) -> None:
        self._tries = tries
        self._lib = lib
        self._first = first
        self._once = once
        self._clock = tries.retries.clock
        self._until = self._clock.monotonic() + wait
        self._rest = tries.serving(first.call)
        self._hedges = tries.hedge_after is not None
        self._kept: Made | None = None
        """A failure that is handed on unless somebody else is let in."""
        self._status: int | None = None
        """Of the last that was sent."""
        self._spent: str | None = None
        """Where a retry is one too many: with another model or key it would be one all the same."""
        self._failed: Exception | None = None
        self._refused: NotMade | None = None

    async def run(self) -> Made:
        one: Try | None = self._first
        try:
            while one is not None:
                if (made := await self._tried(one)) is not None:
                    return made
                one = self._next()
        except BaseException:
            if self._kept is not None:
                await _close(self._kept)
            raise
        if self._kept is not None:
            return self._kept
        failure = self._failed or self._refused
        assert failure is not None  # noqa: S101 (whatever was tried has come to something)
        raise failure

    def _next(self) -> Try | None:
        while self._rest:
            at, fallback = self._rest.pop(0)
            if self._status is None or self._status in fallback.when:
                one = self._at(fallback, Turn(fallback=at))
                if one.call.where != self._spent:
                    return one
        return None

    def _at(self, fallback: Fallback, turn: Turn) -> Try:
        return Try(*fallback.of(self._lib, self._first.call, self._first.request), turn)

    async def _tried(self, one: Try) -> Made | None:
        """What is to be handed on; None: somebody else may be asked."""
        try:
            made = await (self._raced(one) if self._hedges else self._sent(one, self._drop))
        except NotMade as refused:
            self._refused = self._refused or refused
            if not isinstance(refused.error, _ELSEWHERE):
                self._rest = []
            elif isinstance(refused.error, RetryBudgetExceeded):
                self._spent = one.call.where
            return None
        except Exception as error:
            if not replies.from_network(error):
                raise
            self._failed, self._status = error, None
            return None
        self._failed, self._status = None, made.response.status_code
        if any(self._status in fallback.when for _, fallback in self._rest):
            self._kept = made
            return None
        return made

    async def _sent(self, one: Try, ready: Ready) -> Made:
        return Made(await self._once(one, max(self._until - self._clock.monotonic(), 0.0), ready), one.turn.fallback)

    async def _drop(self) -> None:
        """Somebody else is let in: what failed is not needed any more."""
        if self._kept is not None:
            await _read_out(self._kept.response.stream)
            kept, self._kept = self._kept, None
            await _close(kept)

    # two at a time
    async def _raced(self, one: Try) -> Made:
        loop = asyncio.get_running_loop()
        sent: asyncio.Future[None] = loop.create_future()

        async def ready() -> None:
            await self._drop()
            if not sent.done():
                sent.set_result(None)

        first = loop.create_task(self._sent(one, ready), name="observatory LLM call")
        racing, turns = [first], [one.turn]
        winner: asyncio.Task[Made] | None = None
        try:
            until: set[asyncio.Future[Any]] = {first, sent}
            await asyncio.wait(until, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({first}, timeout=self._tries.hedge_after)
            if not first.done() and await self._may(first):
                self._hedges = False
                turns.append(Turn(hedged=True))
                racing.append(loop.create_task(self._hedged(one, turns[1]), name="observatory LLM call"))
            winner = await self._best(racing)
        finally:
            # Nothing may be awaited from here on: a caller who is cancelled then would lose the winner's connection.
            sent.cancel()
            losers = [task for task in racing if task is not winner]
            for task, turn in zip(racing, turns, strict=True):
                turn.outrun = winner is not None and task is not winner
            if losers:
                for task in losers:
                    task.cancel()
                self._tries.aside(_ended(losers))
        return winner.result()

    async def _may(self, first: asyncio.Task[Made]) -> bool:
        """Whether the fleet can afford a second try, of a call whose first says nothing still."""
        retries, where = self._tries.retries, self._first.call.where
        asking = asyncio.get_running_loop().create_task(retries.hedge(where), name="observatory LLM call")
        try:
            await asyncio.wait({first, asking}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            asking.cancel()
        return not first.done() and asking.result()

    async def _best(self, racing: Sequence[asyncio.Task[Made]]) -> asyncio.Task[Made]:
        pending = set(racing)
        while pending:
            _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in racing:
                if (made := _came(task)) is not None and made.response.status_code not in self._tries.poor:
                    return task
        return next((task for task in racing if _came(task) is not None), racing[0])

    async def _hedged(self, one: Try, turn: Turn) -> Made:
        """At the first fallback that lets it in, else where it was sent before. Nobody stands in line for it."""
        for at, fallback in tuple(self._rest):
            turn.fallback = at
            with suppress(NotMade):
                response = await self._once(self._at(fallback, turn), 0.0, self._left_out(at))
                return Made(response, at)
        turn.fallback = one.turn.fallback
        request = one.request
        again = self._lib.Request(
            request.method, request.url, headers=request.headers, stream=request.stream, extensions=request.extensions
        )
        return Made(await self._once(Try(one.call, again, turn), 0.0, _nothing), turn.fallback)

    def _left_out(self, at: int) -> Ready:
        async def ready() -> None:
            self._rest = [(number, one) for number, one in self._rest if number != at]

        return ready


async def _nothing() -> None:
    """Nobody waits for it to be let in."""


def _came(task: asyncio.Task[Made]) -> Made | None:
    return task.result() if task.done() and not task.cancelled() and task.exception() is None else None


async def _ended(losers: Sequence[asyncio.Task[Made]]) -> None:
    """They were cancelled; an answer that came all the same is nobody's."""
    await asyncio.wait(losers)
    for task in losers:
        if (made := _came(task)) is not None:
            await _close(made)


async def _read_out(stream: Any) -> None:
    """As far as it is there."""
    size = 0
    with suppress(Exception):
        async with asyncio.timeout(_DRAIN):
            async for chunk in stream:
                size += len(chunk)
                if size > _DRAINED:
                    break


async def _close(made: Made) -> None:
    with suppress(Exception):
        await made.response.stream.aclose()
