"""Strict writes to one server: one wait for replicas at a time, right behind all that was written since the one before.

What holds: while a wait is under way nothing is written behind it, so that a write whose caller has given up is not executed
later. A wait says how many replicas have everything that stands before it on its connection.
"""

import asyncio
from collections import deque
from typing import Any, Protocol

from .link import Link

_TENTH = 0.15
"""Seconds: how late a server may end a WAIT (it looks ten times a second), and some for the way."""


class Write(Protocol):
    """A write that counts once replicas have it."""

    replicas: int
    deadline: float
    """When its caller gives up, on the loop's clock."""

    def send(self, wire: Link) -> bool:
        """Hand it to the link. False: nobody waits for it any more."""

    def acknowledged(self, wait: "asyncio.Future[Any]") -> None:
        """How the wait behind it ended."""


class Strict:
    """Gathers writes into groups of one wait each."""

    def __init__(self, wire: Link) -> None:
        self._wire = wire
        self._queue: deque[Write] = deque()
        self.busy = False
        """A wait is under way, or about to be."""

    def add(self, write: Write) -> None:
        """Sent in the next tick, or once the wait that is under way has ended."""
        self._queue.append(write)
        if not self.busy:
            self.busy = True
            asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        queue, self._queue = self._queue, deque()
        sent: list[Write] = []
        for write in queue:
            if sent and write.replicas != sent[0].replicas:
                self._queue.append(write)
            elif write.send(self._wire):
                sent.append(write)
        if not sent:
            self.busy = False
            return
        left = max(write.deadline for write in sent) - asyncio.get_running_loop().time()
        # 0 would be for ever.
        timeout_ms = max(int(max(left - _TENTH, left * 0.4) * 1000), 1)
        wait = self._wire.call("WAIT", sent[0].replicas, timeout_ms)

        def ended(wait: "asyncio.Future[Any]") -> None:
            for write in sent:
                write.acknowledged(wait)
            self.busy = bool(self._queue)
            if self.busy:
                self._begin()

        wait.add_done_callback(ended)
