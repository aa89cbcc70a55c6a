"""What a response says of itself is read from its bytes, wherever they are cut, however they are packed, and however long."""

import gzip
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observatory import Usage
from observatory.llm.wire import Reader, Reading
from observatory.llm.wire.request import Endpoint
from observatory.llm.wire.sse import Events
from tests.llm.replay import ENCODINGS, Exchanged, pieces, recorded

ENDPOINTS: dict[str, Endpoint] = {
    "chat/completions": "chat",
    "completions": "completions",
    "responses": "responses",
    "embeddings": "embeddings",
    "messages": "messages",
}
SSE = "text/event-stream"


def read(
    endpoint: Endpoint, chunks: list[bytes], kind: str = SSE, encoding: str = "", status: int = 200, **end: Any
) -> Reading:
    reader = Reader(endpoint, status, kind, encoding)
    for index, chunk in enumerate(chunks):
        reader.feed(chunk, float(index))
    return reader.end(**{"estimate": lambda: 10, **end})


def facts(one: Reading) -> tuple[Any, ...]:
    return (
        *(one.used, one.estimated, one.response_id, one.response_model, one.service_tier),
        *(one.finish_reasons, one.error, one.deltas, one.terminated),
    )


def of(one: Exchanged, size: int, encoding: str = "") -> Reading:
    body = ENCODINGS[encoding](one.body)
    return read(ENDPOINTS[one.endpoint], pieces(body, size), one.headers["content-type"], encoding, one.status)


def plainly(one: Exchanged) -> dict[str, Any]:
    """The usage of a recording, as anybody would look it up."""
    if not one.streamed:
        return dict(json.loads(one.body).get("usage") or {})
    found: dict[str, Any] = {}
    for event in one.events():
        for place in (event, event.get("response") or {}, event.get("message") or {}):
            found.update(place.get("usage") or {})
    return found


def test_every_recording_is_read_as_it_says() -> None:
    """Tokens, of every kind; who answered; how it ended."""
    told = 0
    for one in recorded():
        reading, said = of(one, len(one.body)), plainly(one)
        assert (reading.error is None) == (one.status == 200)
        if not said:
            assert reading.estimated == (one.status == 200)
            continue
        told += 1
        usage = reading.usage
        assert usage is not None
        assert not reading.estimated
        cached = said.get("cache_read_input_tokens", 0) + said.get("cache_creation_input_tokens", 0)
        details = said.get("prompt_tokens_details") or said.get("input_tokens_details") or {}
        assert usage.input_tokens == said.get("prompt_tokens", said.get("input_tokens")) + cached
        assert usage.output_tokens == said.get("completion_tokens", said.get("output_tokens", 0))
        assert usage.cache_read_input_tokens == details.get("cached_tokens", said.get("cache_read_input_tokens", 0))
        assert usage.cache_write_input_tokens == said.get("cache_creation_input_tokens", 0)
        assert reading.response_model
        assert one.endpoint == "embeddings" or reading.finish_reasons
    assert told > 150


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_where_it_is_cut_does_not_matter(encoding: str) -> None:
    """Byte by byte, as in one piece; in each content encoding."""
    for one in recorded():
        whole = facts(of(one, len(one.body)))
        for size in (1, 7) if len(one.body) < 12_000 else (97,):
            assert facts(of(one, size, encoding)) == whole


def test_a_stream_cut_in_two_anywhere_reads_the_same() -> None:
    for path, endpoint in ENDPOINTS.items():
        streams = [one for one in recorded() if one.endpoint == path and one.streamed]
        for one in sorted(streams, key=lambda one: len(one.body))[:1]:
            whole = facts(of(one, len(one.body)))
            for at in range(len(one.body)):
                kind = one.headers["content-type"]
                assert facts(read(endpoint, [one.body[:at], one.body[at:]], kind)) == whole


CHAT = [
    b'{"id":"c-1","model":"m-1","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}',
    b'{"id":"c-1","model":"m-1","choices":[{"index":0,"delta":{"content":"Hello there"}}]}',
    b'{"id":"c-1","model":"m-1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}',
    b'{"id":"c-1","model":"m-1","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3,"prompt_tokens_details":'
    b'{"cached_tokens":4,"audio_tokens":1},"completion_tokens_details":{"reasoning_tokens":1,"audio_tokens":2}}}',
    b"[DONE]",
]
USED = Usage(
    input_tokens=9,
    output_tokens=3,
    cache_read_input_tokens=4,
    audio_input_tokens=1,
    reasoning_output_tokens=1,
    audio_output_tokens=2,
)


