"""The embedded server of this machine's tests, and the namespaces on it: of whom each is, and what is left of those who died.

One server for all runs of one user, in the temporary directory; it is stopped when nobody runs tests. A run is a process, and
holds a lock on a file of its name while it lives, however it ends: what a dead one left is removed by the next.
"""

import atexit
import contextlib
import fcntl
import os
import secrets
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from ..errors import ConfigurationError
from ..keys import PERMANENT, Keys
from ..store.bare import Bare, bare
from ..store.embedded import Server, lock

_RUN = "test-"
_LONGEST_SOCKET = 100
"""Characters: the system's limit on a unix socket's path is 108, on some 104."""


class Machine:
    """This process's part."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._server: Server | None = None
        self._pid = 0
        self.run = ""
        """How this process's namespaces begin."""

    def socket(self) -> Path:
        """Where the server listens; it runs. Blocks. ConfigurationError says what to install."""
        with self._lock:
            if self._server is None:
                self._server = Server(_directory())
                atexit.register(self._server.release)
            path = self._server.ensure()
            if self._pid != os.getpid():
                self._begin(path)
            return path

    def _begin(self, path: Path) -> None:
        runs = _directory() / "runs"
        runs.mkdir(mode=0o700, exist_ok=True)
        with lock(runs / ".sweeping", fcntl.LOCK_EX) as sweeping:
            # Locked before anybody can see that it is there.
            self.run, self._pid = f"{_RUN}{secrets.token_hex(6)}", os.getpid()
            with lock(runs / self.run, fcntl.LOCK_EX) as own:
                # For as long as this process lives; whoever is forked from it meanwhile keeps it too.
                os.dup(own.fileno())
            for file in runs.glob(f"{_RUN}*"):
                if file.name != self.run and _is_over(file):
                    with bare(path) as server:
                        server.remove(f"{_prefix(file.name)}-*")
                    for one in (*_directory().parent.glob(f"{file.name.removeprefix(_RUN)}-*.s"), file):
                        one.unlink(missing_ok=True)
            fcntl.flock(sweeping, fcntl.LOCK_UN)

    def forget(self) -> None:
        """A forked child has a part of its own, from the next sandbox on."""
        self._lock = threading.Lock()

    def namespace(self) -> str:
        """One of its own."""
        return f"{self.run}-{secrets.token_hex(4)}"

    def place(self, namespace: str) -> Path:
        """Where a socket of a namespace may be."""
        return _directory().parent / f"{namespace.removeprefix(_RUN)}.s"


def _directory() -> Path:
    """Private to this user: whoever can write into it could stand in for the server."""
    own = Path(tempfile.gettempdir()).absolute() / f"observatory-{os.getuid()}"
    if len(os.fsencode(own / f"{'x' * 12}-{'x' * 8}.s")) > _LONGEST_SOCKET:
        raise ConfigurationError(f"{own}: too long for sockets in it", remedy="Set TMPDIR to a shorter path")
    own.mkdir(mode=0o700, exist_ok=True)
    if own.stat().st_uid != os.getuid():
        raise ConfigurationError(f"{own} belongs to somebody else", remedy="Set TMPDIR to a directory of yours")
    found = own / "tests"
    found.mkdir(mode=0o700, exist_ok=True)
    return found


def _is_over(file: Path) -> bool:
    """Whether nobody holds the lock of a run any more."""
    try:
        lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB).close()
    except BlockingIOError:
        return False
    return True


def _prefix(namespace: str) -> str:
    return Keys(namespace, 1, b"").pattern().removesuffix(":*")


def leaked(server: Bare, namespace: str) -> list[str]:
    """The keys of a namespace that have no TTL, and are not among those that need none."""
    return [key for key in server.lasting(f"{_prefix(namespace)}:*") if not PERMANENT.fullmatch(key)]


def removed(server: Bare, namespace: str) -> None:
    server.remove(f"{_prefix(namespace)}:*")


def aged(server: Bare, namespace: str, seconds: float) -> None:
    """What is in the caches of a namespace is older by so much."""
    server.age(f"{_prefix(namespace)}:cache:*", round(seconds * 1000))


MACHINE = Machine()


def _after_fork_in_child() -> None:
    """A thread that was starting the server is not here any more."""
    MACHINE.forget()


os.register_at_fork(after_in_child=_after_fork_in_child)


@contextlib.contextmanager
def server() -> Iterator[str]:
    """The URL of the embedded server that the sandboxes of this machine share, for what needs a store and no Observatory of
    yours. What you write into it stays until nobody runs tests here, so give it a TTL."""
    yield f"unix://{MACHINE.socket()}"
