"""Reading back what the fleet has written, over all partitions, in bounded pages."""

import asyncio
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import msgspec

from ...errors import StoreError, StoreMisconfigured, StoreUnavailable
from ...keys import Key
from ...names import OURS, Definition, Kind, metric_name
from ...store.store import Store
from . import blocks, series, spoilt
from .blocks import DAY, FINE, FINE_PER_MINUTE, HOUR, MINUTE, Level, Rows, Table
from .span import Member, Piece, Span

T = TypeVar("T")

_GAUGE = Definition("gauge")
PAGE = 1000
"""Fields of a hash asked for at once, so that no reader holds the server for long."""

BLOCKS = 30
"""Blocks asked for at once."""
TRIES = 40
"""Times that a question is read again because a block has changed meanwhile."""


async def hash_pages(store: Store, key: Key, page: int = PAGE) -> list[tuple[bytes, bytes]]:
    """A hash's fields, each once. What is written meanwhile may be in it or not."""
    bulk, cursor = store.bulk(), b"0"
    found: dict[bytes, bytes] = {}
    while True:
        cursor, flat = await bulk.command("HSCAN", key, cursor, "COUNT", page)
        found.update(zip(flat[::2], flat[1::2], strict=True))
        if cursor == b"0":
            return list(found.items())


async def _hashes(store: Store, keys: Sequence[Key]) -> list[list[tuple[bytes, bytes]] | None]:
    """The fields of each; None in place of what somebody else has made something else than a hash."""

    async def one(key: Key) -> list[tuple[bytes, bytes]] | None:
        return await unspoilt(hash_pages(store, key), key)

    return await asyncio.gather(*(one(key) for key in keys))


async def unspoilt(reading: Awaitable[T], key: Key) -> T | None:
    """What is read of a key; None where it is of another type. StoreUnavailable and StoreMisconfigured go on."""
    try:
        return await reading
    except (StoreUnavailable, StoreMisconfigured):
        raise
    except StoreError as error:
        spoilt.tell(f"{key} ({error.message})")
        return None


def _partitions(store: Store) -> range:
    return range(store.keys.partitions)


async def definitions(store: Store) -> dict[str, Definition]:
    """Every metric that was ever recorded, and what it is."""
    found: dict[str, Definition] = {}
    for fields in await _hashes(store, [store.keys.metric_names(partition) for partition in _partitions(store)]):
        for name, said in fields or ():
            try:
                metric = metric_name(name.decode())
                definition = OURS.get(metric) or msgspec.json.decode(said, type=Definition)
                # Of two kinds in two partitions a gauge must not hide what was counted.
                if found.get(metric, _GAUGE).kind == "gauge":
                    found[metric] = definition
            except (msgspec.MsgspecError, ValueError):
                # One metric that somebody else has spoilt must not hide all the others.
                spoilt.tell(f"the name {name!r:.150} of a metric, or what is said of it")
    return found


async def known(store: Store) -> dict[str, Definition]:
    """The same, and the gauges that stand somewhere now."""
    found = await definitions(store)
    return {**{metric: OURS.get(metric, _GAUGE) for metric in await gauges(store)}, **found}


async def totals(store: Store, metrics: list[str]) -> dict[str, Table]:
    """Lifetime totals, by metric. None of a metric of which a part cannot be read: less than all would be a step back."""
    wanted = [(metric, partition) for metric in metrics for partition in _partitions(store)]
    tables: dict[str, Table] = {metric: {} for metric in metrics}
    hashes = await _hashes(store, [store.keys.metric_total(partition, metric) for metric, partition in wanted])
    for (metric, _), fields in zip(wanted, hashes, strict=True):
        if fields is None:
            tables.pop(metric, None)
        elif metric in tables:
            blocks.add(tables[metric], blocks.fields(fields))
    return {metric: tables.get(metric, {}) for metric in metrics}


class Raw(NamedTuple):
    """An open window as it was read. times: how often it had been added to before."""

    window: int
    times: bytes
    fields: list[tuple[bytes, bytes]]

    def table(self, kind: Kind) -> dict[str, Any]:
        """Its series."""
        return dict(blocks.samples(self.fields, self.window) if kind == "gauge" else blocks.fields(self.fields))


async def raw_window(store: Store, partition: int, number: int, metric: str) -> Raw:
    """One open window of one partition."""
    key = store.keys.metric_window(partition, number, metric)
    times = await store.bulk().command("HGET", key, "#")
    return Raw(number, times or b"", await hash_pages(store, key))


async def token(store: Store, partition: int, metric: str) -> bytes:
    """What changes with every change of the metric's blocks in this partition."""
    found: bytes | None = await store.bulk().command("HGET", store.keys.rolled(partition), metric)
    return found or b""


async def gauges(store: Store) -> dict[str, dict[str, list[float]]]:
    """metric -> series -> the value of each live process."""
    found: dict[str, dict[str, list[float]]] = {}
    for partition in _partitions(store):
        key = store.keys.gauge_writers(partition)
        writers: Iterable[bytes] = await unspoilt(store.bulk().command("ZRANGE", key, 0, -1), key) or ()
        keys = [store.keys.gauges(partition, writer.decode(errors="replace")) for writer in writers]
        for fields in await _hashes(store, keys):
            for field, said in fields or ():
                metric, _, text = field.decode(errors="replace").partition("|")
                try:
                    value = blocks.finite(float(said))
                    if not series.is_text(text):
                        raise ValueError(text)
                    found.setdefault(metric_name(metric), {}).setdefault(text, []).append(value)
                except ValueError:
                    spoilt.tell(f"a gauge {field!r:.80} at {said!r:.40}")
    return found


