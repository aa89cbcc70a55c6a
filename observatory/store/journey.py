"""One call on its way: sent, redirected, healed, acknowledged by replicas; answered once.

What holds: a call goes on to another place only after a server said that it did not execute it. Whatever else ends it ends it
for good, as UNKNOWN.
"""

import asyncio
from typing import Any, Protocol

from ..errors import ObservatoryError, StoreUnavailable
from .faults import ServerError, fresh, from_server
from .link import Link
from .node import LinkName, Node, Patience
from .script import Script

MAX_REDIRECTS = 5
_PAUSE = 0.025
"""Seconds before what a server could not take yet is sent to it again."""


class Routes(Protocol):
    """Who serves a slot."""

    def pick(self, slot: int | None) -> Node | None:
        """The primary of a slot, any for None. None: not known."""

    def moved(self, slot: int, where: str, told_by: Node) -> Node:
        """A server says that the slot is served at "host:port"."""

    def named(self, where: str, told_by: Node) -> Node:
        """The node at "host:port"."""

    @property
    def fault(self) -> ObservatoryError | None:
        """Why the last look found nobody who knows."""

    def suspect(self) -> None:
        """Something is wrong with what is known; look again, soon."""

    def learn(self) -> "asyncio.Future[None]":
        """Look again, now. Done when it is known, or nobody answers (then `pick` finds nothing or the old)."""


