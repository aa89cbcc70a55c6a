"""Waiting in the fleet's line: one task per process and limit stands there for all who wait here."""

import asyncio
import secrets
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from ...errors import InvalidArgument, ObservatoryError
from ...keys import Key
from ...logs import INTERNAL
from ...store.journey import heard
from .desk import Desk, Part
from .shape import Shape

LOOK_EVERY = 0.25
"""Seconds: how soon a refund or a raised limit is seen. Also says that we are alive: after a second of silence others go on."""
_SOONEST = 0.003


class Granted(msgspec.Struct, frozen=True):
    """The turn has come: the cost is charged (or held). What counts against the capacity after it."""

    ticket: str
    debt: int
    part: int
    now_us: int


class Refused(msgspec.Struct, frozen=True):
    """It could not have come in time."""

    wait: float
    """Seconds until it could."""
    waited: float = 0.0


class Ticket:
    """One place in a line."""

    __slots__ = ("cost", "future", "join", "lease_us", "name", "part", "sent")

    def __init__(
        self, part: Part, *, place: str, patience: float | None, lease_us: int, name: str, class_: str, weight: int
    ) -> None:
        self.name = name or secrets.token_hex(8)
        self.cost, self.part, self.lease_us = part.cost, part.part, lease_us
        patience_us = -1 if patience is None else int(patience * 1e6)
        self.join: list[Any] = [self.name, part.cost, part.part, class_, weight, place, patience_us, lease_us]
        self.sent = False
        self.future: asyncio.Future[Granted | Refused] = asyncio.get_running_loop().create_future()

    @property
    def left(self) -> str:
        return f"{self.name}|{self.cost}|{self.part}|{self.lease_us}"


class Line:
    """The tickets of this process in one limit's line."""

    def __init__(self, desk: Desk, part: Part, owner: str, gone: Callable[[], None], *, strict: bool) -> None:
        self._desk = desk
        self._part = part
        self._owner = owner
        self._gone = gone
        self._tickets: dict[str, Ticket] = {}
        self._strict = strict
        self._leaves: list[str] = []
        self._changed = asyncio.Event()
        self._epoch = 0
        self.eta = LOOK_EVERY
        """Seconds that the first of them would still have to wait, as of the last look."""
        self._task = asyncio.get_running_loop().create_task(self._stand(), name="observatory line")

    @property
    def is_over(self) -> bool:
        """Nobody stands there any more, or only the parent of a forked process, or who stood on a loop that is gone."""
        return self._task.done() or self._task.get_loop() is not asyncio.get_running_loop()

    def join(self, ticket: Ticket) -> None:
        """InvalidArgument when somebody waits here under the same id."""
        if ticket.name in self._tickets:
            raise InvalidArgument("a reservation of this id stands in line already", remedy="Give each an id of its own")
        self._tickets[ticket.name] = ticket
        self._changed.set()

    def leave(self, ticket: Ticket) -> None:
        """Not waiting any more. What was granted meanwhile is given back."""
        if self._tickets.get(ticket.name) is not ticket:
            return
        del self._tickets[ticket.name]
        if ticket.sent:
            self._leaves.append(ticket.left)
            self._changed.set()

    async def _stand(self) -> None:
        try:
            while self._tickets or self._leaves:
                self._changed.clear()
                try:
                    wait = await self._advance()
                except ObservatoryError as error:
                    # They may stand there still, and are passed after a second: our next line has another name.
                    self._fail(error)
                    return
                await self._desk.clock.looked(self._changed, wait)
        except Exception as error:
            INTERNAL.exception("standing in line failed")
            self._fail(error)
        finally:
            self._gone()

    def _fail(self, error: Exception) -> None:
        tickets, self._tickets = self._tickets, {}
        for ticket in tickets.values():
            if not ticket.future.done():
                ticket.future.set_exception(error)

    async def _advance(self) -> float:
        """One call: join, leave, take. Seconds until the next look."""
        asked = dict(self._tickets)
        joins = [ticket for ticket in asked.values() if not ticket.sent]
        leaves, self._leaves = self._leaves, []
        for ticket in joins:
            ticket.sent = True
        encode = msgspec.json.encode
        spelled = encode([ticket.join for ticket in joins])
        reply = await self._desk.advance(self._part, self._owner, spelled, encode(leaves), strict=self._strict)
        now_us, _, epoch, wait_us, granted, refused, debt, part = reply
        if self._epoch and epoch != self._epoch:
            # The line was lost with its server; who stood in it joins again, in the order in which they came.
            for ticket in asked.values():
                ticket.sent = ticket in joins
        self._epoch = epoch
        for raw, fence in zip(granted[::2], granted[1::2], strict=True):
            name = raw.decode()
            found = self._tickets.pop(name, None)
            if found is not None and not found.future.done():
                found.future.set_result(Granted(name, debt, fence if self._part.shape.kind == "c" else part, now_us))
            else:
                self.give_back(asked.get(name), name, now_us)
        for raw, wait in zip(refused[::2], refused[1::2], strict=True):
            found = self._tickets.pop(raw.decode(), None)
            if found is not None and not found.future.done():
                found.future.set_result(Refused(wait / 1e6))
        if any(not ticket.sent for ticket in self._tickets.values()):
            return 0.0
        if wait_us < 0:
            return LOOK_EVERY
        self.eta = wait_us / 1e6
        return min(max(self.eta, _SOONEST), LOOK_EVERY)

    def give_back(self, ticket: Ticket | None, name: str, now_us: int) -> None:
        """What was granted to a caller that has gone. One that is lost costs its amount; a hold comes back at its deadline."""
        self._leaves = [left for left in self._leaves if not left.startswith(f"{name}|")]
        if ticket is None:
            return
        if ticket.lease_us:
            nothing = self._part._replace(cost=0, part=0)
            self._desk.settle("settle", nothing, id=name, opened_us=now_us).add_done_callback(heard)
        else:
            whole = self._part._replace(cost=ticket.cost, part=ticket.part)
            self._desk.settle("return", whole, id=name, opened_us=now_us).add_done_callback(heard)


