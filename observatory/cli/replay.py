"""The main job on real input: a trace of LLM calls over many processes, one shared limit, and the sums compared."""

import asyncio
import secrets
import sys
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Protocol

import msgspec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .. import units
from ..client import Observatory
from ..errors import StoreUnavailable
from ..names import Metric
from .context import ERR, OUT, show_table
from .http import ServiceClient
from .replay_process import PROVIDER, Ledger, Plan
from .trace import Trace

SETTLE_FOR = 45.0
"""Seconds that the fleet's numbers may take to arrive: a worker that was killed is replaced within ten."""


class Check(msgspec.Struct, frozen=True):
    """One sentence that must be true."""

    name: str
    fleet: int
    expected: int
    holds: bool
    relation: str = "="


class Report(msgspec.Struct, frozen=True):
    """What a replay found."""

    run: str
    processes: int
    elapsed: float
    """Seconds on the server's clock."""
    ledger: Ledger
    skipped: int
    checks: tuple[Check, ...]
    latency_p50: float | None
    """Seconds that a decision took, over the calls that were admitted; p99 likewise."""
    latency_p99: float | None

    @property
    def holds(self) -> bool:
        return all(check.holds for check in self.checks)


class Eye(Protocol):
    """Whoever reads the fleet's numbers back; it has recorded none of them."""

    async def now(self) -> float: ...
    async def value(self, metric: str, stat: str, where: dict[str, str]) -> float | None: ...


class StoreEye:
    def __init__(self, obs: Observatory) -> None:
        self._obs = obs

    async def now(self) -> float:
        seconds, micros = await self._obs.store.command("TIME", link="bulk")
        return int(seconds) + int(micros) / 1e6

    async def value(self, metric: str, stat: str, where: dict[str, str]) -> float | None:
        return (await self._obs.metrics.query(metric, stat, where=where, since="24h")).value


class ServiceEye:
    """Reads through any of the instances."""

    def __init__(self, client: ServiceClient) -> None:
        self._client = client

    async def _query(self, **parameters: str) -> Any:
        return await self._client.ask("GET", "/v1/metrics/query", parameters=parameters)

    async def now(self) -> float:
        answer = await self._query(metric=Metric.REQUESTS_TOTAL, since="10s")
        return units.moment_us(answer["until"], 0) / 1e6

    async def value(self, metric: str, stat: str, where: dict[str, str]) -> float | None:
        matchers = ",".join(f'{name}="{value}"' for name, value in where.items())
        answer = await self._query(metric=metric, stat=stat, where=matchers, since="24h")
        found: float | None = answer["series"][0]["value"] if answer["series"] else None
        return found


class _Process:
    """One client process, as its starter sees it."""

    def __init__(self, number: int, plan: Plan) -> None:
        self.number = number
        self.plan = plan
        self.done = 0
        self.ledger: Ledger | None = None
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "observatory.cli.replay_process"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # Ctrl-C is for the starter, which ends its processes itself.
            start_new_session=True,
        )
        await self._say(msgspec.json.encode(self.plan))
        await self._hear()

    async def _say(self, line: bytes) -> None:
        if self._process is None or self._process.stdin is None:
            raise StoreUnavailable(f"client process {self.number} is not running")
        self._process.stdin.write(line + b"\n")
        await self._process.stdin.drain()

    async def _hear(self) -> dict[str, Any]:
        line = b"" if self._process is None or self._process.stdout is None else await self._process.stdout.readline()
        if not line:
            raise StoreUnavailable(f"client process {self.number} ended before its work was done; its ledger is lost")
        heard: dict[str, Any] = msgspec.json.decode(line)
        return heard

    async def run(self) -> None:
        await self._say(b"go")
        while self.ledger is None:
            heard = await self._hear()
            self.done = heard.get("done", self.done)
            if "ledger" in heard:
                self.ledger = msgspec.convert(heard["ledger"], Ledger)
        if self._process is not None:
            await self._process.wait()

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


def plans(trace: Trace, processes: int, services: Sequence[Sequence[str]], **rest: Any) -> list[Plan]:
    """The trace dealt out, call by call. services: for each process the URLs it asks through (none: the library)."""
    run = secrets.token_hex(4)
    return [
        Plan(run=run, calls=trace.calls[number::processes], services=tuple(services[number]), **rest)
        for number in range(processes)
    ]


