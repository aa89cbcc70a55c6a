"""What a check costs the server, what a bucket costs its memory, and what becomes of both with more processes and more keys.

python -m benchmarks.bench_growth [--rounds 7] [--seconds 0.2] [--quick] [--write]
"""

import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial
from statistics import median
from typing import NamedTuple

from observatory import Limit
from observatory.keys import PERMANENT

from .contest import IN_FLIGHT, Server, private_server
from .elsewhere import Elsewhere, elsewhere
from .harness import Benchmark, Plan, Study, main, reached, spread
from .limiters import BARE, HOT, IDENTITIES, NEVER_REFUSES, PEERS, Quota, opened
from .loop import BrokenContender, drive

PROCESSES = (1, 2, 4, 8)
KEYS = (1, 1_000, 1_000_000)
KEYS_QUICK = (1, 1_000, 20_000)
_LEASE = 3600.0
_EXPIRES = Limit("expires", 10, per=timedelta(seconds=1))
_SURVIVES_S = 61
"""Seconds: state is kept for a minute after the bucket is full again, and this one fills in one."""


class _Cost(NamedTuple):
    """Of one turn: what the script calls of the server took, per check, and how many checks were in a call."""

    microseconds: float
    batch: float


async def _cost(server: Server, identities: Sequence[str], in_flight: int, seconds: float, *, held: bool) -> _Cost:
    server.empty()
    async with opened(server.tcp_url) as obs:
        limiter = obs.rate_limiter
        limiter.define(Limit("bench", NEVER_REFUSES.amount, per=timedelta(minutes=NEVER_REFUSES.minutes)))
        if held:
            await asyncio.gather(*[limiter.reserve("bench", identity, lease=_LEASE) for identity in identities])

        async def once(number: int) -> bool:
            return (await limiter.check("bench", identities[number % len(identities)])).allowed

        await drive(once, in_flight, 0.1)
        server.admin.config_resetstat()
        checks = len((await drive(once, in_flight, seconds)).latencies)
        said = server.admin.info("commandstats")["cmdstat_evalsha"]
    return _Cost(said["usec"] / checks, checks / said["calls"])


async def _server_cost(server: Server, plan: Plan) -> list[str]:
    kinds = {
        f"{len(IDENTITIES):,} keys": (IDENTITIES, False),
        f"{len(IDENTITIES):,} keys, a hold open on each": (IDENTITIES, True),
        "one hot key": (HOT, False),
        "one hot key, a hold open on it": (HOT, True),
    }
    levels = [(kind, in_flight) for kind in kinds for in_flight in IN_FLIGHT]
    found: dict[tuple[str, int], list[_Cost]] = {level: [] for level in levels}
    for _ in range(plan.rounds):
        for kind, in_flight in random.sample(levels, len(levels)):
            identities, held = kinds[kind]
            found[kind, in_flight].append(await _cost(server, identities, in_flight, plan.turn, held=held))
    lines = ["| checks of | in flight | server µs per check | checks per script call |", "|---|---:|---:|---:|"]
    for (kind, in_flight), costs in found.items():
        times, batches = spread([one.microseconds for one in costs], ".1f"), median(one.batch for one in costs)
        lines.append(f"| {kind} | {in_flight} | {times} | {batches:.1f} |")
    worst = f"{len(IDENTITIES):,} keys, a hold open on each"
    for in_flight in IN_FLIGHT:
        values = [one.microseconds for one in found[worst, in_flight]]
        lines += ["", reached(f"server µs per check, {worst}, {in_flight} in flight", values, 7, at_most=True, form=".1f")]
    return lines


