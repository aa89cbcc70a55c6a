"""/livez and /readyz of a worker, answered by the loop that works: one that is blocked does not answer, and is restarted."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from typing import Any

import msgspec

from ..client import Observatory
from ..errors import ConfigurationError, StoreError
from ..worker import Worker

Message = MutableMapping[str, Any]
Check = dict[str, str]


def _check(name: str, fault: str | None) -> Check:
    return {"name": name, "status": "ok"} if fault is None else {"name": name, "status": "fail", "message": fault}


class _Probes:
    """An ASGI application of two paths."""

    def __init__(self, obs: Observatory, worker: Worker, stop: asyncio.Event) -> None:
        self._obs = obs
        self._worker = worker
        self._stop = stop

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        status, value = await self._answer(scope["path"])
        headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": msgspec.json.encode(value)})

    async def _answer(self, path: str) -> tuple[int, dict[str, Any]]:
        match path:
            case "/livez" | "/healthz":
                checks = [_check("progress", await self._worker.stuck())]
                word = "stuck"
            case "/readyz":
                checks = [_check("redis", await self._away())]
                word = "unavailable"
                if self._stop.is_set():
                    checks.append(_check("draining", "this worker is stopping"))
                    word = "draining"
            case _:
                return 404, {"status": "unknown", "paths": ["/livez", "/readyz"]}
        failed = any(check["status"] == "fail" for check in checks)
        worker = self._worker
        facts = {"roles": worker.roles, "leads": worker.leaders.leads, "partitions": worker.partitions.held()}
        return 503 if failed else 200, {"status": word if failed else "ok", "checks": checks, **facts}

    async def _away(self) -> str | None:
        try:
            await self._obs.ready(timeout=1.0)
        except StoreError as error:
            return error.message
        return None


@contextlib.asynccontextmanager
async def answering(obs: Observatory, worker: Worker, stop: asyncio.Event) -> AsyncIterator[tuple[str, int]]:
    """Answer while the block runs; where. ConfigurationError: the port is taken, or the extra that serves is not installed."""
    try:
        import uvicorn

        from ..service.server import listen
    except ImportError as error:
        raise ConfigurationError(
            f"worker.health_port needs {error.name}", remedy="pip install 'observatory-fleet[service]', or leave the port out"
        ) from None

    class Server(uvicorn.Server):
        """Signals are the worker's."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    settings = obs.settings.worker
    other = "Choose another with --health-port, or OBSERVATORY_WORKER_HEALTH_PORT"
    with listen(settings.health_host, settings.health_port or 0, remedy=other) as listener:
        config = uvicorn.Config(
            _Probes(obs, worker, stop),
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=1,
            ws="none",
        )
        server = Server(config)
        running = asyncio.ensure_future(server.serve([listener]))
        try:
            host, port = listener.getsockname()[:2]
            yield host, port
        finally:
            server.should_exit = True
            await running
