"""A proxy between a client and a real server that loses replies, or goes deaf, on demand."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path


class Proxy:
    """Speaks on a socket of its own; everything is passed on, until told otherwise."""

    def __init__(self, server: Path, path: Path) -> None:
        self._server = server
        self.path = path
        self.swallow_replies = False
        """Requests reach the server, and its answers nobody."""
        self.deaf = False
        """Nothing is read from clients any more; their connections stay open."""
        self.writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(str(self._server))
        self.writers |= {writer, back}
        with contextlib.suppress(ConnectionError):
            await asyncio.gather(self._pass(reader, back, up=True), self._pass(there, writer, up=False))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                while up and self.deaf:
                    await asyncio.sleep(0.01)
                if up or not self.swallow_replies:
                    writer.write(data)
                    await writer.drain()
        writer.close()

    def cut(self) -> None:
        """Break every connection, now."""
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()


@contextlib.asynccontextmanager
async def proxy(server: Path, path: Path) -> AsyncIterator[Proxy]:
    between = Proxy(server, path)
    listener = await asyncio.start_unix_server(between._serve, str(path))
    try:
        yield between
    finally:
        listener.close()
        between.cut()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                await listener.wait_closed()
