"""Events as strangers would hand them in, and what tests wait for."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from observatory import Observatory
from observatory.envelope import Envelope, encoded, new_id, packed
from observatory.llm import CallData, Usage
from observatory.worker import Worker


def call(model: str = "m", *, counted: bool = False, at_us: int = 0) -> tuple[str, bytes]:
    """A call with 15 tokens in all."""
    data = CallData("openai", model, latency=0.5, usage=Usage(10, 5))
    return new_id(), encoded(Envelope("llm_call", at_us, packed(data), counted=counted))


async def until(fact: Callable[[], object], description: str, within: float = 15.0) -> None:
    """Wait for a fact, not for time."""
    try:
        async with asyncio.timeout(within):
            while not fact():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"after {within:g} s still not: {description}") from None


async def settled(obs: Observatory, accepted: int, within: float = 20.0) -> dict[str, int]:
    """Wait until nothing waits on the streams."""
    async with asyncio.timeout(within):
        while True:
            found = await obs.events.lag()
            if found["accepted"] >= accepted and found["waiting"] == 0:
                return found
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def working(*workers: Worker) -> AsyncIterator[None]:
    stop = asyncio.Event()
    tasks = [asyncio.create_task(worker.run(stop)) for worker in workers]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*tasks)
