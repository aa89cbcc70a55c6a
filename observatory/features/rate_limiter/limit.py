"""What a limit is: how much of a unit, per period, for whom, and what holds when things go wrong."""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import Any, Literal
from urllib.parse import unquote

import msgspec

from ... import dimensions, names, units
from ...errors import InvalidArgument
from ...settings import LimitSettings
from ...settings.named import spoken
from ...types import Amount, Dimensions, Identity, Period, Unit
from .shape import Shape, shape_of

Algorithm = Literal["token_bucket", "fixed_window", "sliding_window", "concurrency"]


class Override(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What one identity gets instead: other numbers, everything (`allow`), or nothing (`deny`)."""

    amount: int | float | str | None = None
    burst: int | float | str | None = None
    allow: bool = False
    deny: bool = False


class _Positional(msgspec.Struct, frozen=True):
    name: str
    amount: Amount | str
    per: Period | None = None
    burst: Amount | str | None = None
    unit: Unit = "requests"


class Limit(_Positional, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How much of a unit, per period, for whom. Frozen, checked when made; InvalidArgument names the field.

    In code it is a DEFAULT: a setting of that name wins, field by field.

    name: [a-z0-9][a-z0-9_-]{0,63}. amount: whole units (usd: dollars) per period. per: seconds, a timedelta, "1m", or "day",
    "week", "month" (aligned in `timezone`); none for slots, which are held and not spent. burst: a token bucket's capacity;
    default: amount.
    """

    algorithm: Algorithm | None = None
    """None: concurrency for unit="slots", fixed_window for a calendar `per`, else token_bucket."""
    by: str | tuple[str, ...] = ()
    """Dimensions with a bucket each; (): one bucket, or one per plain-string identity."""
    match: Mapping[str, str] | Literal["*"] | None = None
    """When it applies on its own: globs by dimension, or "*" for every call. None: only by name."""
    on_store_down: Literal["local", "open", "closed"] = "local"
    """Redis away: a share of 1 / instances in each process, no limit at all, or StoreUnavailable."""
    after_failover: Literal["empty", "keep"] | None = None
    """State from before a failover or restart counts as spent, or is believed. None: spent when it fills within ten minutes."""
    durability: Literal["fast", "strict"] = "fast"
    """strict: an answer is given when a replica has it too."""
    shadow: bool = False
    """It watches and never refuses."""
    leases: bool | Literal["auto"] = False
    """Tokens are borrowed in batches and spent without asking; auto: while this process asks often."""
    fair_by: str | None = None
    """The dimension among whose values a line is shared; None: first come, first served."""
    weights: Mapping[str, int] = {}
    """Shares of the values of fair_by; 1 where not named."""
    overrides: Mapping[str, Override] = {}
    """By identity."""
    alert_at: tuple[float, ...] = ()
    """Fractions of the capacity, told once per fleet and window."""
    timezone: str = "UTC"
    """For calendar periods."""

    def __post_init__(self) -> None:
        where = f"limit {names.limit_name(self.name)}"
        shape_of(self)
        for dimension in (*self.dimensions, *([] if self.fair_by is None else [self.fair_by])):
            names.label_name(dimension)
        for field, wanted in _CHOICES.items():
            if getattr(self, field) not in wanted:
                said = ", ".join(str(one) for one in wanted)
                raise InvalidArgument(f"{where}: {field} must be one of {said}, got {getattr(self, field)!r:.40}")
        _check_sharing(self, where)
        _check_match(self, where)

    @property
    def dimensions(self) -> tuple[str, ...]:
        """`by`, as a tuple."""
        if isinstance(self.by, str):
            return (self.by,)
        if not isinstance(self.by, tuple | list):
            raise InvalidArgument(f"limit {self.name}: by must be a name or several, got {self.by!r:.60}")
        return tuple(self.by)

    def matches(self, given: Dimensions) -> bool:
        """Does it apply on its own to a call of these dimensions?"""
        return self.match is not None and next(self.misfits(given), None) is None

    def misfits(self, given: Dimensions) -> Iterator[tuple[str, str]]:
        """The dimensions and globs of `match` that these do not fit."""
        if isinstance(self.match, Mapping):
            for name, glob in self.match.items():
                if name not in given or not fnmatchcase(given[name], glob):
                    yield name, glob


def _check_sharing(limit: Limit, where: str) -> None:
    for field, kind in (("weights", Mapping), ("overrides", Mapping), ("alert_at", tuple | list)):
        if not isinstance(getattr(limit, field), kind):
            raise InvalidArgument(f"{where}: {field} must be a {_KINDS[field]}, got {getattr(limit, field)!r:.60}")
    for identity, override in limit.overrides.items():
        if not isinstance(identity, str) or not isinstance(override, Override):
            raise InvalidArgument(f"{where}: overrides must be Overrides by identity, got {identity!r:.40}: {override!r:.60}")
    for value, weight in limit.weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int) or not 1 <= weight <= 1_000_000:
            raise InvalidArgument(f"{where}: weights.{value} must be a whole number from 1 to 1000000, got {weight!r:.40}")
    for fraction in limit.alert_at:
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction <= 10:
            percent = isinstance(fraction, int | float) and 10 < fraction <= 1000
            raise InvalidArgument(
                f"{where}: alert_at must be fractions of the capacity, above 0 and at most 10, got {units.shown(fraction, 40)}",
                remedy=f"Write {fraction / 100:g} for {fraction:g} %" if percent else "Write 0.8 for 80 %",
            )


