"""What is not kept: of requests before they are sent, of answers when they are there; each with its reason, and counted."""

import gzip
import json
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from observatory import AnswerCache, InvalidArgument, Observatory
from observatory.llm.answers import Reply, Upstream
from observatory.llm.answers.answer import flaw
from observatory.llm.answers.canonical import Request, parsed
from observatory.llm.answers.refusals import refusal
from observatory.names import ANSWERS_UNKEPT
from tests.llm.conftest import Connect
from tests.llm.provider import Asked, Client, Provider, Said, question

HOST = "https://api.example.com"
ENDPOINTS = {"chat": "/v1/chat/completions", "responses": "/v1/responses", "messages": "/v1/messages"}
CHAT = {"model": "m", "temperature": 0, "messages": [{"role": "user", "content": "hi"}]}
RESPONSES = {"model": "m", "temperature": 0, "input": "hi", "store": False}
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {}}}


def reason(path: str, document: dict[str, Any], *, nondeterministic: bool = False) -> str | None:
    body = json.dumps(document).encode()
    request = Request("p", "POST", HOST + path, [], body)
    return refusal(request, parsed(body), nondeterministic=nondeterministic)


def part(**content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, content]}]}


@pytest.mark.parametrize(
    ("endpoint", "changes", "why"),
    [
        ("chat", {}, None),
        ("chat", {"temperature": 0.0, "top_p": 0.5, "n": 1, "max_tokens": 5, "stop": ["a"]}, None),
        ("chat", {"tools": [FUNCTION], "tool_choice": "auto", "functions": [{"name": "f"}]}, None),
        ("chat", {"tools": [{"type": "custom", "custom": {"name": "f"}}]}, None),
        ("chat", {"modalities": ["text"]}, None),
        ("chat", part(type="image_url", image_url={"url": "data:image/png;base64,AA"}), None),
        ("chat", part(type="file", file={"filename": "a", "file_data": "data:application/pdf;base64,AA"}), None),
        ("chat", part(type="text", text="a", cache_control={"type": "ephemeral"}), None),
        ("chat", {"temperature": 0.1}, "nondeterministic"),
        ("chat", {"temperature": None}, "nondeterministic"),
        ("chat", {"temperature": "0"}, "nondeterministic"),
        ("chat", {"temperature": False}, "nondeterministic"),
        ("chat", {"n": 2}, "nondeterministic"),
        ("chat", {"best_of": 3}, "nondeterministic"),
        ("chat", {"tools": [FUNCTION, {"type": "web_search"}]}, "tools"),
        ("chat", {"tools": ["f"]}, "tools"),
        ("chat", {"tools": {}}, "body"),
        ("chat", {"web_search_options": {"a": 1}}, "tools"),
        ("chat", {"search_parameters": {"mode": "on"}}, "tools"),
        ("chat", {"plugins": [{"id": "web"}]}, "tools"),
        ("chat", {"model": "gpt-4o-search-preview"}, "tools"),
        ("chat", {"model": "openai/gpt-4o:online"}, "tools"),
        ("chat", {"store": True}, "state"),
        ("chat", {"modalities": ["text", "audio"], "audio": {"voice": "a"}}, "modalities"),
        ("chat", {"audio": {"voice": "a"}}, "modalities"),
        ("chat", part(type="image_url", image_url={"url": "https://a/b.png"}), "url"),
        ("chat", part(type="file", file={"file_id": "file-1"}), "url"),
        ("chat", part(type="video_url", video_url={"url": "http://a"}), "url"),
        ("chat", {"model": None}, "body"),
        ("chat", {"stream": "yes"}, "body"),
        ("responses", {}, None),
        ("responses", {"tools": [{"type": "function", "name": "f"}]}, None),
        ("responses", {"store": True}, "state"),
        ("responses", {"store": None}, "state"),
        ("responses", {"previous_response_id": "resp_1"}, "state"),
        ("responses", {"conversation": "conv_1"}, "state"),
        ("responses", {"background": True}, "state"),
        ("responses", {"prompt": {"id": "pmpt_1"}}, "state"),
        ("responses", {"input": [{"type": "item_reference", "id": "a"}]}, "state"),
        ("responses", {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]}, "url"),
        ("responses", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "https://a"}]}]}, "url"),
        ("responses", {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "https://a"}]}]}, "url"),
        *(
            ("responses", {"tools": [{"type": kind}]}, "tools")
            for kind in (
                *("web_search_preview", "file_search", "code_interpreter", "computer_use_preview", "mcp"),
                *("image_generation", "local_shell", "a_tool_to_come"),
            )
        ),
        ("messages", {"tools": [{"name": "f", "input_schema": {}}]}, None),
        ("messages", {"system": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]}, None),
        ("messages", part(type="image", source={"type": "base64", "data": "AA"}), None),
        ("messages", part(type="image", source={"type": "url", "url": "https://a"}), "url"),
        ("messages", part(type="document", source={"type": "file", "file_id": "f"}), "url"),
        ("messages", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools"),
        ("messages", {"tools": [{"type": "computer_20250124", "name": "computer"}]}, "tools"),
        ("messages", {"mcp_servers": [{"url": "https://a"}]}, "tools"),
        ("messages", {"container": "c_1"}, "state"),
    ],
)
def test_requests(endpoint: str, changes: dict[str, Any], why: str | None) -> None:
    """What the provider does, keeps or looks up, and what it may answer otherwise the next time."""
    document = {**(RESPONSES if endpoint == "responses" else CHAT), **changes}
    assert reason(ENDPOINTS[endpoint], document) == why
    lifted = None if why == "nondeterministic" else why
    assert reason(ENDPOINTS[endpoint], document, nondeterministic=True) == lifted


