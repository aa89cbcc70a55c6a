"""The shared limits: look, take, wait in line, hold and settle."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from ... import units
from ...clock import RoomClock
from ...errors import InvalidArgument
from ...names import RESERVATIONS_REAPED
from ...notes import note
from ...settings import LimitSettings
from ...store.store import Store
from ...types import Dimensions, Identity, Unit
from . import wanted as wants
from .decision import Decision
from .desk import Desk, Part
from .judge import Judge, nothing
from .limit import Limit
from .line import Lines
from .notices import Recording, Telling
from .policies import Policies
from .reservation import PendingReservation, Reservation, Settlement, Token, by_unit, checked_lease, new_id
from .shape import UNKNOWN_FOR_US
from .waiting import Pausing, Waiting
from .wanted import Cost, LimitRef, Verdict, Wanted

MOST_DEBT = 10
"""Times the capacity: what a limit may be overdrawn by; the rest is counted, and forgiven (lua/rate_limiter/settle.lua)."""

SLOT_LEASE = UNKNOWN_FOR_US / 1e6
"""Seconds: the longest lease of a slot. After a failover unknown holders are waited for so long, and no longer."""


class RateLimiter:
    """identity=None takes the bound dimensions. Refusals are values in check and peek, exceptions in acquire and reserve.

    An outage is never a refusal: each limit's `on_store_down` says what happens then; StoreUnavailable where it says closed.
    """

    def __init__(
        self,
        store: Callable[[], Store],
        clock: RoomClock,
        metrics: Recording,
        settings: Mapping[str, LimitSettings],
        *,
        layer: str = "",
        alerts: Telling,
        replicas: int = 1,
        owner: Callable[[], str] = lambda: "observatory",
        instances: Callable[[], int] = lambda: 0,
        pauses: Pausing | None = None,
    ) -> None:
        self._metrics = metrics
        self._policies = Policies(settings, layer)
        self.idle = self._policies.idle
        """What settings say of limits that there are not."""
        self._desk = Desk(store, clock, replicas)
        self._judge = Judge(self._desk, clock, metrics, self._policies, instances, alerts)
        self._lines = Lines(self._desk, owner)
        self._waiting = Waiting(self._judge, self._desk, self._lines, clock, pauses)

    # which limits there are
    def use(self, settings: Mapping[str, LimitSettings], layer: str = "", only: Iterable[Limit] | None = None) -> None:
        """Lay these settings, read in `layer`, over what code declares (`only`). ConfigurationError names limit and field."""
        self._policies.use(settings, layer, only)

    def define(self, *limits: Limit) -> None:
        """Defaults for these names; a setting of the same name wins, field by field. Again: takes effect on the next call."""
        self._policies.define(*limits)

    def limits(self) -> tuple[Limit, ...]:
        """As they stand now, every layer applied."""
        return tuple(self._policies)

    def match(self, dimensions: Dimensions | None = None, units: Iterable[Unit] = ("requests",)) -> tuple[Limit, ...]:
        """What "*" means for these dimensions. Local and pure; `observatory rate-limiter explain` prints it."""
        given = wants.known(wants.given(dimensions))
        return tuple(policy.limit for policy in self._policies.match(given, units))

    @property
    def declared(self) -> tuple[Limit, ...]:
        """As code has them."""
        return self._policies.declared

    @property
    def any_match(self) -> bool:
        """Whether "*" can mean any limit at all."""
        return self._policies.any_match

    # asking
    async def check(self, limit: LimitRef, identity: Identity | None = None, cost: Cost = 1) -> Decision:
        """Take now or be told when. Never waits, never raises for a refusal. cost 0 looks.

        Of several limits all are taken or none. InvalidArgument, UnknownLimit: nothing was asked. StoreUnavailable (of a
        `closed` limit), or cancelled: whether the cost was taken is unknown; it is not given back (the safe side).
        """
        if type(cost) is int and type(limit) is str and (identity is None or type(identity) is str):
            lent = self._judge.lending.spend(limit, identity, cost)
            if lent is not None:
                note(limit, lent)
                return lent
        if (one := self._plain(limit, identity, cost)) is not None:
            decision = await self._judge.decide_one("take", one)
        else:
            decision = await self._judge.decide("take", self._wanted(limit, identity, cost), limit)
        if not decision.allowed or decision.shadow or decision.parts:
            self._judge.count(decision)
        else:
            note(decision.limit, decision)
        return decision

    async def peek(self, limit: LimitRef, identity: Identity | None = None) -> Decision:
        """check with cost 0, by its name."""
        return await self._judge.decide("look", self._wanted(limit, identity, 0, look=True), limit)

    async def acquire(
        self, limit: LimitRef, identity: Identity | None = None, cost: Cost = 1, *, timeout: float | None = 30.0
    ) -> Decision:
        """Wait for the pause of a known `provider` and `model` (obs.pauses), then in the fleet's line. None waits for ever.

        RateLimitExceeded, with the decision, after `timeout` seconds, or at once when it cannot be in time or can never fit.
        CoolingDown: the pause takes longer. Cancelled while waiting: nothing is taken. Nobody overtakes.
        """
        wanted = self._wanted(limit, identity, cost)
        patience = await self._waiting.paused(wants.given(identity), units.timeout(timeout))
        decision = await self._judge.decide("take", wanted, limit)
        wanted = wants.binding(wanted)
        if not decision.allowed:
            decision, _ = await self._waiting.stand(wanted, decision, patience, limit)
        self._judge.count(decision)
        return decision

    def reserve(
        self,
        limit: LimitRef,
        identity: Identity | None = None,
        cost: Cost = 1,
        *,
        timeout: float | None = 0.0,
        lease: float = 60.0,
        id: str | None = None,  # noqa: A002 (the word for it)
    ) -> PendingReservation:
        """Hold an estimate, settle the truth. The only way to use slots. Refused: RateLimitExceeded; paused: CoolingDown.

        An estimate above the capacity is held as the capacity. timeout: seconds in line. lease: seconds after which the hold of
        an owner who fell silent comes back. id: asking again under it takes nothing more.
        """

        async def hold() -> Reservation:
            seconds, name = checked_lease(lease), new_id(id)
            wanted = wants.binding(self._wanted(limit, identity, cost, hold=True))
            if seconds > SLOT_LEASE and any(one.shape.kind == "c" for one in wanted):
                raise InvalidArgument(
                    f"lease must be at most {SLOT_LEASE:g} seconds where slots are held, got {lease:g}",
                    remedy="async with reserve(...) renews it while it is open; or call renew()",
                )
            patience = await self._waiting.paused(wants.given(identity), units.timeout(timeout))
            return await self._reserve(wanted, patience, seconds, name, limit)

        return PendingReservation(hold, self._desk.clock)

    def requires(self, limit: LimitRef, cost: Cost = 1, *, timeout: float | None = 0.0) -> Callable[[], Awaitable[Decision]]:
        """A zero-argument check-or-raise on the bound dimensions: FastAPI's Depends(obs.rate_limiter.requires("chat"))."""
        units.timeout(timeout)
        limit = limit if isinstance(limit, str | Limit) else tuple(limit)

        async def required() -> Decision:
            if timeout == 0.0:
                return (await self.check(limit, None, cost)).raise_if_denied()
            return await self.acquire(limit, None, cost, timeout=timeout)

        return required

    async def reset(self, limit: str | Limit, identity: Identity | None = None) -> None:
        """Forget what was taken: of an identity, of the limit's one bucket. Open holds are forgotten with it."""
        policy, store = self._policies.find(limit), self._desk.store()
        key = store.keys.bucket(policy.limit.name, wants.bucket(policy.limit, wants.given(identity)), policy.form)
        beside = ("holds", "deadlines", "reaped", "line", "owners")
        await store.command("UNLINK", key, *[f"{key}:{suffix}" for suffix in beside])
        self._judge.memory.forget(key)

    def reservation(self, id: str) -> Reservation:  # noqa: A002
        """The reservation of an id, from any process: to settle, cancel or renew it. InvalidArgument: not an id of ours."""
        token = Token.of(id)
        keys = self._desk.keys()
        wanted = [
            wants.held(keys, policy, held.identity, held.asked)
            for held in token.parts
            for policy in [self._policies.find(held.limit if held.spec is None else held.inline())]
        ]
        empty = wants.decision(wanted[0], Verdict(True, 0, 0.0, 0.0, plain=False))
        return Reservation(self, wanted, empty, id=token.id, opened_us=token.opened_us, lease=token.lease, fence=0)

    # from a call to what it wants
    def _plain(self, limit: LimitRef, identity: Identity | None, cost: Any) -> Wanted | None:
        """The short way of most calls: one limit by name, one amount. None: the long way."""
        policy = self._policies.get(limit) if type(limit) is str else None
        if policy is None or not policy.is_plain or isinstance(cost, Mapping):
            return None
        if type(identity) is not str or not 0 < len(identity) <= 65_536 or len(policy.dimensions) > 1:
            identity = wants.bucket(policy.limit, wants.given(identity))
        return wants.want(self._desk.keys(), policy, identity, cost)

    def _wanted(
        self, limit: LimitRef, identity: Identity | None, cost: Any, *, look: bool = False, hold: bool = False
    ) -> list[Wanted]:
        keys = self._desk.keys()
        who = wants.given(identity)
        matched = False
        if isinstance(limit, str) and limit == "*":
            matched, who = True, wants.known(who)
            brought = {"requests", "slots", *cost} if isinstance(cost, Mapping) else {"requests"}
            policies = [policy for policy in self._policies.match(who, brought) if hold or policy.shape.kind != "c"]
        elif isinstance(limit, str | Limit):
            policies = [self._policies.find(limit)]
            if isinstance(cost, Mapping):
                wants.check_costs(
                    [policies[0].limit], {u: a for u, a in cost.items() if u not in ("requests", "slots")} or cost
                )
        elif isinstance(limit, Iterable):
            policies = self._policies.several(limit)
            if not look:
                wants.check_costs([policy.limit for policy in policies], cost)
        else:
            raise InvalidArgument(f"limit must be a name, a Limit, several of them, or '*', got {limit!r:.80}")
        return wants.each(keys, policies, who, cost, matched=matched, hold=hold, look=look)

    # holding
    async def _reserve(
        self, wanted: list[Wanted], patience: float | None, lease: float, name: str, limit: LimitRef
    ) -> Reservation:
        if not wanted:
            return Reservation(self, (), nothing(limit), id=name, opened_us=self._desk.now_us(), lease=lease, fence=0)
        decision, answer = await self._judge.hold(wanted, name, lease)
        if not decision.allowed:
            decision, answer = await self._waiting.stand(wanted, decision, patience, limit, hold=(name, lease))
        self._judge.count(decision)
        opened_us = self._desk.now_us() if answer is None else answer.now_us
        fences: list[int] = []
        if answer is not None:
            # A limit that only watches, and would have refused, holds nothing.
            pairs = [(one, part) for one, part in zip(wanted, answer.parts, strict=True) if part.fits]
            wanted = [one for one, _ in pairs]
            fences = [part.part for one, part in pairs if one.shape.kind == "c"]
            self._judge.fallback.hold_slots(wanted, 1)
        return Reservation(
            *(self, wanted, decision),
            id=name,
            opened_us=opened_us,
            lease=lease,
            fence=max(fences, default=0),
            local=answer is None,
        )

    async def end(self, reservation: Reservation, actual: Sequence[int]) -> Settlement:
        """Settle every part with what was used of it."""
        wanted, local = reservation.wanted, reservation.local
        if local:
            for one, used in zip(wanted, actual, strict=True):
                self._judge.fallback.give_back(one.key, one.asked - used if one.shape.kind != "c" else one.asked)
            late, excess = False, [0] * len(wanted)
        else:
            # Beyond what may become debt a number need not be exact any more.
            most = [one.asked + MOST_DEBT * one.shape.capacity for one in wanted]
            done = await asyncio.gather(
                *[
                    self._desk.settle(
                        "settle",
                        Part(one.shape, one.key, *one.shape.time_of(used)),
                        id=reservation.hold,
                        held=(one.part.cost, one.part.part),
                        opened_us=reservation.opened_us,
                        strict=one.policy.strict,
                    )
                    for one, used in zip(wanted, map(min, actual, most), strict=True)
                ]
            )
            self._judge.fallback.hold_slots(wanted, -1)
            late = any(status == 2 for status, _, _ in done)
            cut = [max(used - bound, 0) for used, bound in zip(actual, most, strict=True)]
            excess = [one.shape.units_of(*rest) + over for one, (_, *rest), over in zip(wanted, done, cut, strict=True)]
            if late:
                self._metrics.increment_counter(RESERVATIONS_REAPED)
            if all(status == 3 for status, _, _ in done):
                return Settlement()
        less = [one.asked - used for one, used in zip(wanted, actual, strict=True)]
        more = [used - one.asked - over for one, used, over in zip(wanted, actual, excess, strict=True)]
        return Settlement(by_unit(wanted, less) if not late else {}, by_unit(wanted, more), late)

    async def extend(self, reservation: Reservation, lease: float) -> bool:
        """Hold every part longer; False when one is gone."""
        if reservation.local:
            return True
        lease_us = int(lease * 1e6)
        done = await asyncio.gather(
            *[
                self._desk.settle("renew", part, id=reservation.hold, lease_us=lease_us, held=(part.cost, part.part))
                for part in [one.part for one in reservation.wanted]
            ]
        )
        if kept := all(status == 1 for status, _, _ in done):
            reservation.renewed(self._desk.now_us(), lease)
        return kept

    async def aclose(self) -> None:
        """Give back what was borrowed and not spent."""
        await self._judge.aclose()

    def forget(self) -> None:
        """In a forked child: loans, places in line, and what is being asked are the parent's."""
        self._desk.forget()
        self._judge.forget()
        self._lines.forget()

    def afresh(self) -> None:
        """Another store, another clock: nothing is known of either."""
        self.forget()
        self._judge.afresh()
