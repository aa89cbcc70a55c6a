"""One connection to one server with any number of calls in flight: written once per loop tick, answered in order.

The driver's connection does the handshake (TLS, AUTH, HELLO, SELECT); then its transport is handed to our protocol, which
feeds the parser and resolves the futures straight from the loop. A cancelled caller drops only its future.

What holds: a call is answered once, by the reply to it, or by StoreUnavailable. A call that was written and not answered is
UNKNOWN: it may have been executed. Nothing is ever sent twice.
"""

import asyncio
import os
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection

from ..errors import ObservatoryError, StoreUnavailable
from .faults import ServerError, fresh, from_driver, from_server

MAX_OUTSTANDING = 100_000
_BACKOFF = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Seconds during which calls fail at once after the n-th failed attempt to connect."""

_TICK = 0.005
"""Seconds: how closely a deadline is kept. Under load many fall due at once, and are told together."""

_LATE = 0.05
"""Seconds: a watch this far behind its time tells of a blocked loop, whose answers may lie in the socket already."""

RAW = frozenset({"NOSCRIPT"})
"""The refusals that whoever sends a script hears as they came. Nothing was executed then."""

_MORE = object()
"""What the parser answers when it needs more bytes (its default, False, is also a reply)."""

_abandoned: list[Any] = []
"""Transports and streams of a parent process. Kept, because their destructors would touch the parent's event loop."""


class _Call:
    __slots__ = ("arrived", "future")

    def __init__(self, future: "asyncio.Future[Any]", arrived: float) -> None:
        self.future: asyncio.Future[Any] | None = future
        self.arrived = arrived


