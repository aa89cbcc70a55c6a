"""Clients with our transport in them: what becomes of a call however it ends, and of everything that is none."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from decimal import Decimal
from typing import Any

import httpx
import httpx2
import pytest
from opentelemetry.trace import SpanKind, StatusCode
from starlette.applications import Starlette
from starlette.requests import Request as Asked
from starlette.responses import JSONResponse, RedirectResponse
from starlette.routing import Route

from observatory import InvalidArgument, Metric, Observatory, Price
from observatory.clock import monotonic
from tests.llm.observed import Spans, total
from tests.llm.replay import Answer, Provider, provider
from tests.llm.test_reading import CHAT, SSE, USED, chat

LIBRARIES: dict[str, Any] = {"httpx2": httpx2, "httpx": httpx}
QUESTION = {"model": "gpt-4o", "stream": True, "messages": [{"role": "user", "content": "x" * 24}]}
STREAM = {"content-type": SSE}
DOCUMENT = {"content-type": "application/json"}
SAID = json.dumps({"model": "gpt-4o-2024-08-06", "usage": {"prompt_tokens": 1000, "completion_tokens": 100}}).encode()


@pytest.fixture
async def there() -> AsyncIterator[Provider]:
    async with provider() as one:
        one.says = lambda _: Answer(200, STREAM, chat(*CHAT))
        yield one


@pytest.fixture(params=["httpx2", "httpx"])
async def client(request: pytest.FixtureRequest, obs: Observatory, there: Provider) -> AsyncIterator[Any]:
    """Of both libraries, with the provider as its base."""
    async with obs.llm.http_client(request.param, provider="openai", base_url=f"{there.url}/v1", timeout=20) as one:
        yield one


async def test_a_stream_is_told_with_its_times(obs: Observatory, there: Provider, client: Any) -> None:
    """Tokens of every kind, the first token, the times between them; by provider and model, as a span and as a call."""
    there.says = lambda _: Answer(200, STREAM, chat(CHAT[0], CHAT[1], CHAT[1], CHAT[1], *CHAT[2:]))
    pauses = iter([0.0, 0.1, 0.0, 0.1, 0.0, 0.0, 0.0])

    async def gate(_: int) -> None:
        await asyncio.sleep(next(pauses))

    there.gate = gate
    spans = Spans(obs)
    with obs.bound(tenant="acme"), obs.llm.collect() as calls, obs.span("request") as around:
        answer = await client.post("/chat/completions", json=QUESTION)
    assert answer.content == b"".join(chat(CHAT[0], CHAT[1], CHAT[1], CHAT[1], *CHAT[2:]))
    (call,), (span, _) = calls, spans.taken()
    assert call.usage == USED
    assert call.dimensions == {"tenant": "acme"}
    assert call.time_to_first_token is not None
    assert 0.1 <= call.time_to_first_token < call.latency
    await obs.flush()
    assert (await obs.metrics.query("observatory_inter_token_seconds", "count")).value in (1, 2), "some arrive together"
    assert await total(obs, "observatory_inter_token_seconds", provider="openai", model="gpt-4o") >= 0.1
    assert span.kind is SpanKind.CLIENT
    assert span.parent is not None
    assert span.parent.span_id == around.get_span_context().span_id
    said = dict(span.attributes or {})
    assert said.pop("server.port") == int(there.url.rpartition(":")[2])
    assert said.pop("gen_ai.response.time_to_first_chunk") == call.time_to_first_token
    assert said == {
        "tenant": "acme",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.request.stream": True,
        "gen_ai.response.model": "m-1",
        "gen_ai.response.id": "c-1",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 9,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "gen_ai.usage.reasoning.output_tokens": 1,
        "gen_ai.usage.audio.input_tokens": 1,
        "gen_ai.usage.audio.output_tokens": 2,
        "http.response.status_code": 200,
        "server.address": "127.0.0.1",
    }


async def test_what_was_asked_is_on_the_span_and_no_word_of_it(obs: Observatory, there: Provider, client: Any) -> None:
    spans = Spans(obs)
    there.says = lambda _: Answer(200, DOCUMENT, [SAID])
    asked = {"temperature": 0, "top_p": 0.5, "seed": 7, "max_tokens": 9, "n": 2, "stop": ["secret word"], "user": "ann"}
    await client.post("/chat/completions", json={"model": "gpt-4o", "messages": [{"content": "secret word"}], **asked})
    _, said = spans.only()
    assert said["gen_ai.request.temperature"] == 0.0
    assert (said["gen_ai.request.seed"], said["gen_ai.request.choice.count"]) == (7, 2)
    assert said["gen_ai.request.max_tokens"] == 18
    assert said.pop("gen_ai.request.stop_sequences") == ("secret word",), "which is a parameter"
    assert "secret word" not in f"{said}"


async def test_costs_by_tenant_and_by_the_model_that_answered(obs: Observatory, there: Provider, client: Any) -> None:
    """The tenant's price; the catalogue's; and none of a stranger's deployment that is called like a model."""
    obs.llm.prices.set("openai/gpt-4o", Price(input=1, output=10, tenant="acme"))
    there.says = lambda _: Answer(200, DOCUMENT, [SAID])
    with obs.llm.collect() as calls:
        for tenant in ("acme", "other"):
            with obs.bound(tenant=tenant):
                await client.post("/chat/completions", json={"model": "gpt-4o"})
    assert [call.cost_usd for call in calls] == [Decimal("0.002"), Decimal("0.0035")]
    nobody = json.dumps({"model": "who-knows", "usage": {"prompt_tokens": 1, "completion_tokens": 1}}).encode()
    there.says = lambda _: Answer(200, DOCUMENT, [nobody])
    async with obs.llm.http_client(provider="azure.ai.openai") as azure:
        with obs.llm.collect() as calls:
            await azure.post(f"{there.url}/openai/deployments/gpt-4o/chat/completions", json={})
    assert [(call.model, call.cost_usd) for call in calls] == [("gpt-4o", None)]
    assert await total(obs, "observatory_unpriced_calls_total", provider="azure.ai.openai") == 1