async def _memory(server: Server, plan: Plan) -> list[str]:
    lines = [
        "| contender | keys per bucket | bytes per bucket beyond the keys' own length | expires after, s |",
        "|---|---:|---:|---:|",
    ]
    ours: list[float] = []
    for name, limiter in PEERS:
        if name == BARE:
            continue
        server.empty()
        async with limiter(server, Quota(1000, 1)) as take:
            for identity in IDENTITIES[:100]:
                assert await take(identity)
            keys = [key for key in server.admin.scan_iter(count=1000) if b"tenant-" in key]
        used = sum(server.admin.memory_usage(key, samples=0) - len(key) for key in keys) / 100
        lives = max(server.admin.pttl(key) for key in keys) / 1000
        lines.append(f"| {name} | {len(keys) / 100:g} | {used:.0f} | {f'{lives:.0f}' if lives > 0 else 'never'} |")
        ours = ours or [used]
    lines += ["", reached("bytes per idle bucket of Observatory", ours, 96, at_most=True, form=".0f")]
    return lines


class _Debris(NamedTuple):
    """What was written for a thousand identities, and when the last of it was."""

    server: Server
    at: float


async def _litter(server: Server) -> _Debris:
    """A thousand identities that come once and never again."""
    async with opened(server.tcp_url) as obs:
        obs.rate_limiter.define(_EXPIRES)
        await asyncio.gather(*[obs.rate_limiter.check("expires", identity) for identity in IDENTITIES])
    return _Debris(server, time.monotonic())


async def _leftovers(debris: _Debris, _: Server, plan: Plan) -> list[str]:
    admin = debris.server.admin
    elapsed = time.monotonic() - debris.at
    if plan.quick:
        ends = [admin.pttl(key) / 1000 + elapsed for key in admin.scan_iter(match="*:expires:*", count=1000)]
        return [
            f"Not waited for with `--quick`, but read from PTTL: {len(ends):,} buckets are still there.",
            "",
            reached("s after which the last bucket is gone", [max(ends)], _SURVIVES_S, at_most=True),
        ]
    await asyncio.sleep(max(_SURVIVES_S + 2 - elapsed, 0))
    keys = [key.decode() for key in admin.scan_iter(count=1000)]
    left = sum(":expires:" in key for key in keys)
    endless = [key for key in keys if admin.pttl(key) == -1]
    stray = [key for key in endless if not PERMANENT.fullmatch(key)]
    kept, passing = len(endless) - len(stray), len(keys) - left - len(endless)
    return [
        f"Waited for: {time.monotonic() - debris.at:.0f} s after the last check DBSIZE is {len(keys)}. {left} of these are",
        f"buckets, {kept} are what a namespace keeps for good (`PERMANENT` in observatory/keys.py), {passing} are presence and",
        f"metrics, which expire in their own time, and {len(stray)} have no TTL and should.",
        "",
        reached("buckets that are left", [left], 0, at_most=True, form=".0f"),
        "",
        reached("keys without a TTL that are not permanent", [len(stray)], 0, at_most=True, form=".0f"),
    ]


async def _together(children: Sequence[Elsewhere], in_flight: int, seconds: float, keys: int) -> float:
    """Operations/s of all of them, begun at one moment."""
    start = time.monotonic() + 0.05
    driven = await asyncio.gather(*[one.drive(in_flight, seconds, keys=keys, start_at=start) for one in children])
    return sum(len(one.latencies) for one in driven) / max(one.took for one in driven)


async def _rounds(heading: str, numbers: Sequence[int], rounds: int, once: Callable[[int], Awaitable[float]]) -> list[str]:
    """Every number in every round, in a new order each time. A round in which one broke has no figures: ratios need all."""
    found: dict[int, list[float]] = {number: [] for number in numbers}
    faults = []
    for _ in range(rounds):
        try:
            one = {number: await once(number) for number in random.sample(numbers, len(numbers))}
        except BrokenContender as fault:
            faults.append(f"- A round has no figures: {fault}")
            continue
        for number, value in one.items():
            found[number].append(value)
    lines = _table(heading, found) if found[numbers[0]] else []
    return [*lines, "", *faults] if faults else lines


