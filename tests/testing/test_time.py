"""Frozen time where it is easily forgotten: what goes by it, and what must not."""

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from functools import partial

import httpx2
import pytest

from observatory import Fallback, Limit, Observatory, errors
from observatory.clock import monotonic
from observatory.errors import ObservatoryError
from observatory.llm.retries import Habits
from observatory.testing import FrozenClock, Sandbox, SandboxError, TimeStandsStill, reply, sandbox
from tests.testing.test_clock import stays, until

CHAT = "https://api.openai.com/v1/chat/completions"
ASKED = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "x"}]}

obs = Observatory("their-app")
client = obs.llm.http_client()


@pytest.fixture
async def box() -> AsyncIterator[Sandbox]:
    async with sandbox(obs, clock=FrozenClock(), provider=reply()) as box:
        yield box


async def done() -> int:
    return 1


async def test_costs_are_of_the_time_in_which_metrics_are_kept(box: Sandbox) -> None:
    """Which is real, whatever the clock says."""
    for model in ("gpt-4o", "gpt-4o-mini"):
        obs.record_request("openai", model, latency=0.1, tokens=110, cost_usd=Decimal("1.5"))
    await box.settle()
    assert [(report.calls, report.total_usd) for report in (await obs.costs.report(), await obs.costs.report(since="1h"))] == [
        (2, Decimal(3))
    ] * 2
    assert {price.model for price in await obs.costs.prices()} == {"gpt-4o", "gpt-4o-mini"}
    assert (await obs.costs.what_if(model="openai/gpt-4o", instead_of="gpt-4o-mini")).calls == 1


@pytest.mark.parametrize("clock", [None, FrozenClock()], ids=["real", "frozen"])
async def test_llm_calls_that_take_no_time_are_not_slow(clock: FrozenClock | None) -> None:
    settings = {"breakers": {"openai": {"slow_after": 5, "consecutive": 2}}}
    async with sandbox(obs, clock=clock, provider=reply(), settings=settings) as box:
        for _ in range(6):
            assert (await client.post(CHAT, json=ASKED)).status_code == 200
            await box.settle()
        (breaker,) = await obs.breakers.list()
        assert (breaker.state, breaker.failures) == ("closed", 0)


async def test_an_llm_call_that_takes_long_by_the_clock_is_slow() -> None:
    settings = {"breakers": {"openai": {"slow_after": 5, "consecutive": 1}}}
    async with sandbox(obs, clock=FrozenClock(), provider=reply(after=6), settings=settings) as box:
        asking = asyncio.create_task(client.post(CHAT, json=ASKED))
        await stays(asking)
        box.clock.advance(6)
        assert (await asking).status_code == 200
        await box.settle()
        assert [one.state for one in await obs.breakers.list()] == ["open"]


async def test_patience_with_fallbacks_is_of_the_clock() -> None:
    """One for all of them together: what was waited for the first is not there for the next."""
    patient = obs.llm.http_client(wait=20, fallbacks=[Fallback(base_url="https://api.groq.com/openai/v1", api_key="k")])
    async with sandbox(obs, clock=FrozenClock(), provider=reply()) as box:
        for where in ("openai", "groq"):
            await obs.pauses.begin(where, seconds=18)
        asking = asyncio.create_task(patient.post(CHAT, json=ASKED))
        await stays(asking)
        box.clock.advance(10)
        await stays(asking)
        for where in ("openai", "groq"):
            await obs.pauses.begin(where, seconds=15)
        box.clock.advance(8)
        async with asyncio.timeout(4):
            assert (await asking).status_code == 429
        box.clock.advance(7)
        assert (await patient.post(CHAT, json=ASKED)).status_code == 200