class Found(NamedTuple):
    """A block as it was read, and which of its windows were asked for; or the rows of an open window."""

    starts: list[int]
    block: bytes = b""
    fine: bool = False
    rows: Rows | None = None

    def tables(self) -> Iterator[tuple[int, Rows]]:
        """Rows, by the start of their window."""
        if self.rows is not None:
            yield self.starts[0], self.rows
        elif self.fine:
            windows = blocks.decoded_fine(self.block)
            for start_us in self.starts:
                yield start_us, windows.get(start_us // FINE.window_us % FINE_PER_MINUTE, {})
        else:
            yield self.starts[0], blocks.decoded(self.block)


async def found(store: Store, metric: str, kind: Kind, span: Span) -> list[Found]:
    """What all partitions know of a span. An addition stands in exactly one of these.

    Open windows are read before blocks, and looked at once more behind them: one that has been sealed meanwhile may stand in
    both, and then everything is read again. StoreUnavailable when that happens again and again (after days without anybody).
    """
    partitions = _partitions(store)
    first, last = span.since_us // FINE.window_us, -(-span.until_us // FINE.window_us)
    for _ in range(TRIES):
        opened = await asyncio.gather(*(_opened(store, partition, metric, first, last) for partition in partitions))
        pieces = await _whole(store, metric, span)
        closed = await asyncio.gather(*(_blocks(store, partition, metric, pieces) for partition in partitions))
        still = await asyncio.gather(*(_open_still(store, *told, metric) for told in enumerate(opened)))
        if all(still):
            rows = (
                Found([one.window * FINE.window_us], rows=blocks.rows(one.table(kind))) for one in chain.from_iterable(opened)
            )
            return [*chain.from_iterable(closed), *rows]
        await asyncio.sleep(0.05)
    raise StoreUnavailable(f"the windows of {metric} are being rolled up", remedy="Ask again in a few seconds")


async def _opened(store: Store, partition: int, metric: str, first: int, last: int) -> list[Raw]:
    """The open windows of a metric from the first to before the last, as they stand."""
    listed = store.keys.listed_windows(partition, metric)
    members = await store.bulk().command("ZRANGEBYSCORE", listed, first, f"({last}")
    numbers = [_whole_number(number) for number in members if number.isdigit()]
    return await asyncio.gather(*(raw_window(store, partition, number, metric) for number in numbers))


async def _open_still(store: Store, partition: int, opened: list[Raw], metric: str) -> bool:
    """Whether none of those that were read has been sealed since. What was added to it since is another matter."""
    read = [one for one in opened if one.fields]
    keys = [store.keys.metric_window(partition, one.window, metric) for one in read]
    times = await asyncio.gather(*(store.bulk().command("HGET", key, "#") for key in keys))
    return all(now is not None and _whole_number(now) >= _whole_number(one.times) for now, one in zip(times, read, strict=True))


def _whole_number(said: bytes | str) -> int:
    """0 where somebody else has spoilt it."""
    return int(said) if said.isdigit() and len(said) < 20 else 0


async def _whole(store: Store, metric: str, span: Span) -> list[Piece]:
    """The windows of a span. In place of an hour or a day that does not hold all of its minutes, in whatever partition, stand
    those that do."""
    wanted, whole = list(span.pieces()), []
    while wanted:
        large = [piece for piece in wanted if piece.level in (HOUR, DAY)]
        whole += [piece for piece in wanted if piece.level not in (HOUR, DAY)]
        members = [str(Member(level, start_us // level.window_us, metric)) for level, start_us in large]
        due: list[list[bytes | None]] = []
        if members:
            keys = [store.keys.due(partition) for partition in _partitions(store)]
            due = await asyncio.gather(*(store.bulk().command("ZMSCORE", key, *members) for key in keys))
        wanted = []
        for number, piece in enumerate(large):
            if all(scores[number] is None for scores in due):
                whole.append(piece)
            else:
                wanted += piece.finer()
    return whole


async def _blocks(store: Store, partition: int, metric: str, pieces: list[Piece]) -> list[Found]:
    """Every block that these windows are in."""
    hashes: dict[tuple[Level, int], dict[int, list[int]]] = {}
    for level, start_us in pieces:
        field_us = MINUTE.window_us if level is FINE else level.window_us
        fields = hashes.setdefault((level, start_us // level.hash_us), {})
        fields.setdefault(start_us // field_us, []).append(start_us)
    asked = [
        (level, index, fields, list(fields)[begins : begins + BLOCKS])
        for (level, index), fields in hashes.items()
        for begins in range(0, len(fields), BLOCKS)
    ]
    answers = await asyncio.gather(
        *(
            store.bulk().command("HMGET", store.keys.metric_blocks(partition, level.name, index, metric), *part)
            for level, index, _, part in asked
        )
    )
    return [
        Found(fields[field], block, fine=level is FINE)
        for (level, _, fields, part), answer in zip(asked, answers, strict=True)
        for field, block in zip(part, answer, strict=True)
        if block is not None
    ]
