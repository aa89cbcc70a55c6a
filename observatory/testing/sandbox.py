"""`sandbox`: an application's own Observatory, opened on the machine's embedded server, in a namespace that ends with it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakSet

from ..client import Observatory
from ..errors import InvalidArgument
from ..llm import Call
from ..llm.collecting import Block
from ..logs.pen import Pen
from ..names import Metric
from ..settings import Settings
from ..staging import Stage
from ..store.bare import bare
from . import machine
from .between import Between
from .clock import FrozenClock, Impatient
from .errors import LeakedKeys, SandboxError
from .hearing import LEVEL, Hears
from .machine import MACHINE
from .provider import Provided, Providers

T = TypeVar("T")

_in_use: "WeakSet[Observatory]" = WeakSet()
_PATIENCE = {"max_wait": 5.0, "connect_timeout": 10.0, "socket_timeout": 10.0}
_BACK = 10.0
"""Seconds for which a store that is back is waited for."""


class Sandbox:
    """What a test has of its sandbox. obs: yours, open. logs: what obs.logger and Observatory itself say, in order, as what
    would be their JSON. calls: the LLM calls that have finished, of all clients of obs and all tasks."""

    def __init__(
        self, obs: Observatory, settings: Settings, clock: FrozenClock | Impatient, provided: Provided, between: Between
    ) -> None:
        self.obs = obs
        self.namespace = settings.namespace
        self.url = settings.redis.url or ""
        self.logs: list[dict[str, Any]] = []
        self._block = Block()
        self._settings = settings
        self._clock = clock
        self._provided = provided
        self._between = between
        self._replicas: list[Observatory] = []
        self._failures: list[SandboxError] = []

    @property
    def calls(self) -> list[Call]:
        return self._block.calls

    @property
    def clock(self) -> FrozenClock:
        """The one that was given. InvalidArgument: none was."""
        if not isinstance(self._clock, FrozenClock):
            raise InvalidArgument("time runs in this sandbox", remedy="sandbox(obs, clock=FrozenClock())")
        return self._clock

    async def settle(self) -> None:
        """What was counted so far is told, and what the fleet says of breakers and pauses is heard: here, and in the other
        processes of this sandbox. StoreUnavailable while the store is away."""
        everybody = (self.obs, *self._replicas)
        for one in everybody:
            await one.told()
            await one.flush()
        for one in everybody:
            await one.breakers.look()

    async def total(self, metric: Metric | str, **labels: str) -> float:
        """What the fleet has counted since the sandbox began; flushed first. 0.0 where nothing was."""
        await self.settle()
        found = await self.obs.metrics.query(metric, "total", where=labels)
        return found.value or 0.0

    @asynccontextmanager
    async def other_process(self) -> AsyncIterator[Observatory]:
        """A second Observatory on the same store, with the limits that code has defined on obs: another replica."""
        replica = Observatory(self._settings.service_name, settings=self._settings)
        replica.rate_limiter.define(*self.obs.rate_limiter.declared)
        stage = Stage(self._provided, Block(), lambda said: None)
        with replica.staged(self._settings, self._clock, stage):
            async with replica:
                self._replicas.append(replica)
                try:
                    yield replica
                finally:
                    self._replicas.remove(replica)

    async def redis_down(self) -> None:
        """The store is away, for this sandbox alone."""
        await self._between.down()

    async def redis_up(self) -> None:
        """It is back, and every process of this sandbox has reached it."""
        await self._between.up()
        for one in (self.obs, *self._replicas):
            await one.store.connected(_BACK)


@asynccontextmanager
async def sandbox(
    obs: Observatory,
    *,
    clock: FrozenClock | None = None,
    provider: Providers | None = None,
    settings: Mapping[str, Any] | None = None,
) -> AsyncIterator[Sandbox]:
    """YOUR Observatory, open on one embedded server per machine, in a namespace of its own.

    clock: time stands still until it is advanced; without one it runs, and retries do not wait. provider: who answers every
    client of obs.llm.http_client() and transport(); None: a call to a provider fails the test. settings: as observatory.toml
    has them; neither that file nor the environment is read. Limits that code has defined stay.

    At the end keys without a TTL fail the test (LeakedKeys), the namespace is removed, and obs is as it was. What the test
    itself raises comes first. InvalidArgument: obs is open, or in a sandbox. ConfigurationError: `embedded` is not installed.
    """
    if clock is not None and not isinstance(clock, FrozenClock):
        raise InvalidArgument(f"clock must be a FrozenClock, got {clock!r:.80}")
    if obs in _in_use:
        raise InvalidArgument(
            "this Observatory is in a sandbox already", remedy="One at a time; box.other_process() is a second one on its store"
        )
    if obs.is_open:
        raise InvalidArgument("this Observatory is open already", remedy="Let the sandbox open it")
    moved: FrozenClock | Impatient = Impatient() if clock is None else clock
    provided = Provided(provider, moved.sleep)
    given = Settings.of(_patient(settings or {}))
    _in_use.add(obs)
    try:
        async with _place(obs, given) as (socket, placed, between):
            box = Sandbox(obs, placed, moved, provided, between)
            stage = Stage(provided, box._block, lambda said: box.logs.append(dict(said)))  # noqa: SLF001
            async with AsyncExitStack() as stack:
                stack.callback(_advancing(box, socket))
                stack.enter_context(obs.staged(placed, moved, stage))
                stack.callback(_heard_by(obs.logger.pen, box))
                await obs.open()
                stack.push_async_callback(_through, obs.aclose)
                stack.push_async_callback(between.up)
                yield box
        failures = [*provided.unexpected, *box._failures]  # noqa: SLF001
        if failures:
            raise failures[0]  # also where somebody has caught it, or an SDK has made another error of it
    finally:
        _in_use.discard(obs)


@asynccontextmanager
async def _place(obs: Observatory, given: Settings) -> AsyncIterator[tuple[Path, Settings, Between]]:
    """A namespace that ends, found without leaks unless the test has failed already."""
    socket = await asyncio.to_thread(MACHINE.socket)
    namespace = MACHINE.namespace()
    between = Between(socket, MACHINE.place(namespace))
    name = obs.given_name or given.service_name
    placed = given.replace(service_name=name, redis_url=f"unix://{between.path}", namespace=namespace)
    leaks: list[str] = []

    async def ended() -> None:
        await between.down()
        await asyncio.to_thread(_removed, socket, namespace)

    try:
        await _through(between.up)
        yield socket, placed, between
        leaks = await asyncio.to_thread(_leaked, socket, namespace)
    finally:
        await _through(ended)  # in one: a cancellation in its middle must not keep the rest from being done
    if leaks:
        raise LeakedKeys(f"keys without a TTL: {', '.join(leaks)}", remedy="Give each an end: EX, PX or EXPIRE")


def _patient(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """A machine that is busy with tests is no outage; one that was asked for is seen at once."""
    redis = settings.get("redis", {})
    return {**settings, "redis": {**_PATIENCE, **redis}} if isinstance(redis, Mapping) else settings


async def _through(work: Callable[[], Awaitable[T]]) -> None:
    """To its end, also when the caller is cancelled meanwhile, who hears of it afterwards."""
    task = asyncio.ensure_future(work())
    cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
        except Exception:  # noqa: S112 (it is the task's, and told below)
            continue
    if cancelled:
        with suppress(Exception):
            task.result()
        raise asyncio.CancelledError
    task.result()


def _leaked(socket: Path, namespace: str) -> list[str]:
    with bare(socket) as server:
        return machine.leaked(server, namespace)


def _removed(socket: Path, namespace: str) -> None:
    with bare(socket) as server:
        machine.removed(server, namespace)


def _advancing(box: Sandbox, socket: Path) -> Callable[[], None]:
    """Entries of caches live in real time: as the clock is moved they grow older by as much, and what is near is read anew."""
    if not isinstance(clock := box._clock, FrozenClock):  # noqa: SLF001
        return lambda: None

    def older(seconds: float) -> None:
        with bare(socket) as server:
            machine.aged(server, box.namespace, seconds)
        for one in (box.obs, *box._replicas):  # noqa: SLF001
            one.caches.drop()

    complain = box._failures.append  # noqa: SLF001
    clock.listeners.append(older)
    clock.complaints.append(complain)

    def over() -> None:
        clock.listeners.remove(older)
        clock.complaints.remove(complain)

    return over


def _heard_by(pen: Pen, box: Sandbox) -> Callable[[], None]:
    hearer = Hears(pen, lambda: (box.obs, *box._replicas), box.logs.append)  # noqa: SLF001
    LEVEL.begin(hearer)
    return lambda: LEVEL.end(hearer)
