"""Fallbacks: who is asked after whom, each as a call of its own; what is handed on, and that nothing stays open or held."""

import asyncio
import contextlib
import json
import logging
from decimal import Decimal
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest

from observatory import Limit, Observatory, Price, Settings
from tests.llm import tried
from tests.llm.observed import Spans, closing
from tests.llm.replay import Answer, Provider, Request
from tests.llm.tried import FAILED, KEY, NONE, ONE, OTHER, asked, document, error, fallback, quiet, sdk, stream, used

Three = tuple[Provider, Provider, Provider]
counted, three = tried.counted, tried.three
pytestmark = pytest.mark.usefixtures("counted")


@pytest.mark.parametrize("status", [429, 500, 502, 503, 529])
async def test_a_status_leads_to_the_fallback(obs: Observatory, three: Three, status: int) -> None:
    """Two calls, with a span, a record, limits and a price each; the first is told as failed, by its code."""
    first, second, _ = three
    first.says = lambda _: error(status)
    second.says = lambda _: document("from the second")
    spans = Spans(obs)
    async with closing(client := sdk(obs, first, fallbacks=[fallback(second, model="m-2")])):
        with obs.llm.collect() as calls:
            answer = await asked(client)
        await quiet(client)
    assert answer.choices[0].message.content == "from the second"
    told = [(call.provider, call.model, call.status, call.error, call.fallback) for call in calls]
    assert told == [("first", "m-1", status, "broken", 0), ("second", "m-2", 200, None, 1)]
    assert [call.cost_usd for call in calls] == [None, Decimal("0.000081")]
    assert calls[0].dimensions["key"] != calls[1].dimensions["key"]
    one, two = spans.taken()
    assert "observatory.fallback" not in (one.attributes or {})
    assert (two.attributes or {})["observatory.fallback"] == 1
    assert one.parent == two.parent, "side by side, not one in the other"
    assert await used(obs, "first") == FAILED
    assert await used(obs, "second") == ONE


@pytest.mark.parametrize("status", [200, 400, 401, 404, 408, 409])
async def test_other_statuses_do_not(obs: Observatory, three: Three, status: int) -> None:
    first, second, _ = three
    first.says = lambda _: document() if status == 200 else error(status)
    async with closing(client := sdk(obs, first, fallbacks=[fallback(second)])):
        if status == 200:
            await asked(client)
        else:
            with pytest.raises(openai.APIStatusError) as caught:
                await asked(client)
            assert caught.value.status_code == status
    assert second.requests == []
    assert await used(obs, "second") == NONE


async def test_each_fallback_says_when(obs: Observatory, three: Three) -> None:
    """The status of the one before it decides; who is not asked for it is passed over."""
    first, second, third = three
    first.says = lambda _: error(500)
    third.says = lambda _: document("from the third")
    options = [fallback(second, when=(429,)), fallback(third, "third", when=(500,))]
    async with closing(client := sdk(obs, first, fallbacks=options)):
        with obs.llm.collect() as calls:
            assert (await asked(client)).choices[0].message.content == "from the third"
    assert [(call.provider, call.fallback) for call in calls] == [("first", 0), ("third", 2)]
    assert second.requests == []


async def test_a_connection_that_fails_before_the_head(obs: Observatory, three: Three, free_tcp_port: int) -> None:
    """Refused, and torn. What may have been billed is charged as it was estimated, what was never sent is not."""
    first, second, _ = three
    torn = asyncio.Event()

    async def before(_: Request) -> None:
        torn.set()
        raise ConnectionError

    first.before = before
    async with closing(client := sdk(obs, first, fallbacks=[fallback(second)])):
        with obs.llm.collect() as calls:
            await asked(client)
        assert torn.is_set()
        assert [(call.provider, call.status, call.error) for call in calls] == [
            ("first", None, "RemoteProtocolError"),
            ("second", 200, None),
        ]
        calls_of_first, tokens, _ = await used(obs, "first")
        assert (calls_of_first, tokens > 50) == (1, True)
        client.base_url = f"http://127.0.0.1:{free_tcp_port}/v1"
        with obs.llm.collect() as calls:
            await asked(client)
        assert [call.error for call in calls] == ["ConnectError", None]
    assert await used(obs, "first") == (calls_of_first, tokens, (await used(obs, "first"))[2])
    assert await used(obs, "second") == tuple(2 * one for one in ONE)


