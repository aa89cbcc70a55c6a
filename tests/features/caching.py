"""What the tests of caches share: computations, other processes, and waiting for what another process does."""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from observatory import Cache
from observatory.settings import Settings
from tests.servers import ROOT, environment

FAR = Settings().replace(cache_near="off")
"""What one process writes the other reads at once."""


def counting(value: Any, pause: float = 0.0, calls: list[int] | None = None) -> Callable[[], Awaitable[Any]]:
    """A computation, and a list that grows with each."""

    async def compute() -> Any:
        if calls is not None:
            calls.append(1)
        await asyncio.sleep(pause)
        return value

    return compute


async def until(true: Callable[[], Awaitable[bool]], what: str, within: float = 5.0) -> None:
    async with asyncio.timeout(within):
        while not await true():
            await asyncio.sleep(0.005)


async def warm(cache: Cache[Any], *keys: str) -> None:
    """They are kept near when it returns."""

    async def near() -> bool:
        found = await cache.get_many(keys)
        assert len(found) == len(keys)
        before = (await cache.stats(fleet=False)).near_hits
        await cache.get_many(keys)
        return (await cache.stats(fleet=False)).near_hits == before + len(keys)

    await until(near, "near")


async def heard(cache: Cache[Any], key: str, value: Any) -> None:
    async def is_it() -> bool:
        return bool(await cache.get(key) == value)

    await until(is_it, f"{key} is {value}")


class Processes:
    """Each runs a program, says "ready", and waits for a line. log: what they write into."""

    def __init__(self, program: str, *given: object, url: str, namespace: str, log: Path, size: int) -> None:
        self.log = log
        log.touch()
        # Patient with a busy machine: who gives the store up computes for himself, and that is not what is asked here.
        patient = environment(OBSERVATORY_REDIS_MAX_WAIT="5", PYTHONPATH=str(ROOT))
        env = {**patient, "OBSERVATORY_REDIS_URL": url, "OBSERVATORY_NAMESPACE": namespace}
        self.members = [
            subprocess.Popen(
                [sys.executable, "-c", program, str(log), *map(str, given)],
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(size)
        ]
        for member in self.members:
            assert member.stdout is not None
            assert member.stdout.readline() == "ready\n"

    def start(self, *numbers: int, line: str = "go") -> None:
        """All of them, or some."""
        for number in numbers or range(len(self.members)):
            stdin = self.members[number].stdin
            assert stdin is not None
            stdin.write(f"{line}\n")
            stdin.flush()
