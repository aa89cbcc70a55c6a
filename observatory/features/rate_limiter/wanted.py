"""What a call wants of each limit: from names, dimensions and costs to parts for the scripts, and back to an answer."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ... import dimensions, units
from ...errors import InvalidArgument
from ...keys import Key, Keys
from ...types import Amount, Dimensions, Identity, Unit
from .decision import DecidedBy, Decision
from .desk import Part, PartAnswer
from .limit import Limit, Policy, bucket_of
from .shape import Shape

Cost = Amount | Mapping[Unit, Amount]
"""One amount, or one per unit: {"tokens": 900}."""
LimitRef = str | Limit | Iterable[str | Limit]
"""One, several (all or nothing), or "*": every limit whose `match` fits the dimensions and whose unit the call brings."""

UNIDENTIFIED = "-"
"""Whose bucket it is, by "*", when a dimension is not known: the unidentified share one."""


class Wanted(NamedTuple):
    """One limit of a call. asked: in the scripts' units (nano-dollars, tokens …)."""

    policy: Policy
    shape: Shape
    identity: str
    asked: int
    part: Part
    fair: str = ""
    """The class by which the line is shared."""

    @property
    def key(self) -> Key:
        return self.part.key


class Verdict(NamedTuple):
    """What is known of one limit after it was asked, whoever answered."""

    fits: bool
    remaining: int
    wait: float | None
    """Seconds; None: it never fits."""
    reset_after: float
    plain: bool


def want(keys: Keys, policy: Policy, identity: str, cost: Any, *, clamp: bool = False) -> Wanted:
    """One limit, one identity, one cost. clamp: an estimate above the capacity becomes the capacity."""
    shape = policy.shape_for(identity)
    asked = cost if type(cost) is int and 0 <= cost < 1 << 52 and shape.unit != "usd" else units.units(cost, shape.unit, "cost")
    key = keys.bucket(policy.limit.name, identity, policy.form)
    if asked > shape.capacity:
        if not clamp:
            # A cost that never fits is still asked, so that the answer says what remains; the script refuses it.
            return Wanted(policy, shape, identity, asked, Part(shape, key, *shape.above))
        asked = shape.capacity
    return Wanted(policy, shape, identity, asked, Part(shape, key, *shape.time_of(asked)))


def held(keys: Keys, policy: Policy, identity: str, asked: int) -> Wanted:
    """What a reservation's id says is held, whatever the limit's numbers are by now."""
    shape = policy.shape_for(identity)
    key = keys.bucket(policy.limit.name, identity, policy.form)
    return Wanted(policy, shape, identity, asked, Part(shape, key, *shape.time_of(asked)))


def binding(wanted: list[Wanted]) -> list[Wanted]:
    """Without those whose identity may have everything."""
    return [one for one in wanted if one.policy.verdict(one.identity) is not True]


def cost_of(limit: Limit, cost: Any) -> Any:
    """What a call costs of one limit. InvalidArgument when the call does not say."""
    if not isinstance(cost, Mapping):
        return cost
    if limit.unit not in cost and limit.unit not in ("requests", "slots"):
        raise InvalidArgument(
            f"limit {limit.name} counts {limit.unit}, and the cost brings {', '.join(map(str, cost)) or 'nothing'}"
        )
    return cost.get(limit.unit, 1)


def check_costs(limits: list[Limit], cost: Any) -> None:
    """Several limits, one cost: every unit that is brought is counted by one of them, and a plain number means one unit."""
    taken = {limit.unit for limit in limits}
    if isinstance(cost, Mapping):
        strange = [str(unit) for unit in cost if unit not in taken]
        if strange:
            raise InvalidArgument(
                f"the cost brings {', '.join(strange)[:80]}, which none of {', '.join(limit.name for limit in limits)} counts"
            )
    elif len(taken) > 1 and not (cost == 1 and taken <= {"requests", "slots"}):
        raise InvalidArgument(
            f"the limits count {', '.join(sorted(taken))}: a plain cost does not say which is meant",
            remedy='Write one per unit: {"tokens": 900}; requests and slots are 1 where nothing is said',
        )


def given(identity: Identity | None) -> Identity:
    return dimensions.current() if identity is None else identity


def bucket(limit: Limit, identity: Identity, *, matched: bool = False) -> str:
    """The bucket of one limit; of limits that matched, unknown dimensions are `-`."""
    return bucket_of(limit, identity, missing=UNIDENTIFIED if matched else None)


def fair(limit: Limit, identity: Identity) -> str:
    """The class by which the line is shared: of the call's dimensions, else of what is bound."""
    named = identity if isinstance(identity, Mapping) else {}
    return named.get(limit.fair_by or "") or dimensions.current().get(limit.fair_by or "", UNIDENTIFIED)


def known(identity: Identity) -> Dimensions:
    """The dimensions by which limits are matched."""
    if isinstance(identity, str):
        raise InvalidArgument('"*" needs dimensions, not a name', remedy='Pass {"user": …}, or obs.bind(user=…)')
    return dimensions.checked(identity)


def told(wanted: Wanted, answer: PartAnswer) -> Verdict:
    """What the script said, in units and seconds."""
    shape = wanted.shape
    wait: float | None = 0.0 if answer.fits else answer.wait_us / 1e6
    if wanted.asked > shape.capacity:
        wait = None
    return Verdict(
        bool(answer.fits),
        shape.remaining(answer.debt, answer.part),
        wait,
        shape.reset_us(answer.debt, answer.part) / 1e6,
        bool(answer.plain),
    )


def decision(wanted: Wanted, verdict: Verdict, *, by: DecidedBy = "redis", waited: float = 0.0) -> Decision:
    """The answer as the caller sees it."""
    shape, reset_after = wanted.shape, verdict.reset_after
    unit = shape.unit
    refused = not verdict.fits
    allowed = not refused or shape.shadow
    cost, remaining, capacity, quota = wanted.asked, verdict.remaining, shape.capacity, shape.amount
    if unit == "usd":
        as_read = units.amount
        cost, remaining, capacity, quota = (as_read(one, unit) for one in (cost, remaining, capacity, quota))  # type: ignore[assignment]
    window = shape.period_us / 1e6
    more_after = min(reset_after, window / shape.amount) if shape.kind == "b" else reset_after
    return Decision(
        allowed,
        wanted.policy.limit.name,
        wanted.identity,
        unit,
        cost,
        remaining,
        capacity,
        0.0 if allowed else verdict.wait,
        reset_after,
        quota,
        window,
        waited,
        refused and shape.shadow,
        by,
        (),
        more_after,
    )


def each(
    keys: Keys, policies: Sequence[Policy], who: Identity, cost: Any, *, matched: bool, hold: bool, look: bool
) -> list[Wanted]:
    """What is wanted of each. InvalidArgument: slots, which are held, or a cost that cannot be."""
    found = []
    for policy in policies:
        if policy.shape.kind == "c" and not hold and not look:
            raise InvalidArgument(
                f"limit {policy.limit.name} counts slots, which are held: use reserve", remedy="async with reserve(...)"
            )
        one = want(keys, policy, bucket(policy.limit, who, matched=matched), cost_of(policy.limit, cost), clamp=hold)
        found.append(one._replace(fair=fair(policy.limit, who)) if policy.limit.fair_by else one)
    return found
