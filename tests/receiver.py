"""A real receiver of OTLP, rotel, and what it has understood, read from its own account."""

import contextlib
import re
import socket
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from tests.servers import die_with_parent, free_port, skip_or_fail, wait_until


class Point(NamedTuple):
    """One data point. buckets: those that hold anything, by their upper bound; 0 is the zero bucket."""

    labels: dict[str, str]
    start: int
    at: int
    value: float
    samples: int
    buckets: dict[float, int]


class Told(NamedTuple):
    """One metric of one request."""

    resource: dict[str, str]
    name: str
    unit: str
    kind: str
    temporality: str
    points: list[Point]


_BUCKET = re.compile(r"Bucket [(\[](\S+), (\S+)\], Count: (\d+)")


def _attributes(lines: list[str]) -> dict[str, str]:
    return {found[1]: found[2] for line in lines if (found := re.match(r"     -> (\S+): Str\((.*)\)$", line))}


def _point(text: str) -> Point:
    lines = text.splitlines()
    facts = dict(line.split(": ", 1) for line in lines if re.match(r"(StartTimestamp|Timestamp|Value|Count|Sum): ", line))
    buckets = {float(found[2]): int(found[3]) for found in _BUCKET.finditer(text) if found[3] != "0"}
    value = float(facts.get("Value") or facts.get("Sum") or 0)
    return Point(
        _attributes(lines), int(facts["StartTimestamp"]), int(facts["Timestamp"]), value, int(facts.get("Count", 0)), buckets
    )


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Receiver:
    """rotel on two ports of this machine. signals: of "metrics", "traces" and "logs", those that it gives account of."""

    def __init__(self, directory: Path, *signals: str) -> None:
        found = find_spec("rotel")
        if found is None or found.origin is None:
            skip_or_fail("no rotel (an OTLP receiver from PyPI, in the dev extra)")
            raise AssertionError
        self._ports = (free_port(), free_port())
        self.grpc, self.http = (f"http://127.0.0.1:{port}" for port in self._ports)
        self._log = directory / "rotel.log"
        self._command = [
            *(str(Path(found.origin).parent / "rotel-agent"), "start", "--exporter", "blackhole"),
            *("--otlp-grpc-endpoint", self.grpc[7:], "--otlp-http-endpoint", self.http[7:]),
            *(word for signal in signals for word in ("--debug-log", signal)),
            *("--debug-log-verbosity", "detailed", "--pid-file", str(directory / "rotel.pid")),
        ]

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        with self._log.open("wb") as log:
            one = subprocess.Popen(self._command, stdout=log, stderr=log, preexec_fn=die_with_parent)
        try:
            wait_until(lambda: all(map(_answers, self._ports)), "rotel listens")
            yield
        finally:
            one.kill()
            one.wait()

    def text(self) -> str:
        return self._log.read_text(errors="replace")

    def blocks(self, kind: str) -> list[str]:
        """Every "Span" or "LogRecord" that came, as it is shown."""
        return re.split(rf"^{kind} #\d+$", self.text(), flags=re.MULTILINE)[1:]

    def names(self) -> list[str]:
        """Those of the spans."""
        return re.findall(r"Name           : (.*)", self.text())

    def told(self, name: str = "") -> list[Told]:
        """Every metric of every request so far, or those of one name."""
        found = []
        for request in re.split(r"^ResourceMetrics #\d+\n", self.text(), flags=re.MULTILINE)[1:]:
            head, *metrics = re.split(r"^Metric #\d+\n", request, flags=re.MULTILINE)
            resource = _attributes(head.splitlines())
            for metric in metrics:
                about, *points = re.split(r"^\w+DataPoints #\d+\n", metric, flags=re.MULTILINE)
                facts = dict(re.findall(r"     -> (\w+): (.*)$", about, flags=re.MULTILINE))
                # The last one may still be being written.
                whole = [_point(point) for point in points if re.search(r"^(Value|Sum): .*\n", point, flags=re.MULTILINE)]
                if whole and facts["Name"].startswith(name):
                    temporality = facts.get("AggregationTemporality", "").removeprefix("AGGREGATION_TEMPORALITY_")
                    found.append(Told(resource, facts["Name"], facts["Unit"], facts["DataType"], temporality, whole))
        return found
