"""What a cache counts: here, and in the metrics of the fleet."""

import asyncio
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import msgspec

from ...names import CACHE_COALESCED, CACHE_COMPUTATIONS, CACHE_CORRUPT, CACHE_ERRORS, Metric

Tier = Literal["shared", "near", "stale"]
Outcome = Literal["ok", "failed", "fenced", "cancelled"]


class Recording(Protocol):
    """What a cache needs of the metrics."""

    def increment_counter(self, metric: str, value: int = 1, labels: Mapping[str, str] | None = None) -> None: ...

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

    @property
    def hit_rate(self) -> float:
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0


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

    def here(self) -> CacheStats:
        """Of this process."""
        seen = self._seen.get
        return CacheStats(
            hits=sum(self._hits.values()),
            misses=seen(Metric.CACHE_MISSES, 0),
            near_hits=self._hits["near"],
            stale=self._hits["stale"],
            coalesced=seen(CACHE_COALESCED, 0),
            computed=seen(CACHE_COMPUTATIONS, 0),
            errors=seen(CACHE_ERRORS, 0),
            corrupt=seen(CACHE_CORRUPT, 0),
        )

    async def everywhere(self) -> CacheStats:
        """Of the fleet, as far as it was flushed."""

        async def total(metric: str, **labels: str) -> int:
            answer = await self._metrics.query(metric, where={**self._cache, **labels})
            return int(answer.value or 0)

        numbers = await asyncio.gather(
            total(Metric.CACHE_HITS),
            total(Metric.CACHE_MISSES),
            total(Metric.CACHE_HITS, tier="near"),
            total(Metric.CACHE_HITS, tier="stale"),
            total(CACHE_COALESCED),
            total(CACHE_COMPUTATIONS),
            total(CACHE_ERRORS),
            total(CACHE_CORRUPT),
        )
        return CacheStats(*numbers)

    def forget(self) -> None:
        """A forked child has served nothing yet."""
        self._hits = dict.fromkeys(self._tiers, 0)
        self._seen = {}
