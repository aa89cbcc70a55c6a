"""Wait until keys may have changed, without polling: the server says so, once for each time that it was asked to.

    with store.watching(key, other) as watch:
        while (found := await look()) is None:
            await watch.heard(timeout)

What holds: between a look that found nothing and the wait that follows there is always a registration, and a look after it. So
`heard` returns at once where it had to register, and the caller looks again: what was written before the registration is seen
by that look, what is written after it is announced. A notice says that a key was written, deleted, evicted, has expired, or
that something of the kind may have been missed; it never says what there is now, and may come for nothing.

Nothing is waited for longer than a second without a look, so what no server announces (a notice lost with a socket that is open
at one end only, a slot on its way to another node, a server that stands still) costs a second and no more. A connection that
is lost, a flush, a failover, slots that change hands wake everybody. Where there is no connection, or the server refuses to
announce, waiting is looking every now and then: never for ever, and never an error of the watch's own.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from ..clock import monotonic
from ..errors import ObservatoryError
from .cluster import REDIRECTS, Cluster, slot_of_key
from .faults import ServerError
from .node import Node
from .notices import Notices

LOOK_AFTER = 1.0
"""Seconds after which whoever waits looks, though nothing was announced."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.25
_PATIENCE = 0.05
"""Where nothing is announced, the next look comes after this fraction of the time waited: late by so much, and seldom."""


class Watch:
    """One waiter's, of some keys; on a cluster they share a slot. For one task at a time, within `with`."""

    def __init__(self, watches: "Watches", keys: tuple[str, ...]) -> None:
        self.keys = tuple(dict.fromkeys(key.encode() for key in keys))
        self._watches = watches
        self._notices: Notices | None = None
        self._registered = False
        self._notice: asyncio.Future[None] | None = None
        self._began = monotonic()

    def __enter__(self) -> Self:
        self._began = monotonic()
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        if self._notices is not None:
            self._notices.leave(self)

    async def heard(self, timeout: float) -> None:
        """Until it is time to look (again): at once where the keys had to be registered first, else at the next notice; after
        `timeout` seconds, or one, at the latest. Raises nothing but its cancellation, which costs other waiters nothing."""
        timeout = min(timeout, LOOK_AFTER)
        if self._registered and self._notice is not None:
            if not self._notice.done():
                await asyncio.wait({self._notice}, timeout=timeout)
            if self._registered and self._notices is not None:
                self._notices.probe()
        elif not await self._register(timeout):
            waited = monotonic() - self._began
            await asyncio.sleep(min(timeout, max(_FIRST_PAUSE, waited * _PATIENCE), _LONGEST_PAUSE))

    async def _register(self, timeout: float) -> bool:
        """False: nobody will announce anything, as far as can be said now."""
        notices = self._watches.of(self.keys[0])
        if self._notices is not None and self._notices is not notices:
            self._notices.leave(self)
        self._notices = notices
        if notices is None:
            return False
        notice = self._notice = asyncio.get_running_loop().create_future()
        registrations = notices.register(self)
        if not registrations:
            return False
        _, missing = await asyncio.wait({one.asked for one in registrations}, timeout=timeout)
        self._registered = not notice.done() and all(one.made for one in registrations)
        return self._registered or notice.done() or bool(missing)

    def told(self) -> None:
        """Something has happened, or may have; nothing more is announced to this one until it registers again."""
        self._registered = False
        notice = self._notice
        if notice is not None and not notice.done() and not notice.get_loop().is_closed():
            notice.set_result(None)


class Watches:
    """The notices of one store, by primary."""

    def __init__(self, node: Node, cluster: Cluster | None, *, connect_timeout: float) -> None:
        self._node = node
        self._cluster = cluster
        self._connect_timeout = connect_timeout
        self.notices: dict[Node, Notices] = {}
        self.closed = False

    def of(self, key: bytes) -> Notices | None:
        """Of the primary that serves a key. None: it is not known yet."""
        if self.closed:
            return None
        node = self._node if self._cluster is None else self._cluster.pick(slot_of_key(key))
        if node is None:
            if self._cluster is not None:
                self._cluster.suspect()
            return None
        notices = self.notices.get(node)
        if notices is None:
            notices = self.notices[node] = self._make(node)
        return notices

    def _make(self, node: Node) -> Notices:
        cluster = self._cluster
        if cluster is None:
            return Notices(node.connect, connect_timeout=self._connect_timeout)

        def moved(error: ServerError) -> None:
            _, slot, where = str(error).split(" ")[:3]
            cluster.moved(int(slot), where, node)

        return Notices(node.connect, connect_timeout=self._connect_timeout, raw=REDIRECTS, moved=moved, away=cluster.suspect)

    # what the topology tells
    def moved(self, node: Node) -> None:
        """This node serves less than it did: what was registered there may be written elsewhere."""
        if (notices := self.notices.get(node)) is not None:
            notices.wake()

    def astray(self, node: Node) -> None:
        """A look was answered elsewhere, while its slot is on its way: for so long every second has to do."""

    def gone(self, node: Node) -> None:
        """Its links are closed."""
        if (notices := self.notices.pop(node, None)) is not None:
            notices.close()

    def leave(self, other_than: tuple[str, int], fault: ObservatoryError) -> None:
        """Sentinels name another primary than connections were made to."""
        for notices in self.notices.values():
            notices.leave_for(other_than, fault)

    def close(self) -> None:
        """Everybody is woken; for good."""
        self._forget(Notices.close)

    def abandon(self) -> None:
        """A forked child: the connections are the parent's."""
        self._forget(Notices.abandon)

    def _forget(self, let_go: Callable[[Notices], None]) -> None:
        self.closed = True
        notices, self.notices = self.notices, {}
        for one in notices.values():
            let_go(one)
