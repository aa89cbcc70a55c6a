"""The command line of every benchmark, and the Markdown that it writes: medians over rounds, in a section of RESULTS.md."""

import argparse
import asyncio
import importlib.metadata
import os
import platform
import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from statistics import median

from .contest import WARM_UP, Benchmark, Contender, Goal, Plan, Row, Server, Study, Table, compare, private_server, reason
from .loop import BrokenContender, Once

__all__ = [
    "Benchmark",
    "BrokenContender",
    "Contender",
    "Goal",
    "Once",
    "Plan",
    "Server",
    "Study",
    "Table",
    "main",
    "reached",
    "spread",
]

RESULTS = Path(__file__).with_name("RESULTS.md")


def spread(values: Sequence[float], form: str) -> str:
    """The median, with the least and the greatest."""
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
        ratio = spread([ours.per_second / theirs.per_second if theirs.per_second else inf for ours, theirs in pairs], ".2f")
    cells = [
        name,
        spread([measure.per_second for measure in measures], ",.0f"),
        ratio,
        f"{median(measure.p50 for measure in measures):,.0f}",
        f"{median(measure.p99 for measure in measures):,.0f}",
        f"{median(measure.client_cpu for measure in measures):.1f}",
        f"{median(measure.server_cpu for measure in measures):.1f}",
    ]
    return "| " + " | ".join(cells).replace("nan", "–") + " |"


def _written(table: Table, rows: dict[int, list[Row]]) -> Iterator[str]:
    yield from (f"### {table.title}", "", table.about, "")
    for in_flight, level in rows.items():
        reference = next(row for row in level if row.contender.name == table.reference)
        yield from (f"**{in_flight} in flight**", "")
        yield "| contender | operations/s | ratio | p50 µs | p99 µs | client CPU µs/op | server CPU µs/op |"
        yield "|---|---:|---:|---:|---:|---:|---:|"
        yield from (_line(row, reference) for row in level)
        yield ""
        yield from _goals(table, in_flight, level)
        broken = [row for row in level if row.fault is not None]
        yield from (f"- {row.contender.name}: {row.fault}" for row in broken)
        if broken:
            yield ""


def _goals(table: Table, in_flight: int, level: Sequence[Row]) -> Iterator[str]:
    rows = {row.contender.name: row for row in level if row.fault is None}
    for goal in table.goals:
        if goal.in_flight == in_flight:
            yield reached(goal.said, goal.value(rows), goal.bound, at_most=goal.at_most)
            yield ""


def reached(said: str, values: Sequence[float], bound: float, *, at_most: bool = False, form: str = ",.2f") -> str:
    """A goal, and whether the median reached it."""
    wanted = f"Goal: {said} {'≤' if at_most else '≥'} {bound:g}"
    if not values:
        return f"{wanted}: **no figure**."
    fine = median(values) <= bound if at_most else median(values) >= bound
    return f"{wanted}: **{'reached' if fine else 'missed'}**, {spread(values, form)}."


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
    yield f"round, contender and concurrency unless a table says otherwise, each after {WARM_UP:g} s of warm-up."
    yield "*Ratio*: operations/s over those of the contender in italics in the same round. *–*: it broke, for the reason below."
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
    parser.add_argument("--rounds", type=int, default=7, help="how often to go round (default: 7)")
    parser.add_argument("--seconds", type=float, default=0.2, help="per round, contender and concurrency (default: 0.2)")
    parser.add_argument("--quick", action="store_true", help="one round of 0.1 s: does it run at all?")
    parser.add_argument("--write", action="store_true", help="replace this benchmark's section of benchmarks/RESULTS.md")
    given = parser.parse_args(arguments)
    if given.rounds < 1 or not given.seconds > 0:
        parser.error("--rounds and --seconds must be above 0")
    if given.quick and given.write:
        parser.error("figures of a quick run are not worth keeping: --write without --quick")
    plan = Plan(1, 0.1, quick=True) if given.quick else Plan(given.rounds, given.seconds)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # asyncio ends in order on this one
    load = os.getloadavg()[0]
    lines = [f"## {benchmark.title}", "", benchmark.about, ""]
    broken = False
    with private_server() as server:
        lines += _shape(benchmark, plan, server, load)
        for part in benchmark.parts:
            if isinstance(part, Study):
                lines += (f"### {part.title}", "", part.about, "")
                try:
                    lines += (*asyncio.run(part.answer(server, plan)), "")
                except Exception as error:
                    broken = True
                    lines += (f"No answer: {reason(error)}", "")
                continue
            rows = asyncio.run(compare(part, server, plan))
            lines += _written(part, rows)
            broken |= any(row.fault is not None for row in rows[part.in_flight[0]])
    section = "\n".join(lines)
    print(section)
    if given.write:
        _write(benchmark.name, section)
    return int(broken)
