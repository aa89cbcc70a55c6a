"""What a run of events means: deltas for the metrics, and a burial for what cannot be read."""

from collections.abc import Awaitable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from .. import names
from ..errors import ObservatoryError
from ..features.events import Envelope
from ..features.metrics.recorder import Recorder
from ..features.metrics.waiting import Group
from ..features.metrics.wire import deltas, targets, window_of
from ..keys import Key
from ..llm.call import LLM_CALL, CallData, measure
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
    sizes: Key,
    open: Key,  # noqa: A002 (the script's word)
    targets: Sequence[Key],
    now_us: int,
    read_from: str,
    first: str,
    to: str,
    trim_to: str,
    applied: int,
    max_series: int,
    max_dead: int,
    buried: int,
    deltas: Sequence[Any],
) -> Awaitable[list[Any]]: ...


class _Into:
    """A recorder as `measure` writes to it."""

    def __init__(self, max_series: int) -> None:
        self.recorder = Recorder(max_series)

    def increment_counter(self, metric: str, value: Any = 1, labels: Any = None) -> None:
        self.recorder.add(metric, "counter", value, labels)

    def record_histogram(self, metric: str, value: float, labels: Any = None) -> None:
        self.recorder.add(metric, "histogram", value, labels)


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
                except (msgspec.MsgspecError, ObservatoryError, ValueError, TypeError) as error:
                    self.buried.append((id, payload, f"{type(error).__name__}: {error}"[:500]))

    def _one(self, payload: bytes) -> None:
        envelope = msgspec.msgpack.decode(payload, type=Envelope)
        # What is too old for its window, or claims to be from the future, is counted now rather than lost.
        in_reach = self._now_us - _ANCIENT_US < envelope.at_us < self._now_us + _AHEAD_US
        window = window_of(envelope.at_us if in_reach else self._now_us)
        into = self._windows.get(window)
        if into is None:
            into = self._windows[window] = _Into(self.max_series)
        if envelope.type == LLM_CALL and not envelope.counted:
            call = msgspec.msgpack.decode(envelope.data, type=CallData)
            measure(into, call, envelope.dimensions, self._labels)
        into.increment_counter(names.EVENTS_APPLIED, 1, {"type": envelope.type})
        self.applied += 1

    def groups(self) -> list[tuple[int, Group]]:
        return [(window, group) for window, into in sorted(self._windows.items()) for group in into.recorder.freeze()]


def after(entry: str) -> str:
    """The first id behind this one."""
    moment, _, number = entry.partition("-")
    return f"{moment}-{int(number) + 1}"


class Applied(NamedTuple):
    """What became of a run. done False: somebody else was here. unusual: see Metrics.count_unusual."""

    done: bool
    offset: str
    unusual: list[Any]


async def apply(store: Bulk, partition: int, offset: str, entries: list[Entry], meaning: Meaning) -> Applied:
    """Add what the entries mean and move the offset past them."""
    keys, groups = store.keys, meaning.groups()
    last = entries[-1][0].decode()
    done, stands_at, *unusual = await _apply(
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
        applied=meaning.applied,
        max_series=meaning.max_series,
        max_dead=MAX_DEAD,
        buried=len(meaning.buried),
        deltas=[*(item for triple in meaning.buried for item in triple), *deltas(groups)],
    )
    return Applied(bool(done), stands_at.decode(), unusual)
