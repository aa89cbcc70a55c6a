"""Prompts and answers on spans: where they are asked for, and nowhere else."""

import json
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

from observatory import Observatory
from observatory.llm.content import MOST, Texts, asked
from observatory.llm.exchange import Exchange
from observatory.llm.told import Turn
from observatory.llm.tries import Try
from observatory.llm.wire import recognise
from observatory.settings import Settings
from tests.conftest import Open
from tests.llm.observed import Spans
from tests.llm.replay import Answer, Provider, provider
from tests.llm.test_reading import CHAT, SSE, chat

KEY = "sk-proj-abcdefghijklmnopqrstuvwxyz0123456789"
ASKED = {
    "model": "gpt-4o",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": f"My key is {KEY}"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            ],
        },
        {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "find", "arguments": "{}"}}]},
    ],
}
DOCUMENT = {"content-type": "application/json"}


@pytest.fixture
async def there() -> AsyncIterator[Provider]:
    async with provider() as one:
        yield one


@pytest.fixture
async def capturing(opening: Open) -> Observatory:
    return await opening(settings=Settings.load(None, environ={}, llm_capture_content="on"))


async def said(obs: Observatory, there: Provider, body: Any, kind: dict[str, str], path: str, **asked: Any) -> dict[str, Any]:
    """The span's attributes of content."""
    there.says = lambda _: Answer(200, kind, body)
    spans = Spans(obs)
    async with obs.llm.http_client(base_url=f"{there.url}/v1") as client:
        await client.post(path, json={**ASKED, **asked}, headers={"authorization": f"Bearer {KEY}"})
    _, attributes = spans.only()
    found = {name: value for name, value in attributes.items() if name.endswith((".messages", "_instructions"))}
    assert KEY not in f"{attributes}"
    return {name: json.loads(value) for name, value in found.items()}


async def test_off_is_off(obs: Observatory, there: Provider) -> None:
    body = [json.dumps({"choices": [{"message": {"content": "Paris."}, "finish_reason": "stop"}]}).encode()]
    assert await said(obs, there, body, DOCUMENT, "/chat/completions") == {}


async def test_a_document_of_chat(capturing: Observatory, there: Provider) -> None:
    """Texts and tools; of an image that it was there; secrets hidden."""
    answer = {"role": "assistant", "content": "Paris.", "tool_calls": [{"function": {"name": "find", "arguments": "{}"}}]}
    body = [json.dumps({"choices": [{"message": answer, "finish_reason": "stop"}]}).encode()]
    found = await said(capturing, there, body, DOCUMENT, "/chat/completions")
    system, user, tool = found["gen_ai.input.messages"]
    assert system == {"role": "system", "parts": [{"type": "text", "content": "Be brief."}]}
    assert user["parts"][0]["content"].startswith("My key is ")
    assert user["parts"][1] == {"type": "image_url"}
    assert tool == {"role": "assistant", "parts": [{"type": "tool_call", "name": "find", "arguments": "{}"}]}
    (said_back,) = found["gen_ai.output.messages"]
    assert said_back["finish_reason"] == "stop"
    assert said_back["parts"][0]["content"].startswith("Paris.")


async def test_a_stream(capturing: Observatory, there: Provider) -> None:
    found = await said(capturing, there, chat(*CHAT), {"content-type": SSE}, "/chat/completions", stream=True)
    assert found["gen_ai.output.messages"][0]["parts"] == [{"type": "text", "content": "Hello there"}]


async def test_messages_and_responses(capturing: Observatory, there: Provider) -> None:
    """Anthropic's blocks, OpenAI's output items; each text once."""
    body = [json.dumps({"content": [{"type": "text", "text": "Lima."}], "stop_reason": "end_turn"}).encode()]
    found = await said(capturing, there, body, DOCUMENT, "/messages", system="Be kind.")
    assert found["gen_ai.system_instructions"] == [{"type": "text", "content": "Be kind."}]
    assert found["gen_ai.output.messages"][0]["parts"][0]["content"] == "Lima."
    output = [{"type": "message", "content": [{"type": "output_text", "text": "Quito."}]}]
    body = [json.dumps({"status": "completed", "output": output}).encode()]
    found = await said(capturing, there, body, DOCUMENT, "/responses", messages=None, input="Capital of Ecuador?")
    assert found["gen_ai.input.messages"] == [{"role": "user", "parts": [{"type": "text", "content": "Capital of Ecuador?"}]}]
    assert found["gen_ai.output.messages"][0]["parts"][0]["content"] == "Quito."


