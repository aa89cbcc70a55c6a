"""Reading back what the fleet has written, over all partitions, in bounded pages."""

import asyncio
from collections.abc import Iterable
from typing import Any

import msgspec

from ...keys import WINDOW_US, Key
from ...names import OURS, Definition
from ...store.store import Store

PAGE = 256
"""Hashes asked for at once."""


class Value:
    """One series, added up over partitions and windows."""

    __slots__ = ("buckets", "count", "nano", "zero")

    def __init__(self) -> None:
        self.nano = 0
        self.count = 0
        self.zero = 0
        self.buckets: dict[int, int] = {}

    def add(self, part: str, number: int) -> None:
        match part[0]:
            case "w" | "s":
                self.nano += number * 1_000_000_000
            case "n" | "t":
                self.nano += number
            case "c":
                self.count += number
            case "z":
                self.zero += number
            case "b":
                index = int(part[1:])
                self.buckets[index] = self.buckets.get(index, 0) + number

    def merge(self, other: "Value") -> None:
        self.nano += other.nano
        self.count += other.count
        self.zero += other.zero
        for index, count in other.buckets.items():
            self.buckets[index] = self.buckets.get(index, 0) + count


Table = dict[str, Value]
"""Series, by their text."""


def add(table: Table, fields: dict[bytes, bytes]) -> None:
    """A hash's fields into a table."""
    for field, number in fields.items():
        part, _, text = field.decode().partition("|")
        value = table.get(text)
        if value is None:
            value = table[text] = Value()
        value.add(part, int(number))


async def _hashes(store: Store, keys: list[Key]) -> list[dict[bytes, bytes]]:
    bulk = store.bulk()
    found: list[dict[bytes, bytes]] = []
    for start in range(0, len(keys), PAGE):
        found += await asyncio.gather(*(bulk.command("HGETALL", key) for key in keys[start : start + PAGE]))
    return found


def _partitions(store: Store) -> range:
    return range(store.keys.partitions)


async def definitions(store: Store) -> dict[str, Definition]:
    """Every metric that was ever recorded, and what it is."""
    found: dict[str, Definition] = {}
    for fields in await _hashes(store, [store.keys.metric_names(partition) for partition in _partitions(store)]):
        for name, said in fields.items():
            metric = name.decode()
            try:
                found[metric] = OURS.get(metric) or msgspec.json.decode(said, type=Definition)
            except msgspec.MsgspecError:
                # One metric that somebody else has spoilt must not hide all the others.
                continue
    return found


async def known(store: Store) -> dict[str, Definition]:
    """The same, and the gauges that stand somewhere now; what was said of a gauge of yours stays in its process."""
    found = await definitions(store)
    return {**{metric: OURS.get(metric, Definition("gauge")) for metric in await gauges(store)}, **found}


async def totals(store: Store, metrics: list[str]) -> dict[str, Table]:
    """Lifetime totals, by metric."""
    wanted = [(metric, partition) for metric in metrics for partition in _partitions(store)]
    tables: dict[str, Table] = {metric: {} for metric in metrics}
    hashes = await _hashes(store, [store.keys.metric_total(partition, metric) for metric, partition in wanted])
    for (metric, _), fields in zip(wanted, hashes, strict=True):
        add(tables[metric], fields)
    return tables


async def windows(store: Store, metric: str, since_us: int, until_us: int) -> dict[int, Table]:
    """The 10 s windows that begin in [since, until), by their start; empty ones are left out."""
    starts = range(since_us - since_us % WINDOW_US, until_us, WINDOW_US)
    wanted = [(start, partition) for start in starts for partition in _partitions(store)]
    hashes = await _hashes(store, [store.keys.metric_window(partition, start, metric) for start, partition in wanted])
    tables: dict[int, Table] = {}
    for (start, _), fields in zip(wanted, hashes, strict=True):
        if fields:
            add(tables.setdefault(start, {}), fields)
    return tables


async def gauges(store: Store) -> dict[str, dict[str, list[float]]]:
    """metric -> series -> the value of each live process."""
    found: dict[str, dict[str, list[float]]] = {}
    for partition in _partitions(store):
        writers: Iterable[Any] = await store.bulk().command("ZRANGE", store.keys.gauge_writers(partition), 0, -1)
        for fields in await _hashes(store, [store.keys.gauges(partition, writer.decode()) for writer in writers]):
            for field, value in fields.items():
                metric, _, text = field.decode().partition("|")
                found.setdefault(metric, {}).setdefault(text, []).append(float(value))
    return found
