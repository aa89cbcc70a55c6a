"""What a run of events means: deltas for the metrics, and a burial for what cannot be read."""

from collections.abc import Awaitable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from .. import names
from ..errors import ObservatoryError
from ..features.events import Envelope
from ..features.metrics.handles import Counter, Histogram
from ..features.metrics.recorder import Recorder
from ..features.metrics.waiting import Group
from ..features.metrics.wire import KEEP_WINDOWS_MS, deltas, targets, window_of
from ..keys import Key
from ..llm.call import LLM_CALL, CallData, Meters
from ..store.script import lua
from ..store.store import Bulk

MAX_DEAD = 10_000
"""Buried events kept per partition."""
_ANCIENT_US = 24 * 3600 * 1_000_000
_AHEAD_US = 60 * 1_000_000

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
    targets: Sequence[Key],
    read_from: str,
    first: str,
    to: str,
    trim_to: str,
    applied: int,
    keep_ms: int,
    max_dead: int,
    buried: int,
    deltas: Sequence[Any],
) -> Awaitable[list[Any]]: ...


class _Into:
    """A recorder, and what calls write to it."""

    def __init__(self, max_series: int, labels: tuple[str, ...]) -> None:
        self.recorder = Recorder(max_series)
        self.meters = Meters(self, labels)

    def counter(self, name: str) -> Counter:
        return Counter(self.recorder, name)

    def histogram(self, name: str) -> Histogram:
        return Histogram(self.recorder, name)


class Meaning:
    """Events read, taken together. max_series: of a metric in one run's window; the rest fold into one and are counted."""

    def __init__(self, labels: tuple[str, ...], now_us: int, max_series: int) -> None:
        self._labels = labels
        self._max_series = max_series
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
                except (msgspec.MsgspecError, ObservatoryError, ValueError, TypeError) as error:
                    self.buried.append((id, payload, f"{type(error).__name__}: {error}"[:500]))

    def _one(self, payload: bytes) -> None:
        envelope = msgspec.msgpack.decode(payload, type=Envelope)
        # What is too old for its window, or claims to be from the future, is counted now rather than lost.
        in_reach = self._now_us - _ANCIENT_US < envelope.at_us < self._now_us + _AHEAD_US
        window = window_of(envelope.at_us if in_reach else self._now_us)
        into = self._windows.get(window)
        if into is None:
            into = self._windows[window] = _Into(self._max_series, self._labels)
        if envelope.type == LLM_CALL and not envelope.counted:
            call = msgspec.msgpack.decode(envelope.data, type=CallData)
            into.meters.measure(call, envelope.dimensions)
        into.recorder.increment_counter(names.EVENTS_APPLIED, 1, {"type": envelope.type})
        self.applied += 1

    def groups(self) -> list[tuple[int, Group]]:
        return [(window, group) for window, into in sorted(self._windows.items()) for group in into.recorder.freeze()]


def after(entry: str) -> str:
    """The first id behind this one."""
    moment, _, number = entry.partition("-")
    return f"{moment}-{int(number) + 1}"


class Applied(NamedTuple):
    """What became of a run. done False: somebody else was here. refused: additions that the store did not take."""

    done: bool
    offset: str
    refused: int


async def apply(store: Bulk, partition: int, offset: str, entries: list[Entry], meaning: Meaning) -> Applied:
    """Add what the entries mean and move the offset past them."""
    keys, groups = store.keys, meaning.groups()
    last = entries[-1][0].decode()
    done, stands_at, refused = await _apply(
        store,
        stream=keys.stream(partition),
        offset=keys.offset(partition),
        ledger=keys.ledger(partition),
        dead=keys.dead(partition),
        names=keys.metric_names(partition),
        targets=targets(keys, partition, groups),
        read_from=offset,
        first=entries[0][0].decode(),
        to=last,
        trim_to=after(last),
        applied=meaning.applied,
        keep_ms=KEEP_WINDOWS_MS,
        max_dead=MAX_DEAD,
        buried=len(meaning.buried),
        deltas=[*(item for triple in meaning.buried for item in triple), *deltas(group for _, group in groups)],
    )
    return Applied(bool(done), stands_at.decode(), refused)
