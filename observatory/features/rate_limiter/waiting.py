"""Insisting: stand in the line of the limit that binds, until all fit or the time is over."""

from typing import Any, Protocol

import msgspec

from ...clock import RoomClock
from ...errors import RateLimitExceeded, StoreUnavailable
from ...store.journey import heard
from ...types import Identity
from .decision import Decision, verdict
from .desk import Answer, Desk, PartAnswer
from .judge import Judge
from .line import LOOK_EVERY, Granted, Lines
from .reservation import new_id
from .wanted import LimitRef, Wanted

MEANWHILE = 5.0
"""Seconds for which a limit whose turn has come is held while the others are asked."""


class Pausing(Protocol):
    """Who knows whom the fleet leaves alone for a while."""

    async def sit_out(self, identity: Identity, patience: float | None) -> float | None: ...


class Waiting:
    """Those who wait in this process."""

    def __init__(self, judge: Judge, desk: Desk, lines: Lines, clock: RoomClock, pauses: Pausing | None = None) -> None:
        self._judge = judge
        self._desk = desk
        self._lines = lines
        self._clock = clock
        self._pauses = pauses

    async def paused(self, identity: Identity, patience: float | None) -> float | None:
        """Until who is to be called may be called; what is left of the patience. CoolingDown: that takes longer."""
        return patience if self._pauses is None else await self._pauses.sit_out(identity, patience)

    async def stand(
        self,
        wanted: list[Wanted],
        refused: Decision,
        patience: float | None,
        limit: LimitRef,
        *,
        hold: tuple[str, float] | None = None,
    ) -> tuple[Decision, Answer | None]:
        """Stand in the line of the limit that binds, until all fit. hold: the id and lease of what is to be held."""
        began = self._clock.time()
        admitted = False
        try:
            answered = await self._stand(wanted, refused, patience, limit, hold, began)
            admitted = True
        finally:
            self._judge.waited(refused.limit, self._clock.time() - began, admitted=admitted)
        return answered

    async def _stand(
        self,
        wanted: list[Wanted],
        refused: Decision,
        patience: float | None,
        limit: LimitRef,
        hold: tuple[str, float] | None,
        began: float,
    ) -> tuple[Decision, Answer | None]:
        place: Any = "back"
        while True:
            waited = self._clock.time() - began
            left = None if patience is None else patience - waited
            refused = msgspec.structs.replace(refused, waited=waited)
            if refused.retry_after is None or (left is not None and left <= 0):
                raise self._over(refused)
            one = next((w for w in wanted if w.policy.limit.name == refused.limit), wanted[0])
            if refused.decided_by == "local":
                await self._pause(refused, left)
            else:
                answer, place = await self._try(one, left, place, wanted, hold, refused)
                if answer is not None:
                    decision = verdict(self._judge.answered(wanted, answer))
                    return msgspec.structs.replace(decision, waited=self._clock.time() - began), answer
            if hold is None:
                decision = await self._judge.decide("take", wanted, limit)
                answer = None
            else:
                decision, answer = await self._judge.hold(wanted, *hold)
            if decision.allowed:
                return msgspec.structs.replace(decision, waited=self._clock.time() - began), answer
            refused = decision

    async def _pause(self, refused: Decision, left: float | None) -> None:
        """The store is away: nobody keeps a line, so each asks again."""
        wait = refused.retry_after or 0.0
        if left is not None and wait > left:
            raise self._over(refused)
        await self._clock.sleep(min(wait, LOOK_EVERY))

    async def _try(
        self,
        one: Wanted,
        left: float | None,
        place: Any,
        wanted: list[Wanted],
        hold: tuple[str, float] | None,
        refused: Decision,
    ) -> tuple[Answer | None, Any]:
        """Wait for the turn in one line. The answer when all fit then; else the place to take in the next line."""
        try:
            turn = await self._turn(one, left, place, wanted, hold)
            if isinstance(turn, Granted):
                return await self._granted(one, turn, wanted, hold), "front"
        except StoreUnavailable:
            return None, place
        waited = refused.waited + turn.waited
        raise self._over(msgspec.structs.replace(refused, retry_after=turn.wait, waited=waited))

    def _over(self, refused: Decision) -> RateLimitExceeded:
        """No more waiting: this refusal is told."""
        self._judge.count(refused)
        return RateLimitExceeded.of(refused)

    async def _turn(
        self, one: Wanted, left: float | None, place: Any, wanted: list[Wanted], hold: tuple[str, float] | None
    ) -> Any:
        limit = one.policy.limit
        alone = len(wanted) == 1
        class_ = one.fair
        name, lease = ("", 0.0) if hold is None else hold
        # Of several the one whose turn has come is held meanwhile, for as long as asking for the others may take.
        lease = lease if alone else max(lease, MEANWHILE)
        return await self._lines.stand(
            one.part,
            patience=left,
            place=place,
            lease_us=int(lease * 1e6),
            name=name if alone or name else new_id(None),
            class_=class_,
            weight=limit.weights.get(class_, 1),
            strict=one.policy.strict,
        )

    async def _granted(self, one: Wanted, turn: Granted, wanted: list[Wanted], hold: tuple[str, float] | None) -> Answer | None:
        """The binding limit's turn has come. Now the others, all or nothing; None: one refuses, and all is given back."""
        mine = PartAnswer(1, turn.debt, turn.part, 0, 0)
        others = [w for w in wanted if w is not one]
        if not others:
            return Answer(1, (mine,), turn.now_us)
        verb = "take" if hold is None else "hold"
        lease_us = 0 if hold is None else int(hold[1] * 1e6)
        try:
            answer = await self._judge.across.ask(verb, others, id=turn.ticket, lease_us=lease_us)
        except BaseException:
            # Away, or cancelled: what was held for the others' sake comes back now, else at its deadline.
            nothing = one.part._replace(cost=0, part=0)
            self._desk.settle("settle", nothing, id=turn.ticket, opened_us=turn.now_us).add_done_callback(heard)
            raise
        part = one.part if answer.status > 0 else one.part._replace(cost=0, part=0)
        if hold is None or answer.status < 1:
            await self._desk.settle("settle", part, id=turn.ticket, opened_us=turn.now_us)
        if answer.status < 1:
            return None
        rest = iter(answer.parts)
        return Answer(1, tuple(mine if w is one else next(rest) for w in wanted), answer.now_us)
