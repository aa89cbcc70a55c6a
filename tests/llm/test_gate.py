"""Calls of the SDKs themselves, under limits and budgets of the fleet: what is let in, and what limits show afterwards."""

import asyncio
import json
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import anthropic
import groq
import openai
import pytest

from observatory import Limit, Observatory, Override, Price
from observatory.clock import monotonic
from observatory.settings import LlmSettings, Settings
from tests.conftest import Open
from tests.llm.fleet import until
from tests.llm.guarded import (
    COUNTED,
    DOCUMENT,
    KEY,
    MODEL,
    PROMPT,
    asking,
    document,
    priced,
    said,
    sdk,
    settled,
    shown,
    still_held,
    stream,
)
from tests.llm.observed import closing
from tests.llm.replay import Answer, Provider, provider
from tests.servers import Server

ERRORS: dict[str, Any] = {"openai": openai, "anthropic": anthropic, "groq": groq}


@pytest.fixture
async def there() -> AsyncIterator[Provider]:
    async with provider() as one:
        one.says = lambda request: document(messages=request.path.endswith("/messages"))
        yield one


@pytest.mark.parametrize("name", ["openai", "anthropic", "groq"])
async def test_what_was_held_becomes_what_was_used(obs: Observatory, there: Provider, name: str) -> None:
    """Of every unit at once, to the last token and billionth; a slot is free again."""
    obs.rate_limiter.define(*COUNTED)
    priced(obs)
    client = sdk(obs, there, name)
    async with closing(client):
        with obs.llm.collect() as calls:
            await asking(client, max_tokens=5000)
            await asking(client, max_tokens=1)
        await settled(obs)
    assert [call.usage.total_tokens for call in calls if call.usage] == [18, 18]
    assert await shown(obs) == said(calls)
    assert (await shown(obs))["money"] > 0
    assert await still_held(obs) == 0


@pytest.mark.parametrize("says", [True, False])
async def test_a_stream_is_settled_with_what_it_used(obs: Observatory, there: Provider, says: bool) -> None:
    """While it is on its way its estimate is held; where it does not say its tokens, they are counted as they pass."""
    obs.rate_limiter.define(*COUNTED)
    priced(obs)
    client = sdk(obs, there)
    more = asyncio.Event()

    async def gate(number: int) -> None:
        if number > 3:
            await more.wait()

    there.gate = gate
    there.says = lambda _: stream(100, 50, says=says)
    async with closing(client):
        with obs.llm.collect() as calls:
            answer = await asking(client, stream=True, max_tokens=5000)
            await anext(aiter(answer))
            held = await shown(obs)
            assert held["tokens"] > 5000
            assert held["slots"] == 1
            assert await still_held(obs) == len(COUNTED)
            more.set()
            async for _ in answer:
                pass
        await settled(obs)
    (call,) = calls
    assert call.estimated is not says
    assert call.usage is not None
    assert (call.usage.total_tokens == 150) is says
    assert await shown(obs) == said(calls)
    assert await still_held(obs) == 0


async def test_embeddings_are_settled(obs: Observatory, there: Provider) -> None:
    obs.rate_limiter.define(*COUNTED)
    priced(obs)
    body = {
        "object": "list",
        "model": "e-1",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
        "usage": {"prompt_tokens": 8, "total_tokens": 8},
    }
    there.says = lambda _: Answer(200, DOCUMENT, [json.dumps(body).encode()])
    client = sdk(obs, there)
    async with closing(client):
        with obs.llm.collect() as calls:
            await client.embeddings.create(model="e-1", input="x" * 1000, encoding_format="float")
        await settled(obs)
    assert (await shown(obs))["tokens"] == 8
    assert await shown(obs) == said(calls)


@pytest.mark.parametrize(
    ("match", "by", "other"),
    [
        ({"provider": "openai"}, (), "provider"),
        ({"model": "m-*"}, (), "model"),
        ({"operation": "chat"}, (), "operation"),
        ({"kind": "llm"}, "key", "key"),
        ("*", "tenant", "tenant"),
        ({"provider": "open*", "team": "search"}, ("team", "model"), "model"),
    ],
)
async def test_a_limit_by_whatever_is_known_of_a_call(
    obs: Observatory, there: Provider, match: Any, by: Any, other: str
) -> None:
    """By the provider, the model, the operation, the API key, and what is bound; who differs in that is not touched by it."""
    obs.rate_limiter.define(Limit("few", 1, per="month", match=match, by=by))
    client = sdk(obs, there)
    different = sdk(obs, there, "groq") if other == "provider" else sdk(obs, there, key="sk-2" if other == "key" else KEY)
    async with closing(client, different):
        with obs.bound(tenant="acme", team="search"):
            await asking(client)
            with pytest.raises(openai.RateLimitError) as refused:
                await asking(client)
            assert refused.value.response.headers["observatory-limit"] == "few"
            assert len(there.requests) == 1
            with obs.bound(tenant="x" if other == "tenant" else "acme"):
                if other == "operation":
                    await different.embeddings.create(model=MODEL, input="x", encoding_format="float")
                else:
                    await asking(different, model="m-2" if other == "model" and by else "x" if other == "model" else MODEL)
    assert len(there.requests) == 2


