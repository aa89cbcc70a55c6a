"""A clock that a test sets, and numbers written into the windows that it names."""

import asyncio
import time
from collections.abc import Mapping
from decimal import Decimal

from observatory import Observatory
from observatory.clock import monotonic
from observatory.features.metrics import series
from observatory.features.metrics.waiting import Group
from observatory.features.metrics.wire import Batch
from observatory.keys import WINDOW_US
from observatory.names import OURS, Metric

NANO = 10**9
DAY_US = 86_400_000_000


class HandClock:
    """Where it is set; 0: ask the server."""

    def __init__(self, us: int = 0) -> None:
        self.us = us

    def now_us(self) -> int:
        return self.us

    def monotonic(self) -> float:
        return monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def stands_at(obs: Observatory, us: int) -> None:
    """Reports are asked for at this moment of the server's, whose own clock no test moves."""
    obs.costs._now_us = lambda store: us  # type: ignore[method-assign]


def present_us() -> int:
    return time.time_ns() // 1000


async def put(obs: Observatory, at_us: int, metric: str, whole: int, labels: Mapping[str, str], nano: int = 0) -> None:
    """Added to a counter in the window of a moment, over the way that every batch goes."""
    text = series.text(labels)
    fields = [(f"{part}|{text}", number) for part, number in (("w", whole), ("n", nano)) if number]
    group = Group(str(metric), OURS[metric], fields)
    obs.metrics._outbox.put(Batch(at_us - at_us % WINDOW_US, (group,), None))
    await obs.metrics._outbox.deliver()


async def spend(obs: Observatory, at_us: int, nano: int, **labels: str) -> None:
    """One call of so many billionths of a dollar."""
    known = {"provider": "openai", "model": "gpt", **labels}
    await put(obs, at_us, Metric.REQUESTS_TOTAL, 1, {**known, "status": "success"})
    await put(obs, at_us, Metric.TOTAL_COST_USD, nano // NANO, known, nano % NANO)


def zone_with_midnight(hours_ago: int, now_us: int) -> str:
    """A zone in which it was midnight so many whole hours before the hour of a moment began."""
    hour = now_us // 3_600_000_000 % 24
    offset = (hours_ago - hour + 12) % 24 - 12
    # POSIX signs: Etc/GMT-5 is five hours ahead of UTC.
    return f"Etc/GMT{-offset:+d}" if offset else "UTC"


def usd(*amounts: str | int) -> tuple[Decimal, ...]:
    return tuple(map(Decimal, amounts))
