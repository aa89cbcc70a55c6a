"""Prompts and answers on spans: where they are asked for, and nowhere else."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from observatory import Observatory
from observatory.llm.content import MOST
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
