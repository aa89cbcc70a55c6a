"""A provider that says what one has said: recorded exchanges over a real HTTP/1.1 server that keeps its connections."""

import asyncio
import contextlib
import gzip
import json
import os
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import brotli
import pytest

from tests.servers import ROOT

DATA = Path(os.environ.get("OBSERVATORY_TEST_DATA") or ROOT.parent / "shared" / "data")


class Exchanged(NamedTuple):
    """One recorded exchange."""

    provider: str
    path: str
    request: dict[str, Any]
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def streamed(self) -> bool:
        return self.headers["content-type"].startswith("text/event-stream")

    @property
    def endpoint(self) -> str:
        return self.path.partition("?")[0].removeprefix("/v1/")

    def events(self) -> Iterator[dict[str, Any]]:
        """The events of a stream, read as plainly as can be."""
        for block in self.body.decode().split("\n\n"):
            for line in block.split("\n"):
                if line.startswith("data: {"):
                    yield json.loads(line[6:])


@cache
def recorded() -> tuple[Exchanged, ...]:
    """All of them; the test is skipped where they are not."""
    found = DATA / "recorded_llm_exchanges.ndjson"
    if not found.is_file():
        pytest.skip("the recorded exchanges are not beside the checkout (../shared/data)")
    rows = [json.loads(line) for line in found.read_text().splitlines()]
    return tuple(
        Exchanged(row["provider"], row["path"], row["request"], row["status"], row["headers"], row["body"].encode())
        for row in rows
    )


class Request(NamedTuple):
    """What came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int


class Answer(NamedTuple):
    """What is said. chunks: as they are written. cut: the connection is torn behind them."""

    status: int
    headers: dict[str, str]
    chunks: list[bytes]
    cut: bool = False


def pieces(body: bytes, size: int) -> list[bytes]:
    return [body[start : start + size] for start in range(0, len(body), size)]


ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
}


def answer(one: Exchanged, *, size: int = 4096, encoding: str = "") -> Answer:
    """A recorded response, in chunks of a size."""
    headers = dict(one.headers)
    if encoding:
        headers["content-encoding"] = encoding
    return Answer(one.status, headers, pieces(ENCODINGS[encoding](one.body), size))


class Provider:
    """Answers with what `says` makes of a request. `gate` is awaited before each chunk, with its number."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.connections = 0
        self.hung_up = asyncio.Event()
        """A client went away in the middle of an answer."""
        self.says: Callable[[Request], Answer]
        self.gate: Callable[[int], Any] | None = None
        self.before: Callable[[Request], Any] | None = None
        """Awaited before anything is said."""
        self.written = 0
        self.url = ""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._one(reader, writer, number):
                pass
        writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        method, path, _ = head[0].split(" ")
        request = Request(method, path, headers, body, number)
        self.requests.append(request)
        if self.before is not None:
            await self.before(request)
        said = self.says(request)
        lines = [f"HTTP/1.1 {said.status} x", *(f"{name}: {value}" for name, value in said.headers.items())]
        writer.write("\r\n".join([*lines, "transfer-encoding: chunked", "", ""]).encode())
        try:
            for index, chunk in enumerate(said.chunks):
                if self.gate is not None:
                    await self.gate(index)
                writer.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                await writer.drain()
                self.written += len(chunk)
        except ConnectionError:
            self.hung_up.set()
            return False
        if said.cut:
            writer.transport.abort()
            return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


@contextlib.asynccontextmanager
async def provider() -> AsyncIterator[Provider]:
    one = Provider()
    server = await asyncio.start_server(one._serve, "127.0.0.1", 0, limit=2**24)
    one.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield one
    finally:
        server.close()
