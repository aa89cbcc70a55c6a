"""A limit as the scripts compute with it: exact integers, and back to what a person reads."""

from datetime import UTC, datetime, timedelta, tzinfo
from math import gcd
from typing import Any, Literal, NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from ... import names, units
from ...errors import InvalidArgument
from ...keys import part
from ...types import Unit

CALENDAR = ("day", "week", "month")
KEEP_ABOVE_US = 600_000_000
"""State from before a failover is believed for limits that take longer than ten minutes to fill."""
UNKNOWN_FOR_US = 60_000_000
"""After a failover all slots count as taken for so long, until their holders have renewed."""
LONGEST_LEASE_US = 1_000_000
_SHORTEST_TO_LEASE_US = 40_000
_CALENDAR_US = {"day": 86_400_000_000, "week": 604_800_000_000, "month": 2_678_400_000_000}
_HEADROOM = 16
"""A sliding window multiplies its use, which may stand at ten times the capacity, by its ticks: both must stay below 2^52."""

Kind = Literal["b", "w", "s", "c"]
"""Token bucket, fixed window, sliding window, slots (lua/rate_limiter/_state.lua)."""


class Window(NamedTuple):
    """A calendar window, in microseconds since the epoch."""

    start_us: int
    length_us: int


class Shape(msgspec.Struct, frozen=True):
    """What the scripts are told of a limit. A bucket's costs are time: one unit is period / denominator us, exactly."""

    kind: Kind
    unit: Unit
    amount: int
    capacity: int
    period_us: int
    keep: bool
    shadow: bool = False
    period: int = 0
    denominator: int = 1
    full_us: int = 0
    """A bucket's capacity as time: whole microseconds,"""
    full_part: int = 0
    """and the numerator."""
    tick_us: int = 0
    calendar: str = ""
    timezone: str = "UTC"

    @property
    def form(self) -> str:
        """What of it the state's name says: a window of another length, or slots, count for themselves."""
        match self.kind:
            case "b":
                return ""
            case "c":
                return ".slots"
            case _ if self.calendar:
                return f".{self.calendar}-{part(self.timezone)}"
            case kind:
                return f".{kind}{self.period_us}"

    @property
    def lease_us(self) -> int:
        """How long tokens may be lent: a quarter of the time that the bucket takes to fill, a second at most; 0: too short."""
        return min(self.full_us // 4, LONGEST_LEASE_US) if self.kind == "b" and self.full_us >= _SHORTEST_TO_LEASE_US else 0

    def time_of(self, cost: int) -> tuple[int, int]:
        """A cost as the scripts take it: of a bucket whole microseconds and a numerator, else units and 0."""
        return divmod(cost * self.period, self.denominator) if self.kind == "b" else (cost, 0)

    def units_of(self, whole: int, part: int) -> int:
        """The other way, rounded down."""
        return (whole * self.denominator + part) // self.period if self.kind == "b" else whole

    def remaining(self, debt: int, part: int) -> int:
        """Whole units that are left with this much counted against the capacity; never below 0."""
        if self.kind != "b":
            return max(self.capacity - debt, 0)
        free = (self.full_us - debt) * self.denominator + self.full_part - part
        return max(free // self.period, 0)

    def reset_us(self, debt: int, part: int) -> int:
        """Microseconds until all of it is free again; of slots nobody can know."""
        return debt + (part > 0) if self.kind == "b" else part if self.kind in "ws" and debt else 0

    @property
    def above(self) -> tuple[int, int]:
        """A cost that never fits."""
        return (self.full_us + 1, self.full_part) if self.kind == "b" else (self.capacity + 1, 0)

    def window_of(self, now_us: int) -> int:
        """Which of its windows a moment lies in; of a bucket, which time of its filling."""
        if self.calendar:
            return window(self.calendar, self.timezone, now_us).start_us // 1_000_000
        return now_us // max(self.period_us, self.full_us, 1_000_000)

    def wire(self, now_us: int) -> bytes:
        """The JSON of it for the scripts. now_us: which calendar window the caller believes in."""
        start_us, length_us = 0, self.period_us
        if self.calendar:
            start_us, length_us = window(self.calendar, self.timezone, now_us)
        elif self.kind == "s":
            start_us = self.tick_us
        elif self.kind == "c":
            length_us = UNKNOWN_FOR_US
        capacity, part = (self.full_us, self.full_part) if self.kind == "b" else (self.capacity, 0)
        return b'["%b",%d,%d,%d,%d,%d,%d,%d]' % (
            *(self.kind.encode(), capacity, part, self.denominator),
            *(start_us, length_us, self.keep, self.shadow),
        )


def algorithm_of(limit: Any) -> Any:
    """What a `Limit` says, else what follows from its unit and period."""
    calendar = isinstance(limit.per, str) and limit.per in CALENDAR
    return limit.algorithm or ("concurrency" if limit.unit == "slots" else "fixed_window" if calendar else "token_bucket")


def shape_of(limit: Any, *, amount: Any = None, burst: Any = None) -> Shape:
    """The shape of a `Limit`, or of it with other numbers. InvalidArgument names the limit and the field."""
    where, unit, per = f"limit {limit.name}", limit.unit, limit.per
    names.unit(unit, f"{where}: unit")
    amount, burst = (limit.amount, limit.burst) if amount is None else (amount, burst)
    total = units.units(units.parsed(amount, f"{where}: amount"), unit, f"{where}: amount")
    capacity = total if burst is None else units.units(units.parsed(burst, f"{where}: burst"), unit, f"{where}: burst")
    calendar = isinstance(per, str) and per in CALENDAR
    algorithm = algorithm_of(limit)
    if not isinstance(algorithm, str) or algorithm not in _MAKERS:
        raise InvalidArgument(f"{where}: algorithm must be one of {', '.join(_MAKERS)}, got {algorithm!r:.60}")
    if (algorithm == "concurrency") != (unit == "slots"):
        raise InvalidArgument(f'{where}: algorithm="concurrency" and unit="slots" go together')
    if algorithm != "token_bucket" and limit.leases is True:
        raise InvalidArgument(f"{where}: only token buckets can lend; leave leases out of a {algorithm}")
    if algorithm != "token_bucket" and burst is not None:
        raise InvalidArgument(f"{where}: burst is of token buckets; a {algorithm} has none")
    if algorithm == "concurrency" and per is not None:
        raise InvalidArgument(f"{where}: slots are held, not spent: leave `per` out")
    if calendar and algorithm != "fixed_window":
        raise InvalidArgument(f'{where}: a calendar period is a fixed_window; write "24h", or leave algorithm out')
    if per is None and algorithm != "concurrency":
        raise InvalidArgument(f"{where}: per is missing", remedy='Write per="1m", or per="month"')
    period_us = _CALENDAR_US[per] if calendar else 1 if per is None else _period_us(per, where)
    if total < 1 or capacity < 1 or period_us < 1:
        raise InvalidArgument(f"{where}: amount, per and burst must be above 0")
    return _MAKERS[algorithm](limit, where, total, capacity, period_us)


def _period_us(per: Any, where: str) -> int:
    try:
        return units.microseconds(per, f"{where}: per")
    except InvalidArgument as error:
        raise InvalidArgument(error.message, remedy='Write seconds, "5m", "1h", or "day", "week", "month"') from None


def _keeps(limit: Any, full_us: int) -> bool:
    return bool(limit.after_failover == "keep" if limit.after_failover else full_us > KEEP_ABOVE_US)


def _slots(limit: Any, where: str, total: int, capacity: int, period_us: int) -> Shape:
    keep = limit.after_failover == "keep"
    return Shape("c", limit.unit, total, capacity, 0, keep, limit.shadow)


def _fixed(limit: Any, where: str, total: int, capacity: int, period_us: int) -> Shape:
    calendar = str(limit.per) if limit.per in CALENDAR else ""
    if calendar:
        _zone(limit.timezone, where)
    made = Shape("w", limit.unit, total, capacity, period_us, _keeps(limit, period_us), limit.shadow)
    return msgspec.structs.replace(made, calendar=calendar, timezone=limit.timezone)


def _sliding(limit: Any, where: str, total: int, capacity: int, period_us: int) -> Shape:
    if capacity * _HEADROOM > units.MAX_EXACT:
        raise InvalidArgument(f"{where}: amount must be at most 2^48 in a sliding window")
    tick_us = max(-(-period_us * capacity * _HEADROOM // units.MAX_EXACT), 1)
    made = Shape("s", limit.unit, total, capacity, period_us, _keeps(limit, period_us), limit.shadow)
    return msgspec.structs.replace(made, tick_us=tick_us)


def _bucket(limit: Any, where: str, total: int, capacity: int, period_us: int) -> Shape:
    common = gcd(total, period_us)
    period, denominator = period_us // common, total // common
    full_us, full_part = divmod(capacity * period, denominator)
    if full_us > units.MAX_EXACT:
        raise InvalidArgument(f"{where}: it takes {full_us / 3.156e13:.0f} years to fill; at most 142 are supported")
    if limit.leases is True and full_us < _SHORTEST_TO_LEASE_US:
        raise InvalidArgument(
            f"{where}: leases need a bucket that takes at least 40 ms to fill; this one takes {full_us / 1000:g} ms",
            remedy="Raise burst, or leave leases out",
        )
    return Shape(
        *("b", limit.unit, total, capacity, period_us, _keeps(limit, full_us), limit.shadow),
        *(period, denominator, full_us, full_part),
    )


_MAKERS = {"token_bucket": _bucket, "fixed_window": _fixed, "sliding_window": _sliding, "concurrency": _slots}


def _zone(name: str, where: str = "timezone") -> tzinfo:
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
        raise InvalidArgument(
            f"{where}: timezone {name!r:.60} is not known", remedy='Write an IANA name: "Europe/Berlin"'
        ) from None


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_windows: dict[tuple[str, str], Window] = {}
"""The last window of each kind that was asked for."""


def window(calendar: str, timezone: str, now_us: int) -> Window:
    """The day, week (from Monday) or month that a moment lies in, with the length it has there (23 hours, 28 days …)."""
    known = _windows.get((calendar, timezone))
    if known is not None and known.start_us <= now_us < known.start_us + known.length_us:
        return known
    zone = _zone(timezone)
    midnight = (
        (_EPOCH + timedelta(microseconds=now_us)).astimezone(zone).replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    )
    if calendar == "month":
        first = midnight.replace(day=1)
        after = (first + timedelta(days=32)).replace(day=1)
    else:
        first = midnight - timedelta(days=midnight.weekday() if calendar == "week" else 0)
        after = first + timedelta(days=7 if calendar == "week" else 1)
    start_us, end_us = ((one.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1) for one in (first, after))
    found = _windows[calendar, timezone] = Window(start_us, end_us - start_us)
    return found
