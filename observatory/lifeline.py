"""When a process of ours should stop: SIGTERM, SIGINT, or the end of whoever started it.

The starter holds the writing end of a pipe; when it dies, however that happens, the reading end says so. Only our own processes
(worker, service, up) use this: the library never handles signals.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def stop_signal(lifeline: int | None = None, *, again: Callable[[], object] | None = None) -> Iterator[asyncio.Event]:
    """An event that is set when this process should stop. lifeline: the descriptor of the pipe's reading end. again: what a
    second signal means."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def told() -> None:
        if stop.is_set() and again is not None:
            again()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)

    def starter_spoke() -> None:
        # Nothing is ever written, so readable means that the other end is closed.
        if lifeline is not None:
            loop.remove_reader(lifeline)
            os.close(lifeline)
        stop.set()

    if lifeline is not None:
        loop.add_reader(lifeline, starter_spoke)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        if lifeline is not None:
            loop.remove_reader(lifeline)
