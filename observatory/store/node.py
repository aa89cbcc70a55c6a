"""One server and its links: decisions never queue behind values, bulk work, blocking reads or waits for replicas."""

from collections.abc import Awaitable, Callable
from typing import Literal, NamedTuple

from redis.asyncio.connection import AbstractConnection

from ..errors import ObservatoryError
from .link import RAW, Link
from .strict import Strict

LinkName = Literal["decisions", "values", "bulk", "blocking", "durable", "topology"]
"""durable: writes that wait for replicas. topology: questions about the cluster itself."""
BLOCK_FOR = 2.0
"""Seconds: the longest that a blocking read may ask the server to wait."""


class Patience(NamedTuple):
    """Seconds: what one decision may take, and after how long an unanswered call takes its link down."""

    max_wait: float
    drop_after: float

    def of(self, link: str) -> "Patience":
        """decisions, values, durable: redis.max_wait bounds a call. bulk, blocking, topology: redis.socket_timeout."""
        drop_after = self.drop_after + (BLOCK_FOR if link == "blocking" else 0.0)
        return Patience(drop_after if link in ("bulk", "blocking", "topology") else self.max_wait, drop_after)


class Node:
    """The links to one server, each made when it is first used."""

    def __init__(
        self, connect: Callable[[], Awaitable[AbstractConnection]], patience: Patience, raw: frozenset[str] = RAW
    ) -> None:
        self.connect = connect
        self._patience = patience
        self._raw = raw
        self.links: dict[str, Link] = {}
        self._strict: dict[str, Strict] = {}

    def link(self, name: LinkName) -> Link:
        """The link of this name."""
        link = self.links.get(name)
        if link is None:
            max_wait, drop_after = self._patience.of(name)
            link = self.links[name] = Link(self.connect, name=name, max_wait=max_wait, drop_after=drop_after, raw=self._raw)
        return link

    def strict(self, name: LinkName) -> Strict:
        """Writes over the link of this name that wait for replicas."""
        group = self._strict.get(name)
        if group is None:
            group = self._strict[name] = Strict(self.link(name))
        return group

    def leave(self, other_than: tuple[str, int], fault: ObservatoryError) -> None:
        """Drop every connection that leads elsewhere."""
        for link in self.links.values():
            if link.peer is not None and link.peer != other_than:
                link.leave(fault)

    def close(self) -> None:
        """Fail what is outstanding, and let go."""
        links, self.links, self._strict = self.links, {}, {}
        for link in links.values():
            link.close()

    def abandon(self) -> None:
        """A forked child: the connections are the parent's."""
        links, self.links, self._strict = self.links, {}, {}
        for link in links.values():
            link.abandon()
