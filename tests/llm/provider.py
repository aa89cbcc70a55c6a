"""A provider of answers on this machine: a real HTTP server, and clients of it by way of an answer cache."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import httpx

from observatory.llm.answers import Answers, Reply, Request, Upstream

CHAT = "/v1/chat/completions"


class Asked(NamedTuple):
    """What reached the provider."""

    path: str
    headers: dict[str, str]
    document: dict[str, Any]


class Said(NamedTuple):
    """What it answers. cut: the connection is torn before the end."""

    status: int
    headers: dict[str, str]
    chunks: Sequence[bytes]
    cut: bool = False


def event(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def spoken(asked: Asked, number: int) -> Said:
    """An answer that tells one call from another, in as many chunks as it has words."""
    words = [f"call{number}", *(f"word{index}" for index in range(20))]
    if not asked.document.get("stream"):
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": " ".join(words)}}
        body = {"id": f"chatcmpl-{number}", "choices": [choice], "usage": {"total_tokens": len(words)}}
        return Said(200, {"content-type": "application/json", "x-request-id": f"req_{number}"}, [json.dumps(body).encode()])
    deltas = [event({"id": number, "choices": [{"index": 0, "delta": {"content": word}}]}) for word in words]
    deltas.append(event({"id": number, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
    deltas.append(b"data: [DONE]\n\n")
    return Said(200, {"content-type": "text/event-stream", "x-request-id": f"req_{number}"}, deltas)


class Provider:
    """Counts what it is asked. `gate` is awaited before each chunk, with its number."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.cancelled = 0
        """Answers whose client went away."""
        self.says: Callable[[Asked, int], Said] = spoken
        self.gate: Callable[[int], Awaitable[object]] = self._open
        self.url = ""

    async def _open(self, _: int) -> None:
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._one(reader, writer):
                pass
        writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        asked = Asked(head[0].split()[1], headers, json.loads(body or b"{}"))
        self.asked.append(asked)
        said = self.says(asked, len(self.asked))
        lines = [f"HTTP/1.1 {said.status} x", *(f"{name}: {value}" for name, value in said.headers.items())]
        writer.write("\r\n".join([*lines, "transfer-encoding: chunked", "", ""]).encode())
        await writer.drain()
        # Whoever hangs up is heard though nothing is being written.
        gone = asyncio.ensure_future(reader.read(1))
        try:
            for number, chunk in enumerate(said.chunks):
                going = asyncio.ensure_future(self.gate(number))
                await asyncio.wait({going, gone}, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    going.cancel()
                    self.cancelled += 1
                    return False
                writer.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                await writer.drain()
        finally:
            gone.cancel()
        if said.cut:
            writer.transport.abort()
            return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return False


@contextlib.asynccontextmanager
async def provider() -> AsyncIterator[Provider]:
    one = Provider()
    server = await asyncio.start_server(one._serve, "127.0.0.1", 0, limit=2**24)
    one.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield one
    finally:
        server.close()


class Client:
    """What a transport does with the answer cache."""

    def __init__(self, answers: Answers, url: str, http: httpx.AsyncClient) -> None:
        self.answers = answers
        self.url = url
        self.http = http

    async def ask(
        self, document: dict[str, Any] | bytes, *, path: str = CHAT, provider: str = "openai", **headers: str
    ) -> Reply:
        """The reply, of which nothing has been read yet."""
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        pairs = [("content-type", "application/json"), *((name.replace("_", "-"), value) for name, value in headers.items())]
        request = Request(provider, "POST", f"{self.url}{path}", pairs, body)

        async def send(headers: Sequence[tuple[str, str]]) -> Upstream:
            made = self.http.build_request("POST", request.url, headers=list(headers), content=body)
            response = await self.http.send(made, stream=True)
            return Upstream(response.status_code, response.headers.multi_items(), response.aiter_raw(), response.aclose)

        return await self.answers.fetch(request, send)

    async def settled(self) -> None:
        """What was read to its end is stored, or told not to be: that goes on after the reader has it all."""
        while self.answers._sources:
            await asyncio.sleep(0.001)

    async def read(self, document: dict[str, Any] | bytes, **more: Any) -> tuple[Reply, bytes]:
        """The reply and all of its body."""
        reply = await self.ask(document, **more)
        return reply, await body_of(reply)


async def body_of(reply: Reply) -> bytes:
    try:
        return b"".join([chunk async for chunk in reply])
    finally:
        await reply.aclose()


def question(text: str = "Capital of France?", **more: Any) -> dict[str, Any]:
    return {"model": "m-1", "temperature": 0, "messages": [{"role": "user", "content": text}], **more}
