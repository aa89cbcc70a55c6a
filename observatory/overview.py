"""The limits as a person looks at them: which of them a call would meet and why, what is left, and who is nearly through."""

import asyncio
import heapq
import itertools
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any, cast

import msgspec

from . import units as numbers
from .clock import RoomClock
from .dimensions import checked
from .errors import InvalidArgument, ObservatoryError, StoreUnavailable
from .features.rate_limiter import Decision, Limit, LimitRef, Override, RateLimiter
from .features.rate_limiter.desk import Desk, Part
from .features.rate_limiter.limit import Policy, bucket_of
from .features.rate_limiter.shape import Shape
from .features.rate_limiter.wanted import UNIDENTIFIED
from .keys import part
from .store.store import Store
from .types import Dimensions, Identity, Unit

AT_ONCE = 100
"""Buckets that are asked for in one trip."""
MOST_SHOWN = 1000


class Explanation(msgspec.Struct, frozen=True):
    """What one limit has to do with a call of these dimensions and units."""

    limit: str
    applies: bool
    """On its own: by "*", at the door of an application."""
    why: str
    identity: str
    """Whose bucket it would be; "" is the one of a limit without `by`, `-` that of the unidentified."""
    unknown: tuple[str, ...] = ()
    """Dimensions of its `by` that the call does not bring: asked by its name, that is an error."""
    override: Override | None = None
    """What this identity gets instead."""
    shadow: bool = False


def explain(limits: Iterable[Limit], dimensions: Dimensions, units: Iterable[Unit] = ()) -> tuple[Explanation, ...]:
    """Every limit: does it apply on its own, why, and whose bucket it would be. Local and pure; InvalidArgument."""
    given = checked(dimensions)
    brought = {"requests", *units}
    return tuple(_explained(limit, given, brought) for limit in limits)


def _explained(limit: Limit, given: Mapping[str, str], brought: set[Unit]) -> Explanation:
    faults = list(_faults(limit, given))
    if limit.unit not in brought:
        faults.append(f"it counts {limit.unit}, which the call does not bring")
    identity = bucket_of(limit, given, missing=UNIDENTIFIED)
    return Explanation(
        limit.name,
        not faults,
        "; ".join(faults) or _fits(limit, given),
        identity,
        tuple(name for name in limit.dimensions if name not in given),
        limit.overrides.get(identity),
        limit.shadow,
    )


def _faults(limit: Limit, given: Mapping[str, str]) -> Iterator[str]:
    if limit.match is None:
        yield "it has no match: only by its name"
    for name, glob in limit.misfits(given):
        known = f"{name} is {given[name]}, which does not match" if name in given else f"{name} is not known, and must match"
        yield f"{known} {glob}"


def _fits(limit: Limit, given: Mapping[str, str]) -> str:
    if not isinstance(limit.match, Mapping):
        return "it matches every call"
    return ", ".join(f"{name} is {given[name]}, which matches {glob}" for name, glob in limit.match.items())


async def look(limiter: RateLimiter, limit: LimitRef, identity: Identity | None, units: Iterable[Unit] = ()) -> Decision:
    """peek; of "*" also the limits that count other units than requests."""
    if units and isinstance(limit, str) and limit == "*":
        return await limiter.check("*", identity, dict.fromkeys(("requests", "slots", *units), 0))
    return await limiter.peek(limit, identity)


class Used(msgspec.Struct, frozen=True):
    """How much of one bucket is used."""

    limit: str
    identity: str
    """`~` and a digest where it is too long to be part of a key."""
    unit: Unit
    used: int | Decimal
    capacity: int | Decimal
    share: float
    reset_after: float


class Exhaustion(msgspec.Struct, frozen=True):
    """Who is nearly through."""

    buckets: list[Used]
    """Of the largest share first, a thousand at most."""
    asked: int
    unknown: dict[str, int]
    """Buckets of limits that are not known here, nor to anybody in the fleet in the last hour."""