class Lines:
    """The lines in which this process stands."""

    def __init__(self, desk: Desk, owner: Callable[[], str]) -> None:
        self._desk = desk
        self._owner = owner
        self._lines: dict[tuple[Key, Shape], Line] = {}
        self._made = 0

    async def stand(
        self,
        part: Part,
        *,
        patience: float | None,
        place: Literal["back", "front"] = "back",
        lease_us: int = 0,
        name: str = "",
        class_: str = "",
        weight: int = 1,
        strict: bool = False,
    ) -> Granted | Refused:
        """Wait for the turn, at most `patience` seconds. StoreUnavailable when the store goes away meanwhile."""
        ticket = Ticket(part, place=place, patience=patience, lease_us=lease_us, name=name, class_=class_, weight=weight)
        # Under other numbers it is another line of ours: each ticket is served by the numbers that it came with.
        key = (part.key, part.shape)
        line = self._lines.get(key)
        if line is None or line.is_over:
            self._made += 1
            owner = f"{self._owner()}/{self._made}".replace("|", "_")

            def gone() -> None:
                if self._lines.get(key) is made:
                    del self._lines[key]

            made = Line(self._desk, part, owner, gone, strict=strict)
            line = self._lines[key] = made
        line.join(ticket)
        clock = self._desk.clock
        began = clock.time()
        try:
            async with clock.timeout(patience):
                return await clock.overseen(ticket.future, lambda: line.eta)
        except TimeoutError:
            if ticket.future.done() and not ticket.future.cancelled():
                return ticket.future.result()
            waited = clock.time() - began
            return Refused(line.eta, waited)
        except asyncio.CancelledError:
            done = ticket.future.done() and not ticket.future.cancelled() and ticket.future.exception() is None
            if done and isinstance(granted := ticket.future.result(), Granted):
                line.give_back(ticket, ticket.name, granted.now_us)
            raise
        finally:
            line.leave(ticket)

    def forget(self) -> None:
        """In a forked child: its parent stands there."""
        self._lines.clear()
