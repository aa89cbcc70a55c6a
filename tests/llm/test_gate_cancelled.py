"""A call that is cancelled at its first await, at its second, … at its last; and processes that are killed with calls held."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Generator
from contextlib import suppress
from typing import Any

import httpx2
import pytest

from observatory import Limit, Observatory
from observatory.clock import monotonic
from observatory.settings import LlmSettings, Settings
from tests.conftest import Open
from tests.llm.faulty import LIMITS, Books, Faulty, faulty
from tests.llm.fleet import until
from tests.llm.guarded import KEY, PROMPT, asking, document, priced, sdk, settled, shown, still_held, stream
from tests.llm.observed import closing, total
from tests.llm.replay import provider
from tests.servers import ROOT, Server, environment


class Cancelled(Awaitable[Any]):
    """A coroutine whose task is cancelled at its nth await: while that waits, or (late) when its answer has come already, and
    the task has not heard of it."""

    def __init__(self, work: Any, at: int, *, late: bool) -> None:
        self._work = work
        self._at = at
        self._late = late
        self.reached = False

    def __await__(self) -> Generator[Any, None, Any]:
        work, task, number = self._work.__await__(), asyncio.current_task(), 0
        assert task is not None
        answer: Any = None
        error: BaseException | None = None
        while True:
            try:
                future = work.send(answer) if error is None else work.throw(error)
            except StopIteration as over:
                return over.value
            number += 1
            if number == self._at:
                self.reached = True
                if self._late and future is not None:
                    future.add_done_callback(lambda _: task.cancel())
                else:
                    task.cancel()
            answer = error = None
            try:
                answer = yield future
            except BaseException as thrown:  # into the coroutine, as the loop would
                error = thrown


@pytest.fixture
async def there() -> AsyncIterator[Faulty]:
    async with faulty() as one:
        yield one


async def cancelled(work: Any, at: int, *, late: bool) -> bool:
    """Whether there was such an await."""
    cutting = Cancelled(work, at, late=late)

    async def run() -> None:
        await cutting

    async with asyncio.timeout(15):
        task = asyncio.ensure_future(run())
        await asyncio.wait({task})
    if not task.cancelled():
        with suppress(httpx2.TransportError):
            task.result()
    return cutting.reached


@pytest.mark.parametrize("late", [False, True], ids=["waiting", "answered"])
@pytest.mark.parametrize(("fault", "streamed"), [("fine", False), ("fine", True), ("500", False), ("reset in body", True)])
async def test_at_every_await(opening: Open, there: Faulty, fault: str, streamed: bool, late: bool) -> None:
    """The books are even each time, nothing is held, the one connection is free again, and nothing runs on."""
    obs = await opening(settings=Settings(llm=LlmSettings(breaker="off")))
    obs.rate_limiter.define(*LIMITS)
    priced(obs)
    books = Books(obs, there, KEY, limits=httpx2.Limits(max_connections=1))
    at, reached = 0, True
    async with books.client:
        while reached:
            at += 1
            reached = await cancelled(books.call(fault, streamed=streamed, text=PROMPT), at, late=late)
            await books.quiet()
            began = monotonic()  # what was cancelled in the middle comes back in a moment, and not only with its lease
            while await still_held(obs) or await shown(obs, *LIMITS) != books.expected():
                assert monotonic() - began < 3.0, (at, await still_held(obs), await shown(obs, *LIMITS), books.expected())
                await asyncio.sleep(0.005)
        assert 4 < at < 200
        await books.call("fine", streamed=False, text=PROMPT)
        assert books.calls[-1].status == 200
    assert await total(obs, "observatory_active_connections", kind="llm") == 0


@pytest.mark.parametrize("late", [False, True], ids=["waiting", "answered"])
async def test_at_every_await_in_line(obs: Observatory, there: Faulty, late: bool) -> None:
    """While it stands in line for a slot that others hold: who goes away takes nothing, and keeps nobody waiting."""
    slots = Limit("one", 1, unit="slots", match="*")
    obs.rate_limiter.define(slots)
    books = Books(obs, there, KEY, wait=10)
    at, reached = 0, True
    async with books.client:
        while reached:
            at += 1
            async with obs.rate_limiter.reserve("one", {}) as held:
                work = asyncio.ensure_future(cancelled(books.call("fine", streamed=False, text=PROMPT), at, late=late))
                await asyncio.sleep(0.03)
                await held.cancel()
                reached = await work
            await books.quiet()
            began = monotonic()
            while (await shown(obs, slots))["one"]:
                assert monotonic() - began < 3.0, at
                await asyncio.sleep(0.01)
        assert 4 < at < 200


PROGRAM = """
import asyncio, sys
import openai
from observatory import Limit, Observatory

