"""What other limiters were seen to get wrong, tried on ours: each test is named after the fault and who had it."""

import asyncio
from typing import Any

from observatory import Limit, Observatory
from tests.features.rate_limiter.scripts import START_US, Scripts, shape

SECOND = 1_000_000


def admitted(scripts: Scripts, limit: Any, key: str, now_us: int, tries: int, cost: int = 1) -> int:
    return sum(scripts.decide(now_us, "take", [(limit, key, cost)])[0] for _ in range(tries))


def test_bucket_that_fills_in_less_than_half_a_second_still_limits(scripts: Scripts) -> None:
    """throttled-py 3.5: EXPIRE of floor(2 * burst / rate) seconds is 0, which deletes the bucket: 1,000 of 1,000 admitted."""
    assert admitted(scripts, shape(100, 1, 10), scripts.key(), START_US, 200) == 10


def test_first_use_of_a_key_expires(scripts: Scripts) -> None:
    """throttled-py's leaky bucket, limits' INCR and EXPIRE, PyrateLimiter: keys without a time to live."""
    for limit in (shape(5, 1), shape(5, 1, algorithm="fixed_window"), shape(5, 1, algorithm="sliding_window")):
        key = scripts.key()
        scripts.decide(START_US, "take", [(limit, key, 1)])
        assert 0 < scripts.client.pttl(key) < 120_000


def test_fractions_of_a_unit_are_not_thrown_away(scripts: Scripts) -> None:
    """throttled-py floors the refill to whole tokens a second: at 0.9 a second, taking one each second, 42 left, not 51.9."""
    limit, key = shape(9, 10, 60), scripts.key()
    for second in range(81):
        assert scripts.decide(START_US + second * SECOND, "take", [(limit, key, 1)])[0] == 1
    _, (part,) = scripts.decide(START_US + 80 * SECOND, "look", [(limit, key, 0)])
    assert limit.remaining(part.debt, part.part) == 51


def test_what_is_given_back_is_there_and_never_more_than_the_capacity(scripts: Scripts) -> None:
    """redis_rate: a refund is answered and not stored; on an empty key it reports 15 of 10."""
    limit, key = shape(10, 60), scripts.key()
    scripts.decide(START_US, "hold", [(limit, key, 10)], hold="h", lease_us=SECOND)
    scripts.settle(START_US, "settle", limit, key, 7, hold="h")
    assert admitted(scripts, limit, key, START_US, 20) == 3
    fresh = scripts.key()
    scripts.settle(START_US, "return", limit, fresh, 5, opened_us=START_US)
    assert admitted(scripts, limit, fresh, START_US, 20) == 10


async def test_cost_above_the_capacity_is_never_and_not_in_a_second(obs: Observatory) -> None:
    """redis_rate: cost 11 of burst 10 says retry in 1 s, for ever. redis/redis #14826: cost == capacity was lost to a `<`."""
    limit = Limit("ten", 10, per=10)
    assert (await obs.rate_limiter.check(limit, "a", 11)).retry_after is None
    assert await obs.rate_limiter.check(limit, "a", 10)


def test_refused_giant_costs_lock_nobody(scripts: Scripts) -> None:
    """upstash: a cost of 10^6 stores -999,995 tokens and an expiry of 115 days. limits: 0.77 s of Redis and 20 MB."""
    limit, key = shape(5, 1), scripts.key()
    assert admitted(scripts, limit, key, START_US, 3, cost=1_000_000) == 0
    assert scripts.client.exists(key) == 0
    assert admitted(scripts, limit, key, START_US, 9) == 5


def test_refusals_consume_nothing(scripts: Scripts) -> None:
    """limits' fixed window, envoy, upstash, node-rate-limiter-flexible: whoever hammers is never let in again."""
    for limit in (shape(10, 1), shape(10, 1, algorithm="fixed_window"), shape(10, 1, algorithm="sliding_window")):
        key = scripts.key()
        admitted(scripts, limit, key, START_US, 500)
        assert admitted(scripts, limit, key, START_US + 2 * SECOND, 20) == 10