@pytest.mark.parametrize("name", ["openai", "anthropic", "groq"])
async def test_a_budget_that_is_spent(obs: Observatory, there: Provider, name: str) -> None:
    """The SDK's own error says whose limit it was, and does not come three times; the provider hears of none."""
    obs.rate_limiter.define(Limit("budget", "0.00002", per="month", unit="usd", match="*"))
    priced(obs)
    client = sdk(obs, there, name, retries=2)
    async with closing(client):
        await asking(client, max_tokens=1)
        await settled(obs)
        with obs.llm.collect() as calls, pytest.raises(ERRORS[name].RateLimitError) as refused:
            await asking(client, max_tokens=1)
    said = refused.value.response.headers
    assert (said["observatory-limit"], said["observatory-code"]) == ("budget", "budget_exceeded")
    assert said["x-should-retry"] == "false"
    assert int(said["retry-after"]) > 3600 or int(said["retry-after-ms"]) > 0
    assert len(there.requests) == 1
    assert [(call.refused_by, call.status) for call in calls] == [("budget", 429)]
    assert PROMPT not in f"{refused.value}{said}"
    assert await still_held(obs) == 0


@pytest.mark.parametrize("name", ["openai", "anthropic", "groq"])
async def test_who_can_never_be_let_in_is_not_asked_for_again(obs: Observatory, there: Provider, name: str) -> None:
    obs.rate_limiter.define(Limit("none", 5, per=1, match="*", by="tenant", overrides={"evil": Override(deny=True)}))
    client = sdk(obs, there, name, retries=2)
    async with closing(client):
        with obs.bound(tenant="evil"), obs.llm.collect() as calls, pytest.raises(ERRORS[name].RateLimitError) as refused:
            await asking(client)
        with obs.bound(tenant="good"):
            await asking(client)
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert len(calls) == len(there.requests) == 1


@pytest.mark.parametrize("name", ["openai", "anthropic", "groq"])
async def test_an_sdk_comes_again_when_it_was_told_to(obs: Observatory, there: Provider, name: str) -> None:
    """Where waiting helps it is not told to stay away: it waits so long as was said, and is let in."""
    obs.rate_limiter.define(Limit("often", 2, per=1, burst=1, match="*"))
    client = sdk(obs, there, name, retries=2)
    async with closing(client):
        with obs.llm.collect() as calls:
            await asking(client)
            began = monotonic()
            await asking(client)
            took = monotonic() - began
    assert [call.refused_by for call in calls] == [None, "often", None]
    assert 0.2 < took < 5
    assert len(there.requests) == 2


@pytest.mark.parametrize("name", ["openai", "anthropic", "groq"])
async def test_a_wait_that_no_sdk_obeys_is_not_begun(obs: Observatory, there: Provider, name: str) -> None:
    """They come again at once when they are told of more than a minute: so they are told not to."""
    obs.rate_limiter.define(Limit("few", 1, per="month", match="*"))
    client = sdk(obs, there, name, retries=2)
    async with closing(client):
        await asking(client)
        with obs.llm.collect() as calls, pytest.raises(ERRORS[name].RateLimitError) as refused:
            await asking(client)
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert len(calls) == 1


async def test_who_has_stood_in_line_all_its_time_is_told_not_to_come_again(obs: Observatory, there: Provider) -> None:
    obs.rate_limiter.define(Limit("one", 1, unit="slots", match="*"))
    client = sdk(obs, there, retries=2, wait=0.3)
    async with closing(client), obs.rate_limiter.reserve("one", {}):
        began = monotonic()
        with obs.llm.collect() as calls, pytest.raises(openai.RateLimitError) as refused:
            await asking(client)
        assert 0.25 < monotonic() - began < 5
    assert refused.value.response.headers["x-should-retry"] == "false"
    (call,) = calls
    assert 0.25 < call.waited < 5
    assert not there.requests


async def test_a_line_in_the_fleet_is_served_in_order(opening: Open, there: Provider) -> None:
    """Those of two processes stand in one line for one slot."""
    one, two = await opening(), await opening()
    order: list[int] = []
    clients = []
    for obs in (one, two):
        obs.rate_limiter.define(Limit("one", 1, unit="slots", match="*"))
        clients.append(sdk(obs, there, wait=30))

    async def call(number: int) -> None:
        await asking(clients[number % 2], text=f"{number}")

    async with closing(*clients):
        async with one.rate_limiter.reserve("one", {}):
            standing = []
            for number in range(6):
                standing.append(asyncio.ensure_future(call(number)))
                await asyncio.sleep(0.15)
            assert not there.requests
        await asyncio.gather(*standing)
    order = [int(json.loads(request.body)["messages"][0]["content"]) for request in there.requests]
    assert order == sorted(order)