class Link(asyncio.Protocol):
    """Calls in flight on one connection, made when first needed and made again after it broke.

    max_wait: seconds from a caller's arrival to its StoreUnavailable. drop_after: seconds after which an unanswered call takes
    the connection down, since what comes behind it is stuck too. raw: codes that stay ServerError, for the rooms above.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[AbstractConnection]],
        *,
        name: str,
        max_wait: float,
        drop_after: float,
        raw: frozenset[str] = RAW,
    ) -> None:
        self._connect = connect
        self.name = name
        self._max_wait = max_wait
        self._drop_after = drop_after
        self._raw = raw
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connection: AbstractConnection | None = None
        self._transport: asyncio.WriteTransport | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._in_flight: deque[_Call] = deque()
        self._unsent: deque[tuple[_Call, bytes]] = deque()
        self._waiting: deque[_Call] = deque()
        self._out: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None
        self._idle = True
        """Nothing that was written waits for an answer."""
        self._moved_at = 0.0
        """When the first of those that wait was written, or the last answer came."""
        self._failures = 0
        self._fail_until = 0.0
        self._left_at = -1e9
        self._fault: ObservatoryError | None = None
        self._reader = hiredis.Reader(replyError=ServerError, notEnoughData=_MORE)
        self.closed = False

    def call(self, *command: str | bytes | float) -> "asyncio.Future[Any]":
        """Send a command. The future has the reply, or an error of ours. Must be called on the loop that owns the link."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        if self.closed:
            future.set_exception(StoreUnavailable("the link to the store is closed"))
            return future
        now = loop.time()
        packed: bytes = hiredis.pack_command(command)
        if self._transport is not None:
            if len(self._in_flight) >= MAX_OUTSTANDING:
                future.set_exception(StoreUnavailable(f"{MAX_OUTSTANDING} calls are waiting for the store already"))
                return future
            call = _Call(future, now)
            self._idle = self._idle or not self._in_flight
            self._in_flight.append(call)
            self._waiting.append(call)
            if not self._out:
                loop.call_soon(self.flush)
            self._out.append(packed)
        elif now < self._fail_until and self._fault is not None:
            future.set_exception(fresh(self._fault))
            return future
        else:
            call = _Call(future, now)
            self._unsent.append((call, packed))
            self._waiting.append(call)
            if self._connecting is None:
                self._connecting = loop.create_task(self._open(), name=f"observatory link {self.name}")
        if self._timer is None or self._timer.when() > now + self._max_wait:
            # It may have been set for a later moment: that at which a stuck connection is dropped.
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_at(now + self._max_wait, self._tick)
        return future

    async def connected(self, timeout: float) -> None:
        """Connected when it returns. The fault that stands in the way otherwise; StoreUnavailable after `timeout` seconds."""
        if self._transport is not None:
            return
        if self._connecting is None:
            self._loop = asyncio.get_running_loop()
            self._connecting = self._loop.create_task(self._open(), name=f"observatory link {self.name}")
        await asyncio.wait({self._connecting}, timeout=timeout)
        if self._transport is None:
            raise fresh(self._fault or StoreUnavailable(f"no connection to the store within {timeout:g} s"))

    def flush(self) -> None:
        """Write what was called for in this tick."""
        out, self._out = self._out, []
        if self._idle and self._loop is not None:
            # Measured from the writing: a loop that was blocked meanwhile must not take a sound link for a stuck one.
            self._idle, self._moved_at = False, self._loop.time()
        if self._transport is not None and out:
            self._transport.write(b"".join(out))

    async def _open(self) -> None:
        try:
            connection = await self._connect()
            try:
                await connection.connect()  # type: ignore[no-untyped-call]
                writer = connection._writer  # noqa: SLF001 (held by the driver's contract test)
                if writer is None:
                    raise StoreUnavailable("the connection closed while it was being made")
                if self.closed:
                    # A cancellation that the driver swallowed: nobody is left who would close it.
                    raise StoreUnavailable("the link to the store is closed")
                transport = writer.transport
            except BaseException:
                await connection.disconnect(nowait=True)
                raise
        except asyncio.CancelledError:
            self._connecting = None
            raise
        except Exception as error:
            self._refuse(from_driver(error))
            return
        self._connection = connection
        self._reader = hiredis.Reader(replyError=ServerError, notEnoughData=_MORE)
        self._idle = True
        transport.set_protocol(self)
        self._transport = transport
        self._connecting = None
        self._failures = 0
        self._fault = None
        while self._unsent:
            call, packed = self._unsent.popleft()
            if not _settled(call):
                self._in_flight.append(call)
                self._out.append(packed)
        self.flush()

    def _refuse(self, fault: ObservatoryError) -> None:
        """Connecting failed: tell who waits, and whoever comes in the next moment, without trying again for each."""
        self._connecting = None
        self._fault = fault
        pause = _BACKOFF[min(self._failures, len(_BACKOFF) - 1)]
        self._failures += 1
        self._fail_until = (self._loop or asyncio.get_running_loop()).time() + pause
        unsent, self._unsent = self._unsent, deque()
        for call, _ in unsent:
            if call.future is not None and not call.future.done():
                call.future.set_exception(fresh(fault))

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        if self._loop is not None:
            self._moved_at = self._loop.time()
        reader.feed(data)
        try:
            while (reply := reader.gets()) is not _MORE:
                self._answer(reply)
        except hiredis.ProtocolError as error:
            self._drop(StoreUnavailable(f"the store sent what is not RESP: {error}"))

    def _answer(self, reply: Any) -> None:
        if isinstance(reply, hiredis.PushNotification):
            return
        call = self._in_flight.popleft()
        # Its answer must not be kept alive by the queue that watches deadlines.
        future, call.future = call.future, None
        if isinstance(reply, ServerError) and reply.code == "READONLY" and self._loop is not None:
            # A primary that was demoted keeps its clients; the address may lead to the new one by now.
            demoted = StoreUnavailable("the store became a replica; the connection was dropped")
            self._loop.call_soon(self.leave, demoted)
        if future is None or future.done():
            return
        if isinstance(reply, ServerError):
            future.set_exception(reply if reply.code in self._raw else from_server(reply))
        else:
            future.set_result(reply)

    @property
    def crowded(self) -> bool:
        """No room for two commands that belong together."""
        return len(self._in_flight) + 2 > MAX_OUTSTANDING

    @property
    def peer(self) -> tuple[str, int] | None:
        """Where the connection leads, while there is one."""
        connection = self._connection
        return None if connection is None else (getattr(connection, "host", ""), getattr(connection, "port", 0))

    def leave(self, fault: ObservatoryError) -> None:
        """Drop the connection, and make the next one without a storm of attempts while there is no better."""
        if self._transport is None or self._loop is None:
            return
        self._drop(fault)
        now = self._loop.time()
        if now - self._left_at < _BACKOFF[-1]:
            self._fault, self._fail_until = fault, now + _BACKOFF[-1] / 4
        self._left_at = now

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._drop(StoreUnavailable(f"the connection to the store was lost ({error or 'closed by the server'})"))

    def _tick(self) -> None:
        """Give up on whoever has waited long enough; drop a link whose oldest call is stuck."""
        timer, self._timer = self._timer, None
        if self._loop is None:
            return
        now = self._loop.time()
        if timer is not None and now - timer.when() > _LATE:
            # What the loop did instead of reading is nobody's fault here: first what came meanwhile.
            self._timer = self._loop.call_at(now + _TICK, self._tick)
            return
        if self._in_flight and not self._idle and now - self._moved_at >= self._drop_after:
            self._drop(StoreUnavailable(f"no answer from the store for {self._drop_after:g} s; the connection was dropped"))
        overdue, waiting = now - self._max_wait + 1e-4, self._waiting
        # In the order of their arrival, so only those whose time has come are looked at.
        while waiting and (_settled(waiting[0]) or waiting[0].arrived <= overdue):
            call = waiting.popleft()
            if call.future is not None and not call.future.done():
                call.future.set_exception(
                    StoreUnavailable(f"the store did not answer within {self._max_wait:g} s", context={"link": self.name})
                )
        while self._unsent and _settled(self._unsent[0][0]):
            self._unsent.popleft()
        due = [waiting[0].arrived + self._max_wait] if waiting else []
        if self._in_flight:
            due.append(self._moved_at + self._drop_after)
        if due:
            self._timer = self._loop.call_at(max(min(due), now + _TICK), self._tick)

    def _drop(self, fault: ObservatoryError) -> None:
        transport, self._transport = self._transport, None
        connection, self._connection = self._connection, None
        self._out.clear()
        if transport is not None:
            transport.abort()
        if connection is not None:
            # The transport is ours and closed; the driver's connection must not warn about it or close it again.
            connection._reader = connection._writer = None  # noqa: SLF001
        in_flight, self._in_flight = self._in_flight, deque()
        for call in in_flight:
            if call.future is not None and not call.future.done():
                call.future.set_exception(fresh(fault))

    def close(self) -> None:
        """Fail what is outstanding and let go of the connection. Opens again only as a new link."""
        self.closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._refuse(StoreUnavailable("the link to the store is closed"))
        self._drop(StoreUnavailable("the link to the store is closed"))

    def abandon(self) -> None:
        """A forked child: let go without a word on the wire, since the socket is the parent's."""
        self.closed = True
        transport, connection = self._transport, self._connection
        if transport is not None and connection is not None:
            _abandoned.append((transport, connection._reader, connection._writer, self._connecting, self._timer))  # noqa: SLF001
            connection._reader = connection._writer = None  # noqa: SLF001
            raw = getattr(transport.get_extra_info("socket"), "_sock", None)
            if raw is not None:
                os.close(raw.detach())
        self._transport = self._connection = self._connecting = self._timer = None


def _settled(call: _Call) -> bool:
    return call.future is None or call.future.done()
