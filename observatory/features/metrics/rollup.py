"""From open windows to minutes, hours and days: any process may do it, and none can do it twice.

What holds: every addition stands in exactly one open window or in exactly one block of each resolution that has been made of
it; a block is replaced together with what it was made of, and only if neither has changed since it was read (metrics/seal,
metrics/roll). So two that do it at once, a zombie, a crash half way and additions that come late cost work, never a number. A
late addition opens its window again, up to a day back; its minute, hour and day are then made anew.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple, ParamSpec, TypeVar

from ...errors import StoreError, StoreMisconfigured, StoreUnavailable
from ...keys import Key
from ...logs import INTERNAL
from ...names import Definition, Kind
from ...store.script import lua
from ...store.store import Bulk, Store
from . import blocks, read
from .blocks import DAY, FINE, FINE_PER_MINUTE, HOUR, LEVELS, MINUTE, Level

SETTLE_US: Final = 60_000_000
"""How long after its end a window is left open, for batches that are still on their way."""
UNROLLED_US: Final = 7 * DAY.window_us
"""How long minutes wait for somebody to make an hour of them."""
LOOKED_AT: Final = 500
"""Open windows looked at in one go."""
AT_ONCE: Final = 3000
"""Numbers that are added up on the loop; more, and a thread does it."""

P = ParamSpec("P")
T = TypeVar("T")


@lua("metrics/seal")
def _seal(
    store: Bulk,
    *,
    open: Key,  # noqa: A002 (the script's word)
    due: Key,
    rolled: Key,
    fine: Key,
    minutes: Key,
    windows: Sequence[Key],
    metric: str,
    expected: bytes,
    token: str,
    minute: int,
    fine_block: bytes,
    minute_block: bytes,
    fine_until_ms: int,
    keep_until_ms: int,
    due_hour: str,
    due_day: str,
    hour_ends_us: int,
    day_ends_us: int,
    read: Sequence[str | bytes],
) -> Awaitable[list[int]]: ...


@lua("metrics/roll")
def _roll(
    store: Bulk,
    *,
    due: Key,
    rolled: Key,
    finer: Key,
    coarser: Key,
    metric: str,
    member: str,
    expected: bytes,
    token: str,
    index: int,
    block: bytes,
    finer_until_ms: int,
    until_ms: int,
) -> Awaitable[list[int]]: ...


class Member(NamedTuple):
    """An hour or a day that does not hold all of its minutes."""

    level: Level
    number: int
    metric: str

    def __str__(self) -> str:
        return f"{self.level.name}:{self.number}:{self.metric}"

    @classmethod
    def of(cls, text: str) -> "Member":
        name, number, metric = text.split(":", 2)
        return cls(next(level for level in LEVELS if level.name == name), int(number), metric)


def _until_ms(level: Level, start_us: int, keep_us: int | None = None) -> int:
    """When the hash that holds this moment expires."""
    ends_us = (start_us // level.hash_us + 1) * level.hash_us
    return (ends_us + (level.keep_us if keep_us is None else keep_us)) // 1000


def _token() -> str:
    return secrets.token_hex(6)


async def compact(store: Store) -> int:
    """Roll up what is ready, in every partition; returns how many blocks were made. StoreUnavailable: go on another time."""
    known = await read.definitions(store)
    return sum([await _Partition(store, partition, known).compact() for partition in range(store.keys.partitions)])


async def _computed(numbers: int, compute: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """On a thread where there is much to do: whoever rolls up has other work on its loop."""
    return await asyncio.to_thread(compute, *args, **kwargs) if numbers > AT_ONCE else compute(*args, **kwargs)


def _with_windows(
    fine_block: bytes | None, minute_block: bytes | None, windows: Sequence[read.Raw], kind: Kind, keep_fine: bool
) -> tuple[bytes, bytes]:
    """The blocks of a minute, with open windows added: that of its 10 s windows, and its own."""
    fine = blocks.decoded_fine(fine_block)
    whole: dict[str, Any] = {}
    blocks.into(whole, blocks.decoded(minute_block), kind)
    for one in windows:
        table = one.table(kind)
        blocks.add(whole, table)
        late: dict[str, Any] = {}
        blocks.into(late, fine.get(one.window % FINE_PER_MINUTE, {}), kind)
        blocks.add(late, table)
        fine[one.window % FINE_PER_MINUTE] = blocks.rows(late)
    made = blocks.encoded({at: found for at, found in fine.items() if found}) if keep_fine else b""
    return made, blocks.encoded(blocks.rows(whole))


def _together(found: Sequence[bytes], kind: Kind) -> bytes:
    """One block of several."""
    whole: dict[str, Any] = {}
    for block in found:
        blocks.into(whole, blocks.decoded(block), kind)
    return blocks.encoded(blocks.rows(whole))


class _Partition:
    """The roll-up of one partition."""

    def __init__(self, store: Store, partition: int, known: dict[str, Definition]) -> None:
        self._store = store
        self._partition = partition
        self._known = known

    async def compact(self) -> int:
        made = 0
        while True:
            ready = await self._ready()
            done = sum([await self._made(self._minute(*which, windows)) for which, windows in ready.items()])
            made += done
            # What somebody else has changed meanwhile is looked at the next time.
            if not done or sum(map(len, ready.values())) < LOOKED_AT:
                break
        for level in (HOUR, DAY):
            for member in await self._due(level):
                made += await self._made(self._larger(member))
        return made

    async def _made(self, block: Awaitable[int]) -> int:
        """One that cannot be made, since somebody else has spoilt a key, must not keep the others from it."""
        try:
            return await block
        except (StoreUnavailable, StoreMisconfigured):
            raise
        except StoreError as error:
            INTERNAL.error("metrics: a block is passed over: %s", error)
            return 0

    def _now_us(self) -> int:
        return self._store.server_us() or 0

    async def _ready(self) -> dict[tuple[str, int], list[int]]:
        """Open windows of minutes that are over, by metric and minute."""
        now_us = self._now_us() - SETTLE_US
        before = now_us // MINUTE.window_us * FINE_PER_MINUTE
        members = await self._store.bulk().command(
            *("ZRANGEBYSCORE", self._store.keys.open_windows(self._partition), "-inf", f"({before}", "LIMIT", 0, LOOKED_AT)
        )
        ready: dict[tuple[str, int], list[int]] = {}
        for member in members:
            window, _, metric = member.decode().partition(":")
            ready.setdefault((metric, int(window) // FINE_PER_MINUTE), []).append(int(window))
        return ready

    async def _minute(self, metric: str, minute: int, windows: list[int]) -> int:
        """Blocks of a minute, with what came late; 0 when somebody was faster."""
        store, keys, partition = self._store, self._store.keys, self._partition
        kind = self._known.get(metric, Definition("counter")).kind
        start_us = minute * MINUTE.window_us
        hour, day = start_us // HOUR.window_us, start_us // DAY.window_us
        fine_key = keys.metric_blocks(partition, FINE.name, start_us // FINE.hash_us, metric)
        minute_key = keys.metric_blocks(partition, MINUTE.name, start_us // MINUTE.hash_us, metric)
        expected = await read.token(store, partition, metric)
        fine_block, minute_block, *found = await asyncio.gather(
            store.bulk().command("HGET", fine_key, minute),
            store.bulk().command("HGET", minute_key, minute),
            *(read.raw_window(store, partition, window, metric) for window in windows),
        )
        too_old = self._now_us() - start_us > FINE.keep_us
        fine_made, minute_made = await _computed(
            sum(len(one.fields) for one in found), _with_windows, fine_block, minute_block, found, kind, not too_old
        )
        (done,) = await _seal(
            store.bulk(),
            open=keys.open_windows(partition),
            due=keys.due(partition),
            rolled=keys.rolled(partition),
            fine=fine_key,
            minutes=minute_key,
            windows=[keys.metric_window(partition, window, metric) for window in windows],
            metric=metric,
            expected=expected,
            token=_token(),
            minute=minute,
            fine_block=fine_made,
            minute_block=minute_made,
            fine_until_ms=_until_ms(FINE, start_us),
            keep_until_ms=_until_ms(MINUTE, start_us, UNROLLED_US),
            due_hour=str(Member(HOUR, hour, metric)),
            due_day=str(Member(DAY, day, metric)),
            hour_ends_us=(hour + 1) * HOUR.window_us,
            day_ends_us=(day + 1) * DAY.window_us,
            read=[item for one in found for item in (f"{one.window}:{metric}", one.times)],
        )
        return done

    async def _due(self, level: Level) -> list[Member]:
        """Hours or days that are over, and whose parts are whole."""
        now_us = self._now_us() - 2 * SETTLE_US
        members = [
            Member.of(member.decode())
            for member in await self._store.bulk().command(
                "ZRANGEBYSCORE", self._store.keys.due(self._partition), "-inf", now_us
            )
        ]
        hours = {(member.metric, member.number // 24) for member in members if member.level is HOUR}
        of_level = [member for member in members if member.level is level]
        return [member for member in of_level if level is HOUR or (member.metric, member.number) not in hours]

    async def _larger(self, member: Member) -> int:
        """The block of an hour or a day, of those of its minutes or hours."""
        store, keys, partition = self._store, self._store.keys, self._partition
        level, number, metric = member
        finer = MINUTE if level is HOUR else HOUR
        kind = self._known.get(metric, Definition("counter")).kind
        start_us = number * level.window_us
        source = keys.metric_blocks(partition, finer.name, start_us // finer.hash_us, metric)
        expected = await read.token(store, partition, metric)
        found = [block for _, block in await read.hash_pages(store, source, page=20)]
        made = await _computed(sum(map(len, found)) // 20, _together, found, kind)
        (done,) = await _roll(
            store.bulk(),
            due=keys.due(partition),
            rolled=keys.rolled(partition),
            finer=source,
            coarser=keys.metric_blocks(partition, level.name, start_us // level.hash_us, metric),
            metric=metric,
            member=str(member),
            expected=expected,
            token=_token(),
            index=number,
            block=made,
            finer_until_ms=_until_ms(finer, start_us),
            until_ms=_until_ms(level, start_us),
        )
        return done
