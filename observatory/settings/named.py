"""What a file says by name: limits, breakers."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec


class LimitSettings(msgspec.Struct, frozen=True):
    """A limit as a file says it; fields left out come from the limit that code declares."""

    amount: int | float | str | None = None
    per: int | float | str | None = None
    burst: int | float | str | None = None
    unit: str | None = None
    algorithm: str | None = None
    by: str | tuple[str, ...] | None = None
    match: Mapping[str, str] | str | None = None
    on_store_down: str | None = None
    after_failover: str | None = None
    durability: str | None = None
    shadow: bool | None = None
    leases: bool | str | None = None
    fair_by: str | None = None
    weights: Mapping[str, int] | None = None
    overrides: Mapping[str, Any] | None = None
    alert_at: tuple[float, ...] | float | None = None
    timezone: str | None = None


class BreakerSettings(msgspec.Struct, frozen=True):
    """A breaker as a file says it; a name that no file mentions has these defaults."""

    failure_rate: float = 0.5
    """Opens when this fraction of the calls failed,"""
    min_calls: int = 20
    """if there were so many in the window;"""
    consecutive: int = 5
    """and at so many failures in a row; 0: not at all."""
    window: int | float | str = 30.0
    open_for: int | float | str = 30.0
    """Until a probe is let through; and for so long nobody else probes."""
    slow_after: int | float | str | None = None
    """A call that takes longer has failed; None: however long it takes."""


_EXPECTED = re.compile(r"Expected `([^`]*)`, got `([^`]*)`(?: - at `\$\.?([^`]*)`)?")
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "array": "a list",
    "object": "a table",
    "bool": "true or false",
    "null": "nothing",
}


def spoken(where: str, error: msgspec.ValidationError) -> str:
    """What a table has wrong, in the words of who wrote it. where: the table."""
    found = _EXPECTED.fullmatch(str(error))
    if found is None:
        return f"{where}: {error}"
    wanted = [kind for kind in found[1].split(" | ") if kind != "null" and not (kind == "int" and "float" in found[1])]
    field = (found[3] or "").replace("[...]", ".*")
    said = " or ".join(_KINDS.get(kind, kind) for kind in wanted)
    return f"{where}{'.' if field else ''}{field}: must be {said}, got {_KINDS.get(found[2], found[2])}"
