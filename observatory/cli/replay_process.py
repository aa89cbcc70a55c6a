"""One client process of a replay: asks the shared limit at each call's time, records what was admitted, keeps its own ledger.

Speaks with its starter over stdin and stdout, one JSON document a line: in comes the plan, out goes {"ready"}, in comes "go",
out go {"done": n} and at the end {"ledger": {…}}.
"""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Protocol

import msgspec

from ..client import Observatory
from ..envelope import new_id
from ..errors import ObservatoryError, StoreUnavailable
from ..features.rate_limiter import Limit
from ..llm import Usage
from ..llm.call import LLM_CALL
from ..settings import Settings
from .http import ServiceClient
from .trace import TracedCall

PROVIDER = "replay"
MAX_OPEN = 512
"""Calls under way at once; a process that falls behind its trace waits here instead of growing."""


class Plan(msgspec.Struct, frozen=True):
    """What one process is to do. services: URLs to ask through; none: the library, on redis_url."""

    run: str
    calls: tuple[TracedCall, ...]
    speed: float
    tokens_per_minute: int
    burst: int
    services: tuple[str, ...]
    redis_url: str | None
    namespace: str
    config: str | None

    @property
    def limit(self) -> Limit:
        return Limit(f"replay-{self.run}", self.tokens_per_minute, per="1m", burst=self.burst, unit="tokens")


class Ledger(msgspec.Struct):
    """What one process was told, and what it recorded."""

    calls: int = 0
    admitted: int = 0
    refused: int = 0
    unknown: int = 0
    """Calls that nobody answered, after several tries: not admitted, though their tokens may have been taken."""
    lost_replies: int = 0
    """Answers that did not come; the question was asked again, so its cost may have been taken twice."""
    input_tokens: int = 0
    output_tokens: int = 0

    def plus(self, other: "Ledger") -> "Ledger":
        return Ledger(*(getattr(self, field) + getattr(other, field) for field in self.__struct_fields__))


class Door(Protocol):
    """How a process reaches the fleet."""

    async def admit(self, call: TracedCall, ledger: Ledger) -> bool | None: ...
    def record(self, call: TracedCall, latency: float, *, admitted: bool) -> None: ...
    async def finish(self) -> None: ...


class Library:
    """Through the client library."""

    def __init__(self, obs: Observatory, plan: Plan) -> None:
        self._obs = obs
        self._plan = plan
        self._limit = plan.limit

    async def admit(self, call: TracedCall, ledger: Ledger) -> bool | None:
        try:
            return bool(await self._obs.rate_limiter.check(self._limit, None, call.input_tokens + call.output_tokens))
        except StoreUnavailable:
            ledger.lost_replies += 1
            return None

    def record(self, call: TracedCall, latency: float, *, admitted: bool) -> None:
        if admitted:
            usage = Usage(call.input_tokens, call.output_tokens)
            self._obs.record_request(PROVIDER, self._plan.run, latency=latency, tokens=usage)

    async def finish(self) -> None:
        await self._obs.flush()


class Http:
    """Through service instances."""

    BATCH = 100

    def __init__(self, client: ServiceClient, plan: Plan) -> None:
        self._client = client
        self._plan = plan
        self._limit = msgspec.to_builtins(plan.limit)
        self._events: list[dict[str, Any]] = []
        self._posting: asyncio.Task[None] | None = None

    async def admit(self, call: TracedCall, ledger: Ledger) -> bool | None:
        def lost() -> None:
            ledger.lost_replies += 1

        body = {"limit": self._limit, "cost": call.input_tokens + call.output_tokens}
        try:
            answer = await self._client.ask("POST", "/v1/rate_limiter/check", body=body, lost=lost)
        except StoreUnavailable:
            return None
        return bool(answer["allowed"])

    def record(self, call: TracedCall, latency: float, *, admitted: bool) -> None:
        event: dict[str, Any] = {"id": new_id(), "type": LLM_CALL, "provider": PROVIDER, "model": self._plan.run}
        if admitted:
            event["usage"] = {"input_tokens": call.input_tokens, "output_tokens": call.output_tokens}
            event["latency"] = latency
        else:
            event["status"] = "refused"
        self._events.append(event)
        if len(self._events) >= self.BATCH and (self._posting is None or self._posting.done()):
            self._posting = asyncio.create_task(self._deliver())

    async def _deliver(self) -> None:
        """The ids make it safe to hand the same events in again, to whichever instance."""
        while self._events:
            batch = self._events[: self.BATCH]
            await self._client.ask("POST", "/v1/events", body=batch)
            del self._events[: len(batch)]

    async def finish(self) -> None:
        if self._posting is not None:
            await asyncio.gather(self._posting, return_exceptions=True)
        await self._deliver()


