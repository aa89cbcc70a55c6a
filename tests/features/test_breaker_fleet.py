"""Breakers and pauses of real processes that call one provider: how soon all know, who tries, and who dies trying."""

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.features.test_breaker import until
from tests.servers import ROOT, Server, environment, process

PROGRAM = """
import asyncio, json, os, sys, time
from observatory import CircuitOpen, Observatory

PLACE = sys.argv[1]

async def call(state):
    reader, writer = await asyncio.open_unix_connection(PLACE)
    try:
        writer.write(f"{os.getpid()} {state}\\n".encode())
        if await reader.read(10) != b"ok":
            raise ConnectionError("refused")
    finally:
        writer.close()

async def main():
    async with Observatory("test") as obs:
        breaker = obs.breaker("p")
        state = None
        async def use():
            while True:
                try:
                    async with breaker:
                        await call(breaker.state)
                except (CircuitOpen, OSError):
                    pass
                await asyncio.sleep(0.005)
        callers = [asyncio.create_task(use()) for _ in range(3)]
        print(json.dumps({"at": time.monotonic(), "says": "ready"}), flush=True)
        while True:
            paused = obs.pauses.left("openai", "gpt", "sk-secret") > 0
            now = "paused" if paused else breaker.state
            if now == "half_open":
                now = "open"
            if now != state:
                state = now
                print(json.dumps({"at": time.monotonic(), "says": state}), flush=True)
            await asyncio.sleep(0.002)

asyncio.run(main())
"""
OPEN_FOR = 1.0
CONFIG = f"""
[breakers.p]
min_calls = 10
consecutive = 5
window = 60
open_for = {OPEN_FOR}
"""


class Provider:
    """What everybody calls: fine, failing, or never answering who tries; it knows when it was called, and by whom."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_fine = True
        self.hangs = False
        self.calls: list[float] = []
        self.prober = 0
        self.probes: list[float] = []
        """Calls that were let through a breaker which was not closed."""
        self.hanging: list[asyncio.StreamWriter] = []
        self.serving: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.serving[task] = writer
        try:
            with suppress(ConnectionError):
                said = (await reader.readline()).decode().split()
                if not said:
                    return
                self.calls.append(time.monotonic())
                tries = said[1] != "closed"
                if tries:
                    self.probes.append(self.calls[-1])
                    self.prober = int(said[0])
                if self.hangs and tries:
                    self.hanging.append(writer)
                    await reader.read(1)
                elif self.is_fine:
                    writer.write(b"ok")
                writer.close()
                await writer.wait_closed()
        finally:
            writer.transport.abort()
            self.serving.pop(task)


@asynccontextmanager
async def provider(path: Path) -> AsyncIterator[Provider]:
    one = Provider(path)
    listener = await asyncio.start_unix_server(one.serve, str(path))
    try:
        yield one
    finally:
        listener.close()
        for writer in one.serving.values():
            writer.transport.abort()
        await asyncio.gather(*one.serving, return_exceptions=True)


class Member:
    """A process; what it says is read as it comes."""

    def __init__(self, running: subprocess.Popen[str]) -> None:
        self.running = running
        self.said: list[dict[str, Any]] = []
        self._reading = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        assert self.running.stdout is not None
        while line := await asyncio.to_thread(self.running.stdout.readline):
            self.said.append(json.loads(line))

    def since(self, began: float, says: str) -> float | None:
        """When it first said so after a moment."""
        return next((one["at"] for one in self.said if one["at"] >= began and one["says"] == says), None)

    @property
    def state(self) -> str:
        return str(self.said[-1]["says"]) if self.said else ""


@contextmanager
def fleet(size: int, server: Server, namespace: str, place: Path, tmp_path: Path) -> Iterator[list[Member]]:
    config = tmp_path / "breakers.toml"
    config.write_text(CONFIG)
    env = {
        **environment(PYTHONPATH=str(ROOT), OBSERVATORY_CONFIG=str(config), OBSERVATORY_REDIS_MAX_WAIT="2"),
        "OBSERVATORY_REDIS_URL": server.url,
        "OBSERVATORY_NAMESPACE": namespace,
    }
    with ExitStack() as stack:
        yield [Member(stack.enter_context(process(["-c", PROGRAM, str(place)], env))) for _ in range(size)]


async def all_say(members: list[Member], says: str, timeout: float = 20.0) -> None:
    began = time.monotonic()
    while not all(member.state == says for member in members):
        assert time.monotonic() - began < timeout, [member.said[-3:] for member in members]
        await asyncio.sleep(0.005)


async def test_six_processes_are_one(server: Server, namespace: str, tmp_path: Path, obs: Any) -> None:
    """Open everywhere within a second of the first; one call per opening while it fails; closed everywhere within a second."""
    async with provider(tmp_path / "p") as there:
        with fleet(6, server, namespace, there.path, tmp_path) as members:
            await all_say(members, "closed")
            there.is_fine = False
            down_at = time.monotonic()
            await all_say(members, "open")
            known = [at for member in members if (at := member.since(down_at, "open")) is not None]
            assert max(known) - min(known) < 1.0
            tried = len(there.probes)
            await until(lambda: len(there.probes) >= tried + 3, "somebody tries, again and again", timeout=20)
            gaps = [after - before for before, after in pairwise(there.probes)]
            assert min(gaps) >= OPEN_FOR, gaps
            there.is_fine = True
            up_at = time.monotonic()
            await all_say(members, "closed")
            known = [at for member in members if (at := member.since(up_at, "closed")) is not None]
            assert max(known) - min(known) < 1.0

            # A pause that one process was told of.
            began = time.monotonic()
            await obs.pauses.begin("openai", "gpt", "sk-secret", seconds=20)
            await all_say(members, "paused")
            known = [at for member in members if (at := member.since(began, "paused")) is not None]
            assert max(known) - began < 1.0
            await obs.pauses.end("openai", "gpt", "sk-secret")
            await all_say(members, "closed")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=lambda how: how.name)
async def test_who_tries_falls_silent(server: Server, namespace: str, tmp_path: Path, how: signal.Signals) -> None:
    """In the middle of its probe: after the lease, and not before, another one tries. Who wakes up then, with bad news of long
    ago, changes nothing."""
    async with provider(tmp_path / "p") as there:
        with fleet(3, server, namespace, there.path, tmp_path) as members:
            await all_say(members, "closed")
            there.is_fine = False
            await all_say(members, "open")
            there.hangs = True
            await until(lambda: there.hanging, "somebody tries")
            began, tried, prober = there.probes[-1], len(there.probes), there.prober
            os.kill(prober, how)
            there.hangs, there.is_fine = False, True
            others = [member for member in members if member.running.pid != prober]
            await all_say(others, "closed")
            assert there.probes[tried] - began > OPEN_FOR * 0.9, "not before the lease was over"
            if how == signal.SIGSTOP:
                woken = next(member for member in members if member.running.pid == prober)
                for writer in there.hanging:
                    writer.close()
                woken_at = time.monotonic()
                os.kill(prober, signal.SIGCONT)
                await until(lambda: woken.state == "closed", "it hears how things are")
                calls = len(there.calls)
                await until(lambda: len(there.calls) > calls + 50, "all go on")
                assert not [member for member in others if member.since(woken_at, "open")]
