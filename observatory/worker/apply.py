"""What a run of events means: deltas for the metrics, and a burial for what cannot be read."""

from collections.abc import Awaitable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from ..envelope import Envelope
from ..features.metrics.handles import Counter, Histogram
from ..features.metrics.recorder import Recorder
from ..features.metrics.waiting import Group
from ..features.metrics.wire import deltas, targets, window_of
from ..keys import Key
from ..llm.call import LLM_CALL, Meters, StoredCall, nano
from ..names import EVENTS_APPLIED
from ..store.script import lua
from ..store.store import Bulk

MAX_DEAD = 10_000
"""Buried events kept per partition."""
_ANCIENT_US = 24 * 3600 * 1_000_000
_AHEAD_US = 60 * 1_000_000
_TYPES = 1000
"""Types of events whose series are remembered in a run."""
_ENVELOPE = msgspec.msgpack.Decoder(Envelope)
_CALL = msgspec.msgpack.Decoder(StoredCall)

Entry = tuple[bytes, list[bytes]]
"""A stream entry: its id; and event id, payload, event id, payload …"""


@lua("events/apply")
def _apply(
    store: Bulk,
    *,
    stream: Key,
    offset: Key,
    ledger: Key,
    dead: Key,
    names: Key,
    sizes: Key,
    open: Key,  # noqa: A002 (the script's word)
    targets: Sequence[Key],
    now_us: int,
    read_from: str,
    first: str,
    to: str,
    trim_to: str,
    bytes: int,  # noqa: A002
    applied: int,
    max_series: int,
    max_dead: int,
    buried: int,
    deltas: Sequence[Any],
) -> Awaitable[list[Any]]: ...


class _Into:
    """A recorder, and what events write to it."""

    def __init__(self, max_series: int, labels: tuple[str, ...]) -> None:
        self.recorder = Recorder(max_series)
        self.meters = Meters(self, labels)
        self._applied: dict[str, Counter] = {}

    def counter(self, name: str) -> Counter:
        return Counter(self.recorder, name)

    def histogram(self, name: str) -> Histogram:
        return Histogram(self.recorder, name)

    def count(self, kind: str) -> None:
        """One event of this type."""
        found = self._applied.get(kind)
        if found is None:
            found = self.counter(EVENTS_APPLIED).bind(type=kind)
            if len(self._applied) < _TYPES:
                self._applied[kind] = found
        found.add(1)


class Meaning:
    """Events read, taken together. max_series: of a metric in one run's window; the rest fold into one and are counted."""

    def __init__(self, labels: tuple[str, ...], now_us: int, max_series: int) -> None:
        self._labels = labels
        self.max_series = max_series
        self._now_us = now_us
        self._windows: dict[int, _Into] = {}
        self.applied = 0
        self.buried: list[tuple[bytes, bytes, str]] = []

    def read(self, entries: Iterable[Entry]) -> None:
        """Take in every event of these entries."""
        for _, fields in entries:
            for id, payload in zip(fields[::2], fields[1::2], strict=True):  # noqa: A001
                try:
                    self._one(payload)
                except Exception as error:  # whatever it was given: no event stops a worker
                    self.buried.append((id, payload, f"{type(error).__name__}: {error}"[:500]))

    def _one(self, payload: bytes) -> None:
        envelope = _ENVELOPE.decode(payload)
        at_us = envelope.at_us
        # What is too old for its window, or claims to be from the future, is counted now rather than lost.
        if not self._now_us - _ANCIENT_US < at_us < self._now_us + _AHEAD_US:
            at_us = self._now_us
        window = window_of(at_us)
        into = self._windows.get(window)
        if into is None:
            into = self._windows[window] = _Into(self.max_series, self._labels)
        kind = envelope.type
        if kind == LLM_CALL and not envelope.counted:
            call = _CALL.decode(envelope.data)
            into.meters.measure(call, envelope.dimensions, nano(call.cost_usd))
        into.count(kind)
        self.applied += 1

    @property
    def size(self) -> int:
        """About how many additions it makes, over all windows."""
        return sum(into.recorder.size for into in self._windows.values())

    def groups(self) -> list[tuple[int, Group]]:
        """What is to be added, by window. Asked once."""
        return [(window, group) for window, into in sorted(self._windows.items()) for group in into.recorder.freeze()]


def after(entry: str) -> str:
    """The first id behind this one."""
    moment, _, number = entry.partition("-")
    return f"{moment}-{int(number) + 1}"


class Applied(NamedTuple):
    """What became of a run. done False: somebody else was here. forgotten: dead letters that had to make room. saved: events
    that were counted as dropped before. unusual: see Metrics.count_unusual."""

    done: bool
    offset: str
    forgotten: int
    saved: int
    unusual: list[Any]


async def apply(store: Bulk, partition: int, offset: str, entries: list[Entry], meaning: Meaning) -> Applied:
    """Add what the entries mean and move the offset past them."""
    keys, groups = store.keys, meaning.groups()
    last = entries[-1][0].decode()
    done, stands_at, forgotten, saved, *unusual = await _apply(
        store,
        stream=keys.stream(partition),
        offset=keys.offset(partition),
        ledger=keys.ledger(partition),
        dead=keys.dead(partition),
        names=keys.metric_names(partition),
        sizes=keys.metric_sizes(partition),
        open=keys.open_windows(partition),
        targets=targets(keys, partition, groups),
        now_us=0,
        read_from=offset,
        first=entries[0][0].decode(),
        to=last,
        trim_to=after(last),
        bytes=sum(len(payload) for _, fields in entries for payload in fields[1::2]),
        applied=meaning.applied,
        max_series=meaning.max_series,
        max_dead=MAX_DEAD,
        buried=len(meaning.buried),
        deltas=[*(item for triple in meaning.buried for item in triple), *deltas(groups)],
    )
    return Applied(bool(done), stands_at.decode(), forgotten, saved, unusual)
