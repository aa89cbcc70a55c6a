"""What `reply` says is understood by the SDKs that people use: plain, streamed, and as errors."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import groq
import httpx
import httpx2
import openai
import pytest

from observatory import InvalidArgument, Observatory, replies
from observatory.testing import FrozenClock, Sandbox, UnexpectedCall, reply, sandbox
from observatory.testing.provider import Provider

obs = Observatory("their-app")
# Made at import time, as applications do.
chat: Any = openai.AsyncOpenAI(http_client=obs.llm.http_client(), api_key="sk-1")
claude: Any = anthropic.AsyncAnthropic(http_client=obs.llm.http_client(), api_key="sk-2")
fast: Any = groq.AsyncGroq(http_client=obs.llm.http_client("httpx"), api_key="sk-3")
CLAUDE = "claude-sonnet-5-0"
TEXT = "The capital of France is Paris."
ASKED = [{"role": "user", "content": "Capital of France?"}]


@pytest.fixture
async def box() -> AsyncIterator[Sandbox]:
    async with sandbox(obs, provider=reply(TEXT, input_tokens=12, output_tokens=3)) as box:
        yield box


def tokens(box: Sandbox) -> tuple[str, str, int, int]:
    """What was recorded of the only call."""
    (call,) = box.calls
    assert call.usage is not None
    assert call.error is None
    return call.provider, call.operation, call.usage.input_tokens, call.usage.output_tokens


async def test_openai_chat(box: Sandbox) -> None:
    said = await chat.chat.completions.create(model="gpt-4o-mini", messages=ASKED)
    assert (said.choices[0].message.content, said.choices[0].finish_reason, said.model) == (TEXT, "stop", "gpt-4o-mini")
    assert (said.usage.prompt_tokens, said.usage.completion_tokens, said.usage.total_tokens) == (12, 3, 15)
    assert tokens(box) == ("openai", "chat", 12, 3)


async def test_openai_chat_stream(box: Sandbox) -> None:
    parts, usage = [], None
    async for chunk in await chat.chat.completions.create(
        model="gpt-4o-mini", messages=ASKED, stream=True, stream_options={"include_usage": True}
    ):
        parts += [choice.delta.content or "" for choice in chunk.choices]
        usage = chunk.usage or usage
    assert "".join(parts) == TEXT
    assert len(parts) > 6, "in pieces"
    assert usage is not None
    assert usage.total_tokens == 15
    assert tokens(box) == ("openai", "chat", 12, 3)


async def test_openai_chat_stream_without_usage(box: Sandbox) -> None:
    stream = await chat.chat.completions.create(model="gpt-4o-mini", messages=ASKED, stream=True)
    chunks = [chunk async for chunk in stream]
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    assert box.calls[0].estimated


async def test_openai_chat_stream_helper(box: Sandbox) -> None:
    async with chat.chat.completions.stream(model="gpt-4o-mini", messages=ASKED) as stream:
        kinds = [event.type async for event in stream]
        said = await stream.get_final_completion()
    assert "content.delta" in kinds
    assert said.choices[0].message.content == TEXT


async def test_openai_responses(box: Sandbox) -> None:
    said = await chat.responses.create(model="gpt-4o-mini", input="Capital of France?")
    assert said.output_text == TEXT
    assert said.status == "completed"
    assert said.usage is not None
    assert said.usage.total_tokens == 15
    assert tokens(box)[2:] == (12, 3)


async def test_openai_responses_stream(box: Sandbox) -> None:
    async with chat.responses.stream(model="gpt-4o-mini", input="Capital of France?") as stream:
        parts = [event.delta async for event in stream if event.type == "response.output_text.delta"]
        said = await stream.get_final_response()
    assert "".join(parts) == said.output_text == TEXT
    plain = await chat.responses.create(model="gpt-4o-mini", input="Capital of France?", stream=True)
    numbers = [event.sequence_number async for event in plain]
    assert numbers == list(range(len(numbers)))
    assert [call.usage and call.usage.total_tokens for call in box.calls] == [15, 15]


async def test_openai_completions(box: Sandbox) -> None:
    said = await chat.completions.create(model="gpt-3.5-turbo-instruct", prompt="Capital of France?")
    assert said.choices[0].text == TEXT
    stream = await chat.completions.create(model="gpt-3.5-turbo-instruct", prompt="Capital of France?", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == TEXT


async def test_openai_embeddings(box: Sandbox) -> None:
    """The SDK asks for base64; the same text has the same vector."""
    one = await chat.embeddings.create(model="text-embedding-3-small", input=["a", "b", "a"], dimensions=16)
    a, b, again = [item.embedding for item in one.data]
    assert a == again != b
    assert len(a) == 16
    assert sum(number * number for number in a) == pytest.approx(1.0, abs=1e-5)
    plain = await chat.embeddings.create(model="text-embedding-3-small", input="a", dimensions=16, encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(a, abs=1e-6)
    assert plain.usage.prompt_tokens == 12
    tokens_ = await chat.embeddings.create(model="text-embedding-3-small", input=[1, 2, 3])
    assert len(tokens_.data) == 1


async def test_anthropic_messages(box: Sandbox) -> None:
    said = await claude.messages.create(model=CLAUDE, max_tokens=200, messages=ASKED)
    assert (said.content[0].text, said.stop_reason) == (TEXT, "end_turn")
    assert (said.usage.input_tokens, said.usage.output_tokens) == (12, 3)
    assert tokens(box) == ("anthropic", "chat", 12, 3)
    counted = await claude.messages.count_tokens(model=CLAUDE, messages=ASKED)
    assert counted.input_tokens == 12


async def test_anthropic_stream_helper(box: Sandbox) -> None:
    async with claude.messages.stream(model=CLAUDE, max_tokens=200, messages=ASKED) as stream:
        parts = [text async for text in stream.text_stream]
        said = await stream.get_final_message()
    assert "".join(parts) == TEXT
    assert said.usage.output_tokens == 3
    assert said.stop_reason == "end_turn"
    assert tokens(box) == ("anthropic", "chat", 12, 3)


async def test_groq(box: Sandbox) -> None:
    """httpx, and usage in a place of its own."""
    said = await fast.chat.completions.create(model="llama-3.3-70b-versatile", messages=ASKED)
    assert said.choices[0].message.content == TEXT
    stream = await fast.chat.completions.create(model="llama-3.3-70b-versatile", messages=ASKED, stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
    assert chunks[-1].x_groq.usage.total_tokens == 15
    assert [(call.provider, call.usage and call.usage.total_tokens) for call in box.calls] == [("groq", 15), ("groq", 15)]


async def test_errors_are_the_providers_own() -> None:
    async with sandbox(obs, provider=reply("slow down", status=429)) as box:
        for client, error in ((chat, openai.RateLimitError), (fast, groq.RateLimitError)):
            with pytest.raises(error, match="slow down") as refused:
                await client.with_options(max_retries=0).chat.completions.create(model="m", messages=ASKED)
            assert replies.status(refused.value) == 429
        with pytest.raises(anthropic.RateLimitError, match="slow down"):
            await claude.with_options(max_retries=0).messages.create(model=CLAUDE, max_tokens=1, messages=ASKED)
        assert {call.status for call in box.calls} == {429}
        assert all(call.error for call in box.calls)


async def test_several_answer_in_their_order() -> None:
    async with sandbox(obs, provider=[reply("no", status=400), reply("yes")]):
        with pytest.raises(openai.BadRequestError):
            await chat.chat.completions.create(model="m", messages=ASKED)
        assert (await chat.chat.completions.create(model="m", messages=ASKED)).choices[0].message.content == "yes"


async def test_one_more_than_there_are_answers_fails() -> None:
    with pytest.raises(UnexpectedCall, match="all 1 answers were given"):  # noqa: PT012 (the second is refused)
        async with sandbox(obs, provider=[reply("one")]):
            await obs.llm.http_client().post("https://api.openai.com/v1/embeddings", json={"model": "m", "input": "a"})
            await obs.llm.http_client().post("https://api.openai.com/v1/embeddings", json={"model": "m", "input": "a"})


async def test_a_function_of_the_request_chooses() -> None:
    """Of httpx2, whichever library asked; also one that has to wait."""
    asked: list[httpx2.Request] = []

    async def provider(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        await asyncio.sleep(0)
        if request.url.host == "api.groq.com":
            answered: object = reply("from groq")(request)
            assert isinstance(answered, httpx2.Response)
            return answered
        return httpx2.Response(200, json={"object": "list", "data": []}, headers={"x-own": "1"})

    async with sandbox(obs, provider=provider) as box:
        said = await fast.chat.completions.create(model="m", messages=ASKED)
        assert said.choices[0].message.content == "from groq"
        listed = await chat.get("/models", cast_to=httpx2.Response)
        assert listed.headers["x-own"] == "1"
        assert listed.json() == {"object": "list", "data": []}
    assert [type(request) for request in asked] == [httpx2.Request] * 2
    assert asked[0].headers["authorization"] == "Bearer sk-3"
    assert len(box.calls) == 1


async def test_clients_of_every_making_are_answered() -> None:
    """Also a transport around one of somebody's own, in either library, through a proxy."""
    around = obs.llm.transport(httpx.AsyncHTTPTransport())
    proxied = obs.llm.http_client(proxy="http://127.0.0.1:9")
    async with sandbox(obs, provider=reply("here")) as box:
        for client in (httpx.AsyncClient(transport=around), proxied):
            said = await client.post("https://api.openai.com/v1/chat/completions", json={"model": "m", "messages": ASKED})
            assert said.json()["choices"][0]["message"]["content"] == "here"
        assert len(box.calls) == 2