def test_said_by_nobody_means_one() -> None:
    """No temperature is a temperature of 1, in every API that answers with text; embeddings have none."""
    without = {name: value for name, value in CHAT.items() if name != "temperature"}
    for path in ("/v1/chat/completions", "/v1/messages", "/openai/deployments/d/chat/completions"):
        assert reason(path, without) == "nondeterministic"
    for path in ("/v1/embeddings", "/v1/moderations"):
        assert reason(path, {"model": "m", "input": "a"}) is None
    assert reason("/v1/completions", {"model": "m", "prompt": "a", "temperature": 0}) is None
    for path in ("/v1/messages/batches", "/v1/audio/speech", "/v1/responses/resp_1/cancel", "/v1/files", "/"):
        assert reason(path, CHAT) == "endpoint"
    get = Request("p", "GET", HOST + "/v1/chat/completions", [], b"{}")
    assert refusal(get, {}, nondeterministic=True) == "endpoint"


JSON = [("Content-Type", "application/json")]
SSE = [("Content-Type", "text/event-stream; charset=utf-8")]
STOP = {"choices": [{"index": 0, "finish_reason": "stop", "message": {}}]}
DELTA = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
LAST = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"


def end(reason: Any) -> bytes:
    return json.dumps({"choices": [{"index": 0, "finish_reason": reason}]}).encode()


def response(**members: Any) -> bytes:
    return json.dumps(members).encode()


def stop(reason: str) -> bytes:
    return f'event: message_delta\ndata: {{"type":"message_delta","delta":{{"stop_reason":"{reason}"}}}}\n\n'.encode()


MESSAGE_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'


