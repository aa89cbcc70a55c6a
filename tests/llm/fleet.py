"""Processes that ask the same provider, and a provider that says only as much as it is let."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

from observatory.clock import monotonic
from tests.llm.provider import Provider
from tests.servers import ROOT, environment

PROGRAM = """
import asyncio, hashlib, json, sys
import httpx
from observatory import AnswerCache, AnswerInterrupted, Observatory
from observatory.llm.answers import Answers
from tests.llm.provider import Client, question

async def one(client, stream):
    digest, size = hashlib.sha256(), 0
    reply = await client.ask(question(stream=stream))
    outcome = reply.cached
    try:
        async for chunk in reply:
            digest.update(chunk)
            size += len(chunk)
            print("chunk", flush=True)
    except AnswerInterrupted:
        outcome = "interrupted"
    finally:
        await reply.aclose()
    return [outcome, digest.hexdigest(), size]

async def main():
    url, tasks, stream = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "stream"
    async with Observatory("test") as obs, httpx.AsyncClient(trust_env=False, timeout=60) as http:
        client = Client(Answers(obs, AnswerCache()), url, http)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        found = await asyncio.gather(*(one(client, stream) for _ in range(tasks)))
        await client.settled()
        print(json.dumps(found), flush=True)

asyncio.run(main())
"""


class Member:
    """Another process that asks."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self._reading: asyncio.Task[None] | None = None

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            self.lines.append(line.decode().strip())

    async def start(self) -> None:
        self._reading = asyncio.ensure_future(self._read())
        await until(lambda: "ready" in self.lines, "it is open", 60.0)

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"go\n")

    @property
    def chunks(self) -> int:
        return self.lines.count("chunk")

    async def found(self) -> list[list[Any]]:
        """Of each task: how it was served, and a digest of the bytes."""
        async with asyncio.timeout(60):
            assert await self.process.wait() == 0
            assert self._reading is not None
            await self._reading
        found: list[list[Any]] = json.loads(self.lines[-1])
        return found


async def until(fact: Callable[[], object], what: str, timeout: float = 15.0) -> None:
    deadline = monotonic() + timeout
    while not fact():
        assert monotonic() < deadline, f"after {timeout:g} s still not: {what}"
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def fleet(
    url: str, namespace: str, provider: str, size: int, tasks: int, kind: str = "stream"
) -> AsyncIterator[list[Member]]:
    env = environment(OBSERVATORY_REDIS_URL=url, OBSERVATORY_NAMESPACE=namespace, PYTHONPATH=str(ROOT))
    members = []
    try:
        for _ in range(size):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", PROGRAM, provider, str(tasks), kind),
                env=env,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            members.append(Member(process))
        await asyncio.gather(*(member.start() for member in members))
        yield members
    finally:
        for member in members:
            if member.process.returncode is None:
                member.process.kill()
                await member.process.wait()


class Gate:
    """Chunks go as far as it is open."""

    def __init__(self, there: Provider, upto: int) -> None:
        self._upto = upto
        self._changed = asyncio.Condition()
        there.gate = self._pass

    async def _pass(self, number: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: number < self._upto)

    async def open(self, upto: int = 10**9) -> None:
        async with self._changed:
            self._upto = upto
            self._changed.notify_all()


def said(there: Provider, call: int) -> bytes:
    return b"".join(there.says(there.asked[call - 1], call).chunks)


async def rest_of(stream: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in stream])
