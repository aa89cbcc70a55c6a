"""Whose silence a key's near value rests on: a tracker per primary, found by the key's slot, made when first asked for."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from redis.asyncio.connection import AbstractConnection

from ..errors import ObservatoryError, StoreUnavailable
from .cluster import Cluster, slot_of_key
from .node import Node
from .tracker import ALONE, ELECTED, SHARING, Lease, Listener, Tracker, run_of


class _Reads:
    """Which server answers the reads of one address. Each new connection is asked once."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._connection: AbstractConnection | None = None
        self._server: bytes | None = None
        self._judging = False

    @property
    def server(self) -> bytes | None:
        """As of now; None while it is not known."""
        link = self._node.link("values")
        connection = link._connection  # noqa: SLF001 (who it is, not what it does)
        if connection is None:
            return None
        if connection is not self._connection:
            self._connection, self._server = connection, None
            link.call("INFO", "server").add_done_callback(lambda call: self._answered(connection, call))
        return self._server

    def _answered(self, connection: AbstractConnection, call: "asyncio.Future[Any]") -> None:
        error = None if call.cancelled() else call.exception()
        if connection is not self._connection or call.cancelled():
            return
        if error is None:
            self._server = run_of(call.result())
        elif isinstance(error, StoreUnavailable):
            self._connection = None  # asked again; what refuses the trackers says so

    def is_from(self, server: bytes) -> bool:
        """As far as is known. If not, one of them is behind: the reads' server is left if it is no primary any more."""
        mine = self.server
        if mine is None or mine == server:
            return True
        if not self._judging:
            self._judging = True
            self._node.link("values").call("ROLE").add_done_callback(self._judged)
        return False

    def _judged(self, call: "asyncio.Future[Any]") -> None:
        self._judging = False
        if not call.cancelled() and call.exception() is None and call.result()[0] != b"master":
            self._node.link("values").leave(StoreUnavailable("the store became a replica; the connection was dropped"))


class Tracking:
    """The trackers of one store. bound: seconds that a value kept near may be out of date, whatever happens.

    But where sentinels name another primary: the old one may go on for a moment, or for ever when they do not reach it, and
    promises what it knows. The lease ends when we hear of the other, within two seconds.
    """

    def __init__(
        self,
        node: Node,
        cluster: Cluster | None,
        prefixes: Sequence[str],
        listener: Listener,
        *,
        elected: bool,
        bound: float,
        connect_timeout: float,
    ) -> None:
        self._node = node
        self._cluster = cluster
        self._questions = SHARING if cluster is not None else ELECTED if elected else ALONE
        self._prefixes = list(prefixes)
        self._reads = _Reads(node) if self._questions.by_name else None
        self._make: Callable[[Node], Tracker] = lambda one: Tracker(
            one.connect,
            self._prefixes,
            self._questions,
            listener,
            bound=bound,
            connect_timeout=connect_timeout,
            suspect=(lambda: None) if cluster is None else cluster.suspect,
            is_ours=(lambda _: True) if self._reads is None else self._reads.is_from,
        )
        self._trackers: dict[Node, Tracker] = {}
        self.closed = False

    def lease(self, key: str) -> Lease | None:
        """The lease of the key's primary as of now; it may not hold yet, or any more. None: nobody is known to serve it."""
        node = self._node if self._cluster is None else self._cluster.pick(slot_of_key(key))
        if node is None or self.closed:
            return None
        tracker = self._trackers.get(node)
        if tracker is None:
            tracker = self._trackers[node] = self._make(node)
        if self._questions is ELECTED and (values := node.link("values").peer) is not None and values != tracker.peer:
            # The one of them that is behind will hear from the sentinels; what is read here is not announced there.
            return None
        if self._reads is not None and ((server := self._reads.server) is None or server != tracker.server):
            return None
        return tracker.lease if tracker.covers(key) else None

    def include(self, prefix: str) -> None:
        """Be told of keys that begin so, too: they have a lease once the servers know. From any thread."""
        if not self.closed and prefix not in self._prefixes:
            self._prefixes.append(prefix)
            for tracker in list(self._trackers.values()):
                tracker.extend()

    @property
    def generations(self) -> int:
        """How many leases have ended so far."""
        return sum(tracker.generation for tracker in self._trackers.values())

    @property
    def trackers(self) -> int:
        """How many servers are listened to."""
        return len(self._trackers)

    # what the topology tells
    def moved(self, node: Node) -> None:
        """This node serves less than it did."""
        if (tracker := self._trackers.get(node)) is not None:
            tracker.renew()

    def astray(self, node: Node) -> None:
        """A read of this node's was answered by another."""
        if (tracker := self._trackers.get(node)) is not None:
            tracker.lease.strays += 1

    def gone(self, node: Node) -> None:
        """Its links are closed."""
        if (tracker := self._trackers.pop(node, None)) is not None:
            tracker.close()

    def leave(self, other_than: tuple[str, int], fault: ObservatoryError) -> None:
        """Sentinels name another primary than connections were made to."""
        for tracker in self._trackers.values():
            tracker.leave(other_than, fault)

    def close(self) -> None:
        """Nothing is promised any more; for good."""
        self.closed = True
        trackers, self._trackers = self._trackers, {}
        for tracker in trackers.values():
            tracker.close()

    def abandon(self) -> None:
        """A forked child: the connections are the parent's."""
        self.closed = True
        trackers, self._trackers = self._trackers, {}
        for tracker in trackers.values():
            tracker.abandon()
