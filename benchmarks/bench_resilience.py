"""What a call costs more with a closed breaker or a retry policy around it: ours beside the peers, over the bare call.

python -m benchmarks.bench_resilience [--rounds 7] [--seconds 0.2] [--quick] [--write]
"""

import asyncio
import importlib
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from statistics import median
from typing import Any

from observatory import CircuitOpen, Observatory
from observatory.settings import BreakerSettings, Settings

from .contest import Server, reason
from .harness import Benchmark, Plan, Study, main, reached, spread

BATCH = 200
Loop = Callable[[int], Awaitable[None]]
"""Makes so many calls, one after the other."""


async def work(value: int) -> int:
    return value


def looped(call: Callable[[int], Awaitable[int]]) -> Loop:
    async def loop(times: int) -> None:
        for number in range(times):
            if await call(number) != number:
                raise AssertionError("not what was asked for")

    return loop


async def _observatory(server: Server, stack: AsyncExitStack, **breakers: BreakerSettings) -> Observatory:
    settings = Settings(breakers=breakers)
    return await stack.enter_async_context(
        Observatory("bench", redis_url=server.tcp_url, namespace="bench-resilience", settings=settings)
    )


def _within(breaker: Any) -> Loop:
    async def loop(times: int) -> None:
        for number in range(times):
            async with breaker:
                if await work(number) != number:
                    raise AssertionError("not what was asked for")

    return loop


async def _breakers(server: Server, stack: AsyncExitStack) -> dict[str, Loop]:
    obs = await _observatory(server, stack, timed=BreakerSettings(slow_after=10))
    plain, timed = obs.breaker("plain"), obs.breaker("timed")
    found = {
        "observatory, execute": looped(lambda number: plain.execute(work, number)),
        "observatory, decorator": looped(plain(work)),
        "observatory, async with": _within(plain),
        "observatory, async with, slow_after": _within(timed),
    }
    for name, made in (("purgatory", _purgatory), ("aiobreaker", _aiobreaker), ("pybreaker", _pybreaker)):
        try:
            found[name] = await made()
        except ImportError:
            continue
    return found


async def _purgatory() -> Loop:
    purgatory = importlib.import_module("purgatory")
    breaker = await purgatory.AsyncCircuitBreakerFactory(default_threshold=5, default_ttl=30).get_breaker("bench")
    return _within(breaker)


async def _aiobreaker() -> Loop:
    aiobreaker = importlib.import_module("aiobreaker")
    breaker = aiobreaker.CircuitBreaker(fail_max=5, timeout_duration=timedelta(seconds=30))
    return looped(lambda number: breaker.call_async(work, number))


async def _pybreaker() -> Loop:
    breaker: Any = importlib.import_module("pybreaker").CircuitBreaker(fail_max=5, reset_timeout=30)

    async def loop(times: int) -> None:
        # Its own way for coroutines needs tornado: this is the blocking one, around a function that is none.
        for number in range(times):
            if breaker.call(int, number) != number or await work(number) != number:
                raise AssertionError("not what was asked for")

    return loop


async def _retries(server: Server, stack: AsyncExitStack) -> dict[str, Loop]:
    obs = await _observatory(server, stack)
    policy = obs.retry(name="bench")
    endless = policy(timeout=None)

    async def blocks(times: int) -> None:
        for number in range(times):
            async for attempt in policy:
                with attempt:
                    if await work(number) != number:
                        raise AssertionError("not what was asked for")

    found = {
        "observatory, execute": looped(lambda number: policy.execute(work, number)),
        "observatory, execute, no deadline": looped(lambda number: endless.execute(work, number)),
        "observatory, decorator": looped(policy(work)),
        "observatory, async for": blocks,
    }
    tenacity = importlib.import_module("tenacity")
    found["tenacity"] = looped(tenacity.retry(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(1))(work))
    try:
        stamina = importlib.import_module("stamina")
    except ImportError:
        return found
    found["stamina"] = looped(stamina.retry(on=OSError, attempts=3, timeout=30)(work))
    return found


