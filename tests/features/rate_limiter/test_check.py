"""The limiter: exact against a model, shared by processes, swept by its TTL, honest about an outage."""

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from observatory import (
    BudgetExceeded,
    InvalidArgument,
    Limit,
    NotOpen,
    Observatory,
    RateLimitExceeded,
    StoreUnavailable,
    UnknownLimit,
)
from observatory.features.rate_limiter.limit import bucket_of
from tests.conftest import Open
from tests.servers import Server


async def test_burst_then_refusals_with_a_wait_that_holds(opening_any: Open) -> None:
    """Three of three, then a refusal that says when."""
    obs = await opening_any()
    obs.rate_limiter.define(Limit("demo", 3, per="1m"))
    decisions = [await obs.rate_limiter.check("demo", "ann") for _ in range(4)]
    assert [decision.allowed for decision in decisions] == [True, True, True, False]
    assert [decision.remaining for decision in decisions] == [2, 1, 0, 0]
    assert decisions[3].retry_after is not None
    assert 19.0 < decisions[3].retry_after <= 20.0
    assert await obs.rate_limiter.check("demo", "bob"), "another identity has another bucket"


async def test_processes_share_one_bucket(opening: Open) -> None:
    """200 racing callers of two clients on a bucket of 50: exactly 50 are admitted."""
    first, second = await opening(), await opening()
    limit = Limit("race", 50, per="1h")
    asked = [client.rate_limiter.check(limit, "all") for client in (first, second) for _ in range(100)]
    assert sum(bool(decision) for decision in await asyncio.gather(*asked)) == 50


async def test_cost_zero_only_looks(obs: Observatory) -> None:
    """peek and cost 0 change nothing, not even the key."""
    limit = Limit("look", 5, per="1h")
    assert (await obs.rate_limiter.check(limit, "a", 0)).remaining == 5
    assert await obs.store.command("EXISTS", obs.store.keys.bucket("look", "a")) == 0
    await obs.rate_limiter.check(limit, "a", 2)
    assert (await obs.rate_limiter.peek(limit, "a")).remaining == 3
    assert (await obs.rate_limiter.peek(limit, "a")).remaining == 3


async def test_cost_above_capacity_can_never_fit(obs: Observatory) -> None:
    """It is refused with retry_after None, and charges nothing."""
    limit = Limit("small", 10, per="1m", unit="tokens")
    refused = await obs.rate_limiter.check(limit, "a", 11)
    assert (refused.allowed, refused.retry_after, refused.remaining) == (False, None, 10)
    with pytest.raises(RateLimitExceeded) as caught:
        refused.raise_if_denied()
    assert caught.value.retryable is False
    assert await obs.rate_limiter.check(limit, "a", 10), "the whole burst is still there"


async def test_money_is_exact(obs: Observatory) -> None:
    """Dollars are nano-dollars inside and Decimals outside."""
    limit = Limit("budget", Decimal("0.30"), per="10000d", unit="usd")
    for left in ("0.2", "0.1", "0"):
        assert (await obs.rate_limiter.check(limit, "team", 0.1)).remaining == Decimal(left)
    refused = await obs.rate_limiter.check(limit, "team", Decimal("0.000000001"))
    assert not refused
    assert refused.headers() == {}, "a budget is not advertised"
    with pytest.raises(BudgetExceeded):
        refused.raise_if_denied()


async def test_changed_limit_keeps_the_time_to_full(obs: Observatory) -> None:
    """Half used stays half the time to full, whatever the new amount."""
    await obs.rate_limiter.check(Limit("change", 100, per=100), "a", 50)
    before = await obs.rate_limiter.peek(Limit("change", 100, per=100), "a")
    after = await obs.rate_limiter.peek(Limit("change", 1000, per=100), "a")
    assert after.reset_after == pytest.approx(before.reset_after, abs=0.5)
    assert after.remaining == pytest.approx(500, abs=10)


async def test_defined_limit_cannot_be_brought_in_another_shape(obs: Observatory) -> None:
    """Neither the one that is there out of the box, nor one of ours; the same shape may be brought."""
    obs.rate_limiter.define(Limit("ours", 5, per="1h"))
    assert await obs.rate_limiter.check(Limit("ours", 5, per=3600))
    for other in (Limit("ours", 500, per="1h"), Limit("api", 9, per="1h")):
        with pytest.raises(InvalidArgument, match="is defined here already"):
            await obs.rate_limiter.check(other)