async def replay(plan: Plan, door: Door, tell: Callable[[dict[str, Any]], None]) -> Ledger:
    """Each call at its time; a process that is late goes on as fast as it may."""
    ledger = Ledger()
    room = asyncio.Semaphore(MAX_OPEN)
    began = time.monotonic()
    told = began

    async def one(call: TracedCall) -> None:
        asked = time.perf_counter()
        try:
            admitted = await door.admit(call, ledger)
        finally:
            room.release()
        ledger.calls += 1
        if admitted is None:
            ledger.unknown += 1
            return
        if admitted:
            ledger.admitted += 1
            ledger.input_tokens += call.input_tokens
            ledger.output_tokens += call.output_tokens
        else:
            ledger.refused += 1
        door.record(call, time.perf_counter() - asked, admitted=admitted)

    async with asyncio.TaskGroup() as group:
        for call in plan.calls:
            due = began + call.at / plan.speed
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            await room.acquire()
            group.create_task(one(call))
            if time.monotonic() - told > 0.25:
                told = time.monotonic()
                tell({"done": ledger.calls})
    await door.finish()
    return ledger


def tell(message: dict[str, Any]) -> None:
    try:
        sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        os._exit(1)  # the starter is gone, and with it whoever would want to know more


@contextlib.asynccontextmanager
async def _starter() -> AsyncIterator[None]:
    """After the starter has said "go", and no longer than it lives: nobody else would want to know what this found."""
    line = await asyncio.to_thread(sys.stdin.buffer.readline)
    loop, task, descriptor = asyncio.get_running_loop(), asyncio.current_task(), sys.stdin.fileno()
    if not line or task is None:
        raise StoreUnavailable("the starter is gone")

    def gone() -> None:
        # Nothing more is ever written, so readable means that the other end is closed.
        loop.remove_reader(descriptor)
        task.cancel()

    loop.add_reader(descriptor, gone)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)


async def through_library(plan: Plan) -> Ledger:
    settings = Settings.load(plan.config, redis_url=plan.redis_url, namespace=plan.namespace, log_level="warning")
    if settings.instance is not None:
        settings = settings.replace(instance=f"{settings.instance}-replay-{os.getpid()}")
    async with Observatory("replay", settings=settings) as obs:
        await obs.ready()
        tell({"ready": True})
        async with _starter():
            return await replay(plan, Library(obs, plan), tell)


async def through_services(plan: Plan) -> Ledger:
    async with ServiceClient(plan.services) as client:
        tell({"ready": True})
        async with _starter():
            return await replay(plan, Http(client, plan), tell)


def main() -> int:
    plan = msgspec.json.decode(sys.stdin.buffer.readline(), type=Plan)
    work: Coroutine[Any, Any, Ledger] = through_services(plan) if plan.services else through_library(plan)
    try:
        ledger = asyncio.run(work)
    except ObservatoryError as error:
        sys.stderr.write(f"replay: {error}\n")
        return 3
    except asyncio.CancelledError:
        sys.stderr.write("replay: the starter is gone\n")
        return 1
    tell({"ledger": msgspec.to_builtins(ledger)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
