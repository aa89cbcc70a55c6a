"""A socket between one sandbox and the server that all share: taken away, the store is away for this sandbox alone."""

import asyncio
import contextlib
from pathlib import Path


class _End(asyncio.Protocol):
    """One side of a connection; what comes goes to the other."""

    def __init__(self, between: "Between", other: "_End | None" = None) -> None:
        self._between = between
        self.other = other
        self.transport: asyncio.Transport | None = None
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("a stream was expected")
        self.transport = transport
        if not self._between.is_up:  # it was accepted in the moment of the end
            transport.abort()
            return
        self._between.ends.add(self)
        if self.other is None:
            self._between.join(self)
        else:
            self.other.joined(self)

    def data_received(self, data: bytes) -> None:
        if self.other is None or self.other.transport is None:
            self._early.append(data)
        else:
            self.other.transport.write(data)

    def joined(self, other: "_End") -> None:
        self.other = other
        if other.transport is not None:
            other.transport.writelines(self._early)
            if self.transport is None or self.transport.is_closing():
                other.transport.close()
        self._early.clear()

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._between.ends.discard(self)
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


class Between:
    """On one event loop."""

    def __init__(self, server: Path, path: Path) -> None:
        self._server = server
        self.path = path
        self.ends: set[_End] = set()
        self._joining: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None

    @property
    def is_up(self) -> bool:
        return self._listener is not None

    async def up(self) -> None:
        if self._listener is None:
            self._listener = await asyncio.get_running_loop().create_unix_server(lambda: _End(self), self.path)

    async def down(self) -> None:
        """Every connection breaks now, and no other is made."""
        listener, self._listener = self._listener, None
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        for _ in range(5):
            # Who is being accepted gets that far, and goes: asyncio forgets the socket of one whose listener closes meanwhile.
            await asyncio.sleep(0)
        if listener is not None:
            listener.close()
        for task in self._joining:
            task.cancel()
        for end in list(self.ends):
            if end.transport is not None:
                end.transport.abort()
        if listener is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2.0):
                    await listener.wait_closed()

    def join(self, near: _End) -> None:
        task = asyncio.get_running_loop().create_task(self._join(near), name="observatory sandbox")
        self._joining.add(task)
        task.add_done_callback(self._joining.discard)

    async def _join(self, near: _End) -> None:
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: _End(self, near), str(self._server))
        except OSError:
            if near.transport is not None:
                near.transport.abort()