async def test_a_wait_in_vain_fails_a_test_whose_application_has_caught_it() -> None:
    """An SDK makes an answer of it, and an application what it likes."""
    with pytest.raises(TimeStandsStill, match="10 s later"):  # noqa: PT012 (raised at its end)
        async with sandbox(obs, clock=FrozenClock(stuck_after=1.0), provider=reply()):
            obs.rate_limiter.define(Limit("calls", 1, per="10s", match="*"))
            patient = obs.llm.http_client(wait=30)
            assert (await patient.post(CHAT, json=ASKED)).status_code == 200
            try:
                said = await patient.post(CHAT, json=ASKED)
                assert said.status_code >= 500
            except (httpx2.HTTPError, ObservatoryError):
                pass
    clock = FrozenClock(stuck_after=0.2)
    with pytest.raises(KeyError, match="theirs"):  # noqa: PT012
        async with sandbox(obs, clock=clock):
            with pytest.raises(TimeStandsStill):
                await clock.sleep(1)
            raise KeyError("theirs")
    async with sandbox(obs, clock=clock):
        pass  # it is not the next one's
    assert not clock.complaints


async def test_a_refused_retry_is_remembered_by_the_clock() -> None:
    settings = {"retry": {"budget": 0.0, "budget_reserve": 1, "attempts": 2, "wait_initial": 0.0, "wait_jitter": 0.0}}
    async with sandbox(obs, clock=FrozenClock(), settings=settings) as box:
        made: list[int] = []

        async def attempts() -> int:
            made.clear()
            with pytest.raises(ConnectionError):
                await obs.retry(name="q").execute(call)
            return len(made)

        async def call() -> None:
            made.append(1)
            raise ConnectionError

        assert [await attempts() for _ in range(3)] == [2, 1, 1]
        box.clock.advance(3600)
        assert [await attempts() for _ in range(2)] == [2, 1]


async def test_a_promised_retry_is_the_budget_s_as_long_as_that_counts_it() -> None:
    """A promise lapses in the time in which SDKs wait; what it had cost is back when the budget's window is over."""
    settings = {"retry": {"budget": 0.0, "budget_reserve": 1}}
    async with sandbox(obs, clock=FrozenClock(), settings=settings) as box:
        retries, habits = obs._desk.retries, Habits()
        said = {"retry-after-ms": "1"}
        for moved in (0.0, 11.0):
            where = f"provider-{moved}"
            assert await retries.advise(where, 0, 500, said, habits)
            (promise,) = retries._promised[where]
            await until(lambda promise=promise: monotonic() > promise.until)
            box.clock.advance(moved)
            assert await retries.advise(where, 0, 500, said, habits)
            account = obs.retry_budget.account(f"llm:{where}")
            assert not await obs.retry_budget.take(account), "one was paid for in this window, not none"


async def test_timers_of_calls_that_have_succeeded_are_not_kept(box: Sandbox) -> None:
    for _ in range(2000):
        assert await obs.retry.execute(done) == 1
    assert len(box.clock._due) < 200
    woken: list[int] = []
    for at in range(1, 301):
        box.clock.call_at(box.clock.time() + at, partial(woken.append, at))
        dropped = box.clock.call_at(box.clock.time() + at, lambda: woken.append(0))
        dropped.cancel()
        dropped.cancel()
    box.clock.advance(299.5)
    await until(lambda: len(woken) == 299)
    assert woken == list(range(1, 300))
    box.clock.advance(1)
    await until(lambda: woken[-1] == 300)


def test_each_failure_of_a_sandbox_has_a_code_of_its_own() -> None:
    """And stands in the tree that the page of errors draws."""
    kinds: list[type[SandboxError]] = [SandboxError, *SandboxError.__subclasses__()]
    assert len({kind.code for kind in kinds}) == len(kinds) == 4
    drawn = {line.split()[1]: line for line in (errors.__doc__ or "").splitlines() if "─" in line}
    for kind in kinds:
        assert f" {kind.code} " in drawn[kind.__name__]
        assert f" {kind.status} " in drawn[kind.__name__]
        rebuilt = ObservatoryError.from_problem(kind("it happened").problem())
        assert type(rebuilt) is kind