async def test_long_ones_are_cut(capturing: Observatory, there: Provider) -> None:
    """Both ways; also an answer that is too long to be read whole."""
    body = [json.dumps({"choices": [{"message": {"content": "y" * 100_000}, "finish_reason": "stop"}]}).encode()]
    long = [{"role": "user", "content": "x" * 100_000}, {"role": "user", "content": "more"}]
    found = await said(capturing, there, body, DOCUMENT, "/chat/completions", messages=long)
    assert [len(one["parts"][0]["content"]) for one in found["gen_ai.input.messages"]] == [MOST + 2, 0]
    assert len(found["gen_ai.output.messages"][0]["parts"][0]["content"]) == MOST + 2


def test_by_the_standard_variable() -> None:
    for value, wanted in (("true", "on"), ("SPAN_ONLY", "on"), ("false", "off"), ("EVENT_ONLY", "off")):
        environ = {"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": value}
        assert Settings.load(None, environ=environ).llm.capture_content == wanted


async def test_nothing_was_said(capturing: Observatory, there: Provider) -> None:
    """Of embeddings there is no answer to show, and no error either."""
    body = [json.dumps({"data": [{"embedding": [0.1]}], "usage": {"prompt_tokens": 1, "total_tokens": 1}}).encode()]
    found = await said(capturing, there, body, DOCUMENT, "/embeddings", messages=None, input="a text")
    assert found.keys() == {"gen_ai.input.messages"}


def test_arguments_of_tools_are_json() -> None:
    """Cut before they are written out whole, however many there are."""

    def arguments(given: Any) -> Any:
        call = {"type": "tool_use", "id": "t", "name": "f", "input": given}
        (turn,) = asked({"messages": [{"role": "assistant", "content": [call]}]})["gen_ai.input.messages"]
        return turn["parts"][0].get("arguments")

    assert json.loads(arguments({"a": "it's", "b": [1, None, True]})) == {"a": "it's", "b": [1, None, True]}
    assert arguments('{"a": 1}') == '{"a": 1}'
    assert arguments(None) is None
    long = [{"a": number} for number in range(300_000)]
    tracemalloc.start()
    try:
        written = arguments(long)
        assert tracemalloc.get_traced_memory()[1] < 20 * MOST
    finally:
        tracemalloc.stop()
    assert len(written) == MOST - 1 + len(" …")


def test_a_long_stream_is_not_kept_in_pieces() -> None:
    texts = Texts()
    tracemalloc.start()
    try:
        for number in range(100_000):
            texts.add(f"tok{number % 1000} ")
        assert tracemalloc.get_traced_memory()[0] < 2 * MOST
    finally:
        tracemalloc.stop()
    assert str(texts).startswith("tok0 tok1 ")
    assert len(str(texts)) == MOST + len(" …")


async def test_what_nobody_records_is_not_collected(opening: Open) -> None:
    """A span that its sampler has left out."""
    for ratio in (0.0, 1.0):
        obs = await opening(settings=Settings.load(None, environ={}, llm_capture_content="on"))
        obs.tracing._tracer = TracerProvider(sampler=TraceIdRatioBased(ratio)).get_tracer("test")
        call = recognise("POST", "https://api.openai.com/v1/embeddings", [], lambda: b'{"input": "a"}')
        assert call is not None
        exchange = Exchange(obs._desk, call, {})
        assert (exchange.content is not None) == bool(ratio)
        exchange.closed()


def test_the_prompt_is_in_no_text_of_a_call() -> None:
    body = json.dumps(ASKED).encode()
    url = "https://api.openai.com/v1/chat/completions"
    call = recognise("POST", url, [("authorization", f"Bearer {KEY}")], lambda: body)
    assert call is not None
    request = httpx2.Request("POST", url, content=body, headers={"authorization": f"Bearer {KEY}"})
    for text in (repr(call), str(call), repr(Try(call, request, Turn())), f"{list(call.__rich_repr__())}"):
        assert "Be brief" not in text
        assert KEY not in text
        assert "gpt-4o" in text
