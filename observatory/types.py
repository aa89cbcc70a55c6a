"""Words used in signatures. Plain numbers of time are SECONDS everywhere a person looks."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Literal, Protocol

__all__ = ["Amount", "Clock", "Dimensions", "Duration", "Identity", "LogLevel", "Moment", "Period", "Unit"]

Duration = float | timedelta
"""Seconds. In TOML, environment and CLI also "250ms" "30s" "5m" "1h" "7d"."""

Period = float | timedelta | str
"""A Duration, a string like those, or a calendar word: "day" "week" "month" (aligned, in the limit's timezone)."""

Unit = str
"""requests | tokens | input_tokens | output_tokens | usd | slots | any word of yours."""

Amount = int | float | Decimal
"""A count in the limit's unit. usd: dollars, kept as integer nano-dollars. Others: whole numbers; 1.5 tokens is an error."""

Dimensions = Mapping[str, str]
"""What is known about a call: {"tenant": "acme", "user": "ann"}."""

Identity = str | Dimensions
"""Whose bucket: a name, or the dimensions from which each limit takes those of its `by`."""

LogLevel = Literal["debug", "info", "warning", "error", "critical"]
"""The lowest level written."""

Moment = datetime | str
"""An aware datetime, RFC 3339, a date "2026-11-16", "now", or an age: "7d" = seven days ago."""


class Clock(Protocol):
    """Time, handed in. now_us() == 0 means: ask Redis (always so in production)."""

    def now_us(self) -> int: ...
    def monotonic(self) -> float: ...
    async def sleep(self, seconds: float) -> None: ...