async def test_after_so_many_seconds_of_the_sandbox() -> None:
    async with sandbox(obs, clock=FrozenClock(), provider=reply("late", after=7)) as box:
        asking = asyncio.create_task(chat.chat.completions.create(model="m", messages=ASKED))
        await asyncio.wait({asking}, timeout=0.3)
        box.clock.advance(6.9)
        await asyncio.wait({asking}, timeout=0.3)
        assert not asking.done()
        box.clock.advance(0.1)
        async with asyncio.timeout(5):
            assert (await asking).choices[0].message.content == "late"


async def test_without_a_provider_the_test_fails_and_no_network_is_touched() -> None:
    """Directly; and at the end, where the application has made another error of it, or none."""
    with pytest.raises(UnexpectedCall, match=r"POST https://api\.openai\.com/v1/embeddings: no provider answers"):
        async with sandbox(obs):
            await obs.llm.http_client().post(
                "https://api.openai.com/v1/embeddings?key=secret", json={"model": "m", "input": "a"}
            )
    with pytest.raises(AssertionError, match="no provider answers"):  # noqa: PT012 (raised at its end)
        async with sandbox(obs):
            with pytest.raises(anthropic.APIConnectionError):
                await claude.with_options(max_retries=0).messages.create(model=CLAUDE, max_tokens=1, messages=ASKED)
            await obs.rate_limiter.peek("api")
    with pytest.raises(UnexpectedCall, match=r"GET https://example\.com"):
        async with sandbox(obs):
            await obs.llm.http_client().get("https://example.com")


async def test_an_api_that_reply_does_not_know() -> None:
    async with sandbox(obs, provider=reply()):
        with pytest.raises(UnexpectedCall, match="knows no answer"):
            await obs.llm.http_client().post("https://api.openai.com/v1/images/generations", json={"prompt": "x"})


@pytest.mark.parametrize(
    "wrong",
    [
        {"status": 302},
        {"status": 99},
        {"status": True},
        {"input_tokens": -1},
        {"output_tokens": 1.5},
        {"after": -1},
        {"text": 1},
    ],
)
def test_what_is_no_reply(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        reply(**wrong)  # type: ignore[arg-type]


async def test_what_is_no_provider() -> None:
    for wrong in ("text", 5, [reply(), "text"]):
        with pytest.raises(InvalidArgument):
            async with sandbox(obs, provider=wrong):  # type: ignore[arg-type]
                pass

    def none(request: httpx2.Request) -> None:
        return None

    provider: Provider = none  # type: ignore[assignment]
    async with sandbox(obs, provider=provider):
        with pytest.raises(InvalidArgument, match=r"returns an httpx2\.Response"):
            await obs.llm.http_client().get("https://example.com")