@pytest.mark.parametrize(
    ("endpoint", "headers", "body", "why"),
    [
        ("chat/completions", JSON, json.dumps(STOP).encode(), None),
        ("chat/completions", JSON, end("length"), None),
        ("chat/completions", JSON, end("tool_calls"), None),
        ("chat/completions", JSON, end("content_filter"), "filtered"),
        ("chat/completions", JSON, end("error"), "error"),
        ("chat/completions", JSON, end(None), "incomplete"),
        ("chat/completions", JSON, b'{"choices":[]}', "incomplete"),
        ("chat/completions", JSON, b'{"choices":[{"index":0,"finish', "incomplete"),
        ("chat/completions", JSON, b'{"error":{"message":"overloaded"}}', "error"),
        ("chat/completions", JSON, b"<html>", "incomplete"),
        ("chat/completions", [*JSON, ("cache-control", "private, No-Store")], json.dumps(STOP).encode(), "no_store"),
        ("chat/completions", [*JSON, ("cache-control", "no-cache")], json.dumps(STOP).encode(), None),
        ("chat/completions", [*JSON, ("content-encoding", "br")], json.dumps(STOP).encode(), "encoding"),
        ("chat/completions", [*JSON, ("content-encoding", "gzip")], gzip.compress(json.dumps(STOP).encode(), mtime=0), None),
        ("chat/completions", [*JSON, ("content-encoding", "deflate")], zlib.compress(json.dumps(STOP).encode()), None),
        (
            "chat/completions",
            [*JSON, ("content-encoding", "gzip")],
            gzip.compress(json.dumps(STOP).encode(), mtime=0)[:-9],
            "incomplete",
        ),
        ("chat/completions", [*JSON, ("content-encoding", "gzip")], b"{}", "encoding"),
        ("chat/completions", [*JSON, ("content-encoding", "gzip")], gzip.compress(bytes(2**21), mtime=0), "too_large"),
        ("chat/completions", SSE, DELTA + LAST + DONE, None),
        ("chat/completions", SSE, (DELTA + LAST + DONE).replace(b"\n", b"\r\n"), None),
        ("chat/completions", SSE, b": ping\n\n" + DELTA + LAST + b'data: {"choices":[],"usage":{}}\n\n' + DONE, None),
        ("chat/completions", SSE, DELTA + LAST, "incomplete"),
        ("chat/completions", SSE, DELTA + DONE, "incomplete"),
        ("chat/completions", SSE, DELTA + LAST + DONE[:-1], "incomplete"),
        ("chat/completions", SSE, DONE, "incomplete"),
        ("chat/completions", SSE, b"", "incomplete"),
        ("chat/completions", SSE, DELTA + b'data: {"error":{"message":"a"}}\n\n' + DONE, "error"),
        ("chat/completions", SSE, DELTA + LAST.replace(b"stop", b"content_filter") + DONE, "filtered"),
        ("messages", JSON, b'{"type":"message","stop_reason":"end_turn"}', None),
        ("messages", JSON, b'{"type":"message","stop_reason":"refusal"}', "filtered"),
        ("messages", JSON, b'{"type":"message","stop_reason":"pause_turn"}', "filtered"),
        ("messages", JSON, b'{"type":"error","error":{}}', "error"),
        ("messages", SSE, stop("end_turn") + MESSAGE_STOP, None),
        ("messages", SSE, stop("end_turn"), "incomplete"),
        ("messages", SSE, stop("refusal") + MESSAGE_STOP, "filtered"),
        ("messages", SSE, b'event: error\ndata: {"type":"error","error":{}}\n\n', "error"),
        ("responses", JSON, response(status="completed", error=None), None),
        ("responses", JSON, response(status="incomplete", incomplete_details={"reason": "max_output_tokens"}), None),
        ("responses", JSON, response(status="incomplete", incomplete_details={"reason": "content_filter"}), "filtered"),
        ("responses", JSON, response(status="failed"), "error"),
        ("responses", JSON, response(status="in_progress"), "error"),
        ("responses", SSE, b"data: " + response(type="response.completed", response={"status": "completed"}) + b"\n\n", None),
        ("responses", SSE, b"data: " + response(type="response.failed", response={"status": "failed"}) + b"\n\n", "error"),
        ("responses", SSE, b"data: " + response(type="response.output_text.delta") + b"\n\n", "incomplete"),
        ("responses", SSE, b"event: error\ndata: " + response(type="error", message="a") + b"\n\n", "error"),
        ("embeddings", JSON, b'{"data":[{"embedding":[0.1]}]}', None),
        ("embeddings", JSON, b'{"data":[]}', "incomplete"),
        ("moderations", JSON, b'{"results":[{"flagged":false}]}', None),
    ],
)
def test_answers(endpoint: str, headers: list[tuple[str, str]], body: bytes, why: str | None) -> None:
    """An answer is kept when it is whole, and says nothing of an error; wherever it was cut into chunks."""
    streamed = headers[0] == SSE[0]
    assert flaw(endpoint, streamed, 200, headers, [body], 2**17) == why
    assert flaw(endpoint, streamed, 200, headers, [bytes([one]) for one in body], 2**17) == why
    assert flaw(endpoint, not streamed, 200, headers, [body], 2**17) is not None
    for status in (199, 302, 400, 429, 500):
        assert flaw(endpoint, streamed, status, headers, [body], 2**17) == "status"


async def uncounted(obs: Observatory) -> dict[str, int]:
    await obs.flush()
    found = await obs.metrics.query(ANSWERS_UNKEPT, by="reason")
    return {dict(series.labels)["reason"]: int(series.value or 0) for series in found.series}


async def test_what_is_passed_is_counted_and_says_why(obs: Observatory, client: Client, there: Provider) -> None:
    """The provider is asked each time; the caller gets its answer as it is."""
    for _ in range(2):
        reply, _ = await client.read(question(temperature=1))
        assert (reply.cached, reply.reason, reply.status) == ("passed", "nondeterministic", 200)
        assert ("cache-status", "observatory; fwd=bypass; detail=nondeterministic") in reply.headers
    for path in ("/v1/audio/speech", "/v1/messages/batches"):
        assert (await client.read({}, path=path))[0].reason == "endpoint"
    assert (await client.read(b'{"model": "m", "model": "n"}'))[0].reason == "body"
    assert len(there.asked) == 5
    assert await uncounted(obs) == {"nondeterministic": 2, "endpoint": 2, "body": 1}


