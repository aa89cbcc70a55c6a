"""Limits that count dollars: who was charged, kept in a bounded index for the fleet to read, and how a period will end."""

from collections.abc import Awaitable
from typing import Any, NamedTuple

import msgspec

from ...keys import Key
from ...store.script import lua
from ...store.store import Bulk, Store
from .limit import Limit, respelled, spelled
from .shape import Shape, Window, window

MOST_CHARGED = 10_000
"""Identities of one limit that the fleet remembers, those told of last: whoever is charged is, every few minutes."""
LONGEST_IDENTITY = 512
"""Longer ones are limited like all others, and in no list."""
_KEEP_MS = 62 * 86_400_000
_PAGE = 1000


@lua("rate_limiter/charged")
def _charged(
    store: Bulk,
    *,
    charged: Key,
    limits: Key,
    now_us: int,
    limit: str,
    identity: str,
    spec: bytes,
    most: int,
    keep_ms: int,
) -> Awaitable[list[int]]: ...


class Charged(NamedTuple):
    """Which limits were charged, as who charged them last has them, and for whom."""

    limits: dict[str, Limit]
    identities: dict[str, list[str]]


async def remember(store: Store, limit: Limit, identity: str) -> None:
    """An identity was charged. Told every few minutes while it is, never in a caller's way."""
    if len(identity) <= LONGEST_IDENTITY:
        await _charged(
            store.bulk(),
            charged=store.keys.charged(limit.name),
            limits=store.keys.charged_limits(),
            now_us=0,
            limit=limit.name,
            identity=identity,
            spec=msgspec.json.encode(spelled(limit)),
            most=MOST_CHARGED,
            keep_ms=_KEEP_MS,
        )


async def charged(store: Store) -> Charged:
    """All that is remembered, by pages. StoreUnavailable."""
    bulk, keys = store.bulk(), store.keys
    limits: dict[str, Limit] = {}
    cursor = b"0"
    while True:
        cursor, flat = await bulk.command("HSCAN", keys.charged_limits(), cursor, "COUNT", _PAGE)
        for name, spec in zip(flat[::2], flat[1::2], strict=True):
            try:
                limits[name.decode()] = respelled(name.decode(), msgspec.json.decode(spec, type=dict[str, Any]))
            except (ValueError, TypeError):
                continue  # of another release, or spoilt by somebody else: the others are told
        if cursor == b"0":
            break
    identities: dict[str, list[str]] = {}
    for name in limits:
        for begins in range(0, MOST_CHARGED, _PAGE):
            page = await bulk.command("ZRANGE", keys.charged(name), begins, begins + _PAGE - 1)
            identities.setdefault(name, []).extend(member.decode(errors="replace") for member in page)
            if len(page) < _PAGE:
                break
    return Charged(limits, identities)


def period_of(shape: Shape, now_us: int) -> Window | None:
    """The window of a limit that a moment lies in; None: it has none that begins and ends for everybody at once."""
    if shape.calendar:
        return window(shape.calendar, shape.timezone, now_us)
    if shape.kind == "w":
        return Window(now_us - now_us % shape.period_us, shape.period_us)
    return None


def forecast(spent: int, period: Window, now_us: int) -> int:
    """What is spent at the end of a period, if it goes on as it went: linear over the part that is over. Soon after the
    beginning that says little."""
    elapsed = max(now_us - period.start_us, 1)
    return (spent * max(period.length_us, elapsed) + elapsed // 2) // elapsed
