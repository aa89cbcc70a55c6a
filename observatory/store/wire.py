"""A connection on which the server speaks unasked: what CLIENT TRACKING announces goes to whoever made it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection

from ..errors import ObservatoryError
from .link import RAW, Link


class Wire(Link):
    """One connection, never made again: what follows the next one's making must not be taken for this one's.

    heard: told of every notice, within the loop's reading; None for a flush of everything. lost: told once nothing comes any
    more. patience: seconds that an answer may take before the connection is given up; max_wait: seconds for one call with the
    making of the connection, where that is more.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[AbstractConnection]],
        patience: float,
        heard: Callable[[list[bytes] | None], None],
        lost: Callable[[], None],
        *,
        name: str,
        max_wait: float = 0.0,
        raw: frozenset[str] = RAW,
    ) -> None:
        super().__init__(connect, name=name, max_wait=max(max_wait, patience), drop_after=patience, raw=raw)
        self._heard = heard
        self._lost = lost
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def _answer(self, reply: Any) -> None:
        if isinstance(reply, hiredis.PushNotification):
            if reply[0] == b"invalidate":
                self._heard(reply[1])
            return
        super()._answer(reply)

    def _drop(self, fault: ObservatoryError) -> None:
        super()._drop(fault)
        self.closed = True
        if not self.end.done():
            self.end.set_result(None)
        self._lost()
