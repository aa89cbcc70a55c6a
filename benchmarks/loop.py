"""The closed loop that every contender is driven by. The standard library alone: it also runs where nothing else is."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

Once = Callable[[int], Awaitable[bool]]
"""Do the operation once; the number tells which key. False: the answer was not the expected one."""


class BrokenContender(AssertionError):
    """It did not do what it is timed for, so its figures would say nothing."""


class Driven(NamedTuple):
    """What a drive gave. Times are in seconds; cpu is that of the process which drove."""

    latencies: list[float]
    took: float
    cpu: float


async def drive(once: Once, in_flight: int, seconds: float, *, cut: bool = False) -> Driven:
    """`in_flight` callers in a closed loop. Raises what a call raised.

    Callers stand for distinct requests, so one that was answered lets the others go before it asks again. Without that, whoever
    gives a connection back to redis-py's blocking pool takes it again at once, and those who wait starve for the whole turn.

    cut: what is not done in time is cancelled and not counted; else everybody ends the call that was begun, in time.
    """
    clock = time.perf_counter
    numbers = itertools.count()
    latencies: list[float] = []
    cpu, begun = time.process_time(), clock()
    until = begun + seconds

    async def caller() -> None:
        while (before := clock()) < until:
            if not await once(next(numbers)):
                raise BrokenContender("an answer was not the expected one")
            latencies.append(clock() - before)
            if in_flight > 1:
                await asyncio.sleep(0)

    callers = [asyncio.ensure_future(caller()) for _ in range(in_flight)]
    try:
        done, _ = await asyncio.wait(callers, timeout=seconds if cut else seconds + 30, return_when=asyncio.FIRST_EXCEPTION)
        driven = Driven(latencies.copy(), clock() - begun, time.process_time() - cpu)
        for one in done:
            one.result()
        if not cut and len(done) < in_flight:
            raise TimeoutError("calls were not answered within 30 s")
        return driven
    finally:
        for one in callers:
            one.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
