"""What the servers say has changed: one tracking connection per primary, and until when its silence means "nothing has".

A lease is the promise behind every value that is kept near: each write that its server executed up to `until` - bound has been
heard of. It is renewed by answers to questions on the tracking connection itself, which come behind the notices of all that was
executed before. Nothing renewed within the bound, for whatever reason (a blocked loop, a server that stands still, a socket
that is open at one end only): nothing is promised. Whatever may have lost notices ends the lease; the next is another one.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

from redis.asyncio.connection import AbstractConnection

from ..clock import monotonic
from ..errors import ObservatoryError, StoreUnavailable
from ..logs import INTERNAL
from .wire import Wire

_ASK_EVERY = 0.25
"""Seconds between two questions at most; four within the bound."""
_PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Seconds before the n-th attempt in a row to connect again."""
_REFUSED_PAUSE = 30.0
"""Seconds before a server that does not let us track is asked again."""
_PATIENCE = 1.0
"""Seconds at least that a connection may take to answer before it is given up."""

_RUN_ID = re.compile(rb"run_id:(\w+)")

_abandoned: list[Any] = []
"""Tasks of a parent process: their destructors would complain about a loop that is not ours."""


class Lease:
    """A promise of one primary. until: the moment on `clock.monotonic` up to which it holds; it may be in the past.

    strays: how many reads of its keys were answered elsewhere. A value that was on its way then must not be kept.
    succeeded: it has ended, and the store was there since; what was read under it may have been deleted in between.
    """

    __slots__ = ("ended", "strays", "succeeded", "until")

    def __init__(self, until: float = -1.0) -> None:
        self.until = until
        self.ended = self.succeeded = False
        self.strays = 0

    def end(self) -> None:
        """For good: what was read under it is not to be served again."""
        self.ended = True
        self.until = -1.0


class Listener(Protocol):
    """Who keeps values. Called within the loop's reading: it must be quick, and not raise."""

    def changed(self, keys: list[bytes]) -> None:
        """These were written, deleted, evicted or have expired."""


class Questions(NamedTuple):
    """What renews a lease. facts: of the answers, what must stay as it was; StoreUnavailable when it is no primary any more.
    by_name: the address alone does not say which server it is."""

    commands: tuple[tuple[str, ...], ...]
    facts: Callable[[list[Any]], object]
    by_name: bool = False


def run_of(info: bytes) -> bytes:
    """Which start of which server answered INFO. Empty where it does not say: such ones cannot be told apart."""
    found = _RUN_ID.search(info)
    return b"" if found is None else found[1]


def _words(prefixes: Sequence[str]) -> list[str]:
    return [word for prefix in prefixes for word in ("PREFIX", prefix)]


