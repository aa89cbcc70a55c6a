"""Where callers meet: what is asked in one tick of the loop travels as one script call, and each is answered for itself."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ...clock import RoomClock, monotonic
from ...errors import ObservatoryError, StoreError, StoreUnavailable
from ...keys import Key, Keys
from ...store.faults import fresh
from ...store.journey import heard
from ...store.store import Store
from . import calls
from .shape import Shape

MOST_PARTS = 32
"""Parts of one script call. Enough to spread its fixed cost; and while the server works at one, the next is being written."""


class Part(NamedTuple):
    """One limit of a request: its shape, where its state is, and the cost as the scripts take it."""

    shape: Shape
    key: Key
    cost: int
    part: int


class PartAnswer(NamedTuple):
    """What the script says of one part (lua/rate_limiter/decide.lua)."""

    fits: int
    debt: int
    part: int
    wait_us: int
    plain: int


class Answer(NamedTuple):
    """What the script says of one request. status: 1 allowed, 2 held before under this id, 0 refused, -2 it has been reaped."""

    status: int
    parts: tuple[PartAnswer, ...]
    now_us: int


_CLOCKS = "the store's clock and ours do not agree on a calendar window"


class _Request(NamedTuple):
    """What was asked, to be asked once more when a calendar window ended on the way."""

    script: Any
    verb: str
    parts: Sequence[Part]
    id: str
    lease_us: int
    strict: bool
    more: str = ""
    last: bool = False


class _Batch:
    """Requests that will travel together."""

    __slots__ = ("asked_at", "futures", "keys", "places", "requests", "shapes", "store")

    def __init__(self, store: Store) -> None:
        self.store = store
        self.asked_at = monotonic()
        self.keys: list[Key] = []
        self.shapes: list[Shape] = []
        self.places: dict[int, int] = {}
        self.requests: list[str] = []
        self.futures: list[tuple[asyncio.Future[Any], _Request]] = []

    def place(self, shape: Shape) -> int:
        found = self.places.get(id(shape))
        if found is None:
            self.shapes.append(shape)
            found = self.places[id(shape)] = len(self.shapes)
        return found


class Desk:
    """Asks the scripts. Not a queue: nothing waits for an answer of somebody else's."""

    def __init__(self, store: Callable[[], Store], clock: RoomClock, replicas: int) -> None:
        self._store = store
        self.clock = clock
        self._replicas = replicas
        self._batches: dict[tuple[Store, Any, bool, str], _Batch] = {}
        self._knows: set[Key] = set()
        self._of: Store | None = None
        self.heard_at = clock.monotonic()
        """When the store last answered one of our questions."""

    def store(self) -> Store:
        """The store; what was known of another one is forgotten."""
        store = self._store()
        if store is not self._of:
            self._of = store
            self._knows.clear()
        return store

    def keys(self) -> Keys:
        """The namespace's keys; before its record was read some that only tell limits apart here: nothing is asked by them."""
        store = self.store()
        return store.keys if store.joined else Keys(store.namespace, 1, b"unknown")

    def now_us(self) -> int:
        """The clock that was handed in, else the server's as far as it is known, else ours."""
        given = self.clock.now_us()
        if given:
            return given
        known = None if self._of is None else self._of.server_us()
        return time.time_ns() // 1000 if known is None else known

    def ask(self, verb: str, parts: Sequence[Part], *, id: str = "", lease_us: int = 0, strict: bool = False) -> Any:  # noqa: A002
        """Look, take, hold or borrow; the future has an Answer. On Cluster all parts must be of one slot."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._enqueue(self.store(), _Request(calls.decide, verb, parts, id, lease_us, strict), future)
        return future

    def settle(
        self,
        verb: str,
        part: Part,
        *,
        id: str,  # noqa: A002
        lease_us: int = 0,
        held: tuple[int, int] = (0, 0),
        opened_us: int = 0,
        strict: bool = False,
    ) -> "asyncio.Future[tuple[int, int, int]]":
        """Settle, renew, return or debit one part; the future has (status, excess, its numerator)."""
        future: asyncio.Future[tuple[int, int, int]] = asyncio.get_running_loop().create_future()
        more = f",{held[0]},{held[1]},{opened_us}"
        self._enqueue(self.store(), _Request(calls.settle, verb, (part,), id, lease_us, strict, more), future)
        return future

    def _enqueue(self, store: Store, request: "_Request", future: "asyncio.Future[Any]") -> None:
        if not store.joined:
            # Its keys are not known yet: asking under others would be another limit.
            future.set_exception(StoreUnavailable("the store has not been reached yet"))
            return
        batch = self._batch(store, request.script, request.strict, request.parts[0].key)
        text = f'["{request.verb}","{request.id}",{request.lease_us}'
        for shape, key, cost, part in request.parts:
            text += f",{batch.place(shape)},{cost},{part}"
            batch.keys.append(key)
        batch.requests.append(f"{text}{request.more}]")
        batch.futures.append((future, request))

    async def advance(self, part: Part, owner: str, joins: bytes, leaves: bytes, *, strict: bool = False) -> list[Any]:
        """Stand in the line of one limit (lua/rate_limiter/advance.lua)."""
        store = self.store()
        for _ in range(2):
            asked_at, fence = monotonic(), self._fence(store, part.key)
            reply = await calls.advance(
                calls.Sending(store, self._replicas if strict else 0),
                fence=fence,
                state=part.key,
                now_us=self.clock.now_us(),
                known=self._known(store, fence),
                limits=b"[" + part.shape.wire(self.now_us()) + b"]",
                owner=owner,
                joins=joins,
                leaves=leaves,
            )
            self._knows.add(fence)
            self.heard_at = self.clock.monotonic()
            if reply[2] != -3:
                return reply
            store.learn_time(reply[0], asked_at, monotonic(), believe=True)
        raise StoreUnavailable(_CLOCKS)

    def _batch(self, store: Store, script: Any, strict: bool, key: Key) -> _Batch:
        slot = key[key.index("{") : key.index("}")] if store.is_cluster else ""
        group = (store, script, strict, slot)
        batch = self._batches.get(group)
        if batch is not None and len(batch.keys) >= MOST_PARTS:
            self._send(group, at_once=True)
            batch = None
        if batch is None:
            batch = self._batches[group] = _Batch(store)
            asyncio.get_running_loop().call_soon(self._send, group, batch)
        return batch

    def _fence(self, store: Store, key: Key) -> Key:
        return store.keys.fence(key if store.is_cluster else None)

    def _known(self, store: Store, fence: Key) -> int:
        # The embedded server acknowledges what is in its append-only file, and nobody is promoted in its place.
        return 2 if store.address.embedded is not None else int(fence in self._knows)

    def _send(self, group: tuple[Store, Any, bool, str], scheduled: _Batch | None = None, *, at_once: bool = False) -> None:
        batch = self._batches.get(group)
        if batch is None or (scheduled is not None and batch is not scheduled):
            return
        del self._batches[group]
        store, script, strict, _ = group
        try:
            fence = self._fence(store, batch.keys[0])
            now_us = self.now_us()
            answer = script(
                calls.Sending(store, self._replicas if strict else 0),
                fence=fence,
                states=batch.keys,
                now_us=self.clock.now_us(),
                known=self._known(store, fence),
                limits=b"[" + b",".join([shape.wire(now_us) for shape in batch.shapes]) + b"]",
                requests=("[" + ",".join(batch.requests) + "]").encode(),
            )
        except Exception as error:
            for future, _ in batch.futures:
                if not future.done():
                    future.set_exception(error)
            return

        if at_once:
            store.flush()
        answer.add_done_callback(lambda call: self._answered(batch, script, fence, call))

    def _answered(self, batch: _Batch, script: Any, fence: Key, call: "asyncio.Future[list[Any]]") -> None:
        """To each its own."""
        if call.cancelled():
            return
        error = call.exception()
        if error is not None:
            for future, _ in batch.futures:
                if not future.done():
                    future.set_exception(fresh(error) if isinstance(error, ObservatoryError) else error)
            return
        self._knows.add(fence)
        self.heard_at = self.clock.monotonic()
        reply = call.result()
        now_us, place = reply[0], 2
        for future, request in batch.futures:
            status = reply[place]
            place += 1
            if request.script is calls.settle:
                answer: Any = (status, reply[place], reply[place + 1])
                place += 2
            else:
                ends = place + 5 * len(request.parts) if status >= 0 else place
                parts = tuple([PartAnswer._make(reply[at : at + 5]) for at in range(place, ends, 5)])
                place, answer = ends, Answer(status, parts, now_us)
            self._tell(batch, future, request, answer, now_us)

    def _tell(
        self, batch: _Batch, future: "asyncio.Future[Any]", request: _Request, answer: tuple[Any, ...], now_us: int
    ) -> None:
        status = answer[0]
        if future.done():
            if future.cancelled() and status == 1 and request.verb == "hold":
                self.let_go(request.parts, request.id)
        elif status == -1:
            future.set_exception(_unreadable())
        elif status != -3:
            future.set_result(answer)
        elif request.last:
            future.set_exception(StoreUnavailable(_CLOCKS))
        else:
            # A calendar window ended meanwhile; nothing was taken.
            batch.store.learn_time(now_us, batch.asked_at, monotonic(), believe=True)
            self._enqueue(batch.store, request._replace(last=True), future)

    def let_go(self, parts: Sequence[Part], id: str) -> None:  # noqa: A002
        """Held for a caller that has gone: back now, and not only at its deadline."""
        for part in parts:
            nothing = part._replace(cost=0, part=0)
            self.settle("settle", nothing, id=id).add_done_callback(heard)

    def forget(self) -> None:
        """In a forked child: what was being asked was asked by its parent."""
        self._batches.clear()
        self._knows.clear()

    def afresh(self) -> None:
        """Another store, another clock: nothing was heard yet."""
        self.forget()
        self.heard_at = float("-inf")


def _unreadable() -> StoreError:
    return StoreError("the state of a limit cannot be read", remedy="observatory rate-limiter reset LIMIT IDENTITY")
