"""An estimate that is held, until the truth is known."""

import asyncio
import base64
import re
import secrets
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from types import TracebackType
from typing import Any, Protocol

import msgspec

from ... import units
from ...clock import RoomClock, Timer
from ...errors import InvalidArgument, ObservatoryError, ReservationLost, StoreUnavailable
from ...logs import INTERNAL
from ...types import Amount, Unit
from .decision import Decision
from .limit import Limit, respelled
from .wanted import Cost, Wanted

LONGEST_LEASE = 3600.0
"""Seconds that a hold may last without being renewed."""
_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Settlement(msgspec.Struct, frozen=True):
    """What became of a hold, by unit."""

    returned: Mapping[Unit, Amount] = {}
    debt: Mapping[Unit, Amount] = {}
    """What was used beyond the estimate."""
    late: bool = False
    """True: the hold had been reaped; the use is recorded all the same, once."""


class Held(msgspec.Struct, frozen=True, array_like=True):
    """One limit of a reservation, as its id spells it: enough to settle it from any process."""

    limit: str
    identity: str
    asked: int
    spec: dict[str, Any] | None = None
    """The whole limit, where it was brought along and nobody else knows it."""

    def inline(self) -> Limit:
        try:
            return respelled(self.limit, self.spec or {})
        except (msgspec.ValidationError, TypeError):
            raise InvalidArgument("id is not one that reserve gave out") from None


class Token(msgspec.Struct, frozen=True, array_like=True):
    """What a reservation's id says."""

    id: str
    opened_us: int
    lease: float
    parts: tuple[Held, ...]

    def text(self) -> str:
        return "res_" + base64.urlsafe_b64encode(msgspec.msgpack.encode(self)).decode().rstrip("=")

    @classmethod
    def of(cls, text: str) -> "Token":
        """InvalidArgument when it is not an id that `reserve` gave out."""
        try:
            if not isinstance(text, str) or not text.startswith("res_") or len(text) > 65_536:
                raise ValueError
            raw = base64.urlsafe_b64decode(text[4:] + "=" * (-len(text[4:]) % 4))
            found = msgspec.msgpack.decode(raw, type=cls)
            if _ID.fullmatch(found.id) is None or not found.parts or not 0 <= found.opened_us < 1 << 52:
                raise ValueError
            checked_lease(found.lease)
            if not all(0 <= part.asked < 1 << 53 for part in found.parts):
                raise ValueError
        except (ValueError, msgspec.DecodeError):
            raise InvalidArgument("id is not one that reserve gave out", remedy="Pass the `id` of its answer") from None
        return found


def new_id(given: str | None) -> str:
    """The name of a hold: given by the caller, so that asking again takes nothing more, or a new one."""
    if given is None:
        return secrets.token_hex(10)
    if not isinstance(given, str) or _ID.fullmatch(given) is None:
        raise InvalidArgument(f"id must match {_ID.pattern}, got {given!r:.80}")
    return given


def checked_lease(lease: float) -> float:
    if isinstance(lease, bool) or not isinstance(lease, int | float) or not 0.05 <= lease <= LONGEST_LEASE:
        raise InvalidArgument(f"lease must be between 0.05 and {LONGEST_LEASE:g} seconds, got {lease!r:.60}")
    return float(lease)


class Keeper(Protocol):
    """Who can end a hold, or keep it: the limiter."""

    async def end(self, reservation: "Reservation", actual: Sequence[int]) -> Settlement: ...
    async def extend(self, reservation: "Reservation", lease: float) -> bool: ...