class Tracker:
    """One primary's notices. Connects when made, again after every loss, and never ends by itself.

    prefixes: of the keys that are tracked; it may grow at its end, `extend` says so. is_ours: whether the reads go to this
    server (its `server`), as far as is known; asked with every question.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[AbstractConnection]],
        prefixes: Sequence[str],
        questions: Questions,
        listener: Listener,
        *,
        bound: float,
        connect_timeout: float,
        suspect: Callable[[], None] = lambda: None,
        is_ours: Callable[[bytes], bool] = lambda _: True,
    ) -> None:
        self._connect = connect
        self._prefixes = prefixes
        self._questions = questions
        self._listener = listener
        self._bound = bound
        self._connect_timeout = connect_timeout
        self._suspect = suspect
        self._is_ours = is_ours
        self._wire: Wire | None = None
        self._said: str | None = None
        self._failures = 0
        self._sent = self._covered = 0
        """How many of the prefixes this connection's server was asked for, and has said that it announces."""
        self.server: bytes | None = None
        """Which one it is, while there is a connection and the questions want to know."""
        self.lease = Lease()
        self._before: Lease | None = None
        """The last that held, until another does."""
        self.generation = 0
        """How many leases have ended."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="observatory tracker")

    def renew(self) -> None:
        """What is kept may be out of date, the connection is sound: another lease from here on."""
        until, before = self.lease.until, self.lease
        self.lease = Lease(until)
        before.end()
        before.succeeded = True
        self._succeed()
        self.generation += 1

    def _lost(self) -> None:
        """Nobody would tell us now."""
        if self.lease.until >= 0:
            self.lease.end()
            self.generation += 1
            self._before, self.lease = self.lease, Lease()

    def _succeed(self) -> None:
        """The store was there without us: what was deleted meanwhile must not be served, not even while it is away."""
        if self._before is not None:
            self._before.succeeded = True
            self._before = None

    def _heard(self, keys: list[bytes] | None) -> None:
        if keys is None:
            self.renew()  # FLUSHALL
        else:
            self._listener.changed(keys)

    async def _run(self) -> None:
        while True:
            patience = max(self._bound, _PATIENCE)
            wire = self._wire = Wire(self._connect, patience, self._heard, self._lost, name="tracker")
            pause = _REFUSED_PAUSE
            self._sent = self._covered = 0
            self.server = None
            try:
                await wire.connected(self._connect_timeout)
                self._sent = sent = len(self._prefixes)
                await wire.call("CLIENT", "TRACKING", "ON", "BCAST", *_words(self._prefixes[:sent]))
                self._covered = max(self._covered, sent)
                if self._questions.by_name:
                    self.server = run_of(await wire.call("INFO", "server"))
                await self._keep(wire)
            except ObservatoryError as error:
                pause = self._told(error)
            except Exception:
                INTERNAL.exception("near caches are off, every read goes to the store")
            finally:
                wire.close()
                self._lost()
            await asyncio.sleep(pause)

    async def _keep(self, wire: Wire) -> None:
        """Ask, and ask again. One question at a time: two that are executed in one turn of the server's loop are answered
        before the notices of what it did in between."""
        known: object = None
        while True:
            asked_at = monotonic()
            answers = await asyncio.gather(*(wire.call(*command) for command in self._questions.commands))
            facts = self._questions.facts(answers)
            if self.server is not None and not self._is_ours(self.server):
                raise StoreUnavailable("the address leads to another server now")
            if known is None:
                known = (facts,)
            elif known != (facts,):
                known = (facts,)
                self.renew()
                self._suspect()
            if not wire.closed:
                self._succeed()
                self.lease.until = asked_at + self._bound
            self._said, self._failures = None, 0
            await asyncio.wait({wire.end}, timeout=min(self._bound / 4, _ASK_EVERY))

    def _told(self, error: ObservatoryError) -> float:
        """One line a reason; the seconds to wait."""
        if isinstance(error, StoreUnavailable):
            self._failures += 1
            return _PAUSES[min(self._failures, len(_PAUSES)) - 1]
        if self._said != error.message:
            self._said = error.message
            INTERNAL.warning("near caches are off, every read goes to the store: %s", error)
        return _REFUSED_PAUSE

    @property
    def peer(self) -> tuple[str, int] | None:
        """Where the connection leads, while there is one."""
        return None if self._wire is None else self._wire.peer

    def leave(self, other_than: tuple[str, int], fault: ObservatoryError) -> None:
        """Drop a connection that leads elsewhere."""
        if self._wire is not None and self._wire.peer not in (None, other_than):
            self._wire.leave(fault)

    def covers(self, key: str) -> bool:
        """The server announces changes of this key."""
        covered, prefixes = self._covered, self._prefixes
        return covered == len(prefixes) or not any(map(key.startswith, prefixes[covered:]))

    def extend(self) -> None:
        """There are more prefixes. From any thread; the server is asked at once, and what is promised of the others stays."""
        with suppress(RuntimeError):  # a loop that is gone promises nothing
            self._task.get_loop().call_soon_threadsafe(self._extend)

    def _extend(self) -> None:
        wire, sent, all_ = self._wire, self._sent, len(self._prefixes)
        if wire is None or wire.closed or not sent or sent == all_:
            return  # the next connection asks for all of them
        self._sent = all_

        def answered(call: "asyncio.Future[Any]") -> None:
            if call.cancelled() or wire is not self._wire:
                return
            if call.exception() is None:
                self._covered = max(self._covered, all_)
            else:
                wire.leave(StoreUnavailable("the tracked keys are others now"))

        wire.call("CLIENT", "TRACKING", "ON", "BCAST", *_words(self._prefixes[sent:all_])).add_done_callback(answered)

    def close(self) -> None:
        """No more promises."""
        if not self._task.get_loop().is_closed():
            self._task.cancel()
        if self._wire is not None:
            self._wire.close()
        self._lost()
        self._succeed()  # by a tracker that is not ours

    def abandon(self) -> None:
        """A forked child, or a loop that is gone: the connection is not ours."""
        _abandoned.append(self._task)
        if self._wire is not None:
            self._wire.abandon()
        self._lost()


def _primary(answers: list[Any]) -> None:
    if answers[0][0] != b"master":
        raise StoreUnavailable(f"the server is {answers[0][0].decode()} now, and no primary")


def _slots(answers: list[Any]) -> object:
    if b"cluster_state:ok" not in answers[1]:
        raise StoreUnavailable("the node is cut off from its cluster")
    return answers[0]


ALONE = Questions((("ROLE",),), _primary, by_name=True)
"""Where others may be behind the same address: a name, a virtual IP, a proxy."""
ELECTED = Questions((("ROLE",),), _primary)
"""Where sentinels may have replaced it."""
SHARING = Questions((("CLUSTER", "SLOTS"), ("CLUSTER", "INFO")), _slots)
"""Where others may have taken its slots, or all of it."""