async def test_refused_by_the_fleet_before_it_was_sent(obs: Observatory, three: Three) -> None:
    """A limit, a pause, an open circuit: the fallback is asked, and the first hears nothing."""
    first, second, _ = three
    obs.rate_limiter.define(Limit("narrow", 1, per="month", match={"provider": "first"}))
    async with closing(client := sdk(obs, first, fallbacks=[fallback(second)])):
        with obs.llm.collect() as calls:
            await asked(client)
            await asked(client)
        assert [(call.provider, call.refused_by) for call in calls] == [("first", None), ("first", "narrow"), ("second", None)]
        obs.rate_limiter.define(Limit("narrow", 1000, per="month", match={"provider": "first"}))
        await obs.pauses.begin("first", "m-1", seconds=30)
        with obs.llm.collect() as calls:
            await asked(client)
        assert [call.refused_by for call in calls] == ["cooling_down", None]
        await obs.breaker("first/m-9").force("open", reason="a test")
        with obs.llm.collect() as calls:
            await asked(client, model="m-9")
        assert [call.refused_by for call in calls] == ["circuit_open", None]
    assert len(first.requests) == 1
    assert await used(obs, "first") == ONE
    assert await used(obs, "second") == tuple(3 * one for one in ONE)


async def test_a_budget_that_binds_both_refuses_both(obs: Observatory, three: Three) -> None:
    """The fallback's own admission decides. What comes out is the refusal of the first, which the user's limit is about."""
    first, second, _ = three
    obs.rate_limiter.define(Limit("team", 0.001, per="month", unit="usd", by="team", match="*"))
    await obs.rate_limiter.check("team", "search", 0.0009)
    async with closing(client := sdk(obs, first, retries=2, fallbacks=[fallback(second)])):
        with obs.bound(team="search"), obs.llm.collect() as calls, pytest.raises(openai.RateLimitError) as caught:
            await asked(client)
        assert caught.value.response.headers["observatory-limit"] == "team"
        assert caught.value.response.headers["x-should-retry"] == "false"
        assert [(call.provider, call.refused_by) for call in calls] == [("first", "team"), ("second", "team")]
        obs.llm.prices.set("second/m-cheap", Price(input=0))
        options = [fallback(second, model="m-cheap")]
        async with closing(cheap := sdk(obs, first, fallbacks=options)):
            with obs.bound(team="search"), obs.llm.collect() as calls:
                await asked(cheap)
    assert [(call.model, call.refused_by) for call in calls] == [("m-1", "team"), ("m-cheap", None)]
    assert first.requests == []
    assert await used(obs, "first") == NONE


async def test_what_is_handed_on_when_all_fail(obs: Observatory, three: Three) -> None:
    """The answer of the last that was asked; one that was not let in does not hide it."""
    first, second, third = three
    first.says = lambda _: error(503, "first_fails")
    second.says = lambda _: error(429, "second_fails", retry_after="7")
    third.says = lambda _: error(500, "third_fails")
    async with closing(client := sdk(obs, first, fallbacks=[fallback(second), fallback(third, "third")])):
        with pytest.raises(openai.InternalServerError) as caught:
            await asked(client)
        assert caught.value.code == "third_fails"
        obs.rate_limiter.define(Limit("none", 1, per="month", match={"provider": "third"}))
        await obs.rate_limiter.check("none")
        with obs.llm.collect() as calls, pytest.raises(openai.APIStatusError) as again:
            await asked(client)
        assert (again.value.status_code, again.value.code) == (503, "first_fails"), "the second has asked for a pause"
        assert {call.provider: call.refused_by for call in calls} == {"first": None, "second": "cooling_down", "third": "none"}
        first.before = lambda _: (_ for _ in ()).throw(ConnectionError)
        with pytest.raises(openai.APIConnectionError):
            await asked(client)
        await quiet(client)
    for name in ("first", "second", "third"):
        assert (await used(obs, name))[0] >= 1


async def test_the_sdks_retries_stay_within_the_fleets_budget(obs: Observatory, opening: Any, three: Three) -> None:
    """What the SDK would try again is asked for at the first provider's account, once for both that have failed."""
    first, second, _ = three
    first.says = second.says = lambda _: error(500, retry_after_ms="1")
    other = await opening(settings=Settings().replace(retry_budget=0, retry_budget_reserve=1))
    async with closing(client := sdk(other, first, retries=5, fallbacks=[fallback(second)])):
        with pytest.raises(openai.InternalServerError) as caught:
            await asked(client)
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert (len(first.requests), len(second.requests)) == (2, 2)