async def test_a_reader_that_stops_is_no_failure(obs: Observatory, there: Provider, client: Any) -> None:
    """Closed in the middle: what was said until then is paid for, the provider is told, and it is no error of anybody's."""
    more = asyncio.Event()

    async def gate(number: int) -> None:
        if number > 3:
            await more.wait()

    there.says = lambda _: Answer(200, STREAM, chat(*[CHAT[1]] * 4) + [b"x" * 100_000] * 200)
    there.gate = gate
    with obs.llm.collect() as calls:
        async with client.stream("POST", "/chat/completions", json=QUESTION) as response:
            async for _ in response.aiter_lines():
                break
    more.set()
    async with asyncio.timeout(20):
        await there.hung_up.wait()
    (call,) = calls
    assert (call.error, call.estimated, call.status) == ("cancelled", True, 200)
    assert call.usage is not None
    assert call.usage.input_tokens == 10
    assert 1 <= call.usage.output_tokens <= 11
    assert await total(obs, Metric.REQUESTS_TOTAL, status="success") == 1
    assert await total(obs, Metric.ERRORS_TOTAL) == 0


async def test_a_reader_that_stops_at_the_end_has_it_all(obs: Observatory, there: Provider, client: Any) -> None:
    """Some never read behind [DONE]."""
    held = asyncio.Event()

    async def gate(number: int) -> None:
        if number == len(CHAT):
            await held.wait()

    there.says = lambda _: Answer(200, STREAM, [*chat(*CHAT), b": bye\n\n"])
    there.gate = gate
    with obs.llm.collect() as calls:
        async with client.stream("POST", "/chat/completions", json=QUESTION) as response:
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    break
    held.set()
    assert [(call.error, call.usage) for call in calls] == [(None, USED)]


@pytest.mark.parametrize("at", ["before the head", "in the body"])
async def test_a_caller_that_is_cancelled(obs: Observatory, there: Provider, client: Any, at: str) -> None:
    """It ends at once; nothing stays open; it is told, once."""
    reached, never = asyncio.Event(), asyncio.Event()

    async def gate(number: int) -> None:
        if number == 2:
            await never.wait()

    async def ask() -> None:
        async with client.stream("POST", "/chat/completions", json=QUESTION) as response:
            async for line in response.aiter_lines():
                if "Hello" in line:
                    reached.set()

    async def serve(_: Any) -> None:
        reached.set()
        await never.wait()

    there.says = lambda _: Answer(200, STREAM, chat(*CHAT))
    there.gate = gate
    if at == "before the head":
        there.before = serve
    spans = Spans(obs)
    with obs.llm.collect() as calls:
        asking = asyncio.create_task(ask())
        await reached.wait()
        asking.cancel()
        began = monotonic()
        with pytest.raises(asyncio.CancelledError):
            await asking
    assert monotonic() - began < 5
    never.set()
    (call,), (span, _) = calls, spans.only()
    assert call.error == "cancelled"
    assert (call.usage is None) == (at == "before the head")
    failed = at == "before the head"
    assert (span.status.status_code is StatusCode.ERROR) == failed
    assert await total(obs, Metric.REQUESTS_TOTAL, status="error" if failed else "success") == 1
    assert (await obs.metrics.query(Metric.ACTIVE_CONNECTIONS, "last", where={"kind": "llm"})).value == 0


