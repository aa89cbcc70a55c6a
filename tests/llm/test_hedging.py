"""Hedges: a call that hears nothing for long is sent once more, the first good answer wins, nothing of the other is left."""

import asyncio
import random
from typing import Any

import httpx2
import openai
import pytest
from opentelemetry.trace import StatusCode

from observatory import Limit, Metric, Observatory, Settings
from observatory.features.retry.budget import Account
from tests.llm import tried
from tests.llm.observed import Spans, closing, total
from tests.llm.replay import Provider, Request
from tests.llm.tried import FAILED, NONE, ONE, asked, document, error, fallback, quiet, sdk, stream, tasks, until, used

Three = tuple[Provider, Provider, Provider]
counted, three = tried.counted, tried.three
pytestmark = pytest.mark.usefixtures("counted")
SOON = 0.05


class Held:
    """A provider that answers one request after the other only when it is let: by their numbers, from 0."""

    def __init__(self, there: Provider) -> None:
        self._there = there
        self._open: dict[int, asyncio.Event] = {}
        there.before = self._before

    async def _before(self, request: Request) -> None:
        number = next(at for at, one in enumerate(self._there.requests) if one is request)
        await self._event(number).wait()

    def _event(self, number: int) -> asyncio.Event:
        return self._open.setdefault(number, asyncio.Event())

    def let(self, *numbers: int) -> None:
        for number in numbers or range(100):
            self._event(number).set()

    async def came(self, count: int) -> None:
        await until(lambda: len(self._there.requests) >= count, f"{count} requests")


async def test_who_is_quick_is_asked_once(obs: Observatory, three: Three) -> None:
    first, second, _ = three
    async with closing(client := sdk(obs, first, hedge_after=30, fallbacks=[fallback(second)])):
        for _ in range(3):
            await asked(client)
        first.says = lambda _: error(503)
        await asked(client)
        await quiet(client)
    assert (len(first.requests), len(second.requests)) == (4, 1)
    assert await used(obs, "second") == ONE


@pytest.mark.parametrize("winner", [0, 1])
async def test_the_same_provider_is_asked_once_more(obs: Observatory, three: Three, winner: int) -> None:
    """Whoever of the two answers. The other is cancelled, told as what it is, and charged as it was estimated."""
    first, _, _ = three
    held = Held(first)
    spans = Spans(obs)
    async with closing(client := sdk(obs, first, hedge_after=SOON)):
        with obs.llm.collect() as calls:
            task = asyncio.create_task(asked(client))
            await held.came(2)
            held.let(winner)
            assert (await task).choices[0].message.content == "yes"
            await quiet(client)
        held.let()
        outrun, won = sorted(calls, key=lambda call: call.error or "z")
        assert (outrun.error, outrun.usage, outrun.hedged, outrun.status) == ("outrun", None, winner == 0, None)
        assert (won.error, won.usage.total_tokens if won.usage else 0, won.hedged) == (None, 18, winner == 1)
    one, two = first.requests
    assert (one.body, one.path, one.headers) == (two.body, two.path, two.headers), "the same"
    assert all(span.status.status_code is not StatusCode.ERROR for span in spans.taken())
    made, tokens, money = await used(obs, "first")
    assert made == 2
    assert tokens > sum(tried.USED) + 50, "the estimate has its 50 tokens of output"
    assert money > ONE[2]
    assert await total(obs, Metric.ERRORS_TOTAL, module="llm") == 0
    assert await total(obs, Metric.REQUESTS_TOTAL, provider="first", status="success") == 2


async def test_the_first_fallback_that_is_let_in_is_hedged_to(obs: Observatory, three: Three) -> None:
    first, second, third = three
    obs.rate_limiter.define(Limit("none", 1, per="month", match={"provider": "second"}))
    await obs.rate_limiter.check("none")
    held = Held(first)
    third.says = lambda _: document("from the third")
    options = [fallback(second), fallback(third, "third", model="m-3")]
    spans = Spans(obs)
    async with closing(client := sdk(obs, first, hedge_after=SOON, wait=20, fallbacks=options)):
        with obs.llm.collect() as calls:
            assert (await asked(client)).choices[0].message.content == "from the third"
            await quiet(client)
        held.let()
    told = {(call.provider, call.fallback, call.hedged, call.refused_by or call.error) for call in calls}
    assert told == {("first", 0, False, "outrun"), ("second", 1, True, "none"), ("third", 2, True, None)}
    assert [(span.attributes or {}).get("observatory.hedged") for span in spans.taken()].count(True) == 2
    assert (len(first.requests), len(second.requests), len(third.requests)) == (1, 0, 1)
    assert (await used(obs, "first"))[0] == 1
    assert await used(obs, "second") == NONE
    assert await used(obs, "third") == ONE


