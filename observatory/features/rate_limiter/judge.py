"""One verdict: overrides, what is remembered, what was borrowed, the script; and Redis away, each limit's own policy."""

import asyncio
from collections.abc import Callable, Sequence

from ...clock import RoomClock
from ...errors import ReservationLost, StoreUnavailable
from ...names import WAIT_SECONDS, Metric
from ...notes import note
from . import wanted as wants
from .across import Across
from .decision import Decision, together, verdict
from .desk import Answer, Desk
from .fallback import Fallback
from .lending import Lending
from .limit import Limit
from .memory import Memory
from .notices import Notices, Recording, Telling
from .policies import Policies
from .wanted import LimitRef, Verdict, Wanted


class Judge:
    """Decides over what is wanted of one or several limits."""

    def __init__(
        self,
        desk: Desk,
        clock: RoomClock,
        metrics: Recording,
        policies: Policies,
        instances: Callable[[], int],
        alerts: Telling,
    ) -> None:
        self._desk = desk
        self._clock = clock
        self._metrics = metrics
        self._policies = policies
        self.across = Across(desk)
        self.memory = Memory()
        self.fallback = Fallback(instances, lambda: desk.heard_at, clock)
        self.lending = Lending(desk, clock, policies)
        self._notices = Notices(desk.store, metrics, alerts)
        self._merging: set[asyncio.Task[None]] = set()

    async def decide(self, verb: str, wanted: list[Wanted], limit: LimitRef) -> Decision:
        """Look or take: overrides, what is remembered, what was borrowed, the script; Redis away: by policy."""
        if not wanted:
            return nothing(limit)
        alone = len(wanted) == 1 and limit != "*" and isinstance(limit, str | Limit)
        if alone and not wanted[0].policy.limit.overrides:
            return await self.decide_one(verb, wanted[0])
        verdicts = [one.policy.verdict(one.identity) for one in wanted]
        asked = [one for one, verdict in zip(wanted, verdicts, strict=True) if verdict is None]
        denied = any(verdict is False for verdict in verdicts)
        found = iter(await self._ask("look" if denied else verb, asked))
        parts = [
            next(found) if verdict is None else _overridden(one, allowed=verdict)
            for one, verdict in zip(wanted, verdicts, strict=True)
        ]
        return parts[0] if alone else together(parts)

    async def decide_one(self, verb: str, one: Wanted) -> Decision:
        """The same for one limit, whose identities are all alike: the way of most calls."""
        moved = self._clock.now_us() != 0
        if verb == "take" and one.asked and not moved:
            remembered = self.memory.recall(one, self._policies.version)
            if remembered is not None:
                return remembered
            if one.policy.leased:
                try:
                    spent = await self.lending.take(one)
                except StoreUnavailable:
                    spent = None
                if spent is not None:
                    decision = wants.decision(one, spent, by="lease")
                    self._notices.look(one, decision, self._desk.now_us())
                    return decision
        asked_at = self._clock.monotonic()
        try:
            answer = await self._desk.ask(verb, (one.part,), strict=one.policy.strict and verb == "take")
        except StoreUnavailable as error:
            (share,) = self.fallback.decide((one,), error, take=verb == "take")
            return wants.decision(one, share, by="local")
        if self.fallback.is_active:
            self._merge((one,))
        (decision,) = self.answered((one,), answer)
        if verb == "take" and not decision.allowed and not moved:
            self.memory.keep(one, decision, self._policies.version, asked_at, plain=bool(answer.parts[0].plain))
        return decision

    def answered(self, wanted: Sequence[Wanted], answer: Answer) -> list[Decision]:
        """What the script said, as decisions; and what people should hear of is told."""
        decisions = [wants.decision(one, wants.told(one, part)) for one, part in zip(wanted, answer.parts, strict=True)]
        for one, decision in zip(wanted, decisions, strict=True):
            self._notices.look(one, decision, answer.now_us)
        return decisions

    async def _ask(self, verb: str, wanted: list[Wanted]) -> list[Decision]:
        """The script's answers. All or nothing, also over several slots of a Cluster."""
        if not wanted:
            return []
        try:
            answer = await self.across.ask(verb, wanted)
        except StoreUnavailable as error:
            verdicts = self.fallback.decide(wanted, error, take=verb == "take")
            return [wants.decision(one, verdict, by="local") for one, verdict in zip(wanted, verdicts, strict=True)]
        if self.fallback.is_active:
            self._merge(wanted)
        return self.answered(wanted, answer)

    def count(self, decision: Decision) -> None:
        """Refusals that were told, also those of limits that only watch."""
        for part in decision.parts or (decision,):
            note(part.limit, part)
            if not part.allowed or part.shadow:
                shadow = "true" if part.shadow else "false"
                self._metrics.increment_counter(Metric.RATE_LIMIT_REJECTIONS, 1, {"limit": part.limit, "shadow": shadow})

    def waited(self, limit: str, seconds: float, *, admitted: bool) -> None:
        """Somebody has stood in line."""
        self._metrics.record_histogram(
            WAIT_SECONDS, seconds, {"limit": limit, "outcome": "admitted" if admitted else "gave_up"}
        )

    async def hold(self, wanted: list[Wanted], name: str, lease: float) -> tuple[Decision, Answer | None]:
        """Hold all or nothing. Redis away: by policy, in this process alone (no answer then)."""
        verdicts = [one.policy.verdict(one.identity) for one in wanted]
        answer: Answer | None = None
        if any(verdict is False for verdict in verdicts):
            refused = next(one for one, verdict in zip(wanted, verdicts, strict=True) if verdict is False)
            decisions = [_overridden(refused, allowed=False)]
        else:
            try:
                answer = await self.across.ask("hold", wanted, id=name, lease_us=int(lease * 1e6))
            except StoreUnavailable as error:
                found = self.fallback.decide(wanted, error, take=True)
                decisions = [wants.decision(one, verdict, by="local") for one, verdict in zip(wanted, found, strict=True)]
            else:
                if answer.status == -2:
                    raise ReservationLost("a reservation of this id was held, and has run out", context={"reservation": name})
                decisions = self.answered(wanted, answer)
        return verdict(decisions), answer

    def _merge(self, answered: Sequence[Wanted]) -> None:
        """What was spent while the store was away becomes debt, once. Of a cluster a part may still be away."""
        owed = self.fallback.back([one.key for one in answered] if self._desk.store().is_cluster else None)
        if not owed:
            return

        async def tell() -> None:
            for one in owed:
                for pause in (0.0, 0.5, 2.0, 10.0):
                    await asyncio.sleep(pause)
                    try:
                        await self._desk.settle("debit", one.part, id=f"local-{one.id}")
                        break
                    except StoreUnavailable:
                        continue

        task = asyncio.get_running_loop().create_task(tell(), name="observatory merge")
        self._merging.add(task)
        task.add_done_callback(self._merging.discard)

    async def aclose(self) -> None:
        """Give back what was borrowed and not spent."""
        if self._merging:
            await asyncio.wait(self._merging, timeout=1.0)
        for task in self._merging:
            task.cancel()
        await self._notices.aclose()
        await self.lending.give_back()

    def forget(self) -> None:
        """In a forked child: loans are the parent's."""
        self.lending.forget()
        self.memory.clear()

    def afresh(self) -> None:
        """Another store, another clock: nothing was heard of this one, and nothing is owed to it."""
        self._desk.afresh()
        self._notices.afresh()
        self.fallback.forget()


def _overridden(one: Wanted, *, allowed: bool) -> Decision:
    left = one.shape.capacity if allowed else 0
    return wants.decision(one, Verdict(allowed, left, 0.0 if allowed else None, 0.0, plain=False))


def nothing(limit: LimitRef) -> Decision:
    """No limit applies."""
    return Decision(True, str(limit) if isinstance(limit, str) else "", "", "requests", 0, 0, 0, 0.0, 0.0)