async def main():
    url, calls = sys.argv[1], int(sys.argv[2])
    async with Observatory("test") as obs:
        obs.rate_limiter.define(
            Limit("slots", 500, unit="slots", match="*"), Limit("tokens", 10**9, per="month", unit="tokens", match="*")
        )
        http = obs.llm.http_client(provider="openai", trust_env=False)
        client = openai.AsyncOpenAI(api_key="sk-1", base_url=url + "/v1", max_retries=0, http_client=http)
        async def one():
            question = [{"role": "user", "content": "x"}]
            stream = await client.chat.completions.create(model="m-1", stream=True, max_tokens=100, messages=question)
            async for _ in stream:
                print("chunk", flush=True)
        await asyncio.gather(*(one() for _ in range(calls)))

asyncio.run(main())
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_a_process_ends_with_calls_held(server: Server, opening: Open, namespace: str, how: int) -> None:
    """Killed: what it held comes back when its lease is over, also slots, and no token more is charged than was held."""
    limits = (Limit("slots", 500, unit="slots"), Limit("tokens", 10**9, per="month", unit="tokens"))
    obs = await opening()
    obs.rate_limiter.define(*limits)
    async with provider() as there:
        never = asyncio.Event()

        async def upto(number: int) -> None:
            if number > 1:
                await never.wait()

        there.gate = upto
        there.says = lambda _: stream()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", f"import observatory.llm.gate as gate; gate._LEASE = 3.0\n{PROGRAM}", there.url, "5"),
            env=environment(
                OBSERVATORY_REDIS_URL=server.url,
                OBSERVATORY_NAMESPACE=namespace,
                PYTHONPATH=str(ROOT),
                PYTHONWARNINGS="default",
            ),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            async with asyncio.timeout(60):
                assert await process.stdout.readline() == b"chunk\n"
                await until(lambda: len(there.requests) == 5, "all are under way")
                while (await shown(obs, *limits))["slots"] < 5:
                    await asyncio.sleep(0.02)
                held = await shown(obs, *limits)
                assert held["tokens"] > 500
                process.send_signal(how)
                await process.wait()
                while (await shown(obs, *limits))["slots"]:
                    await asyncio.sleep(0.05)
                after = await shown(obs, *limits)
            assert after["tokens"] == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            never.set()


async def test_the_lease_of_a_call_that_lasts(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is renewed as long as its stream is open: nobody else has its slot."""
    monkeypatch.setattr("observatory.llm.gate._LEASE", 0.6)
    obs = await opening()
    obs.rate_limiter.define(Limit("one", 1, unit="slots", match="*"))
    async with provider() as there:
        more = asyncio.Event()
        there.gate = lambda number: more.wait() if number else asyncio.sleep(0)
        there.says = lambda _: stream()
        client = sdk(obs, there)
        async with closing(client):
            answer = await asking(client, stream=True)
            until_ = monotonic() + 2.0
            while monotonic() < until_:
                assert (await obs.rate_limiter.peek("one")).remaining == 0
                await asyncio.sleep(0.1)
            more.set()
            async for _ in answer:
                pass
            await settled(obs)
            there.says = lambda _: document()
            await asking(client)