async def test_a_bad_head_does_not_win(obs: Observatory, three: Three) -> None:
    """Also where it is the first; and where both are bad, whoever has not been asked yet is."""
    first, second, third = three
    held = Held(first)
    second.says = lambda _: error(503)
    third.says = lambda _: document("from the third")
    async with closing(client := sdk(obs, first, hedge_after=SOON, fallbacks=[fallback(second)])):
        task = asyncio.create_task(asked(client))
        await until(lambda: second.requests, "the hedge")
        held.let()
        assert (await task).choices[0].message.content == "yes", "the first was slow, and good"
        await quiet(client)
    first.says = lambda _: error(500)
    held = Held(first)
    options = [fallback(second), fallback(third, "third")]
    async with closing(client := sdk(obs, first, hedge_after=SOON, fallbacks=options)):
        task = asyncio.create_task(asked(client, model="m-2"))
        await until(lambda: len(second.requests) == 2, "the hedge")
        held.let()
        assert (await task).choices[0].message.content == "from the third"
        await quiet(client)
    assert await used(obs, "first") == (2, *ONE[1:])
    assert await used(obs, "second") == (2, *FAILED[1:])
    assert await used(obs, "third") == ONE


async def test_an_outage_is_not_doubled(obs: Observatory, opening: Any, three: Three) -> None:
    """Hedges are within the fleet's retry budget: here one, of calls that all hear nothing."""
    first, _, _ = three
    held = Held(first)
    other = await opening(settings=Settings().replace(retry_budget=0, retry_budget_reserve=1))
    async with closing(client := sdk(other, first, hedge_after=SOON)):
        working = [asyncio.create_task(asked(client)) for _ in range(10)]
        await held.came(11)
        await asyncio.sleep(SOON * 4)
        held.let()
        await asyncio.gather(*working)
        await quiet(client)
    assert len(first.requests) == 11


async def test_cancelled_both_are(obs: Observatory, three: Three) -> None:
    """Before the hedge, and while both are under way: nobody works on, nothing stays open or held."""
    first, second, _ = three
    held, also = Held(first), Held(second)
    async with closing(client := sdk(obs, first, hedge_after=SOON, fallbacks=[fallback(second)])):
        for hedges in (0, 1):
            client._client._transport._way.tries.hedge_after = SOON if hedges else 30
            task = asyncio.create_task(asked(client))
            await held.came(hedges + 1)
            await also.came(hedges)
            assert tasks() == hedges + 1
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await quiet(client)
    held.let()
    also.let()
    assert (await used(obs, "first"))[0] == 2
    assert (await used(obs, "second"))[0] == 1


async def test_a_hedged_stream(obs: Observatory, three: Three) -> None:
    """By its head; all of its bytes are those of one answer."""
    first, second, _ = three
    held = Held(first)
    first.says = lambda _: stream("a")
    second.says = lambda _: stream("b", "c")
    async with closing(client := sdk(obs, first, hedge_after=SOON, fallbacks=[fallback(second)])):
        words = [chunk.choices[0].delta.content async for chunk in await asked(client, stream=True) if chunk.choices]
        assert words == ["b", "c", None]
        await quiet(client)
        held.let()
    assert await used(obs, "second") == ONE


async def test_both_at_once(obs: Observatory, three: Three) -> None:
    """Whichever is first: the other's response is closed, settled and nobody's, whatever the moment."""
    first, second, _ = three
    second.says = lambda _: document("from the second")
    numbers = random.Random(7)

    async def slowly(_: Request) -> None:
        await until(lambda: second.requests, "a hedge")
        await asyncio.sleep(numbers.random() / 50)

    first.before = second.before = slowly
    async with closing(client := sdk(obs, first, hedge_after=0.005, fallbacks=[fallback(second)])):
        answers = await asyncio.gather(*(asked(client) for _ in range(30)))
        await quiet(client)
    assert {one.choices[0].message.content for one in answers} <= {"yes", "from the second"}
    made = (await used(obs, "first"))[0], (await used(obs, "second"))[0]
    assert made[0] == 30
    assert 0 < made[1] <= 30


