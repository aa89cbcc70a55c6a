"""What the documents promise, the software does."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from observatory.cli import table
from observatory.names import OURS
from tests.servers import ROOT, Server, environment

README = (ROOT / "README.md").read_text()
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run(code: str, tmp_path: Path, **more: str) -> subprocess.CompletedProcess[str]:
    env = environment(OBSERVATORY_HOME=str(tmp_path), **more)
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=False)


def test_first_program_of_the_readme_runs_as_printed(tmp_path: Path) -> None:
    """Without a Redis and without a key: three times True, once False; in a second process the limit is spent."""
    program = blocks(README, "python")[0]
    assert len([line for line in program.splitlines() if line.strip()]) <= 14
    first = run(program, tmp_path)
    assert first.returncode == 0, first.stderr
    assert [line.split()[0] for line in first.stdout.splitlines()] == ["True", "True", "True", "False"]
    second = run(program, tmp_path)
    assert second.stdout.count("True") <= 1, "a process later has no limit of its own"


SNIPPET = """
from observatory import Observatory, Limit, Metric

async def make_external_call():
    return "answer"

async def main():
    async with Observatory("observatory-service") as obs:          # OBSERVATORY_REDIS_URL, else an embedded Valkey
        obs.metrics.increment_counter(Metric.REQUESTS_TOTAL, 1)      # never awaits, never raises on a slow Redis
        obs.metrics.record_histogram(Metric.REQUEST_LATENCY, 0.125)
        obs.metrics.set_gauge(Metric.ACTIVE_CONNECTIONS, 42.0)
        obs.logger.info("Processing request", trace_id="abc123")

        if await obs.rate_limiter.check("api", "user_123"):          # a Decision: truthy when allowed
            ...
        result = await obs.retry.execute(make_external_call)

        cache = obs.cache(str)                                       # typed; the same entries in every process
        await cache.set("key", "value")
        value = await cache.get("key")
        print(result, value)

import asyncio
asyncio.run(main())
"""


def test_the_first_design_runs_as_written(tmp_path: Path) -> None:
    """The API that the project began with, every room of it, on an embedded server."""
    done = run(SNIPPET, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "answer value\n"
    assert '"message":"Processing request"' in done.stderr
    assert '"trace_id":"abc123"' in done.stderr


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(path: Path, tmp_path: Path, server: Server, namespace: str) -> None:
    """Each of them, as a user would."""
    done = run(path.read_text(), tmp_path, OBSERVATORY_REDIS_URL=server.url, OBSERVATORY_NAMESPACE=namespace)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_settings_reference_is_the_table() -> None:
    """docs/settings.md is what `observatory config docs` prints."""
    assert table.markdown(table.settings()) in (ROOT / "docs" / "settings.md").read_text()


def test_links_lead_somewhere() -> None:
    """Every relative link of every page."""
    for page in [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        ROOT / "lua" / "README.md",
        ROOT / "benchmarks" / "README.md",
    ]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_nothing_tells_of_a_machine() -> None:
    """No path of this machine in any file; pins are names and versions, and no address."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split("\n")
    here = (f"{Path.home()}/", f"{ROOT}/")
    for name in filter(None, listed):
        path = ROOT / name
        if path.is_file():
            text = path.read_text(errors="replace")
            assert not [place for place in here if place in text], name
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line), line


def test_every_metric_of_ours_is_described() -> None:
    """docs/metrics.md has a row for each, as names.py has it."""
    text = (ROOT / "docs" / "metrics.md").read_text()
    for name, said in OURS.items():
        assert f"| `{name}` | {said.kind} | {said.unit} | {said.description} |" in text, name