@given(
    end=st.sampled_from([b"\n", b"\r\n", b"\r"]),
    comment=st.sampled_from([b"", b": ping", b":", b"retry: 10", b"event: x"]),
    space=st.booleans(),
    bom=st.booleans(),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8),
)
def test_the_standard_in_all_its_spellings(end: bytes, comment: bytes, space: bool, bom: bool, sizes: list[int]) -> None:
    """Line ends, comments, fields that nobody needs, a byte order mark; cut anywhere."""
    lines = []
    for data in CHAT:
        lines += [*([comment] if comment else []), b"data:" + b" " * space + data, b""]
    body = (b"\xef\xbb\xbf" if bom else b"") + end.join(lines) + end
    chunks, at = list[bytes](), 0
    while at < len(body):
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(body[at : at + size])
        at += size
    one = read("chat", chunks)
    assert one.usage == USED
    assert (one.finish_reasons, one.error, one.estimated, one.response_model) == (["stop"], None, False, "m-1")


def test_data_on_several_lines_is_one_event() -> None:
    found: list[tuple[bytes, bytes]] = []
    events = Events(lambda name, data: found.append((name, data)), lambda name, _: found.append((name, b"long")))
    events.feed(b"event: a\ndata: {\ndata: }\n\nid: 3\n\ndata: y\r\r")
    events.end()
    assert found == [(b"a", b"{\n}"), (b"", b"y")]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_name_stays_with_its_data(end: bytes) -> None:
    """Wherever a line end of two bytes is cut."""
    body = end.join([b"event: a", b"data: 1", b"data: 2", b"", b"id: 7", b"event: b", b"data: 3", b"", b""])
    for first in range(len(body)):
        for second in range(first, len(body)):
            found: list[tuple[bytes, bytes]] = []
            events = Events(lambda name, data: found.append((name, data)), lambda name, _: None)  # noqa: B023
            for chunk in (body[:first], body[first:second], body[second:]):
                events.feed(chunk)
            events.end()
            assert found == [(b"a", b"1\n2"), (b"b", b"3")]


def chat(*data: bytes) -> list[bytes]:
    return [b"data: " + one + b"\n\n" for one in data]


def test_tokens_that_nobody_says_are_counted() -> None:
    """A stream without include_usage: so much as was sent, and it is said that it is an estimate."""
    one = read("chat", chat(CHAT[1], *[CHAT[1]] * 3, CHAT[2], CHAT[4]))
    assert one.estimated
    assert one.usage == Usage(input_tokens=10, output_tokens=11), "44 letters in 4 events"
    assert not read("chat", chat(*CHAT)).estimated


def test_an_event_brings_a_token_at_least() -> None:
    tiny = b'{"choices":[{"delta":{"content":"a"}}]}'
    one = read("chat", chat(*[tiny] * 8, CHAT[2]))
    assert one.usage is not None
    assert one.usage.output_tokens == 8


def test_what_reads_the_answer_may_count_it_too() -> None:
    """A tokenizer of one's own; one that fails is not asked to the end of days."""
    for tokenizer, tokens in ((len, 44), (_broken, 11)):
        reader = Reader("chat", 200, SSE, tokenizer=tokenizer)
        for chunk in chat(*[CHAT[1]] * 4, CHAT[2]):
            reader.feed(chunk, 0.0)
        usage = reader.end(estimate=lambda: 1).usage
        assert usage is not None
        assert usage.output_tokens == tokens


def _broken(text: str) -> int:
    raise KeyError(text)


def test_a_stream_that_stops_is_told_from_one_that_ends() -> None:
    """Truncated: the connection closed in order, and the answer did not."""
    assert read("chat", chat(*CHAT[:2])).error == "truncated"
    assert read("chat", chat(*CHAT[:2]), cut=True).error is None, "whoever cut it knows why"
    assert read("chat", chat(*CHAT[:3])).error is None, "some never say [DONE]"
    cut = read("chat", [*chat(*CHAT[:3]), b"data: {"])
    assert cut.estimated
    assert cut.usage == Usage(input_tokens=10, output_tokens=3)


MESSAGES = [
    b'{"type":"message_start","message":{"id":"m","model":"claude","usage":{"input_tokens":7,"cache_read_input_tokens":20,'
    b'"cache_creation_input_tokens":5,"cache_creation":{"ephemeral_1h_input_tokens":2},"output_tokens":1}}}',
    b'{"type":"content_block_delta","delta":{"type":"text_delta","text":"Hello to all of you out there"}}',
    b'{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":12,"server_tool_use":'
    b'{"web_search_requests":2}}}',
    b'{"type":"message_stop"}',
]


def test_messages_say_their_input_first() -> None:
    """What has to do with the cache is part of the input; what the end leaves out is as it was at the start."""
    one = read("messages", chat(*MESSAGES))
    assert one.used is not None
    assert one.usage == Usage(input_tokens=32, output_tokens=12, cache_read_input_tokens=20, cache_write_input_tokens=5)
    assert (one.used.cache_write_1h, one.used.web_searches, one.estimated) == (2, 2, False)
    cut = read("messages", chat(*MESSAGES[:2]))
    assert cut.usage is not None
    assert (cut.usage.input_tokens, cut.usage.output_tokens, cut.estimated) == (32, 8, True)