async def test_a_connection_that_breaks_while_the_hedge_is_under_way(obs: Observatory, three: Three) -> None:
    first, second, _ = three
    also = Held(second)

    async def breaks(_: Request) -> None:
        await also.came(1)
        raise ConnectionError

    first.before = breaks
    async with closing(client := sdk(obs, first, hedge_after=SOON, fallbacks=[fallback(second)])):
        task = asyncio.create_task(asked(client))
        await also.came(1)
        also.let()
        assert (await task).choices[0].message.content == "yes"
        second.before = breaks
        with pytest.raises(openai.APIConnectionError):
            await asked(client)
        await quiet(client)
    await used(obs, "first")


class Reluctant(httpx2.AsyncHTTPTransport):
    """Whose requests are long in ending, once they are cancelled."""

    ends = asyncio.Event()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        try:
            return await super().handle_async_request(request)
        except asyncio.CancelledError:
            await self.ends.wait()
            raise


async def test_nobody_waits_for_the_slower_one_to_end(obs: Observatory, three: Three) -> None:
    first, second, _ = three
    held = Held(first)
    inner = Reluctant()
    inner.ends = asyncio.Event()
    async with closing(client := sdk(obs, first, transport=inner, hedge_after=SOON, fallbacks=[fallback(second)])):
        async with asyncio.timeout(20):
            assert (await asked(client)).choices[0].message.content == "yes"
        assert tasks() >= 1, "the other is under way still"
        settled = asyncio.create_task(obs.llm.settled())
        await asyncio.sleep(SOON)
        assert not settled.done(), "and what it holds is not given up for settled"
        inner.ends.set()
        await settled
        assert not obs._desk.gate._inside
        await quiet(client)
        held.let()
    assert (await used(obs, "first"))[0] == 1
    assert await used(obs, "second") == ONE


async def test_cancelled_at_any_moment_no_connection_is_lost(opening: Any, three: Three) -> None:
    """A few steps of the loop more each time, from where the hedge is answered: a connection is the caller's, or closed."""
    obs = await opening(settings=Settings().replace(retry_budget=1, retry_budget_reserve=1000))
    first, second, _ = three
    held, also = Held(first), Held(second)
    second.says = lambda _: stream("a")
    options: dict[str, Any] = {"hedge_after": 0.001, "fallbacks": [fallback(second)]}
    other = obs.llm.http_client(provider="first", trust_env=False, **options)
    question = {"model": "m-1", "stream": True, "messages": []}
    got = 0
    async with closing(client := sdk(obs, first, **options)):
        client._client = other
        for steps in range(60):
            request = other.build_request("POST", f"{first.url}/v1/chat/completions", json=question)
            task = asyncio.create_task(other.send(request, stream=True))
            await also.came(steps + 1)
            also.let(steps)
            for _ in range(steps):
                await asyncio.sleep(0)
            if steps == 59:
                await asyncio.wait({task})
            task.cancel()
            (done,), _ = await asyncio.wait({task})
            if not done.cancelled():
                got += 1
                await done.result().aclose()
            await quiet(client)
        await other.aclose()
        held.let()
    assert 0 < got < 60, "before, and after"


async def test_an_answer_does_not_wait_for_the_budget(obs: Observatory, three: Three, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes while the budget is asked is handed on; the retry that is granted for nothing is the next one's."""
    first, _, _ = three
    held = Held(first)
    budget = obs.retry_budget
    asked_for, answers, told, real = asyncio.Event(), asyncio.Event(), list[int](), budget._told

    async def slowly(account: Account, want: int) -> int:
        if want:
            asked_for.set()
            await answers.wait()
            told.append(want)
        return await real(account, want)

    monkeypatch.setattr(budget, "_told", slowly)
    async with closing(client := sdk(obs, first, hedge_after=SOON)):
        task = asyncio.create_task(asked(client))
        await asked_for.wait()
        held.let(0)
        async with asyncio.timeout(20):
            await task
        answers.set()
        await quiet(client)
        await until(lambda: told, "the budget answers")
        await until(lambda: budget.account("llm:first").unused, "nobody takes it")
        task = asyncio.create_task(asked(client))
        await held.came(3)
        held.let()
        await task
        await quiet(client)
    assert told == [1], "asked once"
    assert len(first.requests) == 3
