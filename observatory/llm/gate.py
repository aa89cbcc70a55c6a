"""What stands between an LLM call and its provider: dimensions it must have, pauses, limits and budgets, the breaker.

    passed = await gate.enter(asked, wait)   raises what refuses: nothing is held then
    passed.answered(status, headers)         the provider has said something
    passed.leave(works, spent)               once; what was held is settled off the caller's path

What holds. A call that got in is settled once: with what it used, with nothing where it was never sent, and with its estimate
where nobody knows (a connection that broke, a reader that was killed: the provider may have billed it). While the store is
away, settling is tried again for SETTLE_FOR; then the hold runs out at its lease, as after a crash, and is given back.
"""

import asyncio
import zlib
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple

from .. import replies
from ..clock import RoomClock, monotonic
from ..errors import CoolingDown, InvalidArgument, NotOpen, ObservatoryError, RateLimitExceeded, StoreError
from ..features.breaker import Breaker, Breakers
from ..features.breaker.breaker import Let
from ..features.rate_limiter import PendingReservation, RateLimiter, Reservation
from ..logs import INTERNAL
from ..settings import LlmSettings
from ..types import Amount, Unit
from .refused import CODE

SETTLE_FOR: Final = 60.0
"""Seconds for which settling is tried."""
_CLOSE_WITHIN: Final = 2.0
_LEASE: Final = 60.0
"""Seconds; renewed while the call lasts."""
_GRACE: Final = 1.0
"""Seconds: a pause that is over so soon is waited for in any case. An SDK comes back at the moment it was told."""
_LONGEST: Final = 128
"""Characters of a breaker's name."""
_MOST_NAMES: Final = 1000
_MOST_UNPRICED: Final = 1000
"""Models that are spoken of."""
_PAUSED: Final = CoolingDown.code
_PAUSING: Final = frozenset({429, 503, 529})

Spent = Mapping[Unit, Amount] | Literal["estimate", "nothing"]


class Asked(NamedTuple):
    """A call before it is sent. where: whose failures and pauses are one. dimensions: all by which limits may know it.
    cost: its estimate, by unit."""

    where: str
    model: str
    key: str
    dimensions: Mapping[str, str]
    cost: Mapping[Unit, Amount]
    is_priced: bool = True


def works(status: int) -> bool | None:
    """Whether somebody who answers so works; None: that says nothing (429, which is what pauses are for)."""
    return None if status == 429 else status != 408 and status < 500


