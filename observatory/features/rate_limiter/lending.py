"""Tokens that were borrowed from a hot bucket, and are spent here without asking: debited first, so a crash only loses them.

The server keeps `lease_us` of the capacity free while tokens are lent (lua/rate_limiter/_state.lua): whoever spends late,
spends within the limit. The deadline is measured from before the asking, on a clock that counts through suspend.
"""

import asyncio
import contextlib

from ...clock import RoomClock
from ...errors import StoreError
from ...keys import Key
from .decision import Decision
from .desk import Desk, Part
from .policies import Policies
from .shape import Shape
from .wanted import Verdict, Wanted

AUTO_ABOVE = 200
AUTO_BELOW = 50
"""Checks a second of one bucket in this process, at which `leases="auto"` begins and ends to borrow."""
_MOST = 10_000
_SMALLEST = 8


class _Loan:
    """What this process has of one bucket. free, reset_after: what the bucket said when it lent."""

    __slots__ = (
        "asked",
        "borrowing",
        "ends_at",
        "free",
        "left",
        "lending",
        "part",
        "pause_until",
        "reset_after",
        "second",
        "shape",
        "size",
        "taken_us",
        "version",
        "wanted",
    )

    def __init__(self) -> None:
        self.left = 0
        self.ends_at = 0.0
        self.size = _SMALLEST
        self.borrowing: asyncio.Future[None] | None = None
        self.pause_until = 0.0
        self.second, self.asked = 0.0, 0
        self.lending = False
        self.taken_us = 0
        self.version = 0
        self.wanted: Wanted | None = None
        self.free, self.reset_after = 0, 0.0
        self.shape: Shape | None = None
        self.part: Part | None = None


class Lending:
    """The loans of one process."""

    def __init__(self, desk: Desk, clock: RoomClock, policies: Policies) -> None:
        self._desk = desk
        self._clock = clock
        self._policies = policies
        self._loans: dict[Key, _Loan] = {}
        self._named: dict[tuple[str, str | None], _Loan] = {}
        """The same, by limit and identity as callers say them."""

    def spend(self, limit: str, identity: str | None, cost: int) -> Decision | None:
        """The shortest way: of what lies here, without a trip, a key or a task. None: the long way."""
        loan = self._named.get((limit, identity))
        if (
            loan is None
            or not 0 < cost <= loan.left
            or loan.wanted is None
            or loan.version != self._policies.version
            or self._clock.monotonic() >= loan.ends_at
        ):
            return None
        loan.left -= cost
        one, shape = loan.wanted, loan.wanted.shape
        return Decision(
            *(True, limit, one.identity, shape.unit, cost, loan.free + loan.left, shape.capacity, 0.0, loan.reset_after),
            *(shape.amount, shape.period_us / 1e6, 0.0, False, "lease", (), 0.0),
        )

    async def take(self, wanted: Wanted) -> Verdict | None:
        """Spend what was borrowed, borrow when it is gone; None: ask the script (cold, nearly empty, or too large a cost)."""
        loan = self._loans.get(wanted.key)
        if loan is None:
            if len(self._loans) >= _MOST:
                self._loans.clear()
                self._named.clear()
            loan = self._loans[wanted.key] = _Loan()
        now = self._clock.monotonic()
        if wanted.policy.limit.leases == "auto" and not self._is_hot(loan, now):
            return None
        cost = wanted.asked
        while loan.borrowing is not None:
            # One asks for all; what is over is there for the next in the order in which they came.
            await asyncio.shield(loan.borrowing)
            now = self._clock.monotonic()
        if loan.shape != wanted.shape or now >= loan.ends_at or cost > loan.left:
            if now < loan.pause_until or (0 < loan.left < cost > loan.size and now < loan.ends_at):
                return None
            if not await self._borrow(loan, wanted):
                return None
        # Who has just borrowed is served, however late the answer came: his own cost was debited like any other.
        loan.left -= cost
        return Verdict(True, loan.free + loan.left, 0.0, loan.reset_after, plain=False)

    def _is_hot(self, loan: _Loan, now: float) -> bool:
        loan.asked += 1
        if now - loan.second >= 1.0:
            rate = loan.asked / (now - loan.second) if loan.second else 0.0
            loan.lending = rate > (AUTO_BELOW if loan.lending else AUTO_ABOVE)
            loan.second, loan.asked = now, 0
        return loan.lending

    async def _borrow(self, loan: _Loan, wanted: Wanted) -> bool:
        """Ask for twice as much as was spent too soon, for half of what was not spent in time."""
        shape, now = wanted.shape, self._clock.monotonic()
        seconds = shape.lease_us / 1e6
        if loan.shape is not None:
            soon = loan.ends_at - now > seconds / 2
            loan.size = loan.size * 2 if soon else max(loan.size - loan.left, loan.size // 2, _SMALLEST)
        loan.size = max(min(loan.size, shape.capacity // 4), wanted.asked, 1)
        loan.borrowing = asyncio.get_running_loop().create_future()
        try:
            part = Part(shape, wanted.key, *shape.time_of(loan.size))
            # What is left of the last loan lapses: it was debited, so nothing is admitted twice.
            loan.left = 0
            answer = await self._desk.ask("borrow", [part], lease_us=shape.lease_us, strict=wanted.policy.strict)
            if answer.status != 1:
                # Nearly empty, or others stand in line: for a while every call asks for itself.
                loan.pause_until, loan.size = now + seconds / 4, _SMALLEST
                return False
            loan.left, loan.ends_at, loan.taken_us = loan.size, now + seconds, answer.now_us
            debt = answer.parts[0].debt, answer.parts[0].part
            loan.shape, loan.part = shape, part
            loan.free, loan.reset_after = shape.remaining(*debt), shape.reset_us(*debt) / 1e6
            if loan.ends_at - self._clock.monotonic() < seconds / 2:
                # The way there and back takes most of a lease: what is lent would lapse.
                loan.pause_until = now + 10 * seconds
            if shape.unit != "usd" and wanted.policy.limit.leases is True:
                loan.wanted = wanted
                loan.version = self._policies.version
                self._named[wanted.policy.limit.name, wanted.identity or None] = loan
            return True
        finally:
            loan.borrowing.set_result(None)
            loan.borrowing = None

    async def give_back(self) -> None:
        """On close: what was not spent in time."""
        loans, self._loans = self._loans, {}
        self._named.clear()
        now = self._clock.monotonic()
        owed = [
            self._desk.settle("return", loan.part._replace(cost=cost, part=part), id="", opened_us=loan.taken_us)
            for loan in loans.values()
            if loan.part is not None and loan.shape is not None and loan.left and now < loan.ends_at
            for cost, part in [loan.shape.time_of(loan.left)]
        ]
        with contextlib.suppress(StoreError):
            await asyncio.gather(*owed)

    def forget(self) -> None:
        self._loans.clear()
        self._named.clear()
