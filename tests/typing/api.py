"""Never run, only type-checked: what a user's code sees of the public face."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from decimal import Decimal
from typing import assert_type

import httpx
import httpx2
from opentelemetry.trace import Span

from observatory import (
    Budget,
    Cache,
    CacheStats,
    Call,
    CostReport,
    Decision,
    Limit,
    Metric,
    Observatory,
    RateLimitExceeded,
    Reservation,
    Retry,
    Settlement,
    WhatIf,
)

obs = Observatory("typed")
obs.rate_limiter.define(
    Limit("user-requests", 60, per="1m", burst=10, by="user"),
    Limit("openai-tokens", 2_000_000, per="1m", unit="tokens"),
    Limit("team-budget", Decimal(500), per="30d", unit="usd", by=("team", "project")),
)

assert_type(obs.llm.http_client(), httpx2.AsyncClient)
assert_type(obs.llm.http_client("httpx", proxy="http://proxy"), httpx.AsyncClient)
assert_type(obs.llm.transport(httpx2.AsyncHTTPTransport()), httpx2.AsyncBaseTransport)
assert_type(obs.llm.transport(httpx.AsyncHTTPTransport()), httpx.AsyncBaseTransport)
with obs.llm.collect() as calls:
    assert_type(calls, list[Call])


async def fetch(number: int) -> str:
    return str(number)


async def counted() -> dict[str, int]:
    return {}


async def main() -> None:
    async with obs as opened:
        assert_type(opened, Observatory)
        decision = await obs.rate_limiter.check("user-requests", {"user": "ann"}, {"requests": 1})
        assert_type(decision, Decision)
        assert_type(decision.retry_after, float | None)
        assert_type(decision.raise_if_denied(), Decision)
        assert_type(await obs.rate_limiter.acquire(["user-requests", "openai-tokens"], timeout=None), Decision)
        async with obs.rate_limiter.reserve("*", {"user": "ann"}, {"tokens": 900, "usd": Decimal("0.01")}) as held:
            assert_type(held, Reservation)
            assert_type(await held.settle({"tokens": 700}), Settlement)
        assert_type(await obs.rate_limiter.reserve("openai-tokens"), Reservation)
        report = await obs.costs.report(
            by=("team", "model"), where={"team": "search"}, period="last-week", timezone="Europe/Berlin"
        )
        assert_type(report, CostReport)
        assert_type(report.total_usd, Decimal)
        assert_type(report.table(), str)
        assert_type(await obs.costs.budgets(), tuple[Budget, ...])
        assert_type(await obs.costs.what_if(model="openai/gpt-4o-mini", instead_of="gpt-4o"), WhatIf)
        assert_type(await obs.rate_limiter.requires("user-requests")(), Decision)
        assert_type(obs.rate_limiter.match({"user": "ann"}), tuple[Limit, ...])
        cache = obs.cache(dict[str, int])
        assert_type(cache, Cache[dict[str, int]])
        assert_type(await cache.get("k"), dict[str, int] | None)
        assert_type(await cache.get("k", 5), dict[str, int] | int)
        assert_type(await cache.get_or_compute("k", counted), dict[str, int])
        assert_type(await cache.cached(counted)(), dict[str, int])
        assert_type(await cache.cached(key="k", ttl=5)(counted)(), dict[str, int])
        assert_type(await cache.stats(), CacheStats)
        assert_type(await obs.retry.execute(fetch, 5), str)
        assert_type(obs.retry(attempts=5), Retry)
        assert_type(await obs.retry(fetch)(5), str)
        assert_type(await obs.observe(fetch)(5), str)
        assert_type(obs.span("x", {"k": 5}), AbstractContextManager[Span])
        assert_type(obs.dimensions, Mapping[str, str])
        assert_type((await obs.metrics.query(Metric.REQUESTS_TOTAL, by=("model",))).value, float | None)
        obs.metrics.counter("test_total").bind(a="b").add(1, c="d")
        try:
            decision.raise_if_denied()
        except RateLimitExceeded as error:
            assert_type(error.retry_after, float | None)