@pytest.mark.parametrize(
    ("endpoint", "data", "code"),
    [
        ("chat", b'{"error":{"message":"no","type":"server_error","code":null}}', "server_error"),
        ("chat", b'{"error":{"message":"no","code":"rate_limit_exceeded"}}', "rate_limit_exceeded"),
        ("chat", b'{"error":"a long text with sk-secret in it"}', "error"),
        ("messages", b'{"type":"error","error":{"type":"overloaded_error","message":"x"}}', "overloaded_error"),
        ("responses", b'{"type":"error","code":"server_error","message":"x"}', "server_error"),
        ("responses", b'{"type":"response.failed","response":{"status":"failed","error":{"code":"oh","message":"x"}}}', "oh"),
        ("chat", b"{not json", "invalid_response"),
    ],
)
def test_errors_half_way(endpoint: Endpoint, data: bytes, code: str) -> None:
    """By their code; never their text."""
    begun = MESSAGES[:2] if endpoint == "messages" else CHAT[:2]
    one = read(endpoint, chat(*begun, data))
    assert one.error == code
    assert one.usage is not None or endpoint == "responses", "what was said until then is paid for"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b'{"error":{"message":"x","type":"invalid_request_error","code":"model_not_found"}}', 404, "model_not_found"),
        (b'{"type":"error","error":{"type":"rate_limit_error","message":"x"}}', 429, "rate_limit_error"),
        (b"<html>Bad gateway</html>", 502, "502"),
        (b"", 503, "503"),
        (b'{"error":{"code":503,"message":"x"}}', 503, "503"),
        (b'{"id":"x","usage":', 200, "invalid_response"),
    ],
)
def test_errors_whole(body: bytes, status: int, code: str) -> None:
    one = read("chat", [body], "application/json", status=status)
    assert (one.error, one.usage) == (code, None)


def test_groq_says_its_usage_in_a_place_of_its_own() -> None:
    last = b'{"choices":[{"delta":{},"finish_reason":"stop"}],"x_groq":{"usage":{"prompt_tokens":5,"completion_tokens":6}}}'
    assert read("chat", chat(CHAT[1], last, CHAT[4])).usage == Usage(5, 6)


def long_response(events: bool) -> bytes:
    """A response that is too long to be kept, with an answer that says what usages look like."""
    bait = '"usage":{"input_tokens":1,"output_tokens":1} "status":"failed" \\" {"error":{"message":"x","code":"y"}} '
    response = {
        "id": "resp_1",
        "object": "response",
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "model": "gpt-x",
        "output": [{"type": "message", "status": "completed", "content": [{"text": bait * 400}]}],
        "tools": [{"parameters": {"usage": {"type": "object"}, "error": {"type": "string"}}}],
        "usage": {"input_tokens": 22, "input_tokens_details": {"cached_tokens": 3}, "output_tokens": 6},
        "metadata": {"text": bait, 'they say "usage': {"input_tokens": 1, "output_tokens": 1}},
    }
    whole = json.dumps({"type": "response.completed", "response": response} if events else response).encode()
    return b"event: response.completed\ndata: " + whole + b"\n\n" if events else whole


@pytest.mark.parametrize("events", [True, False])
@pytest.mark.parametrize("size", [1, 5, 700, 4096, 10**6])
def test_what_is_too_long_to_keep_is_skimmed(events: bool, size: int) -> None:
    """And nothing that somebody wrote in an answer is taken for what the provider says of it."""
    body = long_response(events)
    assert len(body) > 40_000
    one = read("responses", pieces(body, size), SSE if events else "application/json")
    assert one.usage == Usage(input_tokens=22, output_tokens=6, cache_read_input_tokens=3)
    assert (one.error, one.response_model, one.response_id, one.finish_reasons) == (None, "gpt-x", "resp_1", ["completed"])


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_memory_is_bounded(encoding: str) -> None:
    """An open stream keeps less than 32 KB, and what it needs to look into an encoding: deflate's window, br's own."""
    delta = b'{"choices":[{"index":0,"delta":{"content":"%s"}}]}' % (b"x" * 40)
    body = b"".join(chat(*[delta] * 20_000)) + b"data: " + b'{"choices":[{"delta":{"content":"' + b"y" * 3_000_000
    packed = ENCODINGS[encoding](body)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    reader = Reader("chat", 200, SSE, encoding)
    for chunk in pieces(packed, 4096):
        reader.feed(chunk, 0.0)
    kept = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert reader.reading.deltas == 20_000
    assert kept < (32_768 if not encoding else 110_000), kept


def test_few_bytes_that_mean_many_take_no_memory() -> None:
    """A body that unpacks to a hundred megabytes."""
    bomb = gzip.compress(b" " * 100_000_000)
    tracemalloc.start()
    reader = Reader("chat", 200, "application/json", "gzip")
    reader.feed(bomb, 0.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_an_encoding_that_nobody_reads_is_no_error() -> None:
    """The call is fine; what it took is unknown."""
    for encoding, body in (("zstd", b"\x28\xb5\x2f\xfd"), ("gzip", b"no gzip at all"), ("gzip, br", b"x")):
        one = read("chat", [body], "application/json", encoding)
        assert (one.usage, one.error, one.unread) == (None, None, True)
