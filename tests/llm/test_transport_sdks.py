"""The SDKs themselves, with our client in them, against a server that says what providers have said: byte for byte as without
us, and with usage, cost and spans as the recording says."""

import json
from collections import Counter
from collections.abc import AsyncIterator
from fractions import Fraction
from inspect import signature
from typing import Any

import anthropic
import genai_prices
import groq
import httpx
import openai
import pytest

from observatory import Call, Metric, Observatory
from tests.llm.observed import Spans, closing, total
from tests.llm.replay import Answer, Exchanged, Provider, Request, answer, provider, recorded
from tests.llm.test_reading import plainly

pytestmark = pytest.mark.filterwarnings("ignore:The model:DeprecationWarning")
KEY = "sk-proj-this-is-a-secret-0123456789"


@pytest.fixture
async def there() -> AsyncIterator[Provider]:
    async with provider() as one:
        yield one


def resource(one: Exchanged, sdks: dict[str, Any]) -> Any:
    """The SDK's own method for a recorded exchange."""
    sdk = sdks[one.provider]
    if one.path.endswith("?beta=true"):
        return sdk.beta.messages
    return {
        "chat/completions": lambda: sdk.chat.completions,
        "completions": lambda: sdk.completions,
        "responses": lambda: sdk.responses,
        "embeddings": lambda: sdk.embeddings,
        "messages": lambda: sdk.messages,
    }[one.endpoint]()


def sdks(obs: Observatory, url: str) -> dict[str, Any]:
    return {
        "openai": openai.AsyncOpenAI(
            api_key=KEY, base_url=f"{url}/v1", max_retries=0, http_client=obs.llm.http_client(provider="openai")
        ),
        "anthropic": anthropic.AsyncAnthropic(
            api_key=KEY, base_url=url, max_retries=0, http_client=obs.llm.http_client(provider="anthropic")
        ),
    }


def price(one: Exchanged, call: Call) -> int | None:
    """By the library itself, in billionths."""
    assert call.usage is not None
    counted = genai_prices.Usage(
        input_tokens=call.usage.input_tokens,
        output_tokens=call.usage.output_tokens,
        cache_read_tokens=call.usage.cache_read_input_tokens,
        cache_write_tokens=call.usage.cache_write_input_tokens,
    )
    for model in (call.response_model, call.model):
        try:
            found = genai_prices.calc_price(
                counted, model or "", provider_id=one.provider, genai_request_timestamp=call.started_at
            )
        except LookupError:
            continue
        return round(Fraction(found.total_price) * 10**9)
    return None


async def body_of(one: Exchanged, clients: dict[str, Any]) -> bytes:
    """What the SDK hands to whoever reads its bytes. A refusal's body is with its exception."""
    request = dict(one.request)
    if one.provider == "openai" and one.endpoint == "embeddings" and "encoding_format" not in request:
        request["encoding_format"] = openai.NOT_GIVEN
    method = resource(one, clients)
    # What this version has no argument for is sent all the same.
    further = {name: request.pop(name) for name in list(request) if name not in signature(method.create).parameters}
    try:
        async with method.with_streaming_response.create(**request, extra_body=further, timeout=30) as response:
            return b"".join([chunk async for chunk in response.iter_bytes()])
    except (openai.APIStatusError, anthropic.APIStatusError) as error:
        return error.response.content


def check(one: Exchanged, call: Call, attributes: dict[str, Any]) -> None:
    said = plainly(one)
    assert call.status == one.status
    assert (call.error is None) == (one.status == 200)
    assert call.model == one.request["model"]
    assert call.provider == one.provider
    assert attributes["gen_ai.provider.name"] == one.provider
    assert attributes["gen_ai.request.model"] == one.request["model"]
    assert attributes["http.response.status_code"] == one.status
    if one.status != 200:
        assert attributes["error.type"] == json.loads(one.body)["error"]["code"] == call.error
        assert (call.usage, call.cost_usd) == (None, None)
        return
    assert call.usage is not None
    assert call.estimated == (not said)
    if said:
        cached = said.get("cache_read_input_tokens", 0) + said.get("cache_creation_input_tokens", 0)
        assert call.usage.input_tokens == said.get("prompt_tokens", said.get("input_tokens")) + cached
        assert call.usage.output_tokens == said.get("completion_tokens", said.get("output_tokens", 0))
    cost = None if call.cost_usd is None else int(call.cost_usd.scaleb(9))
    if call.model != "claude-2.1":  # the catalogue prices all that begin with claude-2; of which it knows, is not said
        assert cost == price(one, call)
    assert attributes["gen_ai.usage.input_tokens"] == call.usage.input_tokens
    assert attributes["gen_ai.usage.output_tokens"] == call.usage.output_tokens
    assert attributes.get("observatory.cost_usd") == (None if call.cost_usd is None else float(call.cost_usd))
    assert attributes["gen_ai.response.model"] == call.response_model
    assert (call.time_to_first_token is not None) == one.streamed
    if one.streamed:
        assert call.time_to_first_token is not None
        assert 0 < call.time_to_first_token <= call.latency


