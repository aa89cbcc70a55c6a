"""Which primary serves which slot: a map, asked of any node, put right by every MOVED, asked anew when a node is lost."""

import asyncio
from itertools import islice
from typing import Any, Protocol

from redis.asyncio.connection import AbstractConnection
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from ..errors import ObservatoryError, StoreUnavailable
from .address import Address, place
from .faults import fresh
from .link import RAW
from .node import Node, Patience

REDIRECTS = RAW | {"MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN"}
"""Refusals after which a call may go elsewhere, or be sent again: nothing was executed."""
_CALM = 0.2
"""Seconds: a suspicion so soon after the last look asks nobody."""
_EACH = 0.5
"""Seconds that one node may take to answer, before another is asked."""
_UNUSED = 30.0
"""Seconds after which the links to a node that serves nothing any more are closed."""
KEYLESS = frozenset(
    (
        "ACL",
        "CLIENT",
        "CLUSTER",
        "COMMAND",
        "CONFIG",
        "DBSIZE",
        "ECHO",
        "FLUSHALL",
        "INFO",
        "PING",
        "ROLE",
        "SCAN",
        "SCRIPT",
        "TIME",
    )
)

_abandoned: list[Any] = []
"""Tasks of a parent process: their destructors would complain about a loop that is not ours."""


def slot_of(command: tuple[str | bytes | float, ...]) -> int | None:
    """The slot of a command's first key. None: it has none, any primary will do."""
    name = str(command[0]).upper()
    at = 1
    if name in ("EVAL", "EVALSHA", "EVAL_RO", "EVALSHA_RO"):
        at = 3 if int(command[2]) else len(command)
    elif name in ("XREAD", "XREADGROUP"):
        at = next(index for index, word in enumerate(command) if str(word).upper() == "STREAMS") + 1
    if name in KEYLESS or at >= len(command):
        return None
    return slot_of_key(command[at])


def slot_of_key(key: str | bytes | float) -> int:
    """CRC16 of the part in braces."""
    return key_slot(key if isinstance(key, bytes) else str(key).encode("utf-8", "surrogateescape"))


class Watcher(Protocol):
    """Who must know when slots change hands."""

    def moved(self, node: Node) -> None:
        """It serves less than it did."""

    def astray(self, node: Node) -> None:
        """It sent a call on to another."""

    def gone(self, node: Node) -> None:
        """Its links are about to be closed."""