async def test_one_call_asks_for_something_else(client: Client, there: Provider) -> None:
    """By request headers, which every SDK can send; ours does not reach the provider."""
    for more in ({"observatory_cache": "off"}, {"cache_control": "no-store"}):
        assert (await client.read(question(), **more))[0].reason == "asked"
    sampled = question("a joke", temperature=1)
    answers = [await client.read(sampled, observatory_cache="on") for _ in range(2)]
    assert [reply.cached for reply, _ in answers] == ["miss", "hit"]
    assert answers[0][1] == answers[1][1]
    assert (await client.read(sampled))[0].reason == "nondeterministic"
    (_, first), (_, second) = await client.read(question()), await client.read(question())
    assert first == second
    for number, more in enumerate(
        ({"observatory_cache": "refresh"}, {"cache_control": "no-cache"}, {"cache_control": "max-age=0"})
    ):
        before = len(there.asked)
        reply, new = await client.read(question(), **more)
        assert (reply.cached, len(there.asked)) == ("miss", before + 1), number
        assert new != first
        reply, kept = await client.read(question(), cache_control="max-age=60")
        assert (reply.cached, kept) == ("hit", new), number
    assert not any("observatory-cache" in asked.headers for asked in there.asked)
    with pytest.raises(InvalidArgument):
        await client.ask(question(), observatory_cache="maybe")


def faulty(good: Callable[[Asked, int], Said], fault: str) -> Callable[[Asked, int], Said]:
    """What the provider says, with something wrong."""

    def says(asked: Asked, number: int) -> Said:
        said = good(asked, number)
        if fault == "status":
            return Said(529, {"content-type": "application/json", "retry-after": "1"}, [b'{"error":', b"{}}"])
        if fault == "no_store":
            return said._replace(headers={**said.headers, "cache-control": "no-store"})
        if fault == "incomplete":
            return said._replace(chunks=[*said.chunks[:-1], said.chunks[-1][:-5]])
        if fault == "error":
            last = b'data: {"error":{}}\n\n' if asked.document["stream"] else b'{"error":{}}'
            return said._replace(chunks=[*said.chunks[:-1], last])
        return said

    return says


def from_elsewhere(fetch: Callable[..., Awaitable[Reply]]) -> Callable[..., Awaitable[Reply]]:
    """A transport whose fallback answers."""

    async def fetched(request: Request, send: Callable[..., Awaitable[Upstream]]) -> Reply:
        async def elsewhere(headers: Any) -> Upstream:
            return (await send(headers))._replace(same=False)

        return await fetch(request, elsewhere)

    return fetched


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["status", "no_store", "incomplete", "error", "other", "too_large"])
async def test_what_must_not_be_kept_is_not(
    obs: Observatory, connect: Connect, there: Provider, fault: str, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is wrong with it, whoever asked has it as it came, byte by byte, and the next who asks has a new one."""
    client = connect(obs)
    there.says = faulty(there.says, fault)
    if fault == "other":
        monkeypatch.setattr(client.answers, "fetch", from_elsewhere(client.answers.fetch))
    if fault == "too_large":
        monkeypatch.setattr(obs.caches, "max_value", 4200)
    told = []
    for number in (1, 2):
        reply, body = await client.read(question(stream=stream))
        assert body == b"".join(there.says(there.asked[-1], number).chunks)
        assert reply.status == (529 if fault == "status" else 200)
        told.append(dict(reply.headers).get("retry-after"))
        await client.settled()
        async for key in obs.store.scan(f"{obs.store.keys.pattern()[:-1]}computing:*"):  # what is told for a second
            await obs.store.command("DEL", key)
    assert len(there.asked) == 2
    assert told == ["1" if fault == "status" else None] * 2
    assert (await uncounted(obs))[fault] == 2


@pytest.mark.parametrize(
    "wrong",
    [{"ttl": 0}, {"ttl": None}, {"ttl": "soon"}, {"by": "a b"}, {"by": ("tenant", "")}, {"replay": "slow"}, {"vary": "accept"}],
)
def test_wrong_policies(wrong: dict[str, Any]) -> None:
    """Said when they are written, not at the first call."""
    with pytest.raises(InvalidArgument):
        AnswerCache(**wrong)