def _check_match(limit: Limit, where: str) -> None:
    if isinstance(limit.match, Mapping):
        dimensions.checked(limit.match, f"{where}: match dimension")
    elif limit.match not in (None, "*"):
        raise InvalidArgument(f'{where}: match must be a mapping of globs or "*", got {limit.match!r:.60}')


_KINDS = {"weights": "mapping of whole numbers", "overrides": "mapping of Overrides", "alert_at": "tuple of fractions"}
_CHOICES: dict[str, tuple[Any, ...]] = {
    "on_store_down": ("local", "open", "closed"),
    "after_failover": (None, "empty", "keep"),
    "durability": ("fast", "strict"),
    "leases": (False, True, "auto"),
    "shadow": (False, True),
}


class Policy:
    """A limit as it stands, every layer applied, with the shapes it is asked with."""

    __slots__ = ("_overridden", "dimensions", "form", "is_plain", "leased", "limit", "shape", "spec", "strict")

    def __init__(self, limit: Limit, *, inline: bool = False) -> None:
        self.limit = limit
        self.spec: dict[str, Any] | None = spelled(limit) if inline else None
        """All of it, for who does not know it by name."""
        self.shape: Shape = shape_of(limit)
        self.dimensions = limit.dimensions
        self.leased = bool(limit.leases) and self.shape.lease_us > 0 and not limit.shadow
        self.form = self.shape.form
        self.strict = limit.durability == "strict"
        self.is_plain = not limit.overrides and self.shape.kind != "c"
        """Every identity has the same numbers, and they are spent, not held."""
        self._overridden: dict[str, Shape] = {}
        for identity, override in limit.overrides.items():
            if override.amount is not None or override.burst is not None:
                self._overridden[identity] = shape_of(
                    limit,
                    amount=limit.amount if override.amount is None else override.amount,
                    burst=override.burst if override.burst is not None or override.amount is not None else limit.burst,
                )

    def shape_for(self, identity: str) -> Shape:
        return self._overridden.get(identity, self.shape) if self._overridden else self.shape

    def verdict(self, identity: str) -> bool | None:
        """What an override says without asking: True always, False never, None: ask."""
        override = self.limit.overrides.get(identity)
        return None if override is None else False if override.deny else True if override.allow else None


def fields_of(setting: LimitSettings) -> dict[str, Any]:
    """What a setting says of a limit, field by field. InvalidArgument names an override that is not one."""
    given = {field: value for field, value in msgspec.structs.asdict(setting).items() if value is not None}
    if "overrides" in given:
        given["overrides"] = {identity: _override(identity, one) for identity, one in given["overrides"].items()}
    if isinstance(given.get("alert_at"), float):
        given["alert_at"] = (given["alert_at"],)
    return given


def _override(identity: str, said: Any) -> Override:
    where, known = f"overrides.{identity}", Override.__struct_fields__
    if not isinstance(said, Mapping):
        raise InvalidArgument(
            f"{where}: must be a table of {', '.join(known)}, got {units.shown(said, 60)}",
            remedy=f"Write {identity} = {{ allow = true }}, or {{ amount = 500 }}",
        )
    if strange := [name for name in said if name not in known]:
        raise InvalidArgument(f"{where}.{strange[0]!s:.60}: unknown key, known are {', '.join(known)}")
    try:
        return msgspec.convert(said, Override)
    except msgspec.ValidationError as error:
        raise InvalidArgument(spoken(where, error)) from error


def spelled(limit: Limit) -> dict[str, Any]:
    """All of it that is not the default, for who does not know it by name."""
    given = {name: getattr(limit, name) for name in limit.__struct_fields__}
    default = dict(zip(reversed(limit.__struct_fields__), reversed(limit.__struct_defaults__), strict=False))
    kept = {name: value for name, value in given.items() if name not in default or value != default[name]}
    found: dict[str, Any] = msgspec.to_builtins(kept, builtin_types=(timedelta,))
    if isinstance(limit.per, timedelta):
        found["per"] = limit.per.total_seconds()
    return found


def respelled(name: str, spec: Mapping[str, Any]) -> Limit:
    """The other way. InvalidArgument, TypeError, msgspec.ValidationError: it says no limit."""
    given = {field: value for field, value in spec.items() if field != "name"}
    return Limit(name, **fields_of(msgspec.convert(given, LimitSettings)))


def bucket_of(limit: Limit, identity: Identity, *, missing: str | None = None) -> str:
    """Which bucket of the limit an identity means; "" is the one bucket of a limit without `by`. InvalidArgument.

    missing: what stands for a dimension that is not known; None: that is an error.
    """
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
    found: list[str] = []
    for dimension in wanted:
        value = given.get(dimension, missing)
        if value is None:
            raise InvalidArgument(
                f"limit {limit.name} is by {dimension}, which is not known here",
                remedy=f"Pass it as identity, or obs.bind({dimension}=…)",
            )
        found.append(value)
    if len(wanted) == 1:
        return found[0]
    return "&".join(f"{dimension}={_plain(value)}" for dimension, value in zip(wanted, found, strict=True))


def dimensions_of(limit: Limit, identity: str) -> dict[str, str]:
    """The other way: what `by` says of whose bucket it is; of a plain name without `by`, nothing."""
    wanted = limit.dimensions
    if len(wanted) == 1:
        return {wanted[0]: identity}
    pairs = (pair.partition("=") for pair in identity.split("&") if wanted)
    return {name: unquote(value) for name, equals, value in pairs if equals}


def _plain(value: str) -> str:
    return value.replace("%", "%25").replace("&", "%26").replace("=", "%3D")
