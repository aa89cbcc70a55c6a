"""What a primary announces of single keys, once each time that it is asked: CLIENT TRACKING without BCAST."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Protocol

from redis.asyncio.connection import AbstractConnection

from ..clock import monotonic
from ..errors import ObservatoryError, StoreUnavailable
from ..logs import INTERNAL
from .faults import ServerError
from .link import RAW
from .wire import Wire

_PROBE_EVERY = 0.5
"""Seconds without a question after which whoever waits in vain asks whether the connection is there."""
_ANSWER = 1.0
"""Seconds after which a connection that does not answer is given up."""
_IDLE = 60.0
"""Seconds after which a connection that nobody needs is closed."""
_AGAIN = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Seconds before the n-th attempt in a row to connect again."""
_REFUSED_PAUSE = 30.0
"""Seconds before a server that refuses to announce is asked again."""

_abandoned: list[Any] = []
"""Timers and futures of a parent process."""


class Waiter(Hashable, Protocol):
    """Who is told."""

    @property
    def keys(self) -> tuple[bytes, ...]:
        """Of what."""

    def told(self) -> None:
        """Something has happened to one, or may have. Called within the loop's reading: it must be quick, and not raise."""


class Registration:
    """A key that a server was asked to announce once. made: it has answered, so from then on it does."""

    __slots__ = ("asked", "made", "waiters")

    def __init__(self, asked: "asyncio.Future[Any]") -> None:
        self.asked = asked
        self.made = False
        self.waiters: set[Waiter] = set()


class Notices:
    """What one primary announces: registrations by key, on one connection, made when first needed and closed when idle.

    moved: called with MOVED. away: called when no connection can be made.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[AbstractConnection]],
        *,
        connect_timeout: float,
        raw: frozenset[str] = RAW,
        moved: Callable[[ServerError], None] = lambda _: None,
        away: Callable[[], None] = lambda: None,
    ) -> None:
        self._connect = connect
        self._connect_timeout = connect_timeout
        self._raw = raw
        self._moved = moved
        self._away = away
        self._wire: Wire | None = None
        self._closing: asyncio.TimerHandle | None = None
        self._failures = 0
        self._not_before = 0.0
        self._asked_at = 0.0
        self._said: str | None = None
        self.registered: dict[bytes, Registration] = {}
        self.closed = False

    def register(self, waiter: Waiter) -> list[Registration]:
        """Of each of its keys, shared by all who wait for it. Empty: not now."""
        if self.closed or monotonic() < self._not_before:
            return []
        wire = self._wire or self._open()
        self._stay()
        new = [key for key in waiter.keys if key not in self.registered]
        if new:
            self._asked_at = monotonic()
            asked = wire.call("EXISTS", *new)
            made = {key: Registration(asked) for key in new}
            self.registered.update(made)
            asked.add_done_callback(lambda _: self._answered(wire, made, asked))
        found = [self.registered[key] for key in waiter.keys]
        for one in found:
            one.waiters.add(waiter)
        return found

    def leave(self, waiter: Waiter) -> None:
        """It waits no more. What the server still announces of its keys is for nobody."""
        for key in waiter.keys:
            one = self.registered.get(key)
            if one is not None:
                one.waiters.discard(waiter)
                if not one.waiters:
                    del self.registered[key]
        if self._wire is not None and not self.registered and self._closing is None:
            loop = self._wire.end.get_loop()
            if not loop.is_closed():
                self._closing = loop.call_later(_IDLE, self._close_idle)

    def probe(self) -> None:
        """Is anybody there? A connection that does not answer is dropped, and everybody woken."""
        now = monotonic()
        if self._wire is not None and now - self._asked_at >= _PROBE_EVERY:
            self._asked_at = now
            self._wire.call("PING").add_done_callback(_ignored)

    def _open(self) -> Wire:
        """Nothing is awaited: what follows is sent behind it, once there is a connection."""
        wire: Wire

        def lost() -> None:
            if self._wire is wire:
                self._lost()

        wire = self._wire = Wire(
            self._connect,
            _ANSWER,
            self._heard,
            lost,
            name="watch",
            max_wait=self._connect_timeout,
            raw=self._raw,
        )
        wire.call("CLIENT", "TRACKING", "ON").add_done_callback(lambda call: self._tracking(wire, call))
        return wire

    def _tracking(self, wire: Wire, call: "asyncio.Future[Any]") -> None:
        error = None if call.cancelled() else call.exception()
        if error is not None and wire is self._wire:
            self._told(error)
            wire.close()  # it may be connected later, or be: but not so that it announces anything

    def _answered(self, wire: Wire, made: dict[bytes, Registration], asked: "asyncio.Future[Any]") -> None:
        error = asked.exception()
        if error is None and wire is self._wire:
            self._failures, self._said = 0, None
            for one in made.values():
                one.made = True
            return
        for key, one in made.items():
            if self.registered.get(key) is one:
                del self.registered[key]
        if isinstance(error, ServerError):
            # Only the refusals after which a call may go elsewhere come as they are. ASK: the slot is on its way.
            if error.code == "MOVED":
                self._moved(error)
        elif error is not None and wire is self._wire:
            self._told(error)

    def _told(self, error: BaseException) -> None:
        """One line a reason, and a pause before a server that refuses is asked again."""
        if isinstance(error, StoreUnavailable):
            return
        self._not_before = monotonic() + _REFUSED_PAUSE
        if self._said != str(error):
            self._said = str(error)
            INTERNAL.warning("changes are not announced, who waits for one asks now and then: %s", error)

    def _heard(self, keys: list[bytes] | None) -> None:
        if keys is None:
            self.wake()  # FLUSHALL
            return
        for key in keys:
            one = self.registered.pop(key, None)
            if one is not None:
                for waiter in one.waiters:
                    waiter.told()

    def wake(self) -> None:
        """Whatever was registered may not be any more."""
        registered, self.registered = self.registered, {}
        for one in registered.values():
            for waiter in one.waiters:
                waiter.told()

    def _lost(self) -> None:
        self._wire = None
        self._failures += 1
        pause = _AGAIN[min(self._failures, len(_AGAIN)) - 1]
        self._not_before = max(self._not_before, monotonic() + pause)
        self.wake()
        if not self.closed:
            self._away()

    def _stay(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None

    def _close_idle(self) -> None:
        self._closing = None
        if self._wire is not None and not self.registered:
            wire, self._wire = self._wire, None
            wire.close()

    def leave_for(self, primary: tuple[str, int], fault: ObservatoryError) -> None:
        """Drop a connection that leads elsewhere."""
        if self._wire is not None and self._wire.peer not in (None, primary):
            self._wire.leave(fault)

    def close(self) -> None:
        """Everybody is woken, and nothing more announced."""
        self.closed = True
        self._stay()
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()
        self.wake()

    def abandon(self) -> None:
        """A forked child: the connection and the waiters are the parent's."""
        self.closed = True
        _abandoned.append((self._closing, self.registered))
        self._closing, self.registered = None, {}
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.abandon()


def _ignored(call: "asyncio.Future[Any]") -> None:
    """Who lost the connection is told so otherwise."""
    if not call.cancelled():
        call.exception()
