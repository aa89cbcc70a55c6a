"""What a file says by name: limits, breakers."""

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
    overrides: Mapping[str, Mapping[str, Any]] | None = None
    alert_at: tuple[float, ...] | None = None
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