async def test_all_or_nothing(obs: Observatory, there: Provider) -> None:
    """What one limit refuses is not taken of another."""
    obs.rate_limiter.define(*COUNTED, Limit("few", 1, per="month", match="*"))
    client = sdk(obs, there)
    async with closing(client):
        with obs.llm.collect() as calls:
            await asking(client)
            for _ in range(3):
                with pytest.raises(openai.RateLimitError):
                    await asking(client)
        await settled(obs)
    assert await shown(obs) == said(calls)
    assert (await shown(obs))["calls"] == 1


@pytest.mark.parametrize("policy", ["local", "open", "closed"])
async def test_the_store_goes_away(own_server: Server, namespace: str, there: Provider, policy: Any) -> None:
    """Calls go on, unless the limit says closed: then its refusal is a provider's 503."""
    async with Observatory("test", redis_url=own_server.url, namespace=namespace) as obs:
        obs.rate_limiter.define(Limit("all", 1000, per=1, burst=1000, match="*", on_store_down=policy))
        client = sdk(obs, there)
        async with closing(client):
            await asking(client)
            await until(lambda: obs._lifetime.most_live() > 0, "it knows how many there are")
            own_server.stop()
            if policy == "closed":
                with pytest.raises(openai.InternalServerError) as refused:
                    await asking(client)
                assert refused.value.status_code == 503
                assert refused.value.response.headers["observatory-code"] == "store_unavailable"
                assert len(there.requests) == 1
            else:
                await asking(client)
                assert len(there.requests) == 2
            own_server.start()


async def test_the_store_was_never_there(tmp_path: Path, namespace: str, there: Provider) -> None:
    """A call without a limit that insists goes through."""
    async with Observatory("test", redis_url=f"unix://{tmp_path}/none", namespace=namespace) as obs:
        obs.rate_limiter.define(Limit("all", 1000, per=1, match="*", on_store_down="open"))
        client = sdk(obs, there)
        async with closing(client), asyncio.timeout(10):
            await asking(client)
    assert len(there.requests) == 1


async def test_settings_of_calls(opening: Open, there: Provider) -> None:
    """[llm] wait is for clients that say nothing; require refuses a call that does not say whose it is."""
    llm = LlmSettings(wait=0.3, require=("team",))
    obs = await opening(settings=Settings(llm=llm))
    obs.rate_limiter.define(Limit("one", 1, unit="slots", match="*"))
    client, eager = sdk(obs, there, retries=2), sdk(obs, there, wait=0)
    async with closing(client, eager):
        with pytest.raises(openai.BadRequestError, match="team"):
            await asking(client)
        with obs.bound(team="search"):
            async with obs.rate_limiter.reserve("one", {}):
                for one, least, most in ((client, 0.25, 5.0), (eager, 0.0, 0.25)):
                    with obs.llm.collect() as calls, pytest.raises(openai.RateLimitError):
                        await asking(one)
                    assert least <= calls[0].waited < most
            await asking(client)
    assert len(there.requests) == 1


@pytest.mark.parametrize("more", [{"max_tokens": 2**60}, {"max_tokens": 2**51, "n": 100}, {"model": "x" * 9000}, {"n": 10**30}])
async def test_a_strange_request_is_the_providers_to_refuse(obs: Observatory, there: Provider, more: dict[str, Any]) -> None:
    """What cannot be estimated is held as well as can be; nobody's call fails because we cannot count it."""
    obs.rate_limiter.define(*COUNTED)
    priced(obs)
    client = sdk(obs, there)
    async with closing(client):
        await asking(client, **more)
        await settled(obs)
    assert len(there.requests) == 1
    assert (await shown(obs))["tokens"] == 18


async def test_a_price_beyond_counting(obs: Observatory, there: Provider) -> None:
    """Of an estimate that is beyond counting nothing is held; it is settled with what it came to."""
    obs.rate_limiter.define(Limit("money", 4_000_000, per="month", unit="usd", match="*"))
    obs.llm.prices.set("openai/*", Price(input=1, output=1_000_000))
    client = sdk(obs, there)
    async with closing(client):
        with obs.llm.collect() as calls:
            await asking(client, max_tokens=10**9)
        await settled(obs)
    (call,) = calls
    assert call.cost_usd == 4_000_000 - Decimal((await obs.rate_limiter.peek("money")).remaining)


async def test_a_client_on_another_loop(obs: Observatory, there: Provider) -> None:
    """An Observatory is of one loop: a call elsewhere that limits apply to is told so, and does not hang."""
    obs.rate_limiter.define(*COUNTED)

    async def elsewhere() -> str:
        client = sdk(obs, there)
        async with closing(client), asyncio.timeout(10):
            with pytest.raises(openai.InternalServerError) as refused:
                await asking(client)
        return str(refused.value.response.headers["observatory-code"])

    assert await asyncio.to_thread(lambda: asyncio.run(elsewhere())) == "not_open"
    assert not there.requests
