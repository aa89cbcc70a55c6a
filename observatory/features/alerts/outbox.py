"""What was told and has not reached everybody who asked for it: one bounded stream in the store, until it is a day old."""

from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import NamedTuple

from ...keys import Key
from ...store.script import lua
from ...store.store import Bulk, Store

MOST = 1000
"""Entries that wait. Beyond, the oldest go, and are counted."""
TOO_OLD_MS = 86_400_000
"""An alert that nobody could be told of for a day is no alert any more."""
_KEEP_MS = 7 * TOO_OLD_MS
_SENT_MS = 2 * TOO_OLD_MS
KNOWN_MS = 3_600_000
"""A receiver that no leader had for so long is waited for no more."""


@lua("alerts/raise")
def _raise(
    store: Bulk,
    *,
    claim: Key,
    outbox: Key,
    id: str,  # noqa: A002 (the script's words)
    type: str,  # noqa: A002
    body: bytes,
    claim_ms: int,
    most: int,
    keep_ms: int,
) -> Awaitable[list[int]]: ...


class Entry(NamedTuple):
    """One alert. place: in the stream; id: of the alert, the same however often it is sent."""

    place: str
    id: str
    type: str
    body: bytes

    @property
    def at_ms(self) -> int:
        """When it was told, on the server's clock."""
        return int(self.place.partition("-")[0])

    def is_for(self, events: Sequence[str]) -> bool:
        """Whether it is of one of these: "budget", or the whole type. None named: of all."""
        return not events or self.type in events or self.type.partition(".")[0] in events


class Outbox:
    """The fleet's. Who reads it is elected; that two do for a moment costs a repeat, under the same id."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._bulk = store.bulk()

    async def put(self, claim: Key, claim_ms: int, entry: Entry) -> tuple[bool, int]:
        """Claim it and put it in, in one step. (told by us, entries that had to make room). StoreUnavailable: unknown."""
        told, dropped = await _raise(
            self._bulk,
            claim=claim,
            outbox=self._store.keys.alerts_outbox(),
            id=entry.id,
            type=entry.type,
            body=entry.body,
            claim_ms=claim_ms,
            most=MOST,
            keep_ms=_KEEP_MS,
        )
        return bool(told), dropped

    async def entries(self) -> list[Entry]:
        """All that wait, the oldest first."""
        found = []
        for place, fields in await self._bulk.command("XRANGE", self._store.keys.alerts_outbox(), "-", "+"):
            said = dict(zip(fields[::2], fields[1::2], strict=True))
            words = [said.get(name, b"").decode(errors="replace") for name in (b"id", b"type")]
            found.append(Entry(place.decode(), words[0], words[1], said.get(b"body", b"")))
        return found

    async def unsent(self, entries: Sequence[Entry], receiver: str) -> list[Entry]:
        """Of these, those that a receiver has not acknowledged."""
        if not entries:
            return []
        keys = [self._store.keys.alert_sent(entry.place, receiver) for entry in entries]
        marks = await self._bulk.command("MGET", *keys)
        return [entry for entry, mark in zip(entries, marks, strict=True) if mark is None]

    async def acknowledged(self, entry: Entry, receiver: str) -> None:
        """It need not be sent there again."""
        await self._bulk.command("SET", self._store.keys.alert_sent(entry.place, receiver), "1", "PX", _SENT_MS)

    async def known(self, ours: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
        """The receivers of all who led lately, and for which events; ours are noted. Digests tell no address."""
        bulk, key = self._bulk, self._store.keys.alerts_receivers()
        seconds, _ = await bulk.command("TIME")
        now_ms = int(seconds) * 1000
        if ours:
            spelled = [(now_ms, " ".join((digest, *events))) for digest, events in ours.items()]
            await bulk.command("ZADD", key, *(word for pair in spelled for word in pair))
            await bulk.command("PEXPIRE", key, KNOWN_MS)
        found: dict[str, tuple[str, ...]] = {}
        # The latest stands where one is there with other events.
        for member in await bulk.command("ZRANGE", key, now_ms - KNOWN_MS, "+inf", "BYSCORE"):
            digest, *events = member.decode(errors="replace").split()
            found[digest] = tuple(events)
        await bulk.command("ZREMRANGEBYSCORE", key, "-inf", f"({now_ms - KNOWN_MS}")
        return {**found, **{digest: tuple(events) for digest, events in ours.items()}}

    async def remove(self, entry: Entry) -> bool:
        """False: it is gone already."""
        return bool(await self._bulk.command("XDEL", self._store.keys.alerts_outbox(), entry.place))

    def too_old(self, entries: Iterable[Entry]) -> list[Entry]:
        """On the server's clock."""
        now_us = self._store.server_us()
        return [] if now_us is None else [entry for entry in entries if now_us // 1000 - entry.at_ms > TOO_OLD_MS]
