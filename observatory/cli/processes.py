"""serve, worker, up: commands that run until they are told to stop."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

from .. import errors
from ..client import Observatory
from ..lifeline import stop_signal
from ..logs import INTERNAL
from ..store import embedded
from ..store.address import embedded_url
from .context import OUT, Context
from .fleet import Child, Fleet, url

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


async def serve(
    context: Context, host: str | None, port: int | None, fd: int | None, lifeline: int | None, *, anonymous: bool
) -> None:
    """One service process. stdout has one line, when it is ready."""
    from ..service import serve as run
    from ..service.server import listen

    obs = context.observatory("service", serve_host=host, serve_port=port)
    settings = obs.settings.serve
    if fd is not None:
        listener = socket.socket(fileno=fd)
        listener.setblocking(False)
    else:
        _refuse_public(settings.host, anonymous=anonymous)
        listener = listen(settings.host, settings.port)
    address = listener.getsockname()
    with listener:
        await run(obs, listener, lifeline=lifeline, started=lambda: _ready(f"serving on {url(*address[:2])}"))


def _refuse_public(host: str, *, anonymous: bool) -> None:
    if host not in _LOOPBACK and not anonymous:
        raise errors.ConfigurationError(
            f"serve.host is {host}, which others can reach, and this version has no API keys",
            remedy="Listen on 127.0.0.1, or say --allow-anonymous if the network is yours",
        )


DRAINED, CUT_SHORT = 0, 1
"""Exit codes of a worker that was told to stop: all in order; the deadline was over, or it was told twice."""


async def work(context: Context, options: dict[str, Any], lifeline: int | None) -> int:
    """One worker process, by its exit code. stdout has one line, when it is ready."""
    from ..worker import Worker, chosen, presence_of

    settings = context.settings(**options)
    role = presence_of(chosen(settings.worker.roles))
    # Told twice, it leaves as it stands: offsets and leases are made for workers that die.
    with stop_signal(lifeline, again=lambda: os._exit(CUT_SHORT)) as stop:
        async with context.observatory(role, **options) as obs, AsyncExitStack() as stack:
            worker = Worker(obs)
            if obs.settings.worker.health_port is not None:
                from .probes import answering

                address = await stack.enter_async_context(answering(obs, worker, stop))
                INTERNAL.info("worker answers probes on %s", url(*address))
            _ready(f"working on namespace {obs.settings.namespace}")
            while not (obs.store.joined or stop.is_set()):
                with contextlib.suppress(errors.StoreUnavailable):
                    await obs.ready(timeout=1.0)
            return DRAINED if await worker.run(stop) else CUT_SHORT


def _ready(line: str) -> None:
    print(line, flush=True)  # noqa: T201 (the one line that a starter waits for)


class Running(NamedTuple):
    """A fleet that is up, and a client on its store."""

    obs: Observatory
    fleet: Fleet


@contextlib.asynccontextmanager
async def running(
    context: Context, *, services: int, workers: int, host: str, port: int, data_dir: Path | None, log_level: str | None = None
) -> AsyncIterator[Running]:
    """Services and workers on one store, embedded unless the settings name another; all gone when it ends."""
    if data_dir is not None and context.redis_url is None:
        context.redis_url = embedded_url(data_dir)
    obs = context.observatory("up", log_level=log_level)
    async with obs:
        await obs.ready(timeout=20.0)
        where = obs.store.address
        environment = context.environment()
        if where.embedded is not None:
            environment["OBSERVATORY_REDIS_URL"] = where.shown
        if log_level is not None:
            environment["OBSERVATORY_LOG_LEVEL"] = log_level
        if "serve.drain_for" not in obs.settings.sources:
            environment["OBSERVATORY_SERVE_DRAIN_FOR"] = "0"
        fleet = Fleet(environment, obs.settings.instance)
        try:
            await fleet.start(services, workers, host, port)
            yield Running(obs, fleet)
        finally:
            await fleet.stop()
    if where.embedded is not None:
        await asyncio.to_thread(embedded.Server(where.embedded).wait_stopped, 10.0)


async def up(
    context: Context,
    *,
    services: int,
    workers: int,
    host: str | None,
    port: int | None,
    data_dir: Path | None,
    anonymous: bool,
) -> None:
    """Until Ctrl-C. host, port: None: as the settings have them."""
    listening = context.settings(serve_host=host, serve_port=port).serve
    host, port = listening.host, listening.port
    _refuse_public(host, anonymous=anonymous)
    where = data_dir.absolute() if data_dir is not None else None  # noqa: ASYNC240 (no file is touched)
    with stop_signal() as stop:
        async with running(context, services=services, workers=workers, host=host, port=port, data_dir=where) as (obs, fleet):
            OUT.print(f"store    {obs.store.address.shown}")
            for service in fleet.services:
                OUT.print(f"service  {service.url}")
            OUT.print(f"workers  {workers}")
            OUT.print(f"metrics  {fleet.services[0].url}/metrics" if fleet.services else "metrics  -")
            OUT.print("Ctrl-C stops all of it.")
            OUT.file.flush()
            await stop.wait()
            OUT.print("stopping …")


async def serve_many(context: Context, host: str | None, port: int | None, number: int, *, anonymous: bool) -> None:
    """Several processes on one listening socket; the kernel deals connections to them."""
    from ..service.server import listen

    settings = context.settings(serve_host=host, serve_port=port)
    _refuse_public(settings.serve.host, anonymous=anonymous)
    with listen(settings.serve.host, settings.serve.port) as listener:
        address = listener.getsockname()
        await _many(
            context,
            [["serve", "--fd", str(listener.fileno())]] * number,
            (listener.fileno(),),
            f"serving on {url(*address[:2])}",
        )


async def work_many(context: Context, options: dict[str, Any], number: int) -> None:
    """Several worker processes; of a port for probes each gets its own, counted up."""
    from ..worker import chosen

    settings = context.settings(**options).worker
    chosen(settings.roles)
    given = [
        *("worker", "--roles", ",".join(settings.roles), "--concurrency", str(settings.concurrency)),
        *("--drain-timeout", f"{settings.drain_timeout:g}"),
    ]
    ports = [settings.health_port + child if settings.health_port else settings.health_port for child in range(number)]
    commands = [[*given, *([] if port is None else ["--health-port", str(port)])] for port in ports]
    await _many(context, commands, (), f"{number} workers")


async def _many(context: Context, commands: list[list[str]], descriptors: tuple[int, ...], ready: str) -> None:
    fleet = Fleet(context.environment(), context.settings().instance)
    with stop_signal() as stop:
        try:
            await fleet.launch([Child(f"{command[0]} {n}", command, descriptors) for n, command in enumerate(commands, 1)])
            _ready(ready)
            await stop.wait()
        finally:
            await fleet.stop()
