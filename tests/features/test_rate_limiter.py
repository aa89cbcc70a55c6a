"""The limiter: exact against a model, shared by processes, swept by its TTL, honest about an outage."""

import asyncio
import secrets
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
from observatory.features.rate_limiter.limit import Shape, bucket_of
from observatory.keys import Keys
from observatory.store.script import load
from tests.conftest import Open
from tests.servers import Server

CHECK = load("rate_limiter/check")
START_US = 1_700_000_000_000_000


class Twin:
    """The same law in plain Python, with fractions: tokens leak back in at amount / period."""

    def __init__(self, limit: Limit) -> None:
        shape = Shape.of(limit)
        self.rate = Fraction(shape.amount, shape.period_us)  # units per microsecond
        self.capacity = shape.capacity
        self.debt = Fraction(0)  # units
        self.at = 0

    def check(self, now_us: int, cost: int) -> tuple[bool, int, int]:
        """allowed, remaining, and the least whole microseconds until it would be."""
        lag = max(self.at - now_us, 0)
        if lag > 1_000_000:
            lag, start = 0, now_us
            debt, self.at = self.debt, now_us  # believed, and remembered even when the answer is no
        else:
            start = max(self.at, now_us)
            debt = max(self.debt - (start - self.at) * self.rate, Fraction(0))
        over = debt + cost - self.capacity
        if over > 0:
            return False, int(self.capacity - debt), -int(-over / self.rate // 1) + lag
        if cost:
            self.debt, self.at = debt + cost, start
        return True, int(self.capacity - debt - cost), 0


limits = st.builds(
    lambda amount, period, burst: Limit("l", amount, per=period / 1e6, burst=min(burst, amount * 40)),
    st.one_of(st.integers(1, 50), st.integers(1, 10**9)),
    st.one_of(st.integers(1, 10**7), st.sampled_from([10**6, 60 * 10**6, 3600 * 10**6, 30 * 86400 * 10**6])),
    st.one_of(st.integers(1, 100), st.integers(1, 10**9)),
)
steps = st.lists(
    st.tuples(st.one_of(st.integers(-2_000_000, 5_000_000), st.integers(0, 10**10)), st.integers(0, 12)),
    min_size=1,
    max_size=25,
)


@pytest.mark.parametrize("kind", ["valkey", "redis"])
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(limit=limits, steps=steps)
def test_script_agrees_with_a_model_of_fractions(
    kind: str, servers: Any, namespace: str, limit: Limit, steps: list[tuple[int, int]]
) -> None:
    """Allowed, remaining and wait are those of exact arithmetic, for any amount and period, also when the clock steps back."""
    shape, twin, now_us = Shape.of(limit), Twin(limit), START_US
    key = Keys(namespace, 4, b"salt").bucket("l", secrets.token_hex(8))
    with redis.Redis.from_url(servers(kind).url) as client:
        run = client.register_script(CHECK.text)
        for forward, twelfths in steps:
            now_us += forward
            cost = shape.capacity * twelfths // 10
            cost_us, cost_part = shape.time_of(cost)
            arguments = [now_us, shape.capacity_us, shape.capacity_part, cost_us, cost_part, shape.denominator]
            before = client.get(key)
            jumped = twin.at - now_us > 1_000_000
            allowed, debt_us, debt_part, wait_us = run(keys=[key], args=arguments)
            twins_allowed, twins_remaining, twins_wait = twin.check(now_us, cost)
            assert (bool(allowed), shape.remaining(debt_us, debt_part)) == (twins_allowed, max(twins_remaining, 0))
            if not allowed:
                assert cost > shape.capacity or wait_us == twins_wait
                assert jumped or client.get(key) == before, "a refusal changed the bucket"
                assert_tight(run, key, arguments, wait_us, fits=cost <= shape.capacity)
            elif cost:
                assert client.pttl(key) > 55_000, "a bucket must outlive its debt"


def assert_tight(run: Any, key: str, arguments: list[int], wait_us: int, *, fits: bool) -> None:
    """One microsecond before `wait_us` the same call is refused; at it, it is allowed. Asked on copies of the key."""
    assert wait_us > 0
    if not fits:
        return
    client = run.registered_client
    for when, expected in ((wait_us - 1, 0), (wait_us, 1)):
        copy = f"{key}:copy"
        client.copy(key, copy, replace=True)
        now_us, *rest = arguments
        if when > 0:
            assert run(keys=[copy], args=[now_us + when, *rest])[0] == expected
        client.delete(copy)


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


async def test_fraction_of_another_rate_is_rounded_against_the_caller(obs: Observatory) -> None:
    """A third of a microsecond left over from an amount of three becomes a whole one under an amount of seven."""
    key = obs.store.keys.bucket("rounded", "x")
    for denominator, expected in ((3, [1, 10, 1, 0]), (7, [1, 11, 0, 0])):
        await obs.store.command("SET", key, f"10,1,3,{START_US}", "PX", 60_000)
        assert await obs.store.run(CHECK, [key], [START_US, 10**6, 0, 0, 0, denominator]) == expected


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
        ({"per": "month"}, "calendar"),
        ({"burst": 0}, "above 0"),
        ({"unit": "slots"}, "held, not spent"),
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


async def test_outage_is_an_error_and_never_a_refusal(opening: Open, own_server: Server) -> None:
    """StoreUnavailable within the bounded wait; the next call after the server is back is answered."""
    obs = await opening(own_server)
    limit = Limit("out", 10, per="1h")
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
