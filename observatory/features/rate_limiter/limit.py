"""What a limit is, and its exact arithmetic."""

from math import gcd

import msgspec

from ... import dimensions, names, units
from ...errors import InvalidArgument
from ...types import Amount, Identity, Period, Unit


class Limit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much of a unit, per period, for whom. Frozen, checked when made; InvalidArgument names the field.

    In code it is a DEFAULT: a setting of that name wins, field by field.

    name: [a-z0-9][a-z0-9_-]{0,63}. amount: whole units (usd: dollars) that grow back per period. per: seconds, a timedelta, or
    "1m". burst: the bucket's capacity; default: amount. by: dimensions with a bucket each; (): one bucket, or one per
    plain-string identity.
    """

    name: str
    amount: Amount | str
    per: Period
    burst: Amount | str | None = None
    unit: Unit = "requests"
    by: str | tuple[str, ...] = ()

    def __post_init__(self) -> None:
        Shape.of(self)

    @property
    def dimensions(self) -> tuple[str, ...]:
        """`by`, as a tuple."""
        return (self.by,) if isinstance(self.by, str) else tuple(self.by)


class Shape(msgspec.Struct, frozen=True):
    """A limit as the script computes with it: one unit grows back in `period` / `denominator` microseconds, exactly."""

    unit: Unit
    amount: int
    period_us: int
    capacity: int
    period: int
    denominator: int
    capacity_us: int
    capacity_part: int

    @classmethod
    def of(cls, limit: Limit) -> "Shape":
        """Checks the limit on the way. InvalidArgument."""
        where = f"limit {names.limit_name(limit.name)}"
        names.unit(limit.unit, f"{where}: unit")
        if limit.unit == "slots":
            raise InvalidArgument(f"{where}: slots are held, not spent; this version has no reserve")
        if limit.per in ("day", "week", "month"):
            raise InvalidArgument(f'{where}: calendar periods are not supported by this version; write "24h"')
        for dimension in limit.dimensions:
            names.label_name(dimension)
        amount = units.units(units.parsed(limit.amount, f"{where}: amount"), limit.unit, f"{where}: amount")
        period_us = units.microseconds(limit.per, f"{where}: per")
        burst = amount
        if limit.burst is not None:
            burst = units.units(units.parsed(limit.burst, f"{where}: burst"), limit.unit, f"{where}: burst")
        if amount < 1 or burst < 1 or period_us < 1:
            raise InvalidArgument(f"{where}: amount, per and burst must be above 0")
        common = gcd(amount, period_us)
        period, denominator = period_us // common, amount // common
        capacity_us, capacity_part = divmod(burst * period, denominator)
        if capacity_us > units.MAX_EXACT:
            raise InvalidArgument(f"{where}: it takes {capacity_us / 3.156e13:.0f} years to fill; at most 142 are supported")
        return cls(limit.unit, amount, period_us, burst, period, denominator, capacity_us, capacity_part)

    def time_of(self, cost: int) -> tuple[int, int]:
        """The time in which a cost grows back: whole microseconds, and a numerator over `denominator`."""
        return divmod(cost * self.period, self.denominator)

    def remaining(self, debt_us: int, debt_part: int) -> int:
        """Whole units that a bucket with this debt still has; never below 0."""
        free = (self.capacity_us - debt_us) * self.denominator + self.capacity_part - debt_part
        return max(free // self.period, 0)


def bucket_of(limit: Limit, identity: Identity) -> str:
    """Which bucket of the limit an identity means; "" is the one bucket of a limit without `by`. InvalidArgument."""
    wanted = limit.dimensions
    if isinstance(identity, str):
        if not identity:
            raise InvalidArgument(
                "identity must not be empty",
                remedy="An unset user id would pool everybody; pass None for the limit's one bucket",
            )
        if len(identity) > 65_536:
            raise InvalidArgument(f"identity must be at most 65536 characters, got {len(identity)}")
        if len(wanted) > 1:
            raise InvalidArgument(f"limit {limit.name} is by {', '.join(wanted)}: pass these as a mapping")
        return identity
    # What is bound was checked when it was bound.
    given = identity if identity is dimensions.current() else dimensions.checked(identity)
    if not wanted:
        return ""
    for dimension in wanted:
        if dimension not in given:
            raise InvalidArgument(
                f"limit {limit.name} is by {dimension}, which is not known here",
                remedy=f"Pass it as identity, or obs.bind({dimension}=…)",
            )
    if len(wanted) == 1:
        return given[wanted[0]]
    return "&".join(f"{dimension}={_plain(given[dimension])}" for dimension in wanted)


def _plain(value: str) -> str:
    return value.replace("%", "%25").replace("&", "%26").replace("=", "%3D")
