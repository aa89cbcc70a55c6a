"""Contenders in a process of their own, driven there by the same loop: JSON lines over pipes. Only the standard library.

The child is a module that ends with `asyncio.run(serve(opened(url)))`. It lives until its standard input is closed.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from .loop import BrokenContender, Driven, Once, drive

ROOT = Path(__file__).resolve().parent.parent
_LONGEST_LINE = 2**28


class Served(NamedTuple):
    """What a child has to offer. pick: the operation for so many distinct keys; verify raises BrokenContender."""

    pick: Callable[[int], Once]
    verify: Callable[[], Awaitable[None]]


async def serve(opened: AbstractAsyncContextManager[Served]) -> None:
    """In the child: do what is asked, line by line."""
    loop = asyncio.get_running_loop()

    async def ask(given: Mapping[str, Any]) -> dict[str, Any]:
        if given["do"] == "verify":
            await served.verify()
            return {}
        await asyncio.sleep(max(given["start_at"] - time.monotonic(), 0))
        once = served.pick(given["keys"])
        if given["do"] == "fill":
            await _fill(once, given["keys"])
            return {}
        driven = await drive(once, given["in_flight"], given["seconds"], cut=given["cut"])
        return {"latencies": [round(one, 6) for one in driven.latencies], "took": driven.took, "cpu": driven.cpu}

    async with opened as served:
        print(json.dumps({}), flush=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            try:
                said = await ask(json.loads(line))
            except Exception as error:
                said = {"fault": f"{type(error).__name__}: {error}"}
            print(json.dumps(said), flush=True)


async def _fill(once: Once, keys: int) -> None:
    """Every key once."""
    for first in range(0, keys, 1000):
        await asyncio.gather(*[once(number) for number in range(first, min(first + 1000, keys))])


class Elsewhere:
    """In the parent: a child, which drives itself."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, do: str, **given: Any) -> Any:
        """BrokenContender tells why it could not."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps({"do": do, **given}).encode() + b"\n")
        return self._heard(await stdout.readline())

    @staticmethod
    def _heard(line: bytes) -> Any:
        if not line:
            raise BrokenContender("its process ended")
        said = json.loads(line)
        if "fault" in said:
            raise BrokenContender(said["fault"])
        return said

    async def drive(self, in_flight: int, seconds: float, *, cut: bool = False, keys: int = 1, start_at: float = 0.0) -> Driven:
        """As `loop.drive`, over there."""
        said = await self.ask("drive", in_flight=in_flight, seconds=seconds, cut=cut, keys=keys, start_at=start_at)
        return Driven(said["latencies"], said["took"], said["cpu"])

    async def ready(self) -> None:
        """Until it is open."""
        stdout = self._process.stdout
        assert stdout is not None
        self._heard(await stdout.readline())


@asynccontextmanager
async def elsewhere(module: str, *arguments: str, python: str = sys.executable, loud: bool = True) -> AsyncIterator[Elsewhere]:
    """Run `python -m benchmarks.<module> arguments`. loud: what it says on standard error is shown."""
    command: Sequence[str] = [python, "-m", f"benchmarks.{module}", *arguments]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=None if loud else asyncio.subprocess.DEVNULL,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.fspath(ROOT) + os.pathsep + os.environ.get("PYTHONPATH", "")},
        limit=_LONGEST_LINE,
    )
    try:
        child = Elsewhere(process)
        async with asyncio.timeout(30):
            await child.ready()
        yield child
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