async def test_define_again_takes_effect_on_the_next_call(obs: Observatory) -> None:
    """No restart, no new name."""
    obs.rate_limiter.define(Limit("again", 1, per="1h"))
    assert await obs.rate_limiter.check("again")
    assert not await obs.rate_limiter.check("again")
    obs.rate_limiter.define(Limit("again", 100, per="1h", burst=100))
    assert not await obs.rate_limiter.check("again", None, 100), "what was taken stays taken"
    assert (await obs.rate_limiter.peek("again")).capacity == 100


async def test_identity_comes_from_bound_dimensions(obs: Observatory) -> None:
    """A limit by user takes the bound user; the same bucket as the plain name; a missing one is an error that names it."""
    obs.rate_limiter.define(Limit("per-user", 2, per="1h", by="user"))
    with obs.bound(user="ann"):
        assert (await obs.rate_limiter.check("per-user")).identity == "ann"
    assert (await obs.rate_limiter.check("per-user", "ann")).remaining == 0
    assert (await obs.rate_limiter.check("per-user", {"user": "bob", "team": "x"})).remaining == 1
    with pytest.raises(InvalidArgument, match="by user, which is not known here"):
        await obs.rate_limiter.check("per-user")


def test_buckets_of_several_dimensions_cannot_be_confused() -> None:
    """a=1&b=2 is not what another pair of values spells."""
    limit = Limit("two", 1, per=1, by=("a", "b"))
    assert bucket_of(limit, {"a": "1&b=2", "b": "3"}) != bucket_of(limit, {"a": "1", "b": "2&b=3"})
    assert bucket_of(limit, {"b": "2", "a": "1"}) == bucket_of(limit, {"a": "1", "b": "2"})


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"name": "Bad Name"}, "limit name"),
        ({"amount": 0}, "above 0"),
        ({"amount": -1}, "negative"),
        ({"amount": 1.5}, "whole number"),
        ({"amount": float("nan")}, "finite"),
        ({"amount": float("inf")}, "finite"),
        ({"amount": 2**53}, "2\\^52"),
        ({"amount": True}, "number"),
        ({"per": 0}, "above 0"),
        ({"per": "soon"}, "not a duration"),
        ({"per": -1}, "between 0 and"),
        ({"per": None}, "per is missing"),
        ({"per": "month", "algorithm": "token_bucket"}, "calendar period is a fixed_window"),
        ({"per": "month", "burst": 3}, "burst is of token buckets"),
        ({"per": "month", "timezone": "Mars/Base"}, "timezone 'Mars/Base' is not known"),
        ({"algorithm": "leaky"}, "algorithm must be one of"),
        ({"algorithm": "sliding_window", "amount": 2**50}, "at most 2\\^48"),
        ({"algorithm": "concurrency"}, "go together"),
        ({"unit": "slots", "per": 1}, "leave `per` out"),
        ({"leases": True, "burst": 1, "amount": 100, "per": 1}, "at least 40 ms to fill"),
        ({"leases": "yes"}, "leases must be one of"),
        ({"on_store_down": "maybe"}, "on_store_down must be one of local, open, closed"),
        ({"durability": 3}, "durability must be one of"),
        ({"after_failover": "hope"}, "after_failover must be one of"),
        ({"match": "gpt*"}, "match must be a mapping"),
        ({"match": {"model": 3}}, "match dimension model must be a non-empty string"),
        ({"weights": {"gold": 0}}, "weights.gold"),
        ({"alert_at": (0,)}, "alert_at"),
        ({"by": 3}, "by must be a name"),
        ({"by": (["a"],)}, "label name"),
        ({"fair_by": "a b"}, "label name"),
        ({"burst": 0}, "above 0"),
        ({"unit": "two words"}, "unit 'two words' must match"),
        ({"unit": "é"}, "must match"),
        ({"by": "not a name"}, "label name"),
        ({"amount": 1, "per": "365d", "burst": 10**9}, "years to fill"),
    ],
)
def test_wrong_limit_is_refused_when_made(fields: dict[str, Any], says: str) -> None:
    """The error names the limit's field and what is wrong with it."""
    with pytest.raises(InvalidArgument, match=says):
        Limit(**{"name": "fine", "amount": 10, "per": 60, **fields})


