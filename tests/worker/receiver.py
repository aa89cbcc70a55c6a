"""A webhook's receiver: a real HTTP server that answers as it is told, and keeps what came."""

import asyncio
import base64
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

SECRET = b"0123456789abcdef0123456789abcdef"
SPELLED = "whsec_" + base64.b64encode(SECRET).decode()


class Posted(NamedTuple):
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def said(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    def signature(self, key: bytes = SECRET) -> str:
        """As RFC 2104 and Standard Webhooks have it, and none of our code."""
        text = f"{self.id}.{self.headers['webhook-timestamp']}.".encode() + self.body
        key = key.ljust(64, b"\0")
        inner = hashlib.sha256(bytes(one ^ 0x36 for one in key) + text).digest()
        return "v1," + base64.b64encode(hashlib.sha256(bytes(one ^ 0x5C for one in key) + inner).digest()).decode()


class Receiver:
    """answer: the status of the n-th request (from 0), or a whole head; None: no answer, ever; "": the connection is closed."""

    def __init__(self, answer: Callable[[int], int | str | None] = lambda number: 204) -> None:
        self.answer = answer
        self.posted: list[Posted] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook/T0KEN"

    @property
    def ids(self) -> list[str]:
        return [one.id for one in self.posted]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Receiver"]:
        tasks: set[asyncio.Task[None]] = set()

        async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._serve(reader, writer)
            writer.close()

        server = await asyncio.start_server(served, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            self.posted.append(Posted(head[0].split(" ")[1], headers, body))
            answer = self.answer(len(self.posted) - 1)
            if answer is None:
                await asyncio.Event().wait()
            if not answer:
                return
            told = answer if isinstance(answer, str) else f"HTTP/1.1 {answer} Said\r\ncontent-length: 0\r\n\r\n"
            writer.write(told.encode())
            await writer.drain()