class Gate:
    """Of one process. Rooms are asked for when they are needed."""

    def __init__(
        self,
        limiter: Callable[[], RateLimiter],
        breakers: Callable[[], Breakers],
        settings: Callable[[], LlmSettings],
        clock: RoomClock,
    ) -> None:
        self._clock = clock
        self._limiter = limiter
        self._breakers = breakers
        self._settings = settings
        self._inside: set[Passed] = set()
        self._working: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        """Of calls that nobody waits for any more, and that are not over yet."""
        self._unpriced: set[tuple[str, str]] = set()
        self._closing = False

    @property
    def wait(self) -> float:
        """Seconds in line, where a client says nothing."""
        return self._settings().wait

    @property
    def limits(self) -> bool:
        """Whether any limit may apply to a call: else nobody asks for an estimate."""
        return self._limiter().any_match

    def missing(self, dimensions: Mapping[str, str]) -> str | None:
        """A dimension without which no call is let in."""
        return next((name for name in self._settings().require if name not in dimensions), None)

    async def enter(self, asked: Asked, wait: float) -> "Passed":
        """InvalidArgument: a dimension is missing. CoolingDown, CircuitOpen, RateLimitExceeded: not now. StoreUnavailable: a
        limit that counts on the store, which is away. wait: seconds, for pauses and lines together."""
        settings = self._settings()
        if (missing := self.missing(asked.dimensions)) is not None:
            raise InvalidArgument(
                f"LLM calls must say their {missing}", remedy=f'obs.bind({missing}="…"), or leave it out of [llm] require'
            )
        until = self._clock.monotonic() + wait
        breaker = self._breaker(asked) if settings.breaker == "on" else None
        let = await breaker.begin() if breaker is not None and breaker.state != "closed" else None
        held: PendingReservation | None = None
        try:
            if breaker is not None and let is not None and let.token and wait > 0:
                try:
                    held = await self._admitted(asked, self._clock.monotonic())
                except (RateLimitExceeded, CoolingDown):
                    # Who stands in line tries nothing, and keeps nobody else from it.
                    probe, let = let, None
                    breaker.end(probe, None)
                    held = await self._admitted(asked, until)
            else:
                held = await self._admitted(asked, until)
            if breaker is not None and let is None:
                let = await breaker.begin()
        except BaseException:
            if breaker is not None and let is not None:
                breaker.end(let, None)
            if held is not None:
                self._later(self._settle(held, "nothing"))
            raise
        if let is not None and let.began:
            # Begun before it was let in: what it waited for is not the provider's slowness.
            let = let._replace(began=self._clock.monotonic())
        passed = Passed(self, asked, breaker, let, held)
        self._inside.add(passed)
        return passed

    async def _admitted(self, asked: Asked, until: float) -> PendingReservation | None:
        """Pauses, then limits; and pauses that began while it stood in line."""
        await self._paused(asked, until)
        if not self.limits:
            return None
        if not asked.is_priced:
            self._look_at_price(asked)
        pending = self._limiter().reserve(
            "*", asked.dimensions, asked.cost, timeout=max(until - self._clock.monotonic(), 0.0), lease=_LEASE
        )
        try:
            held = await pending.__aenter__()
        except NotOpen:
            # Whom no limit meets, or only such as are open without the store, needs none.
            met = self._limiter().match(asked.dimensions, ("requests", "slots", *asked.cost))
            if any(limit.on_store_down != "open" for limit in met):
                raise
            return None
        if not held.wanted:
            pending.stop()
            return None
        try:
            await self._paused(asked, until)
        except BaseException:
            self._later(self._settle(pending, "nothing"))
            raise
        return pending

    def _look_at_price(self, asked: Asked) -> None:
        """A budget does not see what has no price: nobody should learn that from an invoice."""
        budgets = self._limiter().match(asked.dimensions, ("usd",))
        if not budgets:
            return
        name = f"{asked.dimensions.get('provider', asked.where)}/{asked.model}"
        counting = ", ".join(limit.name for limit in budgets)
        if self._settings().unpriced == "refuse":
            raise InvalidArgument(
                f"{name} has no price, and {counting} counts dollars",
                remedy=f'Give it one: [prices."{name}"], or obs.llm.prices.set; or set llm.unpriced = "allow"',
            )
        if (asked.where, asked.model) not in self._unpriced and len(self._unpriced) < _MOST_UNPRICED:
            self._unpriced.add((asked.where, asked.model))
            INTERNAL.warning('%s has no price: its calls cost %s nothing. Give it one: [prices."%s"]', name, counting, name)

    async def _paused(self, asked: Asked, until: float) -> None:
        pauses = self._breakers().pauses
        for model, key in ((asked.model, asked.key), (asked.model, ""), ("", asked.key), ("", "")):
            if pauses.left(asked.where, model, key):
                await pauses.wait(asked.where, model, key, timeout=max(until - self._clock.monotonic(), _GRACE))

    def _breaker(self, asked: Asked) -> Breaker:
        return self._breakers().breaker(_named(f"{asked.where}/{asked.model}"))

    # afterwards
    def left(self, passed: "Passed", held: PendingReservation | None, spent: Spent) -> None:
        if passed not in self._inside:
            return  # a forked child's copy of it: what is held is the parent's
        self._inside.remove(passed)
        if held is not None:
            self._later(self._settle(held, spent))

    def pause(self, asked: Asked, seconds: float) -> None:
        """For the fleet."""
        self._later(self._pause(asked, seconds))

    async def _pause(self, asked: Asked, seconds: float) -> None:
        with suppress(StoreError, NotOpen):  # this process pauses all the same, and tells the others later
            await self._breakers().pauses.begin(asked.where, asked.model, asked.key, seconds=seconds)

    async def _settle(self, pending: PendingReservation, spent: Spent) -> None:
        held = pending.stop()
        if held is None:
            return
        pause, until = 0.1, monotonic() + SETTLE_FOR
        while True:
            try:
                await (held.cancel() if spent == "nothing" else held.settle(_of(held, spent)))
                return
            except ObservatoryError as error:
                if not isinstance(error, StoreError) or self._closing or monotonic() + pause > until:
                    INTERNAL.warning("an LLM call could not be settled, its hold runs out: %s", error.code)
                    return
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5.0)

    def aside(self, work: Coroutine[Any, Any, None]) -> None:
        """Ends calls that nobody waits for any more: they are settled when it is over."""
        self._later(work, self._ending)

    def _later(self, work: Coroutine[Any, Any, None], among: set[asyncio.Task[None]] | None = None) -> None:
        among = self._working if among is None else among
        try:
            task = asyncio.get_running_loop().create_task(work, name="observatory LLM call")
        except RuntimeError:  # a stream that was thrown away after its loop had ended
            work.close()
            return
        among.add(task)
        task.add_done_callback(among.discard)

    async def settled(self) -> None:
        """What was to be settled when it was called is settled, or given up."""
        for among in (self._ending, self._working):
            if among:
                await asyncio.wait(tuple(among))

    async def aclose(self) -> None:
        """Calls that are still under way are settled with their estimates: what they use comes too late to be told."""
        self._closing = True
        try:
            for passed in tuple(self._inside):
                passed.leave(None, "estimate")
            if working := self._working | self._ending:
                _, late = await asyncio.wait(working, timeout=_CLOSE_WITHIN)
                for task in late:
                    task.cancel()
        finally:
            self._closing = False

    def forget(self) -> None:
        """A forked child: what is held is the parent's."""
        self._inside, self._working, self._ending = set(), set(), set()


