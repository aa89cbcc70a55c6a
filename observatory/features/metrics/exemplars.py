"""One call to look at for each series of a histogram: its value, and the sampled trace that it belongs to.

They are examples, not counts: the last ones stand for ten to twenty minutes, and one that is lost is no loss.
"""

import math
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated

import msgspec

from ... import tracing
from ...keys import Key
from ...store.script import lua
from ...store.store import Bulk, Store
from . import read, series, spoilt

GENERATION_US = 600_000_000
"""Examples are kept by generations of ten minutes: those of the present one and the one before are told."""
MOST = 1000
"""Kept between two flushes; and in the store, of one generation and partition."""
_AT_ONCE = 250
"""Told by one script call, so that none holds the server for long."""


@lua("metrics/exemplify")
def _exemplify(
    store: Bulk, *, examples: Key, totals: Sequence[Key], most: int, keep_ms: int, told: Sequence[str | bytes]
) -> Awaitable[list[int]]: ...


class Exemplar(msgspec.Struct, frozen=True, array_like=True):
    """A recorded value, and the span in which it was recorded."""

    value: float
    trace_id: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}\\Z")]
    span_id: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}\\Z")]
    at_us: Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class Exemplars:
    """Those of this process on their way, and those of the fleet."""

    def __init__(self, store: Callable[[], Store], partition: Callable[[], int]) -> None:
        self._store = store
        self._partition = partition
        self.forget()

    def keep(self, metric: str, value: float, labels: Mapping[str, str]) -> None:
        """The current span is an example of this value, if its trace is sampled: another's leads nowhere. From any thread."""
        current = tracing.sampled()
        if current is None:
            return
        try:
            named, one = (str(metric), series.text(labels)), Exemplar(float(value), *current, 0)
        except Exception:  # the recorder has told of it
            return
        with self._lock:
            if len(self._kept) < MOST and math.isfinite(one.value):
                self._kept[named] = one

    def forget(self) -> None:
        """A forked child: the lock may have been held by a thread that is gone."""
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, str], Exemplar] = {}

    async def deliver(self) -> None:
        """Those of series that the store knows are kept there, as far as there is room. StoreError: what the store did not take
        is sent with later ones."""
        store = self._store()
        now_us = store.server_us()
        if not self._kept or now_us is None:
            return
        with self._lock:
            kept, self._kept = self._kept, {}
        left = list(kept.items())
        try:
            while left:
                await self._send(store, left[:_AT_ONCE], now_us)
                del left[:_AT_ONCE]
        finally:
            with self._lock:
                for named, one in left[: MOST - len(self._kept)]:
                    self._kept.setdefault(named, one)

    async def _send(self, store: Store, examples: Sequence[tuple[tuple[str, str], Exemplar]], now_us: int) -> None:
        keys, partition = store.keys, self._partition()
        told: list[str | bytes] = []
        for (metric, text), one in examples:
            told += text, f"{metric}|{text}", msgspec.json.encode(msgspec.structs.replace(one, at_us=now_us))
        await _exemplify(
            store.bulk(),
            examples=keys.exemplars(partition, now_us // GENERATION_US),
            totals=[keys.metric_total(partition, metric) for (metric, _), _ in examples],
            most=MOST,
            keep_ms=3 * GENERATION_US // 1000,
            told=told,
        )

    async def fleet(self) -> dict[str, dict[str, Exemplar]]:
        """metric -> series -> its latest example. At most MOST of each partition and generation are told."""
        store = self._store()
        generation = (store.server_us() or 0) // GENERATION_US
        found: dict[str, dict[str, Exemplar]] = {}
        for partition in range(store.keys.partitions):
            for one in (generation - 1, generation):
                key = store.keys.exemplars(partition, one)
                for field, said in (await read.unspoilt(read.hash_pages(store, key), key) or ())[:MOST]:
                    metric, _, text = field.decode(errors="replace").partition("|")
                    try:
                        exemplar = msgspec.json.decode(said, type=Exemplar)
                    except msgspec.MsgspecError:
                        spoilt.tell(f"an example of {metric!r:.150}")
                        continue
                    known = found.setdefault(metric, {}).get(text)
                    if known is None or known.at_us < exemplar.at_us:
                        found[metric][text] = exemplar
        return found
