"""Pauses: one is told to come again later, and the whole fleet waits, without asking and without a key on any wire."""

import asyncio
import time

import pytest

from observatory import CoolingDown, Limit, Observatory
from observatory.clock import monotonic
from observatory.names import PAUSES
from tests.conftest import Open
from tests.features.test_breaker import until
from tests.ground.test_replies import error

KEY = "sk-ant-a-very-secret-key"
WHO = ("anthropic", "claude", KEY)


async def test_everybody_hears_of_it(opening: Open) -> None:
    """Of this provider, model and key, and of no other; a process that comes later too."""
    one, two = [await opening() for _ in range(2)]
    assert two.pauses.left(*WHO) == 0
    assert await one.pauses.heed(*WHO, error=error(429, {"retry-after": "20"})) == pytest.approx(20, abs=0.5)
    assert one.pauses.left(*WHO) == pytest.approx(20, abs=0.5)
    assert await until(lambda: two.pauses.left(*WHO) > 0, "told") < 1.0
    late = await opening()
    await until(lambda: late.pauses.left(*WHO) > 19, "told when it first asks")
    for other in (
        ("anthropic", "claude", "another"),
        ("anthropic", "opus", KEY),
        ("anthropic", "claude"),
        ("anthropi", "cclaude", KEY),
    ):
        assert two.pauses.left(*other) == 0


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (429, {"retry-after": "7"}, 7),
        (503, {"retry-after-ms": "7000"}, 7),
        (529, {"retry-after": "7"}, 7),
        (429, {"x-ratelimit-reset-requests": "7s", "x-ratelimit-remaining-requests": "0"}, 7),
        (429, {}, 0),
        (500, {"retry-after": "7"}, 0),
        (200, {"retry-after": "7"}, 0),
        (429, {"retry-after": "0"}, 0),
        (429, {"retry-after": "999999"}, 3600),
    ],
)
async def test_what_begins_one(obs: Observatory, status: int, headers: dict[str, str], seconds: float) -> None:
    """A provider that says when, and means itself; an hour at most."""
    found = await obs.pauses.heed("openai", error=error(status, headers))
    assert found == pytest.approx(seconds, abs=0.5)
    assert obs.pauses.left("openai") == pytest.approx(seconds, abs=0.5)


async def test_who_waits_goes_on_when_it_is_over(opening: Open) -> None:
    """Not before; made longer meanwhile is waited for, ended early is not; too long is told at once."""
    one, two = [await opening() for _ in range(2)]
    await one.pauses.begin(*WHO, seconds=0.3)
    await until(lambda: two.pauses.left(*WHO) > 0, "told")
    began = time.monotonic()
    waiting = asyncio.create_task(two.pauses.wait(*WHO, timeout=10))
    await asyncio.sleep(0)
    await one.pauses.begin(*WHO, seconds=1.2)
    waited = await waiting
    assert time.monotonic() - began == pytest.approx(waited, abs=0.1)
    assert waited > 1.0, "the longer one"
    assert await two.pauses.wait(*WHO) == pytest.approx(0, abs=0.01)

    await one.pauses.begin(*WHO, seconds=60)
    await until(lambda: two.pauses.left(*WHO) > 0, "told")
    waiting = asyncio.create_task(two.pauses.wait(*WHO))
    await asyncio.sleep(0.02)
    await one.pauses.end(*WHO)
    assert await asyncio.wait_for(waiting, 5) < 5

    await one.pauses.begin(*WHO, seconds=60)
    with pytest.raises(CoolingDown) as refused:
        await one.pauses.wait(*WHO, timeout=1)
    assert refused.value.retry_after == pytest.approx(60, abs=1)
    assert dict(refused.value.context) == {"provider": "anthropic", "model": "claude"}


async def test_a_storm_tells_once(obs: Observatory) -> None:
    """A hundred replies that say nearly the same: one pause, counted once, never shortened."""
    for number in range(100):
        await obs.pauses.begin("openai", seconds=30 + number % 2)
    assert await obs.pauses.begin("openai", seconds=5) > 29
    await obs.flush()
    assert (await obs.metrics.query(PAUSES, where={"provider": "openai"})).value == 1


async def test_old_news_end_nothing(obs: Observatory) -> None:
    """An answer that was on its way while a pause began."""
    asked_at = monotonic()
    await obs.pauses.begin(*WHO, seconds=30)
    obs.pauses.adopt({}, asked_at)
    assert obs.pauses.left(*WHO) > 29


async def test_acquire_and_reserve_wait_for_it(opening: Open) -> None:
    """Instead of taking tokens for a call that would be refused; by the dimensions that are bound or given."""
    one, two = [await opening() for _ in range(2)]
    two.rate_limiter.define(Limit("calls", 10, per=60, burst=10))
    two.pauses.left("openai", "gpt")
    await one.pauses.begin("openai", "gpt", seconds=0.5)
    await until(lambda: two.pauses.left("openai", "gpt") > 0, "told")
    began = time.monotonic()
    assert await two.rate_limiter.acquire("calls", "ann")
    with two.bound(provider="openai", model="other"):
        assert await two.rate_limiter.acquire("calls", "ann")
    assert time.monotonic() - began < 0.4
    with two.bound(provider="openai", model="gpt"):
        with pytest.raises(CoolingDown):
            await two.rate_limiter.acquire("calls", "ann", timeout=0.01)
        with pytest.raises(CoolingDown):
            await two.rate_limiter.reserve("calls", "ann")
        assert (await two.rate_limiter.peek("calls", "ann")).remaining == 8, "nothing was taken"
        assert await two.rate_limiter.acquire("calls", "ann", timeout=10)
        assert await two.rate_limiter.reserve("calls", "ann", timeout=10)
    assert time.monotonic() - began > 0.35


async def test_keys_are_nowhere(opening: Open, caplog: pytest.LogCaptureFixture) -> None:
    """Not in Redis, not in a line, not in an error, and not in what this room remembers."""
    obs = await opening()
    with caplog.at_level("DEBUG", "observatory"):
        await obs.pauses.heed(*WHO, error=error(429, {"retry-after": "20"}))
        with pytest.raises(CoolingDown) as refused:
            await obs.pauses.wait(*WHO, timeout=0)
    seen = [caplog.text, str(refused.value), str(refused.value.problem()), str(vars(obs.pauses))]
    async for key in obs.store.scan(obs.store.keys.pattern()):
        seen += [key.decode(), str(await obs.store.command("DUMP", key))]
    assert "pauses" in "".join(seen)
    assert not [text for text in seen if KEY in text or KEY[-12:] in text]
    other = await opening(namespace=obs.store.namespace + "x")
    assert other.store.keys.paused(*WHO) != obs.store.keys.paused(*WHO), "nobody can try keys without the salt"