class Passed:
    """A call that was let in."""

    __slots__ = ("_asked", "_breaker", "_gate", "_headed", "_held", "_left", "_let", "_slow")

    def __init__(
        self, gate: Gate, asked: Asked, breaker: Breaker | None, let: Let | None, held: PendingReservation | None
    ) -> None:
        self._gate = gate
        self._asked = asked
        self._breaker = breaker
        self._let = let
        self._held = held
        self._headed = self._slow = self._left = False

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        """The head is there: a pause that it asks for begins; a probe has found what it was sent for; slow is judged."""
        if status in _PAUSING:
            said = {name.lower(): value for name, value in headers.items()}
            # What another fleet's limits refuse to one of its callers is nobody else's pause.
            if said.get(CODE, _PAUSED) == _PAUSED and (seconds := replies.wait(said)):
                self._gate.pause(self._asked, seconds)
        self._headed = True
        breaker, let = self._breaker, self._let
        if breaker is not None and let is not None:
            self._slow = breaker.slow(let)
            if let.token:
                self._conclude(works(status))

    def leave(self, works: bool | None, spent: Spent) -> None:
        """It is over. works: what it tells of the provider."""
        if self._left:
            return
        self._left = True
        if not self._headed and self._breaker is not None and self._let is not None:
            self._slow = self._breaker.slow(self._let)  # also a cancellation: somebody has waited so long in vain
        self._conclude(works)
        self._gate.left(self, self._held, spent)

    def _conclude(self, works: bool | None) -> None:
        breaker, let, self._let = self._breaker, self._let, None
        if breaker is not None and let is not None:
            breaker.end(let, False if self._slow else works)


def _of(held: Reservation, spent: Mapping[Unit, Amount] | str) -> Mapping[Unit, Amount] | None:
    """Of what was used, what is held; None: the estimate."""
    if isinstance(spent, str):
        return None
    return {unit: spent[unit] for unit in {one.shape.unit for one in held.wanted} if unit in spent}


@lru_cache(_MOST_NAMES)
def _named(name: str) -> str:
    """As a breaker may be called; two that are cut are not one."""
    said = "".join(one if one.isascii() and (one.isalnum() or one in "_./:-") else "_" for one in name)
    said = said if said[:1].isalnum() else f"x{said}"
    return said if len(said) <= _LONGEST else f"{said[: _LONGEST - 9]}-{zlib.crc32(name.encode('utf-8', 'surrogatepass')):08x}"