@pytest.mark.parametrize(("size", "encoding"), [(4096, ""), (61, "gzip"), (1000, "br"), (1, "")])
async def test_every_recorded_exchange_passes_as_it_is(obs: Observatory, there: Provider, size: int, encoding: str) -> None:
    """Whole, packed, and byte by byte: what the SDK reads is what was recorded, what we say of it is what it says."""
    clients, spans, bodies = sdks(obs, there.url), Spans(obs), 0
    exchanges = [one for one in recorded() if size > 1 or len(one.body) < 4000]
    async with closing(*clients.values()):
        for one in exchanges:
            there.says = lambda _, one=one: answer(one, size=size, encoding=encoding)  # type: ignore[misc]
            with obs.llm.collect() as calls:
                assert await body_of(one, clients) == one.body
            bodies += len(one.body)
            span, attributes = spans.only()
            (call,) = calls
            assert call.trace_id == f"{span.context.trace_id:032x}"
            assert span.name == f"{call.operation} {call.model}"
            check(one, call, attributes)
            sent = json.loads(there.requests[-1].body)
            assert {name: sent[name] for name in one.request} == one.request, "and the request as it was given"
    assert len(exchanges) == 195 or size == 1
    assert there.connections == 2, "each client keeps its connection"
    assert len(there.requests) == len(exchanges)


async def test_totals_of_all_recorded_exchanges(obs: Observatory, there: Provider) -> None:
    """Metrics and events count each of them, once, to the last billionth of a dollar."""
    clients = sdks(obs, there.url)
    with obs.llm.collect() as calls:
        async with closing(*clients.values()):
            for one in recorded():
                there.says = lambda _, one=one: answer(one)  # type: ignore[misc]
                await body_of(one, clients)
    ok = [call for call in calls if call.usage is not None]
    assert await total(obs, Metric.REQUESTS_TOTAL, status="success") == len(ok) == 193
    assert await total(obs, Metric.REQUESTS_TOTAL, status="error") == 2
    assert await total(obs, Metric.ERRORS_TOTAL, code="model_not_found", module="llm") == 1
    assert await total(obs, Metric.TOKENS_PROCESSED, type="input") == sum(call.usage.input_tokens for call in ok if call.usage)
    assert await total(obs, Metric.TOKENS_PROCESSED, type="output") == sum(
        call.usage.output_tokens for call in ok if call.usage
    )
    assert await total(obs, Metric.TOTAL_COST_USD) == float(sum(call.cost_usd or 0 for call in ok))
    assert await total(obs, "observatory_estimated_calls_total") == sum(call.estimated for call in calls) > 0
    assert await total(obs, "observatory_unpriced_calls_total") == sum(call.cost_usd is None for call in ok) > 0
    assert (await obs.events.lag())["accepted"] == 195
    assert (await obs.metrics.query(Metric.ACTIVE_CONNECTIONS, "last", where={"kind": "llm"})).value == 0


async def test_streams_are_the_sdks_own_objects(obs: Observatory, there: Provider) -> None:
    """Typed events, as many as were recorded; the SDK that stops at the end of its stream has finished the call."""
    clients = sdks(obs, there.url)
    async with closing(*clients.values()):
        for one in [one for one in recorded() if one.streamed]:
            there.says = lambda _, one=one: answer(one, size=97)  # type: ignore[misc]
            with obs.llm.collect() as calls:
                stream = await resource(one, clients).create(**one.request)
                events = [event async for event in stream]
                await stream.close()
            pings = Counter(event.get("type") for event in one.events())["ping"]
            assert len(events) >= len(list(one.events())) - pings
            assert [call.error for call in calls] == [None]
            assert calls[0].finish_reasons


