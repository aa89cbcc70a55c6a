"""What one careless or hostile caller must not do to a fleet: open its circuits, stop its providers, spend its budgets."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from observatory import Limit, Observatory, Price
from observatory.dimensions import key_of
from observatory.settings import BreakerSettings, Settings
from tests.conftest import Open
from tests.llm.fleet import until
from tests.llm.guarded import DOCUMENT, KEY, MODEL, asking, document, sdk, settled, stream
from tests.llm.observed import closing
from tests.llm.replay import Answer, Provider, provider
from tests.llm.test_reading import SSE


@pytest.fixture
async def there() -> AsyncIterator[Provider]:
    async with provider() as one:
        one.says = lambda _: document()
        yield one


async def counted(obs: Observatory, name: str = f"openai/{MODEL}") -> tuple[str, int, int]:
    await settled(obs)
    await obs.breakers.flush()
    report = await obs.breakers.show(name)
    return report.state, report.calls, report.failures


async def test_a_client_that_is_closed_opens_no_circuit(obs: Observatory, there: Provider) -> None:
    """A rolling restart closes clients in the middle of their streams, and before their heads."""
    more = asyncio.Event()

    async def gate(_: int) -> None:
        await more.wait()

    client = sdk(obs, there)
    there.says = lambda _: stream(100, 50)
    open_streams = [await asking(client, stream=True) for _ in range(8)]
    there.gate = gate
    readers = [asyncio.ensure_future(anext(aiter(one))) for one in open_streams]
    waiting = [asyncio.ensure_future(asking(client)) for _ in range(4)]
    await until(lambda: len(there.requests) == 12, "all are under way")
    await client.close()
    more.set()
    ended = await asyncio.gather(*readers, *waiting, return_exceptions=True)
    assert sum(isinstance(one, Exception) for one in ended) >= 4
    await asyncio.gather(*(one.close() for one in open_streams), return_exceptions=True)
    assert (await counted(obs))[::2] == ("closed", 0)


def ends_with(kind: str, error: dict[str, Any]) -> Answer:
    events = [{"type": "response.created", "response": {"id": "r", "model": MODEL}}, {"type": kind, **error}]
    return Answer(200, {"content-type": SSE}, [f"event: {one['type']}\ndata: {json.dumps(one)}\n\n".encode() for one in events])


@pytest.mark.parametrize(
    ("code", "failures"),
    [("invalid_prompt", False), ("rate_limit_exceeded", False), ("server_error", True), ("overloaded_error", True)],
)
async def test_bad_questions_open_no_circuit(obs: Observatory, there: Provider, code: str, failures: bool) -> None:
    """Also where the provider says so in the middle of a stream; its own faults do."""
    said = {"response": {"id": "r", "status": "failed", "error": {"code": code, "message": "x"}}}
    there.says = lambda _: ends_with("response.failed", said)
    client = sdk(obs, there)
    async with closing(client):
        for _ in range(6):
            try:
                async for _ in await client.responses.create(model=MODEL, input="x", stream=True):
                    pass
            except openai.APIError:
                pass
    _, _, failed = await counted(obs)
    assert obs.breaker(f"openai/{MODEL}").state == ("open" if failures else "closed")
    assert failures or not failed


async def test_a_budget_holds_on_azure(obs: Observatory, there: Provider) -> None:
    """By the model that answered last: what a deployment is called says nothing."""
    obs.rate_limiter.define(Limit("budget", 10, per="month", unit="usd", match="*"))
    obs.llm.prices.set("azure.ai.openai/m-1", Price(input=0, output=1000))
    there.says = lambda _: document(0, 1000)
    client = obs.llm.http_client(provider="azure.ai.openai", trust_env=False)
    url = f"{there.url}/openai/deployments/our-own/chat/completions"
    async with closing(client):
        await client.post(url, json={"max_tokens": 1000})
        await settled(obs)
        assert (await obs.rate_limiter.peek("budget")).remaining == 9
        answers = await asyncio.gather(*[client.post(url, json={"max_tokens": 1000}) for _ in range(30)])
        await settled(obs)
    assert [one.status_code for one in answers].count(200) == 9
    assert (await obs.rate_limiter.peek("budget")).remaining == 0


@pytest.mark.parametrize("kind", ["gzip", "streamed", "array"])
async def test_what_cannot_be_read_is_let_in_as_all_are(opening: Open, there: Provider, kind: str) -> None:
    """Dimensions that are required, limits, the breaker: its address makes it a call."""
    obs = await opening(settings=Settings.load(None, environ={}, llm_require=("team",)))
    obs.rate_limiter.define(Limit("two", 2, per="day", match="*"))
    plain = json.dumps({"model": "m", "messages": []}).encode()

    async def parts() -> AsyncIterator[bytes]:
        yield plain

    body: Any = {"gzip": gzip.compress(plain), "streamed": parts, "array": b"[1]"}[kind]
    more = {"gzip": {"content-encoding": "gzip"}, "streamed": {"content-length": str(len(plain))}}
    headers = {"content-type": "application/json", **more.get(kind, {})}
    async with obs.llm.http_client(provider="openai", base_url=f"{there.url}/v1", trust_env=False) as client:

        async def ask() -> httpx2.Response:
            content = body() if kind == "streamed" else body
            return await client.post("/chat/completions", content=content, headers=headers)

        assert (await ask()).status_code == 400
        with obs.bound(team="a"):
            assert [(await ask()).status_code for _ in range(3)] == [200, 200, 429]
    sent = plain if kind == "streamed" else body
    assert [one.body for one in there.requests] == [sent, sent]


async def test_what_no_limit_meets_needs_no_store(server: Any, namespace: str, there: Provider) -> None:
    """Not open, or not any more: limits of another provider, and such as are open without the store, keep nobody out."""
    obs = Observatory("test", redis_url=server.url, namespace=namespace)
    obs.rate_limiter.define(Limit("others", 1, per="day", match={"provider": "anthropic"}))
    client = sdk(obs, there)
    async with closing(client):
        await asking(client)
        async with obs:
            await asking(client)
        await asking(client)
        obs.rate_limiter.define(Limit("open", 1, per="day", match="*", on_store_down="open"))
        await asking(client)
        obs.rate_limiter.define(Limit("ours", 100, per="day", match={"provider": "openai"}))
        with pytest.raises(openai.InternalServerError, match="not open"):
            await asking(client)


async def test_requiring_what_every_call_has_leaves_the_cache_on(opening: Open, there: Provider) -> None:
    obs = await opening(settings=Settings.load(None, environ={}, llm_require=("key", "model")))
    client = sdk(obs, there, cache=True)
    async with closing(client):
        for _ in range(3):
            await asking(client, temperature=0)
    assert len(there.requests) == 1


async def test_acquire_waits_for_the_pause_of_a_key(opening: Open, there: Provider) -> None:
    """Where it is said whose call it is to be."""
    one, two = await opening(), await opening()
    two.rate_limiter.define(Limit("calls", 10, per="day"))
    there.says = lambda _: Answer(429, {**DOCUMENT, "retry-after": "1"}, [b"{}"])
    client = sdk(one, there)
    async with closing(client):
        two.pauses.left("openai")
        with pytest.raises(openai.RateLimitError):
            await asking(client)
        await until(lambda: two.pauses.left("openai", MODEL, KEY), "the other has heard of it")
        known = {"provider": "openai", "model": MODEL, "key": key_of(KEY)}
        left = two.pauses.left("openai", MODEL, KEY)
        began = asyncio.get_running_loop().time()
        await two.rate_limiter.acquire("calls", known)
        assert asyncio.get_running_loop().time() - began > left - 0.1


async def test_a_refusal_of_another_fleet_is_no_pause(obs: Observatory, there: Provider) -> None:
    """Of a gateway, to one of its tenants; that its own provider pauses, it may hand on."""
    headers = {**DOCUMENT, "retry-after": "60", "x-should-retry": "false"}
    there.says = lambda _: Answer(429, {**headers, "observatory-code": "rate_limit_exceeded"}, [b"{}"])
    client = sdk(obs, there)
    async with closing(client):
        with pytest.raises(openai.RateLimitError):
            await asking(client)
        await settled(obs)
        assert obs.pauses.left("openai", MODEL, KEY) == 0
        there.says = lambda _: Answer(429, {**headers, "observatory-code": "cooling_down"}, [b"{}"])
        with pytest.raises(openai.RateLimitError):
            await asking(client)
        await settled(obs)
        assert obs.pauses.left("openai", MODEL, KEY) > 50


async def test_a_probe_stands_in_no_line(opening: Open, there: Provider) -> None:
    """Who waits for a slot tries nothing, and another call closes the circuit meanwhile."""
    settings = Settings.load(None, environ={})
    breakers = {"openai": BreakerSettings(consecutive=1, open_for=0.2)}
    obs = await opening()
    obs.breakers.use(breakers)
    obs.rate_limiter.define(Limit("one", 1, unit="slots", match={"tenant": "slow"}))
    there.says = lambda _: Answer(500, DOCUMENT, [b"{}"])
    patient, other = sdk(obs, there, wait=20), sdk(obs, there)
    async with closing(patient, other):
        with pytest.raises(openai.InternalServerError):
            await asking(other)
        await until(lambda: obs.breaker(f"openai/{MODEL}").state == "half_open", "it may be tried")
        there.says = lambda _: document()
        async with obs.rate_limiter.reserve("one", {}) as slot:
            with obs.bound(tenant="slow"):
                waiting = asyncio.ensure_future(asking(patient))
            await until(lambda: (gate := obs._desk.gate) and gate._limiter()._lines and not waiting.done(), "it waits")
            await asyncio.sleep(0.1)
            await asking(other)
            assert obs.breaker(f"openai/{MODEL}").state == "closed"
            await slot.cancel()
        await waiting
    assert settings


async def test_one_attempt_is_one_however_often_it_is_sent_on(obs: Observatory, there: Provider) -> None:
    """And one that is refused here gives nobody a retry."""
    obs.rate_limiter.define(Limit("few", 2, per="day", match="*"))

    def says(request: Any) -> Answer:
        if "/old" in request.path:
            return Answer(307, {"location": f"{there.url}/v1/chat/completions"}, [])
        return document()

    there.says = says
    async with obs.llm.http_client(provider="openai", trust_env=False) as client:
        answer = await client.post(f"{there.url}/old/chat/completions", json={"model": "m"})
        assert answer.status_code == 200
        account = obs.retry_budget.account("llm:openai")
        assert account.calls + sum(calls for calls, _ in account.slices.values()) == 1
        await settled(obs)
        while (await client.post(f"{there.url}/v1/chat/completions", json={"model": "m"})).status_code == 200:
            pass
        before = account.calls + sum(calls for calls, _ in account.slices.values())
        for _ in range(5):
            await client.post(f"{there.url}/v1/chat/completions", json={"model": "m"})
        assert account.calls + sum(calls for calls, _ in account.slices.values()) == before


async def test_a_refusal_is_found_again(obs: Observatory, there: Provider) -> None:
    """By the id of its event, in its headers, and in Anthropic's body."""
    obs.rate_limiter.define(Limit("none", 1, per="day", unit="usd", match="*"))
    obs.llm.prices.set("anthropic/*", Price(input=0, output=10**6))
    client = sdk(obs, there, "anthropic")
    async with closing(client):
        await asking(client)
        with obs.llm.collect() as calls, pytest.raises(anthropic.RateLimitError, match="observatory: limit none") as refused:
            await asking(client)
    response = refused.value.response
    assert response.headers["observatory-call-id"] == calls[-1].id
    assert response.headers["request-id"] == f"obs_{calls[-1].id}" == response.json()["request_id"]
    assert calls[-1].cost_usd is None or calls[-1].cost_usd == Decimal(0)
