"""Programs as somebody would write them, in processes of their own: the SDKs' own addresses, by way of a proxy that answers."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import httpx2
import openai
import pytest

from observatory import Limit
from tests.conftest import Open
from tests.llm.fleet import until
from tests.llm.guarded import STREAM, asking, document, sdk, stream
from tests.llm.observed import closing
from tests.llm.replay import Answer, Provider, Request, provider
from tests.servers import ROOT, Server, environment

SUPPORT = """
import asyncio

from anthropic import AsyncAnthropic
from observatory import Limit, Observatory
from openai import AsyncOpenAI, RateLimitError

obs = Observatory("support-bot")
obs.rate_limiter.define(
    Limit("team-budget", 500, per="month", unit="usd", by="team", match="*", alert_at=(0.8, 1.0)),
)
openai = AsyncOpenAI(http_client=obs.llm.http_client(cache=True))
claude = AsyncAnthropic(http_client=obs.llm.http_client())


async def main() -> None:
    async with obs:
        with obs.bound(team="search", user="u-42"), obs.llm.collect() as calls:
            try:
                await openai.chat.completions.create(
                    model="gpt-4o-mini", temperature=0, messages=[{"role": "user", "content": "Capital of France?"}]
                )
                async with claude.messages.stream(
                    model="claude-sonnet-4-5", max_tokens=200, messages=[{"role": "user", "content": "And of Peru?"}]
                ) as stream:
                    async for text in stream.text_stream:
                        print(text, end="", flush=True)
            except RateLimitError as refused:
                print("refused by", refused.response.headers.get("observatory-limit"))
        for call in calls:
            print(call.provider, call.model, call.cost_usd, call.time_to_first_token, "cached" if call.cached else "")


asyncio.run(main())
"""
ROUTER = """
import asyncio
from openai import AsyncOpenAI
from observatory import Limit, Observatory

obs = Observatory("rag")
obs.rate_limiter.define(
    Limit("gpt-4o-rpm", 10_000, per="1m", match={"model": "gpt-4o*"}),
    Limit("gpt-4o-tpm", 2_000_000, per="1m", unit="tokens", match={"model": "gpt-4o*"}),
    Limit("key-budget", 100, per="month", unit="usd", by="key", match="*"),
    Limit("vllm-parallel", 32, unit="slots", match={"provider": "vllm"}),
)
llm = AsyncOpenAI(
    max_retries=3,
    http_client=obs.llm.http_client(
        wait=20,
        cache=True,
    ),
)


@obs.observe
async def answer(question: str, user: str, session: str) -> str | None:
    obs.bind(user=user, session=session, feature="faq")
    with obs.span("retrieve", {"k": 5}):
        context = "…"
    reply = await llm.chat.completions.create(
        model="gpt-4o", messages=[{"role": "system", "content": context}, {"role": "user", "content": question}]
    )
    return reply.choices[0].message.content


async def main() -> None:
    async with obs:
        print(await answer("Capital?", "u-1", "s-1"))


asyncio.run(main())
"""


def says(request: Request) -> Answer:
    if "anthropic" not in request.path:
        return document(11, 7)
    used = {"input_tokens": 20, "output_tokens": 1}
    message = {"id": "m", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5", "content": [], "usage": used}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Lima"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    ]
    return Answer(200, STREAM, [f"event: {one['type']}\ndata: {json.dumps(one)}\n\n".encode() for one in events])


@pytest.fixture
async def there() -> AsyncIterator[Provider]:
    async with provider() as one:
        one.says = says
        yield one


async def run(program: str, server: Server, namespace: str, there: Provider) -> list[str]:
    """What it prints."""
    env = environment(
        OBSERVATORY_REDIS_URL=server.url,
        OBSERVATORY_NAMESPACE=namespace,
        OBSERVATORY_LOG_LEVEL="error",
        PYTHONPATH=str(ROOT),
        HTTP_PROXY=there.url,
        NO_PROXY="",
        OPENAI_BASE_URL="http://api.openai.com/v1",
        OPENAI_API_KEY="sk-1",
        ANTHROPIC_BASE_URL="http://api.anthropic.com",
        ANTHROPIC_API_KEY="sk-2",
        PYTHONWARNINGS="default",
    )
    pipe = asyncio.subprocess.PIPE
    async with asyncio.timeout(60):
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, env=env, stdout=pipe, stderr=pipe)
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode().splitlines()


async def test_an_app_with_one_argument_more(server: Server, opening: Open, namespace: str, there: Provider) -> None:
    """Twice, the second answer from the cache; then with its budget spent."""
    obs = await opening()
    obs.rate_limiter.define(Limit("team-budget", 500, per="month", unit="usd", by="team", match="*"))
    first = await run(SUPPORT, server, namespace, there)
    assert first[0].startswith("Limaopenai gpt-4o-mini 0.0000058")
    assert first[1].startswith("anthropic claude-sonnet-4-5 0.000135")
    again = await run(SUPPORT, server, namespace, there)
    assert again[0].startswith("Limaopenai gpt-4o-mini 0")
    assert again[0].endswith("cached")
    assert len(there.requests) == 3
    used = 500 - (await obs.rate_limiter.peek("team-budget", {"team": "search"})).remaining
    assert f"{used:.9f}" == "0.000275850"
    await obs.rate_limiter.check("team-budget", {"team": "search"}, Decimal(500) - Decimal(used))
    refused = await run(SUPPORT.replace("France", "Spain"), server, namespace, there)
    assert refused[0] == "refused by team-budget"
    assert len(there.requests) == 3


async def test_what_was_a_router(server: Server, namespace: str, opening: Open, there: Provider) -> None:
    await opening()
    assert await run(ROUTER, server, namespace, there) == ["the secret of the answer"]
    assert [request.path for request in there.requests] == ["http://api.openai.com/v1/chat/completions"]


async def rest_of(stream: Any) -> None:
    async for _ in stream:
        pass


async def test_a_shared_stream_that_is_interrupted(opening: Open, there: Provider) -> None:
    """Its reader has the error of the library that any broken stream has, and an SDK what it makes of that."""
    one, two = await opening(), await opening()
    first, second, third = (sdk(obs, there, cache=True) for obs in (one, two, two))
    more = asyncio.Event()

    async def gate(number: int) -> None:
        if number > 2:
            await more.wait()

    there.gate = gate
    there.says = lambda _: stream()
    async with closing(first, second, third):
        leading = await asking(first, stream=True, temperature=0)
        following = await asking(second, stream=True, temperature=0)
        reading = aiter(following)
        await anext(reading)
        assert len(there.requests) == 1
        anew = asyncio.ensure_future(asking(third, stream=True, temperature=0, extra_headers={"cache-control": "no-cache"}))
        await until(lambda: len(there.requests) == 2, "the new call is made")
        more.set()
        with pytest.raises(openai.APIConnectionError) as error:
            await rest_of(reading)
        assert type(error.value.__cause__) is httpx2.ReadError
        for answer in (leading, await anew):
            await rest_of(answer)
