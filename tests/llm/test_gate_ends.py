"""How calls end that were let in: thrown away, cancelled, closed under, killed; what they held comes back."""

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from observatory import Limit, Observatory
from observatory.settings import BreakerSettings, RetrySettings, Settings
from tests.conftest import Open
from tests.llm.fleet import until
from tests.llm.guarded import (
    COUNTED,
    PLENTY,
    asking,
    document,
    error,
    gate,
    priced,
    said,
    sdk,
    settled,
    shown,
    still_held,
    stream,
)
from tests.llm.observed import closing, total
from tests.llm.replay import Provider, provider
from tests.proxy import proxy
from tests.servers import Server

CHAT = {"model": "m-1", "stream": True, "max_tokens": 100, "messages": [{"role": "user", "content": "x"}]}


@pytest.fixture
async def there() -> AsyncIterator[Provider]:
    async with provider() as one:
        one.says = lambda _: stream()
        yield one


@pytest.fixture
async def client(obs: Observatory, there: Provider) -> AsyncIterator[httpx2.AsyncClient]:
    obs.rate_limiter.define(*COUNTED)
    async with obs.llm.http_client(provider="openai", base_url=f"{there.url}/v1", trust_env=False) as one:
        yield one


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_stream_that_nobody_reads_or_closes(obs: Observatory, client: httpx2.AsyncClient, elsewhere: bool) -> None:
    """Thrown away: when the collector finds it, on whatever thread, what it held is settled."""
    with obs.llm.collect() as calls:
        response = await client.send(client.build_request("POST", "/chat/completions", json=CHAT), stream=True)
        assert await still_held(obs) == len(COUNTED)
        gc.disable()
        try:
            del response
            await (asyncio.to_thread(gc.collect) if elsewhere else asyncio.sleep(0, gc.collect()))
            await until(lambda: calls, "the call is told")
        finally:
            gc.enable()
    await settled(obs)
    assert await still_held(obs) == 0
    assert [call.error for call in calls] == ["cancelled"]
    assert await total(obs, "observatory_active_connections", kind="llm") == 0


async def test_a_copy_in_a_forked_child_settles_nothing(obs: Observatory, client: httpx2.AsyncClient) -> None:
    """What is held is the parent's, whatever becomes of the child's copies."""
    async with client.stream("POST", "/chat/completions", json=CHAT) as response:
        inside, working = gate(obs)._inside, gate(obs)._working
        obs._desk.forget()
        await response.aclose()
        await settled(obs)
        assert await still_held(obs) == len(COUNTED)
        gate(obs)._inside, gate(obs)._working = inside, working
    for passed in tuple(inside):
        gate(obs).left(passed, passed._held, "nothing")
    await settled(obs)
    assert await still_held(obs) == 0


async def test_the_observatory_is_closed_under_an_open_stream(server: Server, namespace: str, there: Provider) -> None:
    """It is settled with its estimate at once; its reader has the rest of it, and nothing is settled twice."""
    more = asyncio.Event()

    async def upto(number: int) -> None:
        if number > 2:
            await more.wait()

    there.gate = upto
    obs = Observatory("test", redis_url=server.url, namespace=namespace)
    async with obs.llm.http_client(provider="openai", base_url=f"{there.url}/v1", trust_env=False) as client:
        async with obs:
            obs.rate_limiter.define(*COUNTED)
            response = await client.send(client.build_request("POST", "/chat/completions", json=CHAT), stream=True)
            stream_ = response.aiter_raw()
            got = [await anext(stream_)]
            held = await shown(obs)
        async with Observatory("other", redis_url=server.url, namespace=namespace) as other:
            other.rate_limiter.define(*COUNTED)
            assert await still_held(other) == 0
            assert await shown(other) == {**held, "slots": 0}
            more.set()
            got += [chunk async for chunk in stream_]
            assert b"".join(got) == b"".join(stream().chunks)
            await response.aclose()
            assert await shown(other) == {**held, "slots": 0}


async def test_what_a_probe_stood_in_line_for_is_not_the_providers_slowness(opening: Open, there: Provider) -> None:
    slow = BreakerSettings(consecutive=1, open_for=0.1, slow_after=0.5)
    obs = await opening(settings=Settings(breakers={"openai": slow}))
    obs.rate_limiter.define(Limit("one", 1, unit="slots", match="*"))
    client = sdk(obs, there, wait=20)
    breaker = obs.breaker("openai/m-1")
    async with closing(client):
        there.says = lambda _: error(500)
        with pytest.raises(openai.InternalServerError):
            await asking(client)
        await until(lambda: breaker.state == "half_open", "it may be tried", 5.0)
        there.says = lambda _: document()
        async with obs.rate_limiter.reserve("one", {}):
            probe = asyncio.ensure_future(asking(client))
            await asyncio.sleep(0.8)
            assert len(there.requests) == 1
        await probe
        await until(lambda: breaker.state == "closed", "it is closed", 5.0)


async def test_a_pool_that_is_full_says_nothing_of_the_provider(opening: Open, there: Provider) -> None:
    obs = await opening(settings=Settings(breakers={"openai": BreakerSettings(consecutive=2)}))
    more = asyncio.Event()
    there.gate = lambda _: more.wait()
    options: dict[str, Any] = {
        "limits": httpx2.Limits(max_connections=1),
        "timeout": httpx2.Timeout(20, pool=0.05),
    }
    client = sdk(obs, there, **options)
    async with closing(client):
        first = asyncio.ensure_future(asking(client, stream=True))
        await until(lambda: there.requests, "the one connection is taken")
        for _ in range(6):
            with pytest.raises(openai.APITimeoutError):
                await client.with_options(timeout=httpx2.Timeout(20, pool=0.05)).chat.completions.create(**CHAT)
        more.set()
        async for _ in await first:
            pass
        await obs.breakers.flush()
        assert obs.breaker("openai/m-1").state == "closed"