@pytest.mark.parametrize("library", ["httpx2", "httpx"])
async def test_a_stream_falls_back_by_its_head_alone(obs: Observatory, three: Three, library: Any) -> None:
    """After the first byte there is no other: what breaks then is broken."""
    first, second, _ = three
    options: Any = {"fallbacks": [fallback(second)], "provider": "first", "trust_env": False, "base_url": f"{first.url}/v1"}
    question = {"model": "m-1", "stream": True, "messages": []}
    async with obs.llm.http_client(library, **options) as client:
        first.says = lambda _: error(503)
        second.says = lambda _: stream("a", "b")
        answer = await client.post("/chat/completions", json=question)
        assert answer.content == b"".join(stream("a", "b").chunks)
        first.says = lambda _: stream("a", cut=True)
        heard = b""

        async def listen() -> None:
            nonlocal heard
            async with client.stream("POST", "/chat/completions", json=question) as response:
                async for chunk in response.aiter_raw():
                    heard += chunk

        with pytest.raises((httpx.RemoteProtocolError, httpx2.RemoteProtocolError)):
            await listen()
    assert heard == stream("a", cut=True).chunks[0]
    assert len(second.requests) == 1


async def test_anthropics_sdk(obs: Observatory, three: Three) -> None:
    """/v1/messages on an address without /v1, the key where the SDK has it, and its errors."""
    first, second, _ = three
    first.says = lambda _: error(529)
    second.says = lambda _: document("from the second", messages=True)
    async with closing(client := sdk(obs, first, "anthropic", fallbacks=[fallback(second, kind="anthropic")])):
        answer = await asked(client)
        assert answer.content[0].text == "from the second"
        second.says = lambda _: error(529)
        with pytest.raises(anthropic.APIStatusError) as caught:
            await asked(client)
        assert caught.value.status_code == 529
    (request, *_) = second.requests
    assert (request.path, request.headers["authorization"]) == ("/v1/messages", f"Bearer {OTHER}")
    assert "anthropic-version" in request.headers


async def test_a_fallbacks_answer_is_not_kept_as_the_firsts(obs: Observatory, three: Three) -> None:
    first, second, _ = three
    first.says = lambda _: error(503)
    second.says = lambda _: document("from the second")
    async with closing(client := sdk(obs, first, cache=True, fallbacks=[fallback(second)])):
        assert (await asked(client, temperature=0)).choices[0].message.content == "from the second"
        first.says = lambda _: document("from the first")
        assert (await asked(client, temperature=0)).choices[0].message.content == "from the first"
    assert (len(first.requests), len(second.requests)) == (2, 1)


async def test_cancelled_at_any_moment(obs: Observatory, three: Three) -> None:
    """In line for the first, while it is asked, while its failure is read, in line for the second, while that is asked."""
    first, second, _ = three
    reached = asyncio.Event()

    async def hangs(*_: object) -> None:
        reached.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 1)
        raise ConnectionError

    async def cancelled(client: Any) -> None:
        reached.clear()
        task = asyncio.create_task(asked(client))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await quiet(client)

    slow = Answer(503, tried.DOCUMENT, [b"{", b"}"])
    async with closing(client := sdk(obs, first, wait=30, fallbacks=[fallback(second)])):
        first.before = hangs
        await cancelled(client)
        first.before, first.says, first.gate = None, lambda _: slow, hangs
        await cancelled(client)
        first.gate, first.says, second.before = None, lambda _: error(503), hangs
        await cancelled(client)
        second.before = None
        obs.rate_limiter.define(Limit("line", 1, per="20s", match={"provider": "second"}))
        await obs.rate_limiter.check("line")
        task = asyncio.create_task(asked(client))
        before = len(first.requests)
        await tried.until(lambda: len(first.requests) > before, "the first is asked")
        await asyncio.sleep(0.05)
        assert not task.done(), "it stands in line for the second"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await quiet(client)
    assert (await used(obs, "first"))[0] == 4
    assert (await used(obs, "second"))[0] == 1


async def test_no_secret_of_either_is_told(
    obs: Observatory, three: Three, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not in lines, spans, events, calls, nor errors; nor what was the first's with the second."""
    first, second, _ = three
    caplog.set_level(logging.DEBUG)
    first.says = second.says = lambda _: error(503)
    spans = Spans(obs)
    one = fallback(second)
    async with closing(client := sdk(obs, first, fallbacks=[one])):
        with obs.llm.collect() as calls, pytest.raises(openai.APIStatusError) as caught:
            await asked(client, extra_headers={"cookie": "a=b", "helicone-auth": "Bearer theirs"})
    events = [str(item) for item in obs.events._buffer]
    said = f"{caught.value!r}{caught.value.response.headers}{calls}{events}{caplog.text}{capsys.readouterr()}{one!r}{one}"
    said += "".join(f"{span.to_json()}" for span in spans.taken())
    assert KEY not in said
    assert OTHER not in said
    told = second.requests[0].headers
    assert told["authorization"] == f"Bearer {OTHER}"
    assert KEY not in json.dumps(told)
    assert not {"cookie", "helicone-auth", "openai-organization", "openai-project"} & told.keys()
    assert {"openai-organization", "openai-project", "helicone-auth"} <= first.requests[0].headers.keys()
    assert told["host"] == second.url.removeprefix("http://")
