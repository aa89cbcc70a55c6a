"""One call to look at for each series of a histogram: its value, and the sampled trace that it belongs to.

They are examples, not counts: the last ones stand for ten to twenty minutes, and one that is lost is no loss.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping

import msgspec

from ... import tracing
from ...store.store import Store
from . import read, series

GENERATION_US = 600_000_000
"""Examples are kept by generations of ten minutes: those of the present one and the one before are told."""
MOST = 1000
"""Kept between two flushes."""


class Exemplar(msgspec.Struct, frozen=True, array_like=True):
    """A recorded value, and the span in which it was recorded."""

    value: float
    trace_id: str
    span_id: str
    at_us: int


class Exemplars:
    """Those of this process on their way, and those of the fleet."""

    def __init__(self, store: Callable[[], Store], partition: Callable[[], int]) -> None:
        self._store = store
        self._partition = partition
        self._kept: dict[str, Exemplar] = {}

    def keep(self, metric: str, value: float, labels: Mapping[str, str]) -> None:
        """The current span is an example of this value, if its trace is sampled: another's leads nowhere."""
        current = tracing.sampled()
        if current is not None and len(self._kept) < MOST:
            with contextlib.suppress(ValueError):  # the recorder has told of it
                self._kept[f"{metric}|{series.text(labels)}"] = Exemplar(float(value), *current, 0)

    def forget(self) -> None:
        self._kept.clear()

    async def deliver(self) -> None:
        """StoreUnavailable: they are sent with later ones."""
        store = self._store()
        now_us = store.server_us()
        if not self._kept or now_us is None:
            return
        kept, self._kept = self._kept, {}
        key = store.keys.exemplars(self._partition(), now_us // GENERATION_US)
        flat: list[str | bytes] = []
        for field, one in kept.items():
            flat += field, msgspec.json.encode(msgspec.structs.replace(one, at_us=now_us))
        bulk = store.bulk()
        # In one write: nobody sees the first without the second.
        await asyncio.gather(bulk.command("HSET", key, *flat), bulk.command("PEXPIRE", key, 3 * GENERATION_US // 1000))

    async def fleet(self) -> dict[str, dict[str, Exemplar]]:
        """metric -> series -> its latest example."""
        store = self._store()
        generation = (store.server_us() or 0) // GENERATION_US
        found: dict[str, dict[str, Exemplar]] = {}
        for partition in range(store.keys.partitions):
            for one in (generation - 1, generation):
                for field, said in await read.hash_pages(store, store.keys.exemplars(partition, one)):
                    metric, _, text = field.decode(errors="replace").partition("|")
                    try:
                        exemplar = msgspec.json.decode(said, type=Exemplar)
                    except msgspec.MsgspecError:
                        continue
                    known = found.setdefault(metric, {}).get(text)
                    if known is None or known.at_us < exemplar.at_us:
                        found[metric][text] = exemplar
        return found
