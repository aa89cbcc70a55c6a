"""A shared entry, read and written; and what becomes of a thousand who miss one at once.

python -m benchmarks.bench_cache [--rounds 7] [--seconds 0.2] [--quick] [--write]
"""

import asyncio
import json
import sys
import time
from contextlib import AsyncExitStack
from typing import Any

from . import caches
from .caches import AIOCACHE, BARE, BARE_DEFAULT, CASHEWS, COMPUTING, DEFAULT_POOL, OURS, TAGS, UNTIMED
from .contest import Server
from .elsewhere import ROOT
from .goals import times_the_best, times_the_latency
from .harness import Benchmark, Plan, Study, Table, main, reached, spread
from .limiters import MAX_CONNECTIONS

IN_FLIGHT = (1, 8, 64, 512)
PROCESSES = 8
CALLERS = 125
COMPUTE_S = 0.5
_CACHES = (
    (BARE, caches.bare("blocking")),
    (BARE_DEFAULT, caches.bare("default")),
    (OURS, caches.observatory()),
    (AIOCACHE, caches.of_aiocache()),
    (UNTIMED, caches.of_aiocache(timeout=0)),
    (DEFAULT_POOL, caches.of_aiocache("default")),
    (CASHEWS, caches.of_cashews()),
)
_NOT_AIOCACHE = (BARE, BARE_DEFAULT, COMPUTING, CASHEWS)
_HERDS = {
    OURS: "observatory",
    "aiocache cached_stampede": "stampede",
    "cashews, lock=True": "cashews_lock",
    "cashews early": "cashews_early",
}


async def _line(process: asyncio.subprocess.Process) -> Any:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise RuntimeError("a process of the herd ended")
    return json.loads(line)


async def _ended(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


async def _stampedes(server: Server, who: str, rounds: int) -> list[tuple[int, float, list[str]]]:
    """Per round: how many computed, seconds from the end of the first computation to the last answer, what was wrong."""
    found = []
    async with AsyncExitStack() as stack:
        children = []
        for _ in range(PROCESSES):
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "benchmarks.child_herd", server.tcp_url, who, str(CALLERS), str(COMPUTE_S)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                cwd=ROOT,
            )
            children.append(child)
            stack.push_async_callback(_ended, child)
        for child in children:
            await _line(child)
        # The first time connections are made, as a service does when it starts; what is asked for is the rest.
        for number in range(rounds + 1):
            at = time.monotonic() + 0.2
            for child in children:
                assert child.stdin is not None
                child.stdin.write(json.dumps({"key": f"herd-{number}", "at": at}).encode() + b"\n")
            async with asyncio.timeout(60):
                said = [await _line(child) for child in children]
            ends = [end for one in said for end in one["ended"]]
            last = max(one["served"] for one in said)
            found.append((len(ends), last - min(ends), [wrong for one in said for wrong in one["wrong"]]))
    return found[1:]


async def _herd(server: Server, plan: Plan) -> list[str]:
    lines = ["| contender | computations | last answer, ms after the first computation ended |", "|---|---:|---:|"]
    faults: list[str] = []
    goals: list[str] = []
    for name, who in _HERDS.items():
        server.empty()
        found = await _stampedes(server, who, plan.rounds)
        computed, after = [float(one[0]) for one in found], [one[1] * 1000 for one in found]
        wrong = [why for one in found for why in one[2]]
        lines.append(f"| {name} | {spread(computed, ',.0f')} | {spread(after, ',.1f')} |")
        if wrong:
            faults.append(f"- {name}: answers that were none: {wrong[0][:160]}")
        if name == OURS:
            goals += ["", reached(f"computations for {PROCESSES * CALLERS:,} misses", computed, 1, at_most=True, form=".0f")]
            goals += ["", reached("ms from the end of the computation to the last answer", after, 20, at_most=True, form=".1f")]
    return [*lines, *([""] if faults else []), *faults, *goals]


BENCHMARK = Benchmark(
    name="bench_cache",
    title="Cache: a shared entry",
    about=f"""\
{len(caches.KEYS):,} entries of a text of 100 characters, a number and three floats, in turn, over TCP on loopback. Ours reads
them as a msgspec Struct, aiocache as a dict of its JsonSerializer, cashews as a dict that it pickled; redis-py gets bytes, and
is no cache. What uses redis-py has a `BlockingConnectionPool` of {MAX_CONNECTIONS} connections unless it says *default
pool*, which raises when more than 100 calls are in flight. Every answer is compared. aiocache bounds each call by 5 s unless it
says `timeout=0`; ours by `redis.max_wait`.""",
    parts=(
        Table(
            title="A hit",
            about="Ours reads the entry and the version of its cache, in one trip, and checks the entry's sum.",
            contenders=(
                *(caches.reading(name, cache) for name, cache in _CACHES),
                caches.reading(COMPUTING, caches.observatory(computing=True)),
            ),
            reference=BARE,
            in_flight=IN_FLIGHT,
            goals=(
                times_the_best(OURS, 4, 64, besides=_NOT_AIOCACHE),
                *(times_the_latency(COMPUTING, OURS, 1.15, number) for number in IN_FLIGHT),
            ),
        ),
        Table(
            title="A hit with two tags",
            about="Ours compares their versions at each read, in a second trip; cashews writes a set of keys for each.",
            contenders=tuple(
                caches.reading(name, cache, TAGS if name in (OURS, CASHEWS) else ())
                for name, cache in _CACHES
                if name in (BARE, OURS, CASHEWS)
            ),
            reference=BARE,
            in_flight=(1, 64),
        ),
        Table(
            title="A set",
            about="Ours reads the version of the cache first, and writes by a script that ends whatever is being computed.",
            contenders=tuple(caches.writing(name, cache) for name, cache in _CACHES),
            reference=BARE,
            in_flight=(1, 64),
        ),
        Study(
            title="A thousand misses at once",
            about=f"""\
{PROCESSES} processes, {CALLERS} callers in each, ask for one key at the same moment; to compute it takes {COMPUTE_S} s. The
processes share the cores, and the last answer is the last of {PROCESSES * CALLERS:,}.""",
            answer=_herd,
        ),
    ),
    libraries=("observatory-fleet", "redis", "hiredis", "msgspec", "aiocache", "cashews"),
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