async def replay(wanted: Sequence[Plan], eye: Eye, *, skipped: int, quiet: bool) -> Report:
    """Run the processes, then read the fleet's numbers back and compare. StoreUnavailable when a process was lost."""
    processes = [_Process(number, plan) for number, plan in enumerate(wanted, 1)]
    total = sum(len(plan.calls) for plan in wanted)
    running: asyncio.Future[Any] | None = None
    try:
        await asyncio.gather(*(process.start() for process in processes))
        began = await eye.now()
        with Progress(
            *(TextColumn("replay"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()),
            console=ERR,
            disable=quiet or not ERR.is_terminal,
        ) as progress:
            task = progress.add_task("replay", total=total)
            running = asyncio.gather(*(process.run() for process in processes))
            while not running.done():
                await asyncio.wait({running}, timeout=0.2)
                progress.update(task, completed=sum(process.done for process in processes))
            await running
            progress.update(task, completed=total)
        elapsed = await eye.now() - began
    finally:
        await asyncio.gather(*(process.kill() for process in processes))
        if running is not None:
            await asyncio.gather(running, return_exceptions=True)
    ledgers = [process.ledger for process in processes if process.ledger is not None]
    ledger = Ledger()
    for one in ledgers:
        ledger = ledger.plus(one)
    by_service = [one for process, one in zip(processes, ledgers, strict=True) if process.plan.services]
    return await _compare(wanted[0], eye, ledger, sum(one.refused for one in by_service), elapsed, len(processes), skipped)


async def _compare(
    plan: Plan, eye: Eye, ledger: Ledger, refused_by_service: int, elapsed: float, processes: int, skipped: int
) -> Report:
    mine = {"provider": PROVIDER, "model": plan.run}
    tokens = ledger.input_tokens + ledger.output_tokens

    async def read() -> tuple[Check, ...]:
        async def same(name: str, metric: str, stat: str, where: dict[str, str], expected: int) -> Check:
            found = round(await eye.value(metric, stat, where) or 0)
            return Check(name, found, expected, found == expected)

        calls = {**mine, "status": "success"}
        refused = {**mine, "status": "refused"}
        found = [
            await same("requests", Metric.REQUESTS_TOTAL, "total", calls, ledger.admitted),
            await same("input tokens", Metric.TOKENS_PROCESSED, "total", {**mine, "type": "input"}, ledger.input_tokens),
            await same("output tokens", Metric.TOKENS_PROCESSED, "total", {**mine, "type": "output"}, ledger.output_tokens),
            await same("latency histogram count", Metric.REQUEST_LATENCY, "count", mine, ledger.admitted),
        ]
        if refused_by_service:
            found.append(await same("rejections by service", Metric.REQUESTS_TOTAL, "total", refused, refused_by_service))
        limiter = await same("rejections", Metric.RATE_LIMIT_REJECTIONS, "total", {"limit": plan.limit.name}, ledger.refused)
        if limiter.expected < limiter.fleet <= limiter.expected + ledger.lost_replies:
            # Refused and counted, but the answer was lost and the question asked again.
            limiter = msgspec.structs.replace(limiter, holds=True, relation=">=")
        found.append(limiter)
        return tuple(found)

    deadline = asyncio.get_running_loop().time() + SETTLE_FOR
    checks = await read()
    while not all(check.holds for check in checks) and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.5)
        checks = await read()
    may = plan.burst + int(Decimal(plan.tokens_per_minute) / 60 * Decimal(elapsed))
    bound = Check("admitted tokens within burst + rate x elapsed", tokens, may, tokens <= may, "<=")
    return Report(
        run=plan.run,
        processes=processes,
        elapsed=elapsed,
        ledger=ledger,
        skipped=skipped,
        checks=(bound, *checks),
        latency_p50=await eye.value(Metric.REQUEST_LATENCY, "p50", mine),
        latency_p99=await eye.value(Metric.REQUEST_LATENCY, "p99", mine),
    )


def show(report: Report) -> None:
    """The table."""
    ledger = report.ledger
    OUT.print(
        f"replay {report.run}: {ledger.calls:,} calls over {report.processes} processes in {report.elapsed:.1f} s; "
        f"{ledger.admitted:,} admitted, {ledger.refused:,} refused"
        + (f", {ledger.unknown:,} without an answer" if ledger.unknown else "")
        + (f", {ledger.lost_replies:,} answers lost and asked again" if ledger.lost_replies else "")
        + (f"; {report.skipped:,} malformed lines skipped" if report.skipped else "")
    )
    if report.latency_p50 is not None and report.latency_p99 is not None:
        took = f"{report.latency_p50 * 1e3:.2f} ms (p50), {report.latency_p99 * 1e3:.2f} ms (p99)"
        OUT.print(f"a decision took {took}, over the {ledger.admitted:,} calls that were admitted")
    rows = [
        [check.name, f"{check.fleet:,}", check.relation, f"{check.expected:,}", "ok" if check.holds else "BROKEN"]
        for check in report.checks
    ]
    show_table(["check", "fleet #", "", "ledgers #", ""], rows)