class Reservation:
    """What is held. Settle it, cancel it, or keep it; a holder who falls silent loses it at `expires_at`."""

    def __init__(
        self,
        keeper: Keeper,
        wanted: Sequence[Wanted],
        decision: Decision,
        *,
        id: str,  # noqa: A002
        opened_us: int,
        lease: float,
        fence: int,
        local: bool = False,
    ) -> None:
        self._keeper = keeper
        self.wanted = tuple(wanted)
        self.hold = id
        self.opened_us = opened_us
        self.lease = lease
        self.decision = decision
        self.fence = fence
        """Of slots: grows with every holder; a resource that remembers the highest refuses who comes too late."""
        self.local = local
        """True: taken while Redis was away; only this process knows it."""
        self.lost = False
        """True: it was not there any more when it was to be renewed."""
        self._expires_us = opened_us + int(lease * 1e6)
        self._ending = asyncio.Lock()
        self._settled: tuple[tuple[int, ...], Settlement] | None = None

    @property
    def id(self) -> str:
        """Enough to settle it from any process."""
        parts = tuple(Held(one.policy.limit.name, one.identity, one.asked, one.policy.spec) for one in self.wanted)
        return Token(self.hold, self.opened_us, self.lease, parts).text()

    @property
    def expires_at(self) -> datetime:
        return units.moment(self._expires_us)

    @property
    def is_settled(self) -> bool:
        return self._settled is not None

    async def settle(self, actual: Cost | None = None) -> Settlement:
        """Record what was really used; None: the estimate. Idempotent: again with the same numbers is the same settlement.

        InvalidArgument: nothing was settled. ReservationLost: settled before, with other numbers. StoreUnavailable: unknown;
        settle again. What was used beyond the estimate becomes debt, up to ten times the capacity.
        """
        return await self._end(tuple(self._actual(one, actual) for one in self._checked(actual)))

    async def cancel(self) -> None:
        """Nothing was used: give all back. Idempotent."""
        await self._end(tuple(0 for _ in self.wanted))

    async def _end(self, asked: tuple[int, ...]) -> Settlement:
        async with self._ending:
            if self._settled is None:
                self._settled = (asked, await self._keeper.end(self, asked))
            before, settlement = self._settled
        if before != asked:
            raise ReservationLost("the reservation is settled already, with other numbers", context={"reservation": self.hold})
        return settlement

    def _checked(self, actual: Cost | None) -> tuple[Wanted, ...]:
        if isinstance(actual, Mapping):
            taken = {one.shape.unit for one in self.wanted}
            for unit in actual:
                if unit not in taken:
                    raise InvalidArgument(f"actual brings {unit!s:.40}, and the reservation holds {', '.join(sorted(taken))}")
        elif actual is not None and len({one.shape.unit for one in self.wanted}) > 1:
            raise InvalidArgument("actual must say its units", remedy='Write one per unit: {"tokens": 900}')
        return self.wanted

    @staticmethod
    def _actual(one: Wanted, actual: Cost | None) -> int:
        value = actual.get(one.shape.unit) if isinstance(actual, Mapping) else actual
        return one.asked if value is None else units.units(value, one.shape.unit, "actual")

    async def renew(self, lease: float | None = None) -> None:
        """Hold it for `lease` seconds from now (default: as before). ReservationLost when it is gone."""
        wanted = self.lease if lease is None else checked_lease(lease)
        if self._settled is not None or not await self._keeper.extend(self, wanted):
            self.lost = True
            raise ReservationLost("the reservation is not held any more", context={"reservation": self.hold})

    def renewed(self, now_us: int, lease: float) -> None:
        self.lease, self._expires_us = lease, now_us + int(lease * 1e6)


class PendingReservation(Awaitable[Reservation]):
    """`await` it, or `async with` it: renewed while open; on exit, also after an exception, settled at the estimate unless you
    settled or cancelled (money that may be spent is never given back by an exception)."""

    def __init__(self, reserve: Callable[[], Awaitable[Reservation]], clock: RoomClock) -> None:
        self._reserve = reserve
        self._clock = clock
        self._held: Reservation | None = None
        self._timer: Timer | None = None
        self._renewing: asyncio.Task[None] | None = None

    def __await__(self) -> Generator[Any, None, Reservation]:
        return self._reserve().__await__()

    async def __aenter__(self) -> Reservation:
        if self._held is not None:
            raise InvalidArgument("this reservation is open already", remedy="Call reserve again")
        self._held = await self._reserve()
        # Most are over long before; only those that last get a task of their own.
        held, clock = self._held, self._clock
        self._timer = clock.call_at(clock.time() + held.lease / 3, lambda: self._begin(held))
        return self._held

    def _begin(self, held: Reservation) -> None:
        self._renewing = asyncio.get_running_loop().create_task(self._renew(held), name="observatory reservation")

    def stop(self) -> Reservation | None:
        """It is not renewed any more; what was held, if anything: to be settled."""
        held, self._held = self._held, None
        for pending in (self._timer, self._renewing):
            if pending is not None:
                pending.cancel()
        self._timer = self._renewing = None
        return held

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        held = self.stop()
        if held is None or held.is_settled:
            return
        try:
            # Also when the caller is being cancelled: what may have been used is recorded.
            await asyncio.shield(asyncio.ensure_future(held.settle()))
        except StoreUnavailable as failure:
            # The hold is charged already; at its deadline it comes back, as after a crash.
            INTERNAL.warning("a reservation could not be settled: %s", failure)

    async def _renew(self, held: Reservation) -> None:
        while not held.is_settled:
            try:
                await held.renew()
                await self._clock.rest(held.lease / 3)
            except ReservationLost:
                if not held.is_settled:
                    INTERNAL.warning("a reservation of %s was lost while it was open", held.decision.limit)
                return
            except ObservatoryError:
                await self._clock.rest(held.lease / 12)


def by_unit(wanted: Sequence[Wanted], amounts: Sequence[int]) -> dict[Unit, int | Decimal]:
    """Amounts above 0, by unit; of several limits of one unit the largest."""
    found: dict[Unit, int] = {}
    for one, amount in zip(wanted, amounts, strict=True):
        if amount > 0:
            found[one.shape.unit] = max(found.get(one.shape.unit, 0), amount)
    return {unit: units.amount(amount, unit) for unit, amount in found.items()}
