"""Hold an estimate, settle the truth: one hot bucket, a thousand tasks, ours and token-throttle.

python -m benchmarks.bench_reservations [--rounds 7] [--quick] [--write]
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from observatory import Limit, RateLimitExceeded

from .child_token_throttle import ACTUAL, ESTIMATE
from .contest import Server
from .elsewhere import Elsewhere, elsewhere
from .goals import times_the_best
from .harness import Benchmark, BrokenContender, Contender, Once, Plan, Study, Table, main, reached
from .interpreters import drivers, having, version
from .limiters import OURS, opened

VERSION = "14.0.0"
TASKS = 1000
_THEIRS = f"token-throttle {VERSION}"
_GATED = f"{_THEIRS}, one at a time"


def _limit(tokens: int, per: timedelta) -> Limit:
    return Limit("bench", tokens, per=per, unit="tokens")


@asynccontextmanager
async def _ours(server: Server) -> AsyncIterator[Once]:
    async with opened(server.tcp_url) as obs:
        obs.rate_limiter.define(_limit(1_000_000_000, timedelta(minutes=1)))
        reserve = obs.rate_limiter.reserve

        async def once(_: int) -> bool:
            held = await reserve("bench", "hot", ESTIMATE)
            settled = await held.settle(ACTUAL)
            return settled.returned == {"tokens": ESTIMATE - ACTUAL}

        yield once


async def _verify_ours(server: Server) -> None:
    async with opened(server.tcp_url) as obs:
        obs.rate_limiter.define(_limit(5, timedelta(hours=1)))

        async def one() -> object:
            try:
                return await obs.rate_limiter.reserve("bench", "scratch", 1)
            except RateLimitExceeded:
                return None

        first = await obs.rate_limiter.reserve("bench", "scratch", 1)
        held = [await one() for _ in range(7)]
        if [bool(one) for one in held] != [True] * 4 + [False] * 3:
            raise BrokenContender(f"of 8 reservations of a limit of 5 it made {1 + sum(map(bool, held))}")
        await first.settle(0)
        if await one() is None or await one() is not None:
            raise BrokenContender("what was not used did not come back, or more than that did")


async def _comes_back(server: Server, plan: Plan) -> list[str]:
    lines = ["| tasks | checks beside each | said to be returned | came back |", "|---:|---:|---:|---:|"]
    shares = []
    for tasks, beside in ((1, 0), (64, 0), (1, 20), (64, 1)):
        said, came = await _returned(server, tasks, beside)
        shares.append(came / said)
        lines.append(f"| {tasks} | {beside} | {said:,} | {came:,} |")
    return [*lines, "", reached("share of what was returned that came back, at the worst", [min(shares)], 0.99)]


async def _returned(server: Server, tasks: int, beside: int) -> tuple[int, int]:
    """What the settlements said to have returned, and by how much more the bucket has than if nothing had been."""
    capacity, said, taken = 1_000_000, 0, 1
    server.empty()
    async with opened(server.tcp_url) as obs:
        limiter = obs.rate_limiter
        limiter.define(_limit(capacity, timedelta(days=1)))
        await limiter.reserve("bench", "hot", 1, lease=600)

        async def task() -> None:
            nonlocal said, taken
            for _ in range(5):
                held = await limiter.reserve("bench", "hot", ESTIMATE)
                await asyncio.sleep(0.02)
                for _ in range(beside):
                    await limiter.check("bench", "hot", 1)
                taken += ESTIMATE + beside
                settled = await held.settle(ACTUAL)
                said += int(settled.returned["tokens"])

        await asyncio.gather(*[task() for _ in range(tasks)])
        counted = capacity - int((await limiter.peek("bench", "hot")).remaining)
    return said, taken - counted


def _python_of_theirs() -> str:
    found = having("token_throttle", (f"token-throttle=={VERSION}", *drivers()), newer_than=(3, 12))
    if found is None:
        raise BrokenContender(
            "it needs Python 3.12 and PyPI. It documents about 180 operations/s of 1,000 workers on one hot Redis bucket"
        )
    return found


def _theirs(name: str, at_once: int) -> Contender:
    @asynccontextmanager
    async def setup(server: Server) -> AsyncIterator[Once | Elsewhere]:
        python = _python_of_theirs()
        async with elsewhere("child_token_throttle", server.tcp_url, str(at_once), python=python, loud=False) as child:
            yield child

    async def verify(server: Server) -> None:
        python = _python_of_theirs()
        async with elsewhere("child_token_throttle", server.tcp_url, str(at_once), python=python, loud=False) as child:
            await child.ask("verify", start_at=0.0)

    return Contender(name, setup, verify)


def _version_of_theirs() -> str:
    try:
        return version(_python_of_theirs())
    except BrokenContender:
        return "3.12 or newer, which is missing here"


BENCHMARK = Benchmark(
    name="bench_reservations",
    title="Rate limiter: reserve and settle",
    about=f"""\
One operation is a reservation of {ESTIMATE:,} tokens and its settlement at {ACTUAL}, all on one bucket that never refuses.
token-throttle needs Python 3.12: it runs in a process of its own (here CPython {_version_of_theirs()}), driven by the same
loop; the server is the same. It takes a lock per bucket, for which waiters poll; *one at a time* puts a semaphore in front of
it in the application, which spares it that: its best case.""",
    parts=(
        Table(
            title="One hot bucket",
            about="""\
Everybody is timed for 2 s per round (0.5 s with `--quick`); what is not done by then is cancelled and not counted, so the p99
of who is slow is that of the few who were served.""",
            contenders=(
                Contender(OURS, _ours, _verify_ours),
                _theirs(_GATED, 1),
                _theirs(_THEIRS, 0),
            ),
            reference=_GATED,
            in_flight=(TASKS,),
            goals=(times_the_best(OURS, 100, TASKS),),
            window=2.0,
        ),
        Study(
            title="What comes back",
            about=f"""\
A settlement at {ACTUAL} of {ESTIMATE:,} returns {ESTIMATE - ACTUAL} tokens. Here the bucket fills in a day, so what it has
more at the end was returned. One long hold stays open; *checks beside each*: so often 1 is taken while a task holds its
estimate.""",
            answer=_comes_back,
        ),
    ),
    libraries=("observatory-fleet", "redis", "hiredis"),
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
