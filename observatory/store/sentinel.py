"""Who is the primary, as the sentinels say: asked for every connection, and again every second while one is open.

What holds: a connection is used only after its server said itself that it is a primary. A primary that the sentinels have
replaced is left within about a second, also when it cannot be reached by them and goes on accepting writes.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from redis.asyncio.connection import AbstractConnection

from ..errors import ObservatoryError, StoreError, StoreMisconfigured, StoreUnavailable
from .address import Address, place
from .link import Link

CHECK_EVERY = 1.0
"""Seconds between two looks at who the primary is."""

_abandoned: list[Any] = []
"""Tasks of a parent process: their destructors would complain about a loop that is not ours."""


class Primary(NamedTuple):
    """What a sentinel says. A higher epoch is a later election; a sentinel that was cut off still names the one before."""

    epoch: int
    host: str
    port: int


class Sentinels:
    """The sentinels of one primary. on_switch is called when they agree on another than connections were made to."""

    def __init__(
        self, address: Address, connect_timeout: float, on_switch: Callable[[tuple[str, int], ObservatoryError], None]
    ) -> None:
        self._address = address
        self._connect_timeout = connect_timeout
        self._on_switch = on_switch
        self._each = connect_timeout / len(address.nodes)
        self._links: dict[int, Link] = {}
        self._first = 0
        """The one that answered last."""
        self._known: Primary | None = None
        self._watch: asyncio.Task[None] | None = None

    async def connect(self) -> AbstractConnection:
        """A connection to the primary, made, and asked for its role: a sentinel may name the old one for a while."""
        primary = await self.primary()
        connection = self._address.connection(self._connect_timeout, host=primary.host, port=primary.port)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            await connection.send_command("ROLE")
            role = await connection.read_response()
            if role[0] != b"master":
                where = place(primary.host, primary.port)
                raise StoreUnavailable(f"the sentinels name {where} as the primary, which says it is {role[0].decode()}")
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        if self._watch is None or self._watch.done():
            self._watch = asyncio.get_running_loop().create_task(self._keep_watch(), name="observatory sentinels")
        return connection

    async def primary(self) -> Primary:
        """Asked in turn, the last that answered first; one that is behind what is known already is not believed alone."""
        said, fault, count = [], None, len(self._address.nodes)
        for index in [*range(self._first, count), *range(self._first)]:
            try:
                answer = await self._ask(index)
            except ObservatoryError as error:
                # A wrong password tells more than a sentinel that is away.
                fault = error if fault is None or isinstance(error, StoreMisconfigured) else fault
                continue
            said.append(answer)
            if self._known is None or answer.epoch >= self._known.epoch:
                self._first = index
                break
        latest = max((answer.epoch for answer in said), default=-1)
        if self._known is None or latest > self._known.epoch or self._forgotten(said):
            if not said:
                raise fault if isinstance(fault, StoreMisconfigured) else StoreUnavailable(f"no sentinel answers: {fault}")
            self._known = next(answer for answer in said if answer.epoch == latest)
        return self._known

    async def _latest(self) -> Primary | None:
        """All of them at once: of those that know the latest election, the majority."""
        asked = [self._ask(index) for index in range(len(self._address.nodes))]
        said = [answer for answer in await asyncio.gather(*asked, return_exceptions=True) if isinstance(answer, Primary)]
        latest = max((answer.epoch for answer in said), default=-1)
        votes = Counter(answer for answer in said if answer.epoch == latest)
        best = max(votes, default=None, key=lambda answer: (votes[answer], answer == self._known))
        if best is not None and (self._known is None or latest >= self._known.epoch or self._forgotten(said)):
            self._known = best
        return self._known

    def _forgotten(self, said: list[Primary]) -> bool:
        """Most of them are behind what we know: they were set up anew."""
        return self._known is not None and 2 * sum(one.epoch < self._known.epoch for one in said) > len(self._address.nodes)

    async def _ask(self, index: int) -> Primary:
        link = self._links.get(index)
        if link is None:
            host, port = self._address.nodes[index]

            async def connect() -> AbstractConnection:
                return self._address.to_sentinel(self._each, host, port)

            link = self._links[index] = Link(connect, name="sentinel", max_wait=self._each, drop_after=self._each)
        name = self._address.primary
        # The epoch first: were the primary replaced in between, the old one must not come with the new epoch.
        facts = link.call("SENTINEL", "MASTER", name)
        where = link.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", name)
        said: Any
        found: Any
        said, found = await asyncio.gather(facts, where, return_exceptions=True)
        if isinstance(found, BaseException):
            raise found
        if found is None:
            raise StoreMisconfigured(
                f"the sentinels know no primary {name!r}", remedy="The path of the URL is the name in `sentinel monitor NAME …`"
            )
        if isinstance(said, BaseException):
            raise said
        facts_of = said if isinstance(said, dict) else dict(zip(said[::2], said[1::2], strict=True))
        return Primary(int(facts_of.get(b"config-epoch", 0)), found[0].decode(), int(found[1]))

    async def _keep_watch(self) -> None:
        while True:
            await asyncio.sleep(CHECK_EVERY)
            # Sentinels that are away, or have lost their memory, are no reason to leave a primary that answers.
            with contextlib.suppress(StoreError):
                if (primary := await self._latest()) is not None:
                    where = (primary.host, primary.port)
                    fault = f"the primary is {place(*where)} now; the connection to the one before was dropped"
                    self._on_switch(where, StoreUnavailable(fault))

    def close(self) -> None:
        """No more questions."""
        if self._watch is not None and not self._watch.get_loop().is_closed():
            self._watch.cancel()
        links, self._links = self._links, {}
        for link in links.values():
            link.close()
        self._watch = self._known = None

    def abandon(self) -> None:
        """A forked child: the connections and the watch are the parent's."""
        links, self._links = self._links, {}
        for link in links.values():
            link.abandon()
        _abandoned.append(self._watch)
        self._watch = self._known = None
