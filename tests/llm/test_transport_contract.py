"""What we lean on in httpx2 and httpx, and what their options do with our transport in place: proxies, TLS, HTTP/2."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import Any

import h2.config
import h2.connection
import h2.events
import httpx
import httpx2
import openai
import pytest
import trustme

from observatory import Observatory, Usage
from observatory.llm.exchange import Exchange
from observatory.llm.wire import recognise
from tests.llm.replay import Answer, Provider, pieces, provider
from tests.llm.test_reading import CHAT, SSE, USED, chat

LIBRARIES: dict[str, Any] = {"httpx2": httpx2, "httpx": httpx}
QUESTION = {"model": "gpt-4o", "stream": True, "messages": []}
pytestmark = pytest.mark.parametrize("library", LIBRARIES)


@pytest.fixture
async def there() -> AsyncIterator[Provider]:
    async with provider() as one:
        one.says = lambda _: Answer(200, {"content-type": SSE}, chat(*CHAT))
        yield one


async def seen(obs: Observatory, client: Any, url: str) -> None:
    with obs.llm.collect() as calls:
        async with client:
            answer = await client.post(url, json=QUESTION)
    assert answer.content == b"".join(chat(*CHAT))
    assert [call.usage for call in calls] == [USED]


async def test_a_proxy_is_used_and_does_not_hide_calls(obs: Observatory, there: Provider, library: Any) -> None:
    """Asked for by its full address, for a host that there is not."""
    client = obs.llm.http_client(library, proxy=there.url)
    await seen(obs, client, "http://api.openai.invalid/v1/chat/completions")
    assert there.requests[0].path == "http://api.openai.invalid/v1/chat/completions"


async def test_the_environments_proxies(obs: Observatory, there: Provider, library: Any, monkeypatch: Any) -> None:
    """With those that NO_PROXY leaves out."""
    monkeypatch.setenv("HTTP_PROXY", there.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    await seen(obs, obs.llm.http_client(library), "http://api.openai.invalid/v1/chat/completions")
    assert there.requests[0].path.startswith("http://api.openai.invalid")
    await seen(obs, obs.llm.http_client(library), f"{there.url}/v1/chat/completions")
    assert there.requests[1].path == "/v1/chat/completions"
    with pytest.raises((httpx.ConnectError, httpx2.ConnectError)):
        await seen(obs, obs.llm.http_client(library, trust_env=False), "http://api.openai.invalid/v1/chat/completions")


async def test_mounts_are_seen_too(obs: Observatory, there: Provider, library: Any) -> None:
    lib = LIBRARIES[library]
    mounts = {"http://gateway": lib.AsyncHTTPTransport(proxy=there.url), "all://nothing": None}
    await seen(obs, obs.llm.http_client(library, mounts=mounts), "http://gateway/v1/chat/completions")


async def test_the_defaults_are_the_sdks(obs: Observatory, library: Any) -> None:
    """Not the library's five seconds."""
    theirs = openai.AsyncOpenAI(api_key="x")
    ours = obs.llm.http_client(library)
    assert ours.timeout.as_dict() == {"connect": 5.0, "read": 600, "write": 600, "pool": 600}
    assert ours.follow_redirects
    assert theirs._client.timeout.as_dict() == ours.timeout.as_dict()
    assert obs.llm.http_client(library, timeout=3).timeout.read == 3


async def test_what_we_lean_on(obs: Observatory, library: Any) -> None:
    """A client has one transport, and those of its mounts by pattern; a response's stream can be set."""
    lib = LIBRARIES[library]
    bare = lib.AsyncClient(proxy="http://p")
    assert isinstance(bare._transport, lib.AsyncBaseTransport)
    assert all(one is None or isinstance(one, lib.AsyncBaseTransport) for one in bare._mounts.values())
    assert bare._mounts
    ours = obs.llm.http_client(library, proxy="http://p")
    assert isinstance(ours, lib.AsyncClient)
    assert set(ours._mounts) == set(bare._mounts)
    assert all(isinstance(one.inner, lib.AsyncHTTPTransport) for one in (ours._transport, *ours._mounts.values()))
    call = recognise("POST", "http://p/v1/chat/completions", [], lambda: b"{}")
    assert call is not None
    exchange = Exchange(obs._desk, call, {})
    response = lib.Response(200, stream=ours._transport.passing(lib.ByteStream(b"x"), exchange))
    assert not response.is_closed
    exchange.closed()


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def context(authority: trustme.CA, *protocols: str) -> ssl.SSLContext:
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(made)
    made.set_alpn_protocols(list(protocols))
    return made


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    made = ssl.create_default_context()
    authority.configure_trust(made)
    return made


async def test_tls_is_verified_as_it_is_asked_for(obs: Observatory, there: Provider, library: Any, authority: Any) -> None:
    server = await asyncio.start_server(there._serve, "127.0.0.1", 0, ssl=context(authority, "http/1.1"), limit=2**24)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/chat/completions"
    with contextlib.closing(server):
        with pytest.raises((httpx.ConnectError, httpx2.ConnectError), match="CERTIFICATE"):
            await seen(obs, obs.llm.http_client(library), url)
        await seen(obs, obs.llm.http_client(library, verify=trusting(authority)), url)


class Http2:
    """A server of HTTP/2 that answers each request with a stream, a byte a frame."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.versions: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.versions.append(writer.get_extra_info("ssl_object").selected_alpn_protocol())
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        connection.initiate_connection()
        writer.write(connection.data_to_send())
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                for event in connection.receive_data(data):
                    if isinstance(event, h2.events.StreamEnded) and event.stream_id:
                        connection.send_headers(event.stream_id, [(":status", "200"), ("content-type", SSE)])
                        for piece in pieces(self.body, 1):
                            connection.send_data(event.stream_id, piece)
                        connection.end_stream(event.stream_id)
                writer.write(connection.data_to_send())
                await writer.drain()
        writer.close()


async def test_http2(obs: Observatory, library: Any, authority: trustme.CA) -> None:
    """Where it is installed and asked for: calls side by side on one connection."""
    there = Http2(b"".join(chat(*CHAT)))
    server = await asyncio.start_server(there.serve, "127.0.0.1", 0, ssl=context(authority, "h2"))
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/chat/completions"
    with contextlib.closing(server), obs.llm.collect() as calls:
        async with obs.llm.http_client(library, http2=True, verify=trusting(authority)) as client:
            answers = [await client.post(url, json=QUESTION)]
            answers += await asyncio.gather(*[client.post(url, json=QUESTION) for _ in range(3)])
    assert {answer.content for answer in answers} == {there.body}
    assert {answer.http_version for answer in answers} == {"HTTP/2"}
    assert [call.usage for call in calls] == [USED] * 4
    assert there.versions == ["h2"]


async def test_fifty_megabytes_pass(obs: Observatory, there: Provider, library: Any) -> None:
    """Unchanged, and read to their end, where the usage is."""
    answer = b'{"model":"gpt-4o","choices":[{"message":{"content":"' + b'a \\"usage\\": {' * 4_000_000
    answer += b'"},"finish_reason":"stop"}],"usage":{"prompt_tokens":7,"completion_tokens":9}}'
    there.says = lambda _: Answer(200, {"content-type": "application/json"}, pieces(answer, 2**20))
    with obs.llm.collect() as calls:
        async with obs.llm.http_client(library, timeout=60) as client:
            got = await client.post(f"{there.url}/v1/chat/completions", json={"model": "gpt-4o"})
    assert len(answer) > 50_000_000
    assert got.content == answer
    assert [(call.usage, call.error) for call in calls] == [(Usage(7, 9), None)]