@pytest.mark.parametrize("cost", [-1, 1.5, float("nan"), float("inf"), 2**53, "1", None, True, Decimal("NaN")])
async def test_wrong_cost_asks_nothing(obs: Observatory, cost: Any) -> None:
    """InvalidArgument, and the bucket is as it was."""
    limit = Limit("cost", 10, per="1h")
    with pytest.raises(InvalidArgument, match="cost"):
        await obs.rate_limiter.check(limit, "a", cost)
    assert (await obs.rate_limiter.peek(limit, "a")).remaining == 10


@pytest.mark.parametrize("identity", ["{x}", "a\nb", "a:b", "a}:{b", "\x00", "é漢", "~" * 5, "x" * 10_000, " ", "%", "\ud800"])
async def test_any_identity_has_a_bucket_of_its_own(obs: Observatory, identity: str) -> None:
    """Braces, newlines, colons, 10 kB: each takes from its own bucket only, and the key keeps its form."""
    limit = Limit("odd", 1, per="1h")
    assert await obs.rate_limiter.check(limit, identity)
    assert not await obs.rate_limiter.check(limit, identity)
    assert await obs.rate_limiter.check(limit, identity + "x")
    key = obs.store.keys.bucket("odd", identity)
    assert key.count("{") == key.count("}") == 1
    assert key.isascii()
    assert len(key) < 220


async def test_empty_identity_is_refused(obs: Observatory) -> None:
    """An unset user id must not pool everybody silently."""
    with pytest.raises(InvalidArgument, match="identity must not be empty"):
        await obs.rate_limiter.check("api", "")
    with pytest.raises(InvalidArgument, match="user must be a non-empty string"):
        await obs.rate_limiter.check(Limit("u", 1, per=1, by="user"), {"user": ""})


async def test_unknown_limit_says_what_there_is(obs: Observatory) -> None:
    """With the nearest name."""
    obs.rate_limiter.define(Limit("user-requests", 1, per=1))
    with pytest.raises(UnknownLimit, match=r'no limit named "user-request"; defined: api, user-requests\. Did you mean'):
        await obs.rate_limiter.check("user-request")


async def test_outage_of_a_closed_limit_is_an_error_and_never_a_refusal(opening: Open, own_server: Server) -> None:
    """StoreUnavailable within the bounded wait; the next call after the server is back is answered."""
    obs = await opening(own_server)
    limit = Limit("out", 10, per="1m", on_store_down="closed", after_failover="keep")
    assert await obs.rate_limiter.check(limit)
    own_server.stop()
    loop = asyncio.get_running_loop()
    asked = loop.time()
    with pytest.raises(StoreUnavailable):
        await obs.rate_limiter.check(limit)
    assert loop.time() - asked < 1.0
    own_server.start()
    await obs.ready()
    assert await obs.rate_limiter.check(limit)


async def test_before_opening_and_after_closing_it_says_so(server: Server, namespace: str) -> None:
    """NotOpen, with the line to add."""
    obs = Observatory("x", redis_url=server.url, namespace=namespace)
    with pytest.raises(NotOpen, match="async with obs"):
        await obs.rate_limiter.check("api")
    async with obs:
        assert await obs.rate_limiter.check("api")
    with pytest.raises(NotOpen):
        await obs.rate_limiter.check("api")


async def test_refusals_are_counted(obs: Observatory) -> None:
    """By limit, never by identity."""
    limit = Limit("count", 1, per="1h")
    for _ in range(5):
        await obs.rate_limiter.check(limit, "ann")
    await obs.flush()
    found = await obs.metrics.query("observatory_rate_limit_rejections_total", by=("limit", "identity"))
    assert [(dict(one.labels), one.value) for one in found.series] == [({"limit": "count"}, 4.0)]


async def test_headers_say_it_in_http(obs: Observatory) -> None:
    """The IETF draft's fields with quoted names, the old trio, and Retry-After only when refused."""
    limit = Limit("user-requests", 60, per="1m", burst=2)
    first = (await obs.rate_limiter.check(limit, "a")).headers()
    assert first["RateLimit-Policy"] == '"user-requests";q=60;w=60'
    assert first["RateLimit"].startswith('"user-requests";r=1;t=')
    assert "Retry-After" not in first
    await obs.rate_limiter.check(limit, "a")
    refused = (await obs.rate_limiter.check(limit, "a")).headers()
    assert refused["Retry-After"] == "1"
    assert refused["X-RateLimit-Remaining"] == "0"