async def test_a_connection_that_breaks(obs: Observatory, there: Provider, client: Any) -> None:
    """The library's own error, as without us; and what had come is counted."""
    there.says = lambda _: Answer(200, STREAM, chat(*CHAT[:2]), cut=True)
    spans = Spans(obs)
    with (
        obs.llm.collect() as calls,
        pytest.raises((httpx.RemoteProtocolError, httpx2.RemoteProtocolError, httpx.ReadError, httpx2.ReadError)) as raised,
    ):
        await client.post("/chat/completions", json=QUESTION)
    (call,), (span, said) = calls, spans.only()
    assert call.error == raised.type.__name__ == said["error.type"]
    assert call.estimated
    assert call.usage is not None
    assert span.status.status_code is StatusCode.ERROR
    assert [event.name for event in span.events] == ["exception"]
    assert await total(obs, Metric.ERRORS_TOTAL, code=call.error) == 1
    there.says = lambda _: Answer(200, STREAM, chat(CHAT[1], b'{"error":{"code":"server_error"}}'), cut=True)
    with obs.llm.collect() as calls, pytest.raises(raised.type):
        await client.post("/chat/completions", json=QUESTION)
    assert [call.error for call in calls] == ["server_error"], "who says why goes before how"


async def test_a_provider_that_is_not_there(obs: Observatory) -> None:
    async with obs.llm.http_client(provider="openai") as client:
        with obs.llm.collect() as calls, pytest.raises(httpx2.ConnectError):
            await client.post("http://127.0.0.1:1/v1/embeddings", json={"model": "m", "input": "x"})
    assert [(call.error, call.status, call.usage) for call in calls] == [("ConnectError", None, None)]


async def test_a_timeout(obs: Observatory, there: Provider, client: Any) -> None:
    never = asyncio.Event()

    async def gate(number: int) -> None:
        if number == 2:
            await never.wait()

    there.gate = gate
    with obs.llm.collect() as calls, pytest.raises((httpx.ReadTimeout, httpx2.ReadTimeout)):
        await client.post("/chat/completions", json=QUESTION, timeout=0.3)
    never.set()
    assert [call.error for call in calls] == ["ReadTimeout"]


async def test_who_reads_slowly_holds_the_provider_up(obs: Observatory, there: Provider, client: Any) -> None:
    """Nothing is read ahead: what is not asked for stays where it is, and memory with it."""
    part = b"data: " + CHAT[1] + b"\n\n"
    there.says = lambda _: Answer(200, STREAM, [part * 1000] * 400)
    size = len(part) * 400_000
    async with client.stream("POST", "/chat/completions", json=QUESTION) as response:
        chunks = response.aiter_raw()
        got = len(await anext(chunks))
        before = -1
        while before != there.written:  # until the connection is full
            before = there.written
            await asyncio.sleep(0.2)
        assert there.written < size / 2
        async for chunk in chunks:
            got += len(chunk)
    assert got == size


async def test_connections_are_kept(obs: Observatory, there: Provider, client: Any) -> None:
    for _ in range(5):
        await client.post("/chat/completions", json=QUESTION)
    assert there.connections == 1


async def test_others_pass_with_their_time(obs: Observatory, there: Provider, client: Any) -> None:
    """No call, no usage: a span and a histogram; the query, which may have a key, is not told."""
    spans = Spans(obs)
    there.says = lambda _: Answer(404, {"content-type": "text/plain"}, [b"no ", b"such"])
    with obs.llm.collect() as calls:
        answer = await client.get("/models?key=sk-secret-0123456789abcdef")
    assert (answer.status_code, answer.content, calls) == (404, b"no such", [])
    span, said = spans.only()
    assert span.name == "GET"
    assert said == {
        "http.request.method": "GET",
        "server.address": "127.0.0.1",
        "url.path": "/v1/models",
        "http.response.status_code": 404,
    }
    await obs.flush()
    found = await obs.metrics.query("observatory_http_client_seconds", "count", where={"status": "404", "method": "GET"})
    assert found.value == 1
    assert await total(obs, Metric.REQUESTS_TOTAL) == 0


async def test_a_body_that_is_streamed_up_is_not_read(obs: Observatory, there: Provider, client: Any) -> None:
    """It passes as it comes: a call, of a model that nobody knows before it has answered."""

    async def parts() -> AsyncIterator[bytes]:
        yield b'{"model":'
        yield b'"m"}'

    there.says = lambda _: Answer(200, DOCUMENT, [b"{}"])
    with obs.llm.collect() as calls:
        length = {"content-length": "13"}
        assert (await client.post("/chat/completions", content=parts(), headers=length)).content == b"{}"
    assert [(call.provider, call.model) for call in calls] == [("openai", "unknown")]
    assert there.requests[-1].body == b'{"model":"m"}'


