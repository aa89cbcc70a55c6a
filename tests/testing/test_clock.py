"""Frozen time: limits, lines, holds, retries, breakers, pauses and caches go by it; whoever waits in vain is told."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from observatory import CircuitOpen, InvalidArgument, Limit, Observatory, RateLimitExceeded, ReservationLost
from observatory.testing import FrozenClock, Sandbox, TimeStandsStill, reply, sandbox

obs = Observatory("their-app")
obs.rate_limiter.define(
    Limit("bucket", 2, per="10s", by="user"),
    Limit("window", 3, per="10s", algorithm="fixed_window"),
    Limit("slots", 1, unit="slots"),
    Limit("month", 5, per="month"),
)
answers = obs.cache(str, name="answers", ttl=60)
tries = 0


@obs.retry(attempts=3, timeout=None, wait_initial=10, wait_max=100, on=ValueError)
async def flaky() -> str:
    global tries  # noqa: PLW0603
    tries += 1
    if tries < 3:
        raise ValueError("not yet")
    return f"after {tries}"


@pytest.fixture
async def box() -> AsyncIterator[Sandbox]:
    global tries  # noqa: PLW0603
    tries = 0
    settings = {"breakers": {"b": {"consecutive": 2, "open_for": "30s"}}}
    async with sandbox(obs, clock=FrozenClock(), settings=settings) as box:
        yield box


async def until(fact: Callable[[], Any] | Callable[[], Awaitable[Any]]) -> None:
    async with asyncio.timeout(10):
        while True:
            said = fact()
            if await said if asyncio.iscoroutine(said) else said:
                return
            await asyncio.sleep(0.005)


async def stays(task: "asyncio.Task[Any]") -> None:
    """Not done, and not going to be, though it had every chance."""
    await asyncio.wait({task}, timeout=0.3)
    assert not task.done()


async def test_a_window_ends_when_time_is_moved_over_it(box: Sandbox) -> None:
    assert (await obs.rate_limiter.check("window", None, 3)).allowed
    refused = await obs.rate_limiter.check("window")
    assert not refused
    assert refused.retry_after == 10.0
    box.clock.advance(9.999)
    assert not await obs.rate_limiter.check("window")
    box.clock.advance(0.001)
    assert await obs.rate_limiter.check("window")


async def test_a_calendar_month_ends(box: Sandbox) -> None:
    """1_700_000_000 is 14 November 2023, 22:13:20 UTC."""
    assert await obs.rate_limiter.check("month", None, 5)
    assert not await obs.rate_limiter.check("month")
    box.clock.advance(16 * 86_400 + 6_400)
    assert await obs.rate_limiter.check("month")


async def test_a_bucket_fills_only_as_time_is_moved(box: Sandbox) -> None:
    assert await obs.rate_limiter.check("bucket", "ann", 2)
    for _ in range(20):
        refused = await obs.rate_limiter.check("bucket", "ann")
        assert not refused
        assert refused.retry_after == 5.0
    box.clock.advance(5)
    assert await obs.rate_limiter.check("bucket", "ann")
    assert not await obs.rate_limiter.check("bucket", "ann")


async def test_who_waits_in_line_wakes_as_time_moves(box: Sandbox) -> None:
    assert await obs.rate_limiter.check("bucket", "ann", 2)
    waiting = asyncio.create_task(obs.rate_limiter.acquire("bucket", "ann", 2, timeout=30))
    await stays(waiting)
    box.clock.advance(4)
    await stays(waiting)
    box.clock.advance(6)
    async with asyncio.timeout(5):
        decision = await waiting
    assert decision.allowed
    assert decision.waited == pytest.approx(10.0)


async def test_patience_ends_on_the_same_clock(box: Sandbox) -> None:
    async with obs.rate_limiter.reserve("slots"):
        waiting = asyncio.create_task(obs.rate_limiter.reserve("slots", timeout=2).__aenter__())
        await stays(waiting)
        box.clock.advance(2.5)
        with pytest.raises(RateLimitExceeded):
            await waiting


async def test_a_slot_that_comes_back_needs_no_time(box: Sandbox) -> None:
    async with obs.rate_limiter.reserve("slots", timeout=30):
        waiting = asyncio.create_task(obs.rate_limiter.reserve("slots", timeout=30).__aenter__())
        await stays(waiting)
    async with asyncio.timeout(4):
        held = await waiting
    await held.cancel()


async def test_a_hold_comes_back_when_its_lease_is_over(box: Sandbox) -> None:
    held = await obs.rate_limiter.reserve("slots", lease=60)
    assert (await obs.rate_limiter.peek("slots")).remaining == 0
    box.clock.advance(61)
    assert (await obs.rate_limiter.peek("slots")).remaining == 1
    with pytest.raises(ReservationLost):
        await held.renew()


async def test_an_open_reservation_is_renewed_as_time_moves(box: Sandbox) -> None:
    async with box.other_process() as replica, obs.rate_limiter.reserve("slots", lease=60) as held:
        for _ in range(6):
            box.clock.advance(25)
            now = box.clock.time()
            await until(lambda now=now: held.expires_at.timestamp() == now + 60)
        assert (await replica.rate_limiter.peek("slots")).remaining == 0
        assert not held.lost


async def test_a_wait_in_vain_is_told_how_far_to_advance() -> None:
    with pytest.raises(TimeStandsStill) as at_its_end:  # noqa: PT012 (raised at its end)
        async with sandbox(obs, clock=FrozenClock(stuck_after=0.4)):
            assert await obs.rate_limiter.check("bucket", "ann", 2)
            began = time.monotonic()
            with pytest.raises(TimeStandsStill, match=r"0\.4 s of real time") as told:
                await obs.rate_limiter.acquire("bucket", "ann", 1, timeout=30)
            assert time.monotonic() - began < 4
            assert "advance(5)" in str(told.value.remedy)
            assert isinstance(told.value, AssertionError)
            with pytest.raises(TimeStandsStill, match="10 s later"):
                await flaky()
    assert at_its_end.value is told.value, "the first, though it was caught"


async def test_retries_wait_for_the_clock(box: Sandbox) -> None:
    """Their backoff, without what is drawn at random."""
    trying = asyncio.ensure_future(flaky())
    await until(lambda: tries == 1)
    await stays(trying)
    box.clock.advance(10)
    await until(lambda: tries == 2)
    await stays(trying)
    box.clock.advance(19.9)
    await stays(trying)
    box.clock.advance(0.1)
    async with asyncio.timeout(5):
        assert await trying == "after 3"


async def test_a_deadline_of_attempts_is_of_the_clock(box: Sandbox) -> None:
    begun = asyncio.Event()

    async def long() -> None:
        begun.set()
        await asyncio.Event().wait()

    calling = asyncio.create_task(obs.retry(attempts=1, timeout=30).execute(long))
    await begun.wait()
    box.clock.advance(29)
    await stays(calling)
    box.clock.advance(1)
    with pytest.raises(TimeoutError):
        await calling


async def test_without_a_clock_retries_do_not_wait() -> None:
    global tries  # noqa: PLW0603
    tries = 0
    began = time.monotonic()
    async with sandbox(obs) as box:
        assert await flaky() == "after 3"
        with pytest.raises(InvalidArgument):
            _ = box.clock
    assert time.monotonic() - began < 9


async def test_the_retry_budget_is_of_so_many_seconds_of_the_clock(box: Sandbox) -> None:
    """Its reserve is spent, and there again when the window has passed."""
    at_once = obs.retry(attempts=2, wait_initial=0, wait_jitter=0, name="budget", on=ConnectionError)

    async def retried() -> bool:
        made: list[int] = []

        async def call() -> None:
            made.append(1)
            raise ConnectionError

        with pytest.raises(ConnectionError):
            await at_once.execute(call)
        return len(made) == 2

    allowed = 0
    while await retried():
        allowed += 1
        assert allowed < 100
    assert allowed >= 10
    await asyncio.sleep(0.1)  # a refusal is remembered for 50 ms, of the clock too
    assert not await retried()
    box.clock.advance(10)
    assert await retried()


async def test_a_slow_answer_is_slow_by_the_clock() -> None:
    slow = {"breakers": {"slow": {"slow_after": "5s", "consecutive": 1}}}
    async with sandbox(obs, clock=FrozenClock(), settings=slow) as box:
        for seconds, state in ((4, "closed"), (6, "open")):
            calling = asyncio.create_task(obs.breaker("slow").execute(box.clock.sleep, seconds))
            await stays(calling)
            box.clock.advance(seconds)
            await calling
            await box.settle()
            assert obs.breaker("slow").state == state


async def test_an_llm_call_waits_in_line_by_the_clock() -> None:
    """And is refused at once where it would take too long."""
    limits = {"limits": {"calls": {"amount": 1, "per": "10s", "match": "*"}}}
    patient, hasty = obs.llm.http_client(wait=30), obs.llm.http_client(wait=5)
    asked = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    async with sandbox(obs, clock=FrozenClock(), settings=limits, provider=reply()) as box:
        where = "https://api.openai.com/v1/chat/completions"
        assert (await patient.post(where, json=asked)).status_code == 200
        assert (await hasty.post(where, json=asked)).status_code == 429
        waiting = asyncio.create_task(patient.post(where, json=asked))
        await stays(waiting)
        box.clock.advance(10)
        async with asyncio.timeout(5):
            assert (await waiting).status_code == 200
        assert [call.status for call in box.calls] == [200, 429, 200]


async def test_one_clock_for_two_observatories() -> None:
    other = Observatory("another")
    theirs = other.cache(str, name="answers", ttl=60)
    clock = FrozenClock()
    async with sandbox(obs, clock=clock):
        async with sandbox(other, clock=clock):
            for cache in (answers, theirs):
                await cache.set("question", "answer")
            clock.advance(61)
            for cache in (answers, theirs):
                assert await cache.get("question") is None
        await answers.set("question", "answer")
        clock.advance(61)
        assert await answers.get("question") is None
    assert not clock.listeners


async def test_what_a_call_has_used_is_settled_when_it_is_asked_for() -> None:
    limits = {"limits": {"tokens": {"amount": 1000, "per": "1h", "unit": "tokens", "match": "*"}}}
    asked = {"model": "m", "max_tokens": 500, "messages": [{"role": "user", "content": "x"}]}
    async with sandbox(obs, clock=FrozenClock(), settings=limits, provider=reply(input_tokens=12, output_tokens=3)) as box:
        await obs.llm.http_client().post("https://api.openai.com/v1/chat/completions", json=asked)
        await box.settle()
        assert (await obs.rate_limiter.peek("tokens")).remaining == 985


async def failing() -> None:
    raise ConnectionError("refused")


async def test_a_breaker_opens_for_the_fleet_and_tries_again_later(box: Sandbox) -> None:
    breaker = obs.breaker("b")
    async with box.other_process() as replica:
        assert replica.breaker("b").state == "closed"
        for _ in range(2):
            with pytest.raises(ConnectionError):
                await breaker.execute(failing)
        await box.settle()
        assert [one.breaker("b").state for one in (obs, replica)] == ["open", "open"]
        box.clock.advance(29)
        with pytest.raises(CircuitOpen) as refused:
            await replica.breaker("b").execute(failing)
        assert refused.value.retry_after == pytest.approx(1.0)
        box.clock.advance(1)
        assert breaker.state == "half_open"
        assert await breaker.execute(asyncio.sleep, 0, "works") == "works"
        await box.settle()
        assert [one.breaker("b").state for one in (obs, replica)] == ["closed", "closed"]


async def test_pauses_are_over_when_time_has_passed(box: Sandbox) -> None:
    await obs.pauses.begin("openai", seconds=30)
    async with box.other_process() as replica:
        replica.pauses.left("openai")
        await box.settle()
        assert replica.pauses.left("openai") == pytest.approx(30.0)
        waiting = asyncio.create_task(obs.rate_limiter.acquire("bucket", {"user": "ann", "provider": "openai"}, timeout=60))
        await stays(waiting)
        box.clock.advance(30)
        async with asyncio.timeout(5):
            assert (await waiting).allowed
        assert replica.pauses.left("openai") == 0.0


async def test_cached_values_grow_old_as_time_moves(box: Sandbox) -> None:
    """Near, and shared."""
    async with box.other_process() as replica:
        elsewhere = replica.cache(str, name="answers", ttl=60)
        await answers.set("question", "answer")
        for cache in (answers, elsewhere):
            assert await cache.get("question") == "answer"
        box.clock.advance(50)
        for cache in (answers, elsewhere):
            assert await cache.get("question") == "answer"
            assert await cache.get("question") == "answer", "near"
        box.clock.advance(11)
        for cache in (answers, elsewhere):
            assert await cache.get("question") is None


async def test_what_is_stale_is_served_and_made_anew(box: Sandbox) -> None:
    made: list[int] = []
    cache = obs.cache(int, name="stale", ttl=60, stale_for=60)

    async def compute() -> int:
        made.append(len(made) + 1)
        return made[-1]

    assert await cache.get_or_compute("k", compute) == 1
    box.clock.advance(90)
    assert await cache.get_or_compute("k", compute) == 1, "stale"
    await until(lambda: len(made) == 2)

    async def fresh() -> bool:
        return await cache.get_or_compute("k", compute) == 2

    await until(fresh)
    box.clock.advance(121)
    assert await cache.get_or_compute("k", compute) == 3


async def test_without_the_store_a_share_grows_as_time_moves(box: Sandbox) -> None:
    assert await obs.rate_limiter.check("bucket", "ann")
    await box.redis_down()
    assert not await obs.rate_limiter.check("bucket", "ann"), "nothing has grown since it was last heard of"
    box.clock.advance(5)
    decision = await obs.rate_limiter.check("bucket", "ann")
    assert decision
    assert decision.decided_by == "local"


def test_time_goes_forward_only() -> None:
    clock = FrozenClock()
    for wrong in (-1, float("nan"), float("inf"), True, "1"):
        with pytest.raises(InvalidArgument):
            clock.advance(wrong)  # type: ignore[arg-type]
    clock.advance(0.5)
    clock.advance(0)
    assert clock.now_us() == 1_700_000_000_500_000
    assert clock.monotonic() == 1_700_000_000.5
    with pytest.raises(InvalidArgument):
        FrozenClock(0)


async def test_the_clock_sleeps() -> None:
    clock = FrozenClock()
    woken: list[int] = []

    async def sleeper(seconds: int) -> None:
        await clock.sleep(seconds)
        woken.append(seconds)

    tasks = [asyncio.create_task(sleeper(seconds)) for seconds in (3, 1, 2)]
    await asyncio.sleep(0)
    clock.advance(1)
    await until(lambda: woken == [1])
    clock.advance(5)
    await asyncio.gather(*tasks)
    assert woken == [1, 2, 3]
