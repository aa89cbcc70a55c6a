"""Running the application: one process, one socket, an orderly end."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator

import uvicorn

from ..client import Observatory
from ..errors import ConfigurationError
from ..lifeline import stop_signal
from ..logs import INTERNAL
from .app import build

KEEP_ALIVE = 75
"""Seconds: longer than a balancer keeps an idle connection, so that it is never we who close one under its hands."""
FINISH_FOR = 10
"""Seconds that requests under way may take once the listener is closed."""


def listen(host: str, port: int, *, remedy: str = "Choose another with --port, or OBSERVATORY_SERVE_PORT") -> socket.socket:
    """A listening socket; port 0 finds a free one. ConfigurationError when it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named: asyncio turns Nagle off only on sockets that say they are TCP, and an answer would wait 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
    except (OSError, OverflowError) as error:
        listener.close()
        why = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"cannot listen on {host}:{port} ({why})", remedy=remedy) from error
    listener.setblocking(False)
    return listener


class _Server(uvicorn.Server):
    """uvicorn closes its listener the moment a signal comes; a balancer must hear of it first, so signals are ours."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_up.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(
    obs: Observatory, listener: socket.socket, *, lifeline: int | None = None, started: Callable[[], None] | None = None
) -> None:
    """Serve until SIGTERM or SIGINT: readyz answers 503 for serve.drain_for, then the listener closes, requests under way
    finish, and what was recorded is flushed. A starter that died (lifeline) skips the wait."""
    app, state = build(obs)
    config = uvicorn.Config(
        app,
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=FINISH_FOR,
        ws="none",
    )
    server = _Server(config)
    # Opened here, and once more by the lifespan: what is wrong with the configuration is told before anything is served.
    with stop_signal(lifeline) as stop:
        async with obs:
            running = asyncio.ensure_future(server.serve([listener]))
            stopping = asyncio.ensure_future(stop.wait())
            up = asyncio.ensure_future(server.is_up.wait())
            await asyncio.wait({up, running, stopping}, return_when=asyncio.FIRST_COMPLETED)
            up.cancel()
            if server.started and started is not None:
                started()
            await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                state.stopping.set()
                INTERNAL.info("stopping: not ready any more, listening for another %g s", obs.settings.serve.drain_for)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(obs.settings.serve.drain_for):
                        await asyncio.shield(running)
                server.should_exit = True
            stopping.cancel()
            await running
    if not server.started:
        raise ConfigurationError("the service could not start; see the lines above")
