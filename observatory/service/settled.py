"""A reservation is settled once, whichever instance is asked: again is the same answer, other numbers are refused."""

from collections.abc import Mapping
from typing import Any

import msgspec

from .. import units
from ..errors import InvalidArgument, ReservationLost
from ..features.rate_limiter import Reservation
from ..store.store import Store

REMEMBERED_MS = 3_600_000
"""As long as a hold may last."""
CANCELLED = "cancelled"


class Record(msgspec.Struct):
    """What was asked; the answer, once it is known."""

    actual: Any
    answer: Any = None


async def once(store: Store, token: str, held: Reservation, actual: Any) -> dict[str, Any]:
    """Settle, or cancel. ReservationLost: settled before, with other numbers. StoreUnavailable: unknown; ask again."""
    record = Record(_spelled(actual))
    key = store.keys.settled(token)
    new = await store.command("SET", key, msgspec.json.encode(record), "NX", "PX", REMEMBERED_MS) is not None
    if not new:
        before = await _remembered(store, key, record)
        if before.actual != record.actual:
            raise ReservationLost("the reservation is settled already, with other numbers", context={"reservation": held.hold})
        if before.answer is not None:
            return dict(before.answer)
    try:
        answer = await _end(held, actual)
    except InvalidArgument:
        # Nothing was settled: who asked wrongly may ask rightly.
        await store.command("UNLINK", key)
        raise
    if not new and (before := await _remembered(store, key, record)).answer is not None:
        # Whoever came first was still at it.
        return dict(before.answer)
    record.answer = answer
    await store.command("SET", key, msgspec.json.encode(record), "XX", "PX", REMEMBERED_MS)
    return answer


async def _remembered(store: Store, key: str, otherwise: Record) -> Record:
    raw = await store.command("GET", key)
    return otherwise if raw is None else msgspec.json.decode(raw, type=Record)


async def _end(held: Reservation, actual: Any) -> dict[str, Any]:
    if actual == CANCELLED:
        await held.cancel()
        return {"returned": {}, "debt": {}, "late": False}
    found: dict[str, Any] = msgspec.to_builtins(await held.settle(actual))
    return found


def _spelled(actual: Any) -> Any:
    """Equal for equal numbers, however they are written."""
    if isinstance(actual, Mapping):
        return {unit: _spelled(amount) for unit, amount in sorted(actual.items())}
    return actual if actual is None or actual == CANCELLED else f"{units.nano(actual, 'actual'):x}"
