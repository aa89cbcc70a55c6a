"""Events: what happened, on partitioned streams, for workers to work off.

A process's own events travel in numbered batches (exactly once by watermark). Events of strangers, which come over HTTP and may
come again to another instance, are told apart by their ids. Memory is bounded on both ends, and what is dropped is counted.
"""

import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from .. import dimensions, names
from ..envelope import Envelope, checked_id, checked_type, encoded, new_id, refuse_deep
from ..errors import InvalidArgument
from ..keys import Key
from ..logs import INTERNAL
from ..store.outbox import Outbox, Verdict
from ..store.script import lua
from ..store.store import Bulk, Store

PER_ENTRY = 100
"""Events in one stream entry, and in one batch."""
GENERATION_US = 600_000_000
"""Ids of strangers are remembered by generations of ten minutes: a repeat within ten to twenty is recognised."""
MAX_SEEN = 500_000
"""Ids of strangers remembered per partition, over both generations: tens of megabytes. Beyond, older ones go first."""
_KEEP_SEEN_MS = 4 * GENERATION_US // 1000
ENTRY_BYTES = 262_144
"""A stream entry takes no further event beyond this, so that who reads a number of entries knows how much it is at most."""
MAX_BUFFERED_BYTES = 64 * 2**20
"""Bytes that a process keeps while the store is away, however few events they are."""


class Room(NamedTuple):
    """What a partition's stream may hold before its oldest entries go."""

    entries: int
    bytes: int


class Accepted(msgspec.Struct, frozen=True):
    """What became of events that were handed in."""

    accepted: int
    duplicates: int


@lua("events/append")
def _append(
    store: Bulk,
    *,
    watermark: Key,
    stream: Key,
    ledger: Key,
    batch: int,
    max_entries: int,
    max_bytes: int,
    events: Sequence[str | bytes],
) -> Awaitable[list[int]]: ...


@lua("events/accept")
def _accept(
    store: Bulk,
    *,
    stream: Key,
    ledger: Key,
    seen_now: Key,
    seen_before: Key,
    seen_next: Key,
    max_entries: int,
    max_bytes: int,
    keep_ms: int,
    max_seen: int,
    events: Sequence[str | bytes],
) -> Awaitable[list[int]]: ...


class Recording(Protocol):
    """What events need of the metrics."""

    def increment_counter(self, metric: str, value: int = 1, labels: Mapping[str, str] | None = None) -> None: ...


