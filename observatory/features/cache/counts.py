"""What a cache counts: here, and in the metrics of the fleet."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final, Literal, Protocol

import msgspec

from ...names import (
    CACHE_COALESCED,
    CACHE_COMPUTATIONS,
    CACHE_CORRUPT,
    CACHE_ERRORS,
    CACHE_NEAR_BYTES,
    CACHE_NEAR_CHECKS,
    CACHE_NEAR_ENTRIES,
    CACHE_NEAR_EVICTIONS,
    CACHE_NEAR_MISMATCHES,
    Metric,
)
from .near import Stats

_NOTHING_NEAR = Stats(0, 0, 0, 0, 0, 0)

Tier = Literal["shared", "near", "stale"]
Outcome = Literal["ok", "failed", "fenced", "cancelled"]


class Recording(Protocol):
    """What a cache needs of the metrics."""

    def increment_counter(self, metric: str, value: int = 1, labels: Mapping[str, str] | None = None) -> None: ...
    def set_gauge(self, metric: str, value: float, labels: Mapping[str, str] | None = None) -> None: ...

    async def query(
        self, metric: Metric | str, stat: str = "total", *, by: str = ..., where: Mapping[str, str] = ...
    ) -> Any: ...


class CacheStats(msgspec.Struct, frozen=True):
    """How a cache has served: this process since it was made, or the fleet in the last hour. How many entries there are is not
    said: only a scan of the store could."""

    hits: int = 0
    misses: int = 0
    near_hits: int = 0
    stale: int = 0
    """Hits that were served while somebody made them anew."""
    coalesced: int = 0
    """Misses that somebody else's computation answered."""
    computed: int = 0
    errors: int = 0
    """Reads that the store did not answer in time: misses."""
    corrupt: int = 0
    near_entries: int = 0
    near_bytes: int = 0
    near_evictions: int = 0
    near_checks: int = 0
    """Near hits that were compared with the store."""
    near_mismatches: int = 0
    """Those of them that were older than cache.near_bound: 0, or something is broken."""

    @property
    def hit_rate(self) -> float:
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0


FIELDS: Final[dict[str, tuple[str, str, dict[str, str]]]] = {
    "hits": (Metric.CACHE_HITS, "total", {}),
    "misses": (Metric.CACHE_MISSES, "total", {}),
    "near_hits": (Metric.CACHE_HITS, "total", {"tier": "near"}),
    "stale": (Metric.CACHE_HITS, "total", {"tier": "stale"}),
    "coalesced": (CACHE_COALESCED, "total", {}),
    "computed": (CACHE_COMPUTATIONS, "total", {}),
    "errors": (CACHE_ERRORS, "total", {}),
    "corrupt": (CACHE_CORRUPT, "total", {}),
    "near_entries": (CACHE_NEAR_ENTRIES, "sum", {}),
    "near_bytes": (CACHE_NEAR_BYTES, "sum", {}),
    "near_evictions": (CACHE_NEAR_EVICTIONS, "total", {}),
    "near_checks": (CACHE_NEAR_CHECKS, "total", {}),
    "near_mismatches": (CACHE_NEAR_MISMATCHES, "total", {}),
}
"""Of each field of CacheStats the metric that has it for the fleet, the statistic, and its labels beside the cache."""


class Counts:
    """Of one cache in one process."""

    def __init__(self, metrics: Recording, name: str) -> None:
        self._metrics = metrics
        self._cache = {"cache": name}
        self._tiers: dict[Tier, dict[str, str]] = {tier: {"cache": name, "tier": tier} for tier in ("shared", "near", "stale")}
        self._outcomes: dict[Outcome, dict[str, str]] = {
            outcome: {"cache": name, "outcome": outcome} for outcome in ("ok", "failed", "fenced", "cancelled")
        }
        self._hits: dict[Tier, int] = dict.fromkeys(self._tiers, 0)
        self._seen: dict[str, int] = {}
        self._told = _NOTHING_NEAR

    def hit(self, tier: Tier) -> None:
        self._hits[tier] += 1
        self._metrics.increment_counter(Metric.CACHE_HITS, 1, self._tiers[tier])

    def _count(self, metric: str, labels: dict[str, str]) -> None:
        self._seen[metric] = self._seen.get(metric, 0) + 1
        self._metrics.increment_counter(metric, 1, labels)

    def miss(self) -> None:
        self._count(Metric.CACHE_MISSES, self._cache)

    def coalesced(self) -> None:
        self._count(CACHE_COALESCED, self._cache)

    def corrupt(self) -> None:
        self._count(CACHE_CORRUPT, self._cache)

    def error(self) -> None:
        self._count(CACHE_ERRORS, self._cache)

    def computed(self, outcome: Outcome) -> None:
        self._count(CACHE_COMPUTATIONS, self._outcomes[outcome])

    def mismatched(self) -> None:
        self._count(CACHE_NEAR_MISMATCHES, self._cache)

    def settle(self, near: Stats) -> None:
        """A near hit costs less than counting it would: it is told here, with the flush."""
        told, self._told = self._told, near
        metrics, labels = self._metrics, self._cache
        for metric, count, with_labels in (
            (Metric.CACHE_HITS, near.hits - told.hits, self._tiers["near"]),
            (CACHE_NEAR_EVICTIONS, near.evictions - told.evictions, labels),
            (CACHE_NEAR_CHECKS, near.checks - told.checks, labels),
        ):
            if count:
                metrics.increment_counter(metric, count, with_labels)
        if near.entries or told.entries:
            metrics.set_gauge(CACHE_NEAR_ENTRIES, near.entries, labels)
            metrics.set_gauge(CACHE_NEAR_BYTES, near.bytes, labels)

    def here(self, near: Stats | None) -> CacheStats:
        """Of this process."""
        seen = self._seen.get
        near = near or _NOTHING_NEAR
        return CacheStats(
            hits=sum(self._hits.values()) + near.hits,
            misses=seen(Metric.CACHE_MISSES, 0),
            near_hits=near.hits,
            stale=self._hits["stale"],
            coalesced=seen(CACHE_COALESCED, 0),
            computed=seen(CACHE_COMPUTATIONS, 0),
            errors=seen(CACHE_ERRORS, 0),
            corrupt=seen(CACHE_CORRUPT, 0),
            near_entries=near.entries,
            near_bytes=near.bytes,
            near_evictions=near.evictions,
            near_checks=near.checks,
            near_mismatches=near.mismatches,
        )

    async def everywhere(self) -> CacheStats:
        """Of the fleet, as far as it was flushed."""

        async def number(metric: str, stat: str, labels: dict[str, str]) -> int:
            answer = await self._metrics.query(metric, stat, where={**self._cache, **labels})
            return int(answer.value or 0)

        numbers = await asyncio.gather(*(number(*asked) for asked in FIELDS.values()))
        return CacheStats(**dict(zip(FIELDS, numbers, strict=True)))

    def forget(self) -> None:
        """A forked child has served nothing yet."""
        self._hits = dict.fromkeys(self._tiers, 0)
        self._seen = {}
        self._told = _NOTHING_NEAR