class Cluster:
    """Nodes by "host:port", and the map."""

    def __init__(self, address: Address, connect_timeout: float, patience: Patience) -> None:
        self._address = address
        self._connect_timeout = connect_timeout
        self._patience = patience
        self._nodes: dict[str, Node] = {}
        self._served: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._primaries: dict[str, Node] = {}
        self._unused: dict[str, float] = {}
        self._looking: asyncio.Task[None] | None = None
        self._looked_at = -1e9
        self._turn = 0
        self._closed = False
        self._fault: ObservatoryError | None = None
        self.watchers: list[Watcher] = []

    # the routes of a journey
    def pick(self, slot: int | None) -> Node | None:
        """The primary of a slot; for a command without a key each in turn."""
        if slot is None:
            self._turn += 1
            return next(islice(self._primaries.values(), self._turn % max(len(self._primaries), 1), None), None)
        return self._served[slot]

    def named(self, where: str, told_by: Node) -> Node:
        """The node at "host:port". A server that does not know its own host leaves it out: it is the one who told."""
        for watcher in self.watchers:
            watcher.astray(told_by)
        host, _, port = where.rpartition(":")
        if not host or host == "?":
            host = next((name for name, node in self._nodes.items() if node is told_by), "").rpartition(":")[0]
        return self._node(host.strip("[]"), int(port))

    def moved(self, slot: int, where: str, told_by: Node) -> Node:
        """This slot from now on; the others by looking again, once for all who hear the same."""
        before = self._served[slot]
        node = self._served[slot] = self.named(where, told_by)
        for watcher in self.watchers:
            if before is not None:
                watcher.moved(before)
        self.suspect()
        return node

    @property
    def fault(self) -> ObservatoryError | None:
        """Why the last look found nobody who knows."""
        return self._fault

    def suspect(self) -> None:
        """Look again, unless that was done a moment ago."""
        if asyncio.get_running_loop().time() - self._looked_at >= _CALM:
            self.learn()

    def learn(self) -> "asyncio.Future[None]":
        """Look again. One look at a time, for everybody who waits."""
        if self._closed:
            ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            ended.cancel()
            return ended
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(self._look(), name="observatory cluster map")
        return self._looking

    @property
    def unserved(self) -> int:
        """Slots that nobody serves, as far as is known."""
        return self._served.count(None)

    async def primaries(self) -> dict[str, Node]:
        """Every primary by "host:port", as of now."""
        if self._closed:
            raise StoreUnavailable("the store is closed")
        await asyncio.shield(self.learn())
        if not self._primaries:
            raise fresh(self._fault) if self._fault else StoreUnavailable("no node of the cluster answers")
        return dict(self._primaries)

    def _node(self, host: str, port: int) -> Node:
        name = place(host, port)
        node = self._nodes.get(name)
        if node is None:

            async def connect() -> AbstractConnection:
                return self._address.connection(self._connect_timeout, host=host, port=port)

            node = self._nodes[name] = Node(connect, self._patience, REDIRECTS)
        return node

    async def _look(self) -> None:
        """Ask one node after another, another one first each time: the one we asked last may itself be cut off."""
        self._fault = None
        seeds = {place(*seed): seed for seed in self._address.nodes}
        names = list(dict.fromkeys([*self._primaries, *seeds]))
        self._turn += 1
        try:
            for index in range(len(names)):
                name = names[(self._turn + index) % len(names)]
                node = self._nodes.get(name) or self._node(*seeds[name])
                try:
                    async with asyncio.timeout(_EACH):
                        reply = await node.link("topology").call("CLUSTER", "SLOTS")
                except TimeoutError:
                    self._fault = self._fault or StoreUnavailable(f"{name} did not answer within {_EACH:g} s")
                    continue
                except ObservatoryError as error:
                    self._fault = error
                    continue
                if reply:
                    self._take(reply, name)
                    self._fault = None
                    return
                self._fault = StoreUnavailable(f"{name} knows of no slots that are served")
        finally:
            self._looked_at = asyncio.get_running_loop().time()
            self._looking = None

    def _take(self, reply: list[Any], told_by: str) -> None:
        served: list[Node | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        primaries: dict[str, Node] = {}
        for first, last, (host, port, *_), *_ in reply:
            said = "" if host is None else host.decode()
            at = said if said not in ("", "?") else told_by.rpartition(":")[0].strip("[]")
            node = primaries[place(at, port)] = self._node(at, port)
            served[first : last + 1] = [node] * (last + 1 - first)
        less = {old for old, new in zip(self._served, served, strict=True) if old is not new} if self.watchers else ()
        self._served, self._primaries = served, primaries
        for watcher in self.watchers:
            for loser in less:
                if loser is not None:
                    watcher.moved(loser)
        now = asyncio.get_running_loop().time()
        for name in list(self._nodes):
            if name in primaries:
                self._unused.pop(name, None)
            elif now - self._unused.setdefault(name, now) > _UNUSED:
                for watcher in self.watchers:
                    watcher.gone(self._nodes[name])
                self._nodes.pop(name).close()
                del self._unused[name]

    def close(self) -> None:
        """Let go of every node."""
        self._closed = True
        if self._looking is not None and not self._looking.get_loop().is_closed():
            self._looking.cancel()
        self._forget(Node.close)

    def abandon(self) -> None:
        """A forked child: the connections are the parent's."""
        _abandoned.append(self._looking)
        self._forget(Node.abandon)

    def _forget(self, let_go: Any) -> None:
        nodes, self._nodes = self._nodes, {}
        for node in nodes.values():
            let_go(node)
        self._served, self._primaries, self._unused = [None] * REDIS_CLUSTER_HASH_SLOTS, {}, {}
        self._looking, self._looked_at = None, -1e9