def application() -> Starlette:
    async def answer(request: Asked) -> JSONResponse:
        return JSONResponse(json.loads(SAID))

    async def elsewhere(request: Asked) -> RedirectResponse:
        return RedirectResponse("/v1/chat/completions", status_code=307)

    routes = [
        Route("/v1/chat/completions", answer, methods=["POST"]),
        Route("/old/chat/completions", elsewhere, methods=["POST"]),
    ]
    return Starlette(routes=routes)


@pytest.mark.parametrize("library", LIBRARIES)
async def test_around_a_transport_of_ones_own(obs: Observatory, library: str) -> None:
    """Both libraries; in a client of one's own; closed with it. A redirect is one call, where it led to."""
    lib = LIBRARIES[library]
    inner = lib.ASGITransport(application())
    dimensions = {"team": "search"}
    async with lib.AsyncClient(
        transport=obs.llm.transport(inner, provider="openai", dimensions=dimensions), follow_redirects=True
    ) as client:
        with obs.llm.collect() as calls:
            answer = await client.post("http://x/old/chat/completions", json={"model": "gpt-4o"})
    assert answer.json()["usage"]["prompt_tokens"] == 1000
    assert [(call.usage and call.usage.input_tokens, call.cost_usd) for call in calls] == [(1000, Decimal("0.0035"))]
    assert calls[0].dimensions == dimensions
    assert (await obs.metrics.query(Metric.ACTIVE_CONNECTIONS, "last", where={"kind": "llm"})).value in (0, None)


async def test_a_response_that_was_read_already(obs: Observatory) -> None:
    """As caches and test transports give them: it is told too."""

    class Ready(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            return httpx2.Response(200, content=SAID, headers={"content-type": "application/json", "x-a": "b"})

    async with obs.llm.http_client(transport=Ready()) as client:
        with obs.llm.collect() as calls:
            answer = await client.post("https://api.openai.com/v1/chat/completions", json={"model": "gpt-4o"})
    assert answer.content == SAID
    assert answer.headers["x-a"] == "b"
    assert [call.usage and call.usage.output_tokens for call in calls] == [100]


async def test_what_is_collected_by_whom(obs: Observatory, there: Provider, client: Any) -> None:
    """Calls of this block and the tasks that it starts; of nobody else, and of nobody later."""
    async with AsyncExitStack() as stack:
        with obs.llm.collect() as outer:
            open_ = await stack.enter_async_context(client.stream("POST", "/chat/completions", json=QUESTION))
            with obs.llm.collect() as inner:
                await asyncio.gather(*[client.post("/chat/completions", json=QUESTION) for _ in range(3)])
        await open_.aread()
    await client.post("/chat/completions", json=QUESTION)
    assert (len(inner), len(outer)) == (3, 3)
    assert len({call.id for call in outer}) == 3


async def test_what_is_ours_may_break_and_the_call_goes_on(obs: Observatory, there: Provider, caplog: Any) -> None:
    """A tokenizer and a price that raise: a line in the log at most."""

    def broken(text: str) -> int:
        raise RuntimeError("mine")

    async with obs.llm.http_client(provider="openai", tokenizer=broken) as client:
        obs.llm.prices.cost = lambda *_, **__: 1 // 0  # type: ignore[method-assign]
        answer = await client.post(f"{there.url}/chat/completions", json=QUESTION)
    assert answer.content == b"".join(chat(*CHAT))
    assert [record.getMessage() for record in caplog.records if "could not be recorded" in record.getMessage()]


async def test_before_it_is_opened_calls_pass_and_are_recorded(there: Provider, opening: Any, namespace: str) -> None:
    """Clients are made at import time; what they record is delivered once it is open."""
    obs = Observatory("early", redis_url="redis://127.0.0.1:1", namespace=namespace)
    async with obs.llm.http_client() as client:
        with obs.llm.collect() as calls:
            assert (await client.post(f"{there.url}/chat/completions", json=QUESTION)).status_code == 200
    assert len(calls) == 1


async def test_wrong_arguments(obs: Observatory) -> None:
    for wrong in ({"library": "requests"}, {"provider": ""}, {"provider": 3}, {"tokenizer": 4}, {"dimensions": {"a": 1}}):
        with pytest.raises(InvalidArgument):
            obs.llm.http_client(**wrong)
    for transport in (httpx.HTTPTransport(), object(), None):
        with pytest.raises(InvalidArgument, match="asynchronous"):
            obs.llm.transport(transport)  # type: ignore[call-overload]
