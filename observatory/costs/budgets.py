"""Budgets: limits that count dollars, as they stand for everybody who is charged in them."""

import asyncio
from collections.abc import Iterable, Iterator
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

import msgspec

from ..clock import RoomClock
from ..errors import ObservatoryError, StoreUnavailable
from ..features.metrics.read import hash_pages
from ..features.rate_limiter import Limit
from ..features.rate_limiter.budgets import charged, forecast, period_of
from ..features.rate_limiter.desk import Answer, Desk, Part
from ..features.rate_limiter.limit import Policy, dimensions_of
from ..features.rate_limiter.shape import Shape
from ..keys import Key
from ..store.store import Store
from ..units import amount, moment

AT_ONCE = 100
_LOOKS = 3
"""Times that a budget is looked at until nothing has moved between what is spent and what is held."""


class Budget(msgspec.Struct, frozen=True):
    """A limit that counts usd, as it stands for one identity."""

    limit: str
    identity: str
    """"" is the one of a limit without `by`; "-" that of calls that do not say."""
    dimensions: dict[str, str]
    amount_usd: Decimal
    spent_usd: Decimal
    """Settled; above the amount where calls cost more than was estimated."""
    reserved_usd: Decimal
    """Held by calls that are under way."""
    used: float
    """Spent and reserved, as a share of the amount."""
    resets_at: datetime
    """The end of the period; of a limit without one: when all of it is free again."""
    forecast_usd: Decimal | None
    """Spent at the end of the period if it goes on as until now: linear, so soon after its beginning it says little. None: a
    limit that refills all the time has no period."""

    @property
    def over(self) -> bool:
        """Whether the forecast is above the amount."""
        return self.forecast_usd is not None and self.forecast_usd > self.amount_usd


class _One(NamedTuple):
    policy: Policy
    identity: str
    shape: Shape
    key: Key
    certain: bool
    """Told also while nothing is charged: the limit's one bucket, and who has an override."""


async def budgets(store: Store, clock: RoomClock, limits: Iterable[Limit]) -> tuple[Budget, ...]:
    """See Costs.budgets."""
    told = await charged(store)
    known = {**told.limits, **{limit.name: limit for limit in limits}}
    wanted = [one for limit in known.values() if limit.unit == "usd" for one in _identities(store, limit, told.identities)]
    desk = Desk(lambda: store, clock, 0)
    found: list[Budget] = []
    for begins in range(0, len(wanted), AT_ONCE):
        looked = await asyncio.gather(*(_look(store, desk, one) for one in wanted[begins : begins + AT_ONCE]))
        found += [one for one in looked if one is not None]
    return tuple(sorted(found, key=lambda one: (-one.used, one.limit, one.identity)))


def _identities(store: Store, limit: Limit, charged: dict[str, list[str]]) -> Iterator[_One]:
    policy = Policy(limit)
    certain = {*([] if policy.dimensions else [""]), *limit.overrides}
    for identity in sorted({*certain, *charged.get(limit.name, ())}):
        if policy.verdict(identity) is None:
            key = store.keys.bucket(limit.name, identity, policy.form)
            yield _One(policy, identity, policy.shape_for(identity), key, identity in certain)


async def _look(store: Store, desk: Desk, one: _One) -> Budget | None:
    try:
        answer, held = await _ask(desk, one), 0
        for _ in range(_LOOKS):
            if answer.parts[0].plain:
                held = 0
                break
            held = await _held(store, one, answer.now_us)
            before, answer = answer, await _ask(desk, one)
            if _used(one.shape, before) == _used(one.shape, answer):
                break
    except StoreUnavailable:
        raise
    except ObservatoryError:
        return None  # its state cannot be read: asking the limit says so, and the others are told
    used = _used(one.shape, answer)
    if not used and not one.certain:
        return None
    held = min(held, used)
    period = period_of(one.shape, answer.now_us)
    reset_us = one.shape.reset_us(answer.parts[0].debt, answer.parts[0].part)
    going = None if period is None else Decimal(amount(forecast(used - held, period, answer.now_us), "usd"))
    capacity, spent, reserved = (Decimal(amount(nano, "usd")) for nano in (one.shape.capacity, used - held, held))
    return Budget(
        limit=one.policy.limit.name,
        identity=one.identity,
        dimensions=dimensions_of(one.policy.limit, one.identity),
        amount_usd=capacity,
        spent_usd=spent,
        reserved_usd=reserved,
        used=used / one.shape.capacity,
        resets_at=moment(answer.now_us + reset_us if period is None else period.start_us + period.length_us),
        forecast_usd=going,
    )


async def _ask(desk: Desk, one: _One) -> Answer:
    answer: Answer = await desk.ask("look", (Part(one.shape, one.key, 0, 0),))
    return answer


def _used(shape: Shape, answer: Answer) -> int:
    """Billionths that count against the capacity, also above it."""
    said = answer.parts[0]
    return shape.units_of(said.debt, said.part) if shape.kind == "b" else said.debt


async def _held(store: Store, one: _One, now_us: int) -> int:
    """What the open holds of this period have taken (lua/rate_limiter/_holds.lua)."""
    period, total = period_of(one.shape, now_us), 0
    for _, said in await hash_pages(store, Key(f"{one.key}:holds")):
        cost, part, denominator, opened, *_ = map(int, said.split(b","))
        if period is None or opened >= period.start_us:
            total += one.shape.units_of(cost, part if denominator == one.shape.denominator else 0)
    return total