def _table(heading: str, found: dict[int, list[float]]) -> list[str]:
    lines = [f"| {heading} | operations/s | ratio to {min(found)} |", "|---:|---:|---:|"]
    for number, values in found.items():
        ratios = [one / first for one, first in zip(values, found[min(found)], strict=True)]
        lines.append(f"| {number:,} | {spread(values, ',.0f')} | {spread(ratios, '.2f')} |")
    return lines


async def _processes(server: Server, plan: Plan) -> list[str]:
    server.empty()
    async with AsyncExitStack() as stack:
        children = [
            await stack.enter_async_context(elsewhere("child_observatory", server.tcp_url)) for _ in range(max(PROCESSES))
        ]
        await children[0].ask("verify", start_at=0.0, keys=1)
        await _together(children, 64, 0.1, len(IDENTITIES))

        async def once(number: int) -> float:
            return await _together(children[:number], 64, plan.seconds, len(IDENTITIES))

        return await _rounds("client processes", PROCESSES, plan.rounds, once)


async def _keys(server: Server, plan: Plan) -> list[str]:
    numbers = KEYS_QUICK if plan.quick else KEYS
    children: dict[int, Elsewhere] = {}
    async with AsyncExitStack() as stack:
        own = {number: stack.enter_context(private_server()) for number in numbers}
        for number in numbers:
            children[number] = await stack.enter_async_context(elsewhere("child_observatory", own[number].tcp_url))
            await children[number].ask("verify", start_at=0.0, keys=1)
            await children[number].ask("fill", start_at=0.0, keys=number)

        async def once(number: int) -> float:
            await _together([children[number]], 512, 0.1, number)
            return await _together([children[number]], 512, plan.seconds, number)

        return await _rounds("distinct keys", numbers, plan.rounds, once)


def _benchmark(debris: _Debris) -> Benchmark:
    return Benchmark(
        name="bench_growth",
        title="Rate limiter: what it costs the server, and growth",
        about=f"""\
Ours, over TCP on loopback, with the settings that everybody gets. The limit is {NEVER_REFUSES.amount:,} per minute and key.""",
        parts=(
            Study(
                "Server time of a check",
                """\
The server's own account of its script calls (`INFO commandstats`, `evalsha`: all that happens inside, the fence's look at
`INFO replication` included) divided by the checks that were answered. One turn per round and line, in a new order each time.
The beats and flushes that run beside the checks are counted too: a few calls a second.""",
                _server_cost,
            ),
            Study(
                "Memory of an idle bucket",
                """\
`MEMORY USAGE` of every key that names one of 100 identities, each asked once under a limit of 1,000 a minute, less the length
of the keys themselves. Deterministic: one look. pyrate-limiter keeps an entry per check, so its bucket grows with its use.""",
                _memory,
            ),
            Study(
                "Client processes",
                f"""\
Each has 64 calls in flight on {len(IDENTITIES):,} keys; all are on one server, begin at one moment, and share the cores with
it: from two cores no more than two processes' worth can be had.""",
                _processes,
            ),
            Study(
                "Distinct keys",
                f"""\
One client process with 512 calls in flight, and a server for each line, on which all of its buckets exist before the timing
starts. {KEYS[-1]:,} keys (with `--quick` {KEYS_QUICK[-1]:,}) are visited in an order in which neighbours do not meet.""",
                _keys,
            ),
            Study(
                "What is left",
                f"""\
{len(IDENTITIES):,} identities were asked once for, before everything else, on a server of their own, under a limit that is full
again after a second. State is kept a minute longer than that (a process may be fenced meanwhile), so it should be gone after
{_SURVIVES_S} s; the server's own sweep of what has expired is not helped along.""",
                partial(_leftovers, debris),
            ),
        ),
        libraries=("observatory-fleet", "redis", "hiredis", "limits", "throttled-py", "pyrate-limiter"),
    )


def run(arguments: Sequence[str] | None = None) -> int:
    """What must have time to expire is written first."""
    with private_server() as aside:
        return main(_benchmark(asyncio.run(_litter(aside))), arguments)


if __name__ == "__main__":
    sys.exit(run())