def test_sliding_window_of_one_admits_one(scripts: Scripts) -> None:
    """upstash #39: always refused, by rounding; #61: with the wrong window before it, sliding was fixed."""
    limit, key = shape(1, 1, algorithm="sliding_window"), scripts.key()
    assert admitted(scripts, limit, key, START_US, 5) == 1
    assert admitted(scripts, limit, key, START_US + SECOND, 5) == 0, "the window before still counts at its edge"
    assert admitted(scripts, limit, key, START_US + 2 * SECOND, 5) == 1


def test_small_cost_after_a_large_one_does_not_slip_through(scripts: Scripts) -> None:
    """limits #112: in the moving window."""
    for limit in (shape(10, 1), shape(10, 1, algorithm="sliding_window")):
        key = scripts.key()
        assert admitted(scripts, limit, key, START_US, 1, cost=10) == 1
        assert admitted(scripts, limit, key, START_US, 10) == 0


def test_bucket_drains_though_it_is_hit_faster_than_it_drains(scripts: Scripts) -> None:
    """gubernator #77: a leaky bucket that is hit more often than once per token never leaks. #118: it resets to full."""
    limit, key = shape(10, 1), scripts.key()
    total = sum(admitted(scripts, limit, key, START_US + step * 1000, 1) for step in range(5001))
    assert total == 10 + 50


def test_clock_set_back_two_days_blocks_nobody(scripts: Scripts) -> None:
    """libvmod-vsthrottle #4: buckets hugely negative, everybody blocked."""
    days = 2 * 86_400 * SECOND
    for limit in (shape(10, 1), shape(10, 1, algorithm="fixed_window"), shape(10, 1, algorithm="sliding_window")):
        key = scripts.key()
        admitted(scripts, limit, key, START_US, 10)
        assert admitted(scripts, limit, key, START_US - days, 1) in (0, 1)
        assert admitted(scripts, limit, key, START_US - days + 2 * SECOND, 20) >= 9


def test_numbers_near_two_to_the_fifty_third_are_whole(scripts: Scripts) -> None:
    """Lua writes 1e+17 and rounds 2^53 + 1; a microsecond of the epoch has sixteen digits."""
    limit, key = shape(2**52, 2**46 / 1e6), scripts.key()
    assert scripts.decide(START_US, "take", [(limit, key, 2**52 - 1)])[0] == 1
    _, (part,) = scripts.decide(START_US, "look", [(limit, key, 0)])
    assert limit.remaining(part.debt, part.part) == 1
    assert "e" not in scripts.read(key)
    sliding, window = shape(2**48, 60, algorithm="sliding_window"), scripts.key()
    assert scripts.decide(START_US, "take", [(sliding, window, 2**48)])[0] == 1
    assert scripts.decide(START_US, "take", [(sliding, window, 1)])[0] == 0
    assert "e" not in scripts.read(window)


async def test_scripts_that_were_flushed_heal_whichever_comes_first(obs: Observatory) -> None:
    """upstash #122: NOSCRIPT on the second script of one call. PyrateLimiter #182: "caused an incident for us"."""
    limit = Limit("heal", 3, per=0.1, burst=1)
    for _ in range(3):
        await obs.store.command("SCRIPT", "FLUSH")
        held = await obs.rate_limiter.reserve(limit, timeout=5)
        await obs.store.command("SCRIPT", "FLUSH")
        await held.settle()
        await obs.store.command("SCRIPT", "FLUSH")
        await obs.rate_limiter.acquire(limit, timeout=5)


async def test_hot_key_refuses_nobody_while_there_is_room(obs: Observatory) -> None:
    """bucket4j #603, #556, #407: compare-and-set livelocks on hot keys, and refuses while tokens remain."""
    limit = Limit("hot", 1000, per="1h")
    answers = await asyncio.gather(*[obs.rate_limiter.check(limit) for _ in range(1000)])
    assert all(answers)
    assert not await obs.rate_limiter.check(limit)


async def test_first_call_of_a_small_limit_passes_without_max_tokens(obs: Observatory) -> None:
    """LiteLLM: an estimate of the model's whole output blocks the first call of a small limit for ever."""
    async with obs.rate_limiter.reserve(Limit("small", 1000, per=60, unit="tokens"), cost=128_000) as held:
        assert held.decision.allowed
        await held.settle(300)