class Events:
    """`obs.events`. Recording is sync and buffered; what is buffered is delivered with the next flush."""

    def __init__(
        self,
        store: Callable[[], Store],
        metrics: Recording,
        *,
        now_us: Callable[[], int],
        partition: Callable[[], int],
        room: Room,
        max_buffered: int,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._now_us = now_us
        self._partition = partition
        self.room = room
        self._max_buffered = max_buffered
        self._lock = threading.Lock()
        self._buffer: deque[tuple[str, bytes]] = deque()
        self._recent: dict[str, None] = {}
        self._outbox: Outbox[tuple[str | bytes, ...]] = Outbox(self._send)
        self._lost_reported = 0
        self._buffered_bytes = 0
        self._dropped_reported = 0
        self.dropped = 0
        """Events of this process that had to make room while the store was away."""

    def record(self, event: Mapping[str, Any], *, id: str | None = None) -> str:  # noqa: A002 (the word for it)
        """Any event of yours: {"type": "ticket_closed", …}. Sync; returns its id. The same id counts once."""
        if not isinstance(event, Mapping):
            raise InvalidArgument(f"an event must be a mapping, got {event!r:.80}")
        event = dict(event)
        kind = checked_type(event.pop("type", None))
        refuse_deep(event)
        return self.put(kind, event, dimensions.current(), id=id, counted=True)[0]

    def put(self, kind: str, data: Any, about: Mapping[str, str], *, id: str | None, counted: bool) -> tuple[str, bool]:  # noqa: A002
        """Buffer one event. Returns its id, and whether it had not been recorded here lately: of two threads with one id, one
        hears so. about: its dimensions. counted: its metrics are written by this process."""
        known = new_id() if id is None else checked_id(id)
        payload = encoded(Envelope(kind, self._now_us(), data, dict(about) if about else {}, counted))
        with self._lock:
            if id is not None and self._seen(known):
                return known, False
            self._buffer.append((known, payload))
            self._buffered_bytes += len(payload)
            while len(self._buffer) > self._max_buffered or self._buffered_bytes > MAX_BUFFERED_BYTES:
                self._buffered_bytes -= len(self._buffer.popleft()[1])
                self.dropped += 1
        return known, True

    def _seen(self, known: str) -> bool:
        if known in self._recent:
            return True
        self._recent[known] = None
        if len(self._recent) > self._max_buffered:
            del self._recent[next(iter(self._recent))]
        return False

    async def flush(self) -> None:
        """On the stream when it returns; StoreUnavailable otherwise (nothing is lost)."""
        if (dropped := self.dropped - self._dropped_reported) > 0:
            self._dropped_reported += dropped
            self.count_dropped(dropped, "buffer")
        while True:
            if not len(self._outbox) and (taken := self._take()):
                self._outbox.put(tuple(item for pair in taken for item in pair))
            # Also with nothing new: whether what was sent lately has stayed, a quiet writer must ask.
            await self._outbox.deliver()
            if (lost := self._outbox.lost - self._lost_reported) > 0:
                self._lost_reported = self._outbox.lost
                self._metrics.increment_counter(names.BATCHES_LOST, lost, {"feature": "events"})
            if not self._buffer and not len(self._outbox):
                return

    def _take(self) -> list[tuple[str, bytes]]:
        """The oldest, as many as an entry takes."""
        taken: list[tuple[str, bytes]] = []
        size = 0
        with self._lock:
            while self._buffer and len(taken) < PER_ENTRY and size < ENTRY_BYTES:
                taken.append(self._buffer.popleft())
                size += len(taken[-1][1])
            self._buffered_bytes -= size
        return taken

    def count_dropped(self, events: int, reason: str) -> None:
        """Tell of events that were accepted and will not be applied, in a metric of the process that saw it."""
        self._metrics.increment_counter(names.EVENTS_DROPPED, events, {"reason": reason})

    async def _send(self, writer: str, number: int, batch: tuple[str | bytes, ...]) -> Verdict:
        store = self._store()
        keys, partition = store.keys, self._partition()
        what, watermark, dropped = await _append(
            store.bulk(),
            watermark=keys.event_writer(partition, writer),
            stream=keys.stream(partition),
            ledger=keys.ledger(partition),
            batch=number,
            max_entries=self.room.entries,
            max_bytes=self.room.bytes,
            events=batch,
        )
        if dropped:
            self._made_room(dropped)
        return Verdict(what, watermark)

    async def accept(self, events: Sequence[tuple[str, bytes]]) -> Accepted:
        """Put events of strangers on the streams, each id once. Durable when it returns.

        StoreUnavailable: some may have been accepted; handing in all of them again counts each once.
        """
        store = self._store()
        keys = store.keys
        generation = (store.server_us() or 0) // GENERATION_US
        by_partition: dict[int, list[str | bytes]] = {}
        for id, payload in events:  # noqa: A001
            by_partition.setdefault(keys.partition_of(id), []).extend((id, payload))
        accepted = duplicates = 0
        for partition, flat in by_partition.items():
            for some in _entries(flat):
                new, known, dropped, forgotten = await _accept(
                    store.bulk(),
                    stream=keys.stream(partition),
                    ledger=keys.ledger(partition),
                    seen_now=keys.seen(partition, generation),
                    seen_before=keys.seen(partition, generation - 1),
                    seen_next=keys.seen(partition, generation + 1),
                    max_entries=self.room.entries,
                    max_bytes=self.room.bytes,
                    keep_ms=_KEEP_SEEN_MS,
                    max_seen=MAX_SEEN,
                    events=some,
                )
                accepted, duplicates = accepted + new, duplicates + known
                if forgotten:
                    self._metrics.increment_counter(names.IDS_FORGOTTEN, forgotten)
                if dropped:
                    self._made_room(dropped)
        return Accepted(accepted, duplicates)

    def _made_room(self, dropped: int) -> None:
        INTERNAL.warning("events: %d had to make room: no worker keeps up (observatory events lag)", dropped)
        self.count_dropped(dropped, "stream")

    async def lag(self) -> dict[str, int]:
        """accepted, applied, dead, dropped, over all partitions; what is missing from the sum is waiting on a stream."""
        bulk, keys = self._store().bulk(), self._store().keys
        found = dict.fromkeys(("accepted", "applied", "dead", "dropped"), 0)
        for partition in range(keys.partitions):
            for name, number in (await bulk.command("HGETALL", keys.ledger(partition))).items():
                if name.decode() in found:
                    found[name.decode()] += int(number)
        found["waiting"] = found["accepted"] - found["applied"] - found["dead"] - found["dropped"]
        return found

    def forget(self) -> None:
        """A forked child: what was recorded before is its parent's."""
        self._lock = threading.Lock()
        self._buffer.clear()
        self._recent.clear()
        self._buffered_bytes, self._dropped_reported = 0, self.dropped
        self._outbox.reset()


def _entries(flat: Sequence[str | bytes]) -> Iterator[Sequence[str | bytes]]:
    """Pairs (id, payload), divided into what entries take."""
    start = size = 0
    for at in range(0, len(flat), 2):
        size += len(flat[at + 1])
        if at + 2 - start >= PER_ENTRY * 2 or size >= ENTRY_BYTES or at + 2 == len(flat):
            yield flat[start : at + 2]
            start, size = at + 2, 0
