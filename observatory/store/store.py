"""The store as the rooms above see it: run a script, send a command, know the server's time. Nothing here is resent."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

from redis.asyncio.connection import AbstractConnection

from ..clock import monotonic
from ..errors import ObservatoryError, StoreUnavailable
from ..keys import Keys
from . import embedded
from .address import Address
from .cluster import Cluster, slot_of, slot_of_key
from .faults import ServerError, from_server
from .journey import Alone, Journey, heard
from .link import Link
from .node import BLOCK_FOR, LinkName, Node, Patience
from .script import Script
from .sentinel import Sentinels
from .tracker import Listener
from .tracking import Tracking
from .watch import Watch, Watches

__all__ = ["BLOCK_FOR", "Bulk", "LinkName", "Store"]


class Store:
    """One Redis or Valkey, the primary that Sentinel names, or a cluster; each server is reached over a few links: decisions
    never queue behind values or bulk work.

    Made without I/O; links connect when first used. Bound to the loop that first used it.
    """

    def __init__(
        self, address: Address, namespace: str, *, max_wait: float, connect_timeout: float, socket_timeout: float
    ) -> None:
        self.address = address
        self.namespace = namespace
        self._connect_timeout = connect_timeout
        self._patience = Patience(max_wait, socket_timeout)
        self._node = Node(self._connect, self._patience)
        self._links = self._node.links
        self._cluster = Cluster(address, connect_timeout, self._patience) if address.topology == "cluster" else None
        self._sentinels = Sentinels(address, connect_timeout, self._switched) if address.topology == "sentinel" else None
        self._keys: Keys | None = None
        self._server: embedded.Server | None = None
        self._offset: tuple[float, float] | None = None
        self._trackings: list[Tracking] = []
        self._watches: Watches | None = None
        self._closed = False
        self.proposed_salt = secrets.token_bytes(16)
        """What the namespace's record will say if this process is the first to open it."""

    @property
    def keys(self) -> Keys:
        """The keys of the namespace. StoreUnavailable before its record was read."""
        if self._keys is None:
            raise StoreUnavailable("the store has not been reached yet, so the namespace's record is not known")
        return self._keys

    @property
    def joined(self) -> bool:
        return self._keys is not None

    def join(self, partitions: int, salt: bytes) -> None:
        """What the namespace's record says. Called with every beat: after a flush of the server the fleet agrees again."""
        if self._keys is None or self._keys.partitions != partitions or self.proposed_salt != salt:
            self.proposed_salt = salt
            self._keys = Keys(self.namespace, partitions, salt)

    @property
    def is_cluster(self) -> bool:
        """Known from the URL: keys of different tags may be on different servers."""
        return self._cluster is not None

    def link(self, name: LinkName = "decisions") -> Link:
        """Where there is one server. decisions, values: redis.max_wait bounds a call. bulk: redis.socket_timeout. blocking:
        reads that wait on purpose. durable: writes that wait for replicas."""
        link = self._links.get(name)
        return self._node.link(name) if link is None else link

    async def connected(self, timeout: float) -> None:
        """Decisions can be asked for when it returns; the fault that stands in the way otherwise."""
        if self._cluster is None:
            await self.link("decisions").connected(timeout)
            return
        try:
            async with asyncio.timeout(timeout):
                nodes = await self._cluster.primaries()
        except TimeoutError:
            raise StoreUnavailable(f"no connection to the store within {timeout:g} s") from None
        # A part of the cluster may be away: the rest serves its keys.
        tried = await asyncio.gather(
            *(node.link("decisions").connected(timeout) for node in nodes.values()), return_exceptions=True
        )
        faults = [fault for fault in tried if isinstance(fault, BaseException)]
        if len(faults) == len(tried):
            raise faults[0]

    async def _connect(self) -> AbstractConnection:
        if self._sentinels is not None:
            return await self._sentinels.connect()
        if self._cluster is not None:
            raise StoreUnavailable("a cluster has no link of its own: send, run or command know whose it is")
        if self.address.embedded is None:
            return self.address.connection(self._connect_timeout)
        if self._server is None:
            self._server = embedded.Server(self.address.embedded)
        path = await asyncio.to_thread(self._server.ensure)
        return self.address.connection(self._connect_timeout, path=str(path))

    async def run(self, script: Script, keys: list[str], arguments: list[Any], link: LinkName = "decisions") -> Any:
        """Run a script once. StoreUnavailable: whether it ran is unknown."""
        return await self.send(script, keys, arguments, link)

    def send(
        self, script: Script, keys: list[str], arguments: list[Any], link: LinkName = "decisions", *, replicas: int = 0
    ) -> "asyncio.Future[Any]":
        """`run` without a coroutine: written in this tick of the loop, answered by the future.

        NOSCRIPT heals here, also after a failover or SCRIPT FLUSH: nothing was executed then. replicas: the answer comes once
        so many have acknowledged the write; StoreUnavailable says otherwise how many did. On a cluster the first key decides.
        """
        if self._cluster is not None or replicas:
            routes = self._cluster or Alone(self._node)
            command = ("EVALSHA", script.sha, len(keys), *keys, *arguments)
            link = "durable" if replicas and link == "decisions" else link
            slot = slot_of_key(keys[0]) if keys else None
            return Journey(routes, slot, command, link, self._patience, script=script, replicas=replicas).begin()
        wire = self.link(link)
        first = wire.call("EVALSHA", script.sha, len(keys), *keys, *arguments)
        answer: asyncio.Future[Any] = first.get_loop().create_future()

        def done(call: "asyncio.Future[Any]") -> None:
            if answer.done():
                if not call.cancelled():
                    call.exception()
                return
            error = call.exception()
            if error is None:
                answer.set_result(call.result())
            elif not isinstance(error, ServerError):
                answer.set_exception(error)
            elif call is first:
                # Both in one write, answered in order: healing costs one more trip, not two.
                wire.call("SCRIPT", "LOAD", script.text).add_done_callback(heard)
                wire.call("EVALSHA", script.sha, len(keys), *keys, *arguments).add_done_callback(done)
            else:
                answer.set_exception(from_server(error))

        first.add_done_callback(done)
        return answer

    def flush(self) -> None:
        """Write now what was sent in this tick; else it is written at its end."""
        if self._cluster is None and (link := self._links.get("decisions")) is not None:
            link.flush()

    async def command(self, *command: str | bytes | float, link: LinkName = "decisions") -> Any:
        """Send one command once. On a cluster to the primary of its first key; to any without one."""
        if self._cluster is not None:
            return await Journey(self._cluster, slot_of(command), command, link, self._patience).begin()
        return await self.link(link).call(*command)

    @property
    def unserved(self) -> int:
        """Slots of a cluster that nobody serves, as far as is known."""
        return 0 if self._cluster is None else self._cluster.unserved

    async def ping(self) -> None:
        """Some primary answers; the fault of the first otherwise."""
        answers = list((await self.everywhere("PING", link="decisions")).values())
        if all(isinstance(answer, BaseException) for answer in answers):
            raise answers[0]

    async def everywhere(self, *command: str | bytes | float, link: LinkName = "bulk") -> dict[str, Any]:
        """The same command to every primary: by its place the answer, or the error of ours."""
        if self._cluster is None:
            nodes = {self.address.shown: self._node}
        else:
            nodes = await self._cluster.primaries()
        calls = [node.link(link).call(*command) for node in nodes.values()]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        return {
            where: from_server(answer) if isinstance(answer, ServerError) else answer
            for where, answer in zip(nodes, answers, strict=True)
        }

    async def scan(self, pattern: str) -> AsyncIterator[bytes]:
        """Every key that matches, of every primary. One that moves meanwhile may come twice, or be missed."""
        nodes = [self._node] if self._cluster is None else list((await self._cluster.primaries()).values())
        for node in nodes:
            cursor = b"0"
            while True:
                cursor, found = await node.link("bulk").call("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
                for key in found:
                    yield key
                if cursor == b"0":
                    break

    def bulk(self) -> "Bulk":
        """The same store over the link for work that may be slow: flushes, queries, the worker's batches."""
        return Bulk(self)

    def track(self, prefixes: Sequence[str], listener: Listener, bound: float) -> Tracking:
        """Be told of every key that begins so and changes; what is kept of them may be `bound` seconds out of date."""
        tracking = Tracking(
            self._node,
            self._cluster,
            prefixes,
            listener,
            elected=self._sentinels is not None,
            bound=bound,
            connect_timeout=self._connect_timeout,
        )
        if self._closed:
            tracking.close()
        self._trackings.append(tracking)
        if self._cluster is not None:
            self._cluster.watchers.append(tracking)
        return tracking

    def watching(self, *keys: str) -> Watch:
        """To wait until one of these may have changed; on a cluster they share a slot. How, and what holds: store/watch.py.

        No I/O before the first wait; one connection a primary, however many wait for however many keys.
        """
        if self._watches is None:
            self._watches = Watches(self._node, self._cluster, connect_timeout=self._connect_timeout)
            if self._closed:
                self._watches.close()
            if self._cluster is not None:
                self._cluster.watchers.append(self._watches)
        return Watch(self._watches, keys)

    def _switched(self, primary: tuple[str, int], fault: ObservatoryError) -> None:
        self._node.leave(primary, fault)
        for tracking in self._trackings:
            tracking.leave(primary, fault)
        if self._watches is not None:
            self._watches.leave(primary, fault)

    # the server's time
    def learn_time(self, server_us: int, asked_at: float, answered_at: float, *, believe: bool = False) -> None:
        """Remember how far the server's clock is from ours. The closest answer wins for a minute; believe: this one does."""
        error = answered_at - asked_at
        if believe or self._offset is None or error <= self._offset[1] * 2 or answered_at - self._offset[0] > 60:
            self._offset = (answered_at, max(error, 1e-6))
            self._shift_us = server_us - int((asked_at + answered_at) / 2 * 1e6)

    def server_us(self) -> int | None:
        """Now, in microseconds of the server's clock, or None before it has ever answered."""
        return None if self._offset is None else int(monotonic() * 1e6) + self._shift_us

    def close(self) -> None:
        """Let go of every link, and of the embedded server's lock."""
        self._closed = True
        for tracking in self._trackings:
            tracking.close()
        if self._watches is not None:
            self._watches.close()
        self._node.close()
        self._links = self._node.links
        for part in (self._cluster, self._sentinels):
            if part is not None:
                part.close()
        if self._server is not None:
            self._server.release()
            self._server = None

    def abandon(self) -> None:
        """A forked child: the links are the parent's."""
        for tracking in self._trackings:
            tracking.abandon()
        self._trackings.clear()
        if self._watches is not None:
            self._watches.abandon()
        self._watches = None
        self._node.abandon()
        self._links = self._node.links
        for part in (self._cluster, self._sentinels):
            if part is not None:
                part.abandon()
        if self._server is not None:
            self._server.abandon()
            self._server = None
        self._keys = None
        self._offset = None


class Bulk:
    """Runs scripts on the patient link."""

    __slots__ = ("_store",)

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def keys(self) -> Keys:
        return self._store.keys

    def run(self, script: Script, keys: list[str], arguments: list[Any]) -> Any:
        return self._store.run(script, keys, arguments, "bulk")

    def command(self, *command: str | bytes | float) -> Any:
        return self._store.command(*command, link="bulk")