async def near_exhaustion(store: Store, limits: Iterable[Limit], share: float) -> Exhaustion:
    """Every bucket of which at least this share is used. Page by page: nobody is kept waiting, no list of all is ever made."""
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 10:
        raise InvalidArgument(f"the share must be above 0 and at most 10, got {share!r:.40}")
    search = _Search(store, limits, share)
    page: list[bytes] = []
    async for key in store.scan(store.keys.buckets()):
        page.append(key)
        if len(page) >= AT_ONCE:
            await search.ask(page)
            page = []
    await search.ask(page)
    return search.found()


class _Search:
    def __init__(self, store: Store, limits: Iterable[Limit], share: float) -> None:
        self._store = store
        self._share = share
        self._desk = Desk(lambda: store, RoomClock(), 0)
        self._policies: dict[str, Policy | None] = {limit.name: Policy(limit) for limit in limits}
        self._long = {
            name: {part(identity): identity for identity in policy.limit.overrides}
            for name, policy in self._policies.items()
            if policy is not None
        }
        self._heap: list[tuple[float, int, Used]] = []
        self._number = itertools.count()
        self._asked = 0
        self._unknown: dict[str, int] = {}

    async def ask(self, page: list[bytes]) -> None:
        wanted: list[tuple[str, str, Part]] = []
        for raw in page:
            found = self._store.keys.found_bucket(raw)
            if found is None:
                continue
            key, name, identity = found
            policy = self._policies[name] if name in self._policies else await self._learn(name)
            if policy is None:
                self._unknown[name] = self._unknown.get(name, 0) + 1
                continue
            who = self._long.get(name, {}).get(identity, identity)
            wanted.append((name, who, Part(policy.shape_for(who), key, 0, 0)))
        self._asked += len(wanted)
        answers = await asyncio.gather(*[self._desk.ask("look", [one]) for _, _, one in wanted], return_exceptions=True)
        for (name, who, one), answer in zip(wanted, answers, strict=True):
            if isinstance(answer, BaseException):
                if isinstance(answer, StoreUnavailable) or not isinstance(answer, ObservatoryError):
                    raise answer
            elif answer.parts:
                self._keep(name, who, one.shape, answer.parts[0])

    def _keep(self, name: str, who: str, shape: Shape, answer: Any) -> None:
        used = shape.capacity - shape.remaining(answer.debt, answer.part)
        share = used / shape.capacity
        if share < self._share:
            return
        said = [numbers.amount(whole, shape.unit) for whole in (used, shape.capacity)]
        one = Used(name, who, shape.unit, said[0], said[1], share, shape.reset_us(answer.debt, answer.part) / 1e6)
        if len(self._heap) < MOST_SHOWN:
            heapq.heappush(self._heap, (share, next(self._number), one))
        elif self._heap[0][0] < share:
            heapq.heapreplace(self._heap, (share, next(self._number), one))

    async def _learn(self, name: str) -> Policy | None:
        """A limit that code declares elsewhere: its numbers, as a process of the fleet last told them."""
        self._policies[name] = None
        told = await self._store.bulk().command("GET", self._store.keys.shape(name))
        if told is not None:
            try:
                said = msgspec.json.decode(told)
                kind = said["algorithm"]
                per = None if said["per"] == "None" else said["per"]
                amount, burst = (numbers.parsed(said[field], field) for field in ("amount", "burst"))
                more: Any = {"burst": burst} if kind == "token_bucket" else {}
                limit = Limit(name, cast(Any, amount), per, unit=said["unit"], algorithm=cast(Any, kind), **more)
                self._policies[name] = Policy(limit)
            except (ObservatoryError, msgspec.DecodeError, KeyError, TypeError):
                pass
        return self._policies[name]

    def found(self) -> Exhaustion:
        # SCAN may tell a key twice.
        once = {(used.limit, used.identity): used for *_, used in self._heap}
        order = sorted(once.values(), key=lambda one: (-one.share, one.limit, one.identity))
        return Exhaustion(order, self._asked, self._unknown)