async def _over_the_bare_call(loops: dict[str, Loop], plan: Plan) -> dict[str, list[float]]:
    """Nanoseconds of one call more than the bare one, by round; the least of its batches, taken in turns."""
    bare = looped(work)
    costs: dict[str, list[float]] = {name: [] for name in loops}

    async def once(loop: Loop) -> float:
        began = time.perf_counter_ns()
        await loop(BATCH)
        return (time.perf_counter_ns() - began) / BATCH

    for _ in range(plan.rounds):
        best: dict[str, float] = {}
        until = time.perf_counter() + plan.turn * plan.turns * (len(loops) + 1)
        while time.perf_counter() < until or not best:
            for name, loop in (("", bare), *loops.items()):
                best[name] = min(best.get(name, 1e12), await once(loop))
        for name, found in costs.items():
            found.append(best[name] - best[""])
    return costs


def _table(costs: dict[str, list[float]]) -> list[str]:
    lines = ["| around the call | µs more than the bare call |", "|---|---:|"]
    ordered = sorted(costs.items(), key=lambda pair: median(pair[1]))
    return [*lines, *(f"| {name} | {spread([one / 1000 for one in found], '.2f')} |" for name, found in ordered), ""]


async def _closed(server: Server, plan: Plan) -> list[str]:
    async with AsyncExitStack() as stack:
        costs = await _over_the_bare_call(await _breakers(server, stack), plan)
    goals = [
        reached(f"µs of a closed breaker, {how}", [one / 1000 for one in costs[f"observatory, {how}"]], 1.0, at_most=True)
        for how in ("execute", "async with")
    ]
    return [*_table(costs), *goals]


async def _succeeds(server: Server, plan: Plan) -> list[str]:
    async with AsyncExitStack() as stack:
        costs = await _over_the_bare_call(await _retries(server, stack), plan)
    goals = [
        reached(f"µs of a call that succeeds, {how}", [one / 1000 for one in costs[f"observatory, {how}"]], 5.0, at_most=True)
        for how in ("execute", "async for")
    ]
    return [*_table(costs), *goals]


async def _open(server: Server, plan: Plan) -> list[str]:
    """A refusal, which costs an exception; and how soon a second process's breaker is open."""
    delays = []
    async with AsyncExitStack() as stack:
        one, two = [await _observatory(server, stack, p=BreakerSettings(open_for=3600)) for _ in range(2)]
        two.breaker("p")
        for _ in range(3 if plan.quick else 20):
            await one.breaker("p").force("closed", reason="bench")
            await _until(two, "closed")
            began = time.perf_counter()
            await one.breaker("p").force("open", reason="bench")
            await _until(two, "open")
            delays.append((time.perf_counter() - began) * 1000)

        async def refused(times: int) -> None:
            for number in range(times):
                try:
                    await two.breaker("p").execute(work, number)
                except CircuitOpen:
                    continue
                raise AssertionError("it was let through")

        costs = await _over_the_bare_call({"observatory, refused": refused}, plan)
    told = reached("ms until another instance knows", [max(delays)], 1000, at_most=True, form=".1f")
    return [*_table(costs), f"Another instance knows after {spread(delays, '.1f')} ms, of {len(delays)} changes.", "", told]


async def _until(obs: Observatory, state: str) -> None:
    deadline = time.perf_counter() + 10
    while obs.breaker("p").state != state:
        if time.perf_counter() > deadline:
            raise TimeoutError(reason(TimeoutError(f"still not {state}")))
        await asyncio.sleep(0)


BENCHMARK = Benchmark(
    name="bench_resilience",
    title="Breaker and retry: what they add to a call that works",
    about="""\
One caller, a coroutine that returns at once, on one event loop; every answer is looked at. Of each round the least of many
batches of calls, taken in turns, less that of the bare call. Ours counts for the whole fleet beside it: reports leave every
quarter of a second, retry budgets every second. pybreaker's own way for coroutines needs tornado; it is timed around a plain
function. None of the peers shares anything in these figures. What is not installed is left out.""",
    parts=(
        Study(title="A closed breaker", about="Nothing fails, nothing is asked.", answer=_closed),
        Study(title="A call that succeeds at once", about="Under a policy of three attempts in 30 s.", answer=_succeeds),
        Study(title="Open", about="Refused without asking; told to others.", answer=_open),
    ),
    libraries=("observatory-fleet", "tenacity"),
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