async def test_coming_again_to_a_limit_costs_no_retry(opening: Open, there: Provider) -> None:
    """A provider has heard of nothing yet: with a budget of no retries at all it is let in when its time has come."""
    obs = await opening(settings=Settings(retry=RetrySettings(budget=0.0, budget_reserve=0)))
    obs.rate_limiter.define(Limit("often", 2, per=1, burst=1, match="*"))
    there.says = lambda _: document()
    client = sdk(obs, there, retries=2)
    async with closing(client):
        with obs.llm.collect() as calls:
            await asking(client)
            await asking(client)
        assert [call.refused_by for call in calls] == [None, "often", None]
        there.says = lambda _: error(500)
        with pytest.raises(openai.InternalServerError) as failed:
            await asking(client)
    assert failed.value.response.headers["x-should-retry"] == "false"
    assert len(there.requests) == 3


async def test_a_call_cancelled_while_its_retry_is_asked_for(own_server: Server, tmp_path: Path, there: Provider) -> None:
    """With the store silent: its connection goes back to the pool, and what it held comes back."""
    async with (
        proxy(own_server.path, tmp_path / "p") as between,
        Observatory("test", redis_url=between.url, namespace="n") as obs,
    ):
        client = sdk(obs, there, retries=2, limits=httpx2.Limits(max_connections=1))
        there.says = lambda _: error(500)
        async with closing(client), asyncio.timeout(20):
            for _ in range(3):
                between.deaf = True
                calling = asyncio.ensure_future(asking(client))
                seen = len(there.requests)
                await until(lambda seen=seen: len(there.requests) > seen, "it is asked")  # type: ignore[misc]
                await asyncio.sleep(0.05)
                calling.cancel()
                await asyncio.wait({calling})
                between.deaf = False
            there.says = lambda _: document()
            await asking(client)
        assert not gate(obs)._inside


async def test_a_client_of_an_observatory_that_is_not_open(there: Provider) -> None:
    """A pause is kept by itself, and nothing fails in the dark."""
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: told.append(what))
    obs = Observatory("test")
    there.says = lambda _: error(429, retry_after="30")
    client = sdk(obs, there)
    async with closing(client):
        for _ in range(2):
            with pytest.raises(openai.RateLimitError):
                await asking(client)
            while gate(obs)._working:
                await asyncio.sleep(0)
        gc.collect()
    assert len(there.requests) == 1, "the second was told to wait, by the first"
    assert not told


async def test_settled_by_nobody_else_but_once(obs: Observatory, there: Provider) -> None:
    """A hundred calls at once, of which some are cancelled: what they say is what limits show."""
    obs.rate_limiter.define(*COUNTED)
    priced(obs)
    client = sdk(obs, there, wait=20)
    async with closing(client):
        with obs.llm.collect() as calls:
            there.says = lambda _: document()
            await asyncio.gather(*(asking(client) for _ in range(100)))
        await settled(obs)
    assert await shown(obs) == said(calls)
    assert (await shown(obs))["calls"] == 100 < PLENTY


async def test_the_observatory_is_closed_while_a_call_stands_in_line(server: Server, namespace: str, there: Provider) -> None:
    """It ends with a refusal, long before its time in line is over; the provider hears of nothing, and nothing is held."""
    slot = Limit("one", 1, unit="slots", match="*")
    async with Observatory("other", redis_url=server.url, namespace=namespace) as other:
        other.rate_limiter.define(slot)
        async with other.rate_limiter.reserve("one", {}):
            obs = Observatory("test", redis_url=server.url, namespace=namespace)
            client = sdk(obs, there, wait=60)
            async with closing(client), asyncio.timeout(20):
                async with obs:
                    obs.rate_limiter.define(slot)
                    standing = asyncio.ensure_future(asking(client))
                    await asyncio.sleep(0.3)
                with pytest.raises(openai.APIStatusError) as refused:
                    await standing
            assert "observatory-code" in refused.value.response.headers
        assert not there.requests
        assert await still_held(other) == 0


@pytest.mark.parametrize("what", ["breaker", "pause"])
async def test_what_begins_while_a_call_stands_in_line(obs: Observatory, there: Provider, what: str) -> None:
    """Its turn comes too late: it is refused, the provider hears of nothing, and what its turn had given it goes back."""
    slot = Limit("one", 1, unit="slots", match="*")
    obs.rate_limiter.define(slot, Limit("tokens", PLENTY, per="month", unit="tokens", match="*"))
    client = sdk(obs, there, wait=20)
    async with closing(client):
        async with obs.rate_limiter.reserve("one", {}):
            standing = asyncio.ensure_future(asking(client))
            await asyncio.sleep(0.3)
            if what == "breaker":
                await obs.breaker("openai/m-1").force("open", reason="test")
            else:
                await obs.pauses.begin("openai", "m-1", seconds=60)
        with pytest.raises(openai.APIStatusError) as refused:
            await standing
        assert refused.value.response.headers["observatory-code"] == ("circuit_open" if what == "breaker" else "cooling_down")
        assert not there.requests
        await settled(obs)
        assert await still_held(obs) == 0
        assert {*(await shown(obs, slot)).values()} == {0}