async def test_groq_with_the_old_library(obs: Observatory, there: Provider) -> None:
    """Its client is httpx, and its address says who answers."""
    chats = [one for one in recorded() if one.endpoint == "chat/completions" and one.provider == "openai"][:8]

    class Routed(httpx.AsyncHTTPTransport):
        """To the server of the test, whatever the name."""

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            request.url = request.url.copy_with(scheme="http", host="127.0.0.1", port=int(there.url.rpartition(":")[2]))
            return await super().handle_async_request(request)

    client = groq.AsyncGroq(api_key=KEY, http_client=obs.llm.http_client("httpx", transport=Routed()))
    spans = Spans(obs)
    async with closing(client):
        for one in chats:
            there.says = lambda _, one=one: answer(one, size=500, encoding="gzip")  # type: ignore[misc]
            request = {name: value for name, value in one.request.items() if name not in ("stream_options", "store")}
            with obs.llm.collect() as calls:
                async with client.chat.completions.with_streaming_response.create(**request) as response:
                    assert b"".join([chunk async for chunk in response.iter_bytes()]) == one.body
            (call,), (_, attributes) = calls, spans.only()
            assert (call.provider, attributes["server.address"]) == ("groq", "api.groq.com")
            assert call.usage is not None
            assert call.cost_usd is None, "groq has no such model"


async def test_the_sdks_retries_are_seen(obs: Observatory, there: Provider) -> None:
    """Each is a call of its own, with its number."""
    there.says = lambda _: Answer(503, {"content-type": "text/plain", "retry-after-ms": "1"}, [b"no"])
    client = openai.AsyncOpenAI(api_key=KEY, base_url=there.url, max_retries=2, http_client=obs.llm.http_client())
    with obs.llm.collect() as calls:
        async with closing(client):
            with pytest.raises(openai.InternalServerError):
                await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
    assert [(call.attempts, call.error, call.status) for call in calls] == [(1, "503", 503), (2, "503", 503), (3, "503", 503)]


async def test_no_key_is_anywhere(obs: Observatory, there: Provider, caplog: pytest.LogCaptureFixture) -> None:
    """Not in spans, events, metrics, lines or calls; also where the provider says it again, and where the connection breaks."""
    spans = Spans(obs)
    client = openai.AsyncOpenAI(api_key=KEY, base_url=there.url, max_retries=0, http_client=obs.llm.http_client())
    refusal = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}", "code": KEY + "!", "type": KEY}}).encode()
    seen = []
    with obs.llm.collect() as calls:
        async with closing(client):
            for said in (Answer(401, {"content-type": "application/json"}, [refusal]), Answer(200, {}, [b"x"], cut=True)):
                there.says = lambda _, said=said: said  # type: ignore[misc]
                with pytest.raises(openai.OpenAIError):
                    await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "my prompt"}])
    buffered = b"".join(payload for _, payload in obs.events._buffer)
    seen += [span.to_json() for span in spans.taken()]
    told = f"{seen} {calls} {buffered!r} {caplog.text} {await obs.metrics.exposition(scope='instance')}"
    assert len(calls) == len(seen) == 2
    assert buffered
    assert "my prompt" not in told
    assert KEY not in told


async def test_bytes_arrive_as_they_were_written(obs: Observatory, there: Provider) -> None:
    """What a plain client of the library gets, ours gets too: headers, status, raw bytes, packed."""
    one = next(one for one in recorded() if one.streamed)
    there.says = lambda _: answer(one, size=300, encoding="gzip")
    got = []
    for client in (obs.llm.http_client("httpx"), httpx.AsyncClient()):
        async with client, client.stream("POST", f"{there.url}/v1/chat/completions", json=one.request) as response:
            raw = b"".join([chunk async for chunk in response.aiter_raw()])
            got.append((response.status_code, response.headers.multi_items(), raw))
    assert got[0] == got[1]
    requests: list[Request] = there.requests
    assert requests[0].headers == requests[1].headers
    assert requests[0].body == requests[1].body
