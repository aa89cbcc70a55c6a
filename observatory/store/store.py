"""The store as the rooms above see it: run a script, send a command, know the server's time. Nothing here is resent."""

import asyncio
import secrets
from typing import Any, Literal

from redis.asyncio.connection import AbstractConnection

from ..clock import monotonic
from ..errors import StoreUnavailable
from ..keys import Keys
from . import embedded
from .address import Address
from .faults import ServerError, from_server
from .link import Link
from .script import Script

LinkName = Literal["decisions", "values", "bulk", "blocking"]
BLOCK_FOR = 2.0
"""Seconds: the longest that a blocking read may ask the server to wait."""


class Store:
    """One Redis or Valkey, reached over a few links: decisions never queue behind values or bulk work.

    Made without I/O; links connect when first used. Bound to the loop that first used it.
    """

    def __init__(
        self, address: Address, namespace: str, *, max_wait: float, connect_timeout: float, socket_timeout: float
    ) -> None:
        self.address = address
        self.namespace = namespace
        self._connect_timeout = connect_timeout
        self._drop_after = socket_timeout
        self._max_wait = max_wait
        self._links: dict[str, Link] = {}
        self._keys: Keys | None = None
        self._server: embedded.Server | None = None
        self._offset: tuple[float, float] | None = None
        self.proposed_salt = secrets.token_bytes(16)
        """What the namespace's record will say if this process is the first to open it."""

    @property
    def keys(self) -> Keys:
        """The keys of the namespace. StoreUnavailable before its record was read."""
        if self._keys is None:
            raise StoreUnavailable("the store has not been reached yet, so the namespace's record is not known")
        return self._keys

    @property
    def is_cluster(self) -> bool:
        return False

    @property
    def joined(self) -> bool:
        return self._keys is not None

    def join(self, partitions: int, salt: bytes) -> None:
        """What the namespace's record says. Called with every beat: after a flush of the server the fleet agrees again."""
        if self._keys is None or self._keys.partitions != partitions or self.proposed_salt != salt:
            self.proposed_salt = salt
            self._keys = Keys(self.namespace, partitions, salt)

    def link(self, name: LinkName = "decisions") -> Link:
        """decisions, values: redis.max_wait bounds a call. bulk: redis.socket_timeout. blocking: reads that wait on purpose."""
        link = self._links.get(name)
        if link is None:
            patience = self._drop_after + (BLOCK_FOR if name == "blocking" else 0.0)
            link = self._links[name] = Link(
                self._connect,
                name=name,
                max_wait=patience if name in ("bulk", "blocking") else self._max_wait,
                drop_after=patience,
            )
        return link

    async def _connect(self) -> AbstractConnection:
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
        self, script: Script, keys: list[str], arguments: list[Any], link: LinkName = "decisions"
    ) -> "asyncio.Future[Any]":
        """`run` without a coroutine: written in this tick of the loop, answered by the future.

        NOSCRIPT heals here, also after a failover or SCRIPT FLUSH: nothing was executed then.
        """
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
                wire.call("SCRIPT", "LOAD", script.text).add_done_callback(_heard)
                wire.call("EVALSHA", script.sha, len(keys), *keys, *arguments).add_done_callback(done)
            else:
                answer.set_exception(from_server(error))

        first.add_done_callback(done)
        return answer

    async def command(self, *command: str | bytes | float, link: LinkName = "decisions") -> Any:
        """Send one command once."""
        return await self.link(link).call(*command)

    def bulk(self) -> "Bulk":
        """The same store over the link for work that may be slow: flushes, queries, the worker's batches."""
        return Bulk(self)

    # the server's time
    def learn_time(self, server_us: int, asked_at: float, answered_at: float) -> None:
        """Remember how far the server's clock is from ours. The closest answer wins for a minute."""
        error = answered_at - asked_at
        if self._offset is None or error <= self._offset[1] * 2 or answered_at - self._offset[0] > 60:
            self._offset = (answered_at, max(error, 1e-6))
            self._shift_us = server_us - int((asked_at + answered_at) / 2 * 1e6)

    def server_us(self) -> int | None:
        """Now, in microseconds of the server's clock, or None before it has ever answered."""
        return None if self._offset is None else int(monotonic() * 1e6) + self._shift_us

    def close(self) -> None:
        """Let go of every link, and of the embedded server's lock."""
        links, self._links = self._links, {}
        for link in links.values():
            link.close()
        if self._server is not None:
            self._server.release()
            self._server = None

    def abandon(self) -> None:
        """A forked child: the links are the parent's."""
        links, self._links = self._links, {}
        for link in links.values():
            link.abandon()
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


def _heard(call: "asyncio.Future[Any]") -> None:
    """Whoever waits for the answer hears of the error behind it."""
    if not call.cancelled():
        call.exception()