class Alone:
    """The routes where there is one server."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def pick(self, slot: int | None) -> Node:
        return self._node

    def moved(self, slot: int, where: str, told_by: Node) -> Node:
        return told_by

    def named(self, where: str, told_by: Node) -> Node:
        return told_by

    @property
    def fault(self) -> None:
        return None

    def suspect(self) -> None:
        return

    def learn(self) -> "asyncio.Future[None]":
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


class Journey:
    """From `begin` to `answer`. script: heals NOSCRIPT. replicas: how many must have the write before it counts."""

    __slots__ = (
        *("_again", "_healed", "_hops", "_link", "_max_wait", "_routes", "_slot", "_timer"),
        *("answer", "command", "deadline", "replicas", "script"),
    )

    def __init__(
        self,
        routes: Routes,
        slot: int | None,
        command: tuple[str | bytes | float, ...],
        link: LinkName,
        patience: Patience,
        *,
        script: Script | None = None,
        replicas: int = 0,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._routes, self._slot, self.command, self._link = routes, slot, command, link
        self.script, self.replicas = script, replicas
        self._max_wait = patience.of(link).max_wait
        self.deadline = loop.time() + self._max_wait
        self._hops = 0
        self._healed: Node | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._again: asyncio.TimerHandle | None = None
        self.answer: asyncio.Future[Any] = loop.create_future()

    def begin(self) -> "asyncio.Future[Any]":
        """Sent when it returns, unless it has to be found out first where to."""
        node = self._routes.pick(self._slot)
        if node is None:
            self._detour()
            self._routes.learn().add_done_callback(self._learned)
        else:
            self._go(node)
        return self.answer

    def _go(self, node: Node, *, asking: bool = False, heal: bool = False) -> None:
        leg = _Leg(self, node, asking=asking, heal=heal)
        if not self.replicas:
            leg.send(node.link(self._link))
            return
        group = node.strict(self._link)
        if group.busy:
            self._detour()
        group.add(leg)

    def refused(self, error: BaseException, node: Node, *, asking: bool) -> None:
        """A server, or the way to it, said no: go on where that is allowed."""
        if not isinstance(error, ServerError):
            if isinstance(error, StoreUnavailable):
                self._routes.suspect()
            self.fail(error)
        elif error.code == "NOSCRIPT" and self.script is not None and self._healed is not node:
            self._healed = node
            self._go(node, asking=asking, heal=True)
        elif error.code in ("MOVED", "ASK") and self._hops < MAX_REDIRECTS:
            self._hops += 1
            self._detour()
            _, slot, where = str(error).split(" ")[:3]
            if error.code == "ASK":
                self._go(self._routes.named(where, node), asking=True)
            else:
                self._go(self._routes.moved(int(slot), where, node))
        elif error.code in ("TRYAGAIN", "CLUSTERDOWN"):
            self._routes.suspect()
            self._later(from_server(error))
        elif error.code in ("MOVED", "ASK"):
            self._routes.suspect()
            self.fail(StoreUnavailable(f"the cluster sent us on {self._hops} times without an answer"))
        else:
            self.fail(from_server(error))

    # where it cannot go straight
    def _detour(self) -> None:
        """From here on a clock of its own: each link only knows when it was handed the call."""
        if self._timer is None:
            self._timer = self.answer.get_loop().call_at(self.deadline, self._expire)
            self.answer.add_done_callback(self._settled)

    def _settled(self, _: object) -> None:
        for timer in (self._timer, self._again):
            if timer is not None:
                timer.cancel()

    def _expire(self) -> None:
        self.fail(StoreUnavailable(f"the store did not answer within {self._max_wait:g} s", context={"link": self._link}))

    def _later(self, fault: BaseException) -> None:
        """Once more in a moment, while there is time; what the server said otherwise."""
        loop = self.answer.get_loop()
        if loop.time() + _PAUSE >= self.deadline:
            self.fail(fault)
            return
        self._detour()
        self._again = loop.call_later(_PAUSE, self._resume)

    def _resume(self) -> None:
        if not self.answer.done():
            self.begin()

    def _learned(self, looked: "asyncio.Future[None]") -> None:
        if self.answer.done():
            return
        if looked.cancelled():
            self.fail(StoreUnavailable("the store is closed"))
            return
        node = self._routes.pick(self._slot)
        if node is not None:
            self._go(node)
        elif self._routes.fault is not None:
            self.fail(fresh(self._routes.fault))
        else:
            self._later(StoreUnavailable("no node of the cluster serves this key"))

    def end(self, result: Any) -> None:
        """The answer, unless there is one."""
        if not self.answer.done():
            self.answer.set_result(result)

    def fail(self, error: BaseException) -> None:
        """The error as the answer, unless there is one."""
        if not self.answer.done():
            self.answer.set_exception(error)


class _Leg:
    """One of a journey's attempts, at one node."""

    __slots__ = ("_asking", "_call", "_heal", "_journey", "_node", "deadline", "replicas")

    def __init__(self, journey: Journey, node: Node, *, asking: bool, heal: bool) -> None:
        self._journey, self._node, self._asking, self._heal = journey, node, asking, heal
        self._call: asyncio.Future[Any] | None = None
        self.replicas, self.deadline = journey.replicas, journey.deadline

    def send(self, wire: Link) -> bool:
        """Written in this tick, all of it in one write."""
        journey = self._journey
        if journey.answer.done():
            return False
        if self._asking and wire.crowded:
            # ASKING without its command would hold for somebody else's.
            journey.fail(StoreUnavailable("too many calls are waiting for the store already"))
            return False
        if self._heal and journey.script is not None:
            wire.call("SCRIPT", "LOAD", journey.script.text).add_done_callback(heard)
        if self._asking:
            wire.call("ASKING").add_done_callback(heard)
        self._call = wire.call(*journey.command)
        self._call.add_done_callback(self._answered)
        return True

    def _answered(self, call: "asyncio.Future[Any]") -> None:
        if self._journey.answer.done():
            heard(call)
        elif (error := call.exception()) is not None:
            self._journey.refused(error, self._node, asking=self._asking)
        elif not self.replicas:
            self._journey.end(call.result())

    def acknowledged(self, wait: "asyncio.Future[Any]") -> None:
        """The write counts, or its caller hears where it is."""
        error = wait.exception()
        call, journey = self._call, self._journey
        if call is None or not call.done() or call.exception() is not None:
            return  # it was refused, and went elsewhere
        if error is not None:
            journey.fail(StoreUnavailable(f"the write stands on the primary; whether replicas have it is unknown: {error}"))
        elif (count := wait.result()) < self.replicas:
            journey.fail(
                StoreUnavailable(
                    f"{count} of {self.replicas} replicas acknowledged in time; the write stands on the primary",
                    context={"acknowledged": str(count)},
                )
            )
        else:
            journey.end(call.result())


def heard(call: "asyncio.Future[Any]") -> None:
    """Whoever waits for the answer hears of the error behind it."""
    if not call.cancelled():
        call.exception()
