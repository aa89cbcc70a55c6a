"""From open windows to minutes, hours and days: any process may do it, and none can do it twice.

What holds: every addition stands in exactly one open window or in exactly one block of each resolution that has been made of
it; a block is replaced together with what it was made of, and only if neither has changed since it was read (metrics/seal,
metrics/roll). So two that do it at once, a zombie, a crash half way and additions that come late cost work, never a number. A
late addition opens its window again, up to a day back; its minute, hour and day are then made anew.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, ParamSpec, TypeVar

from ...errors import StoreMisconfigured, StoreUnavailable
from ...keys import Key
from ...logs import INTERNAL
from ...names import Definition, Kind
from ...store.script import lua
from ...store.store import Bulk, Store
from . import blocks, read
from .blocks import DAY, FINE, FINE_PER_MINUTE, HOUR, MINUTE, Level
from .span import Member

SETTLE_US: Final = 60_000_000
"""How long after its end a window is left open, for batches that are still on their way."""
UNROLLED_US: Final = 7 * DAY.window_us
"""How long minutes wait for somebody to make an hour of them."""
GOING_US: Final = 1_800_000_000
"""How long before the end of its minutes an hour takes no more of them."""
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
    listed: Key,
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
        made = await self._sealed()
        for level in (HOUR, DAY):
            for member in await self._due(level):
                made += await self._made(self._larger(member))
        return made

    async def _sealed(self) -> int:
        """Blocks of every minute that is over."""
        made = passed_over = 0
        while True:
            seen, ready = await self._ready(passed_over)
            left = seen
            for (metric, minute), windows in ready.items():
                done = await self._made(self._minute(metric, minute, windows))
                made += done
                left -= len(windows) if done else 0
            # What cannot be sealed, or was somebody else's, must not hide what lies behind it.
            passed_over += left
            if seen < LOOKED_AT:
                return made

    async def _made(self, block: Awaitable[int]) -> int:
        """One that cannot be made, since somebody else has spoilt a key, must not keep the others from it."""
        try:
            return await block
        except (StoreUnavailable, StoreMisconfigured):
            raise
        except Exception as error:
            INTERNAL.error("metrics: a block is passed over: %s: %s", type(error).__name__, error)
            return 0

    def _now_us(self) -> int:
        return self._store.server_us() or 0

    async def _ready(self, offset: int) -> tuple[int, dict[tuple[str, int], list[int]]]:
        """Open windows of minutes that are over, by metric and minute; and how many were looked at."""
        now_us = self._now_us() - SETTLE_US
        before = now_us // MINUTE.window_us * FINE_PER_MINUTE
        members = await self._store.bulk().command(
            *("ZRANGEBYSCORE", self._store.keys.open_windows(self._partition), "-inf", f"({before}", "LIMIT", offset, LOOKED_AT)
        )
        ready: dict[tuple[str, int], list[int]] = {}
        for member in members:
            window, _, metric = member.decode(errors="replace").partition(":")
            if window.isdecimal() and window == str(int(window)) and metric:
                ready.setdefault((metric, int(window) // FINE_PER_MINUTE), []).append(int(window))
        return len(members), ready

    async def _minute(self, metric: str, minute: int, windows: list[int]) -> int:
        """Blocks of a minute, with what came late; 0 when somebody was faster."""
        store, keys, partition = self._store, self._store.keys, self._partition
        kind = self._known.get(metric, Definition("counter")).kind
        start_us = minute * MINUTE.window_us
        hour, day = start_us // HOUR.window_us, start_us // DAY.window_us
        due_hour, due_day = str(Member(HOUR, hour, metric)), str(Member(DAY, day, metric))
        expected = await read.token(store, partition, metric)
        level, index, keep_us = MINUTE, minute, UNROLLED_US
        if self._now_us() > (hour + 1) * HOUR.window_us + MINUTE.keep_us - GOING_US and await self._is_rolled(due_hour):
            # Its minutes are gone, or will be in a moment: what comes now belongs to the hour itself.
            level, index, keep_us, due_hour = HOUR, hour, HOUR.keep_us, due_day
        fine_key = keys.metric_blocks(partition, FINE.name, start_us // FINE.hash_us, metric)
        whole_key = keys.metric_blocks(partition, level.name, start_us // level.hash_us, metric)
        fine_block, whole_block, *found = await asyncio.gather(
            store.bulk().command("HGET", fine_key, minute),
            store.bulk().command("HGET", whole_key, index),
            *(read.raw_window(store, partition, window, metric) for window in windows),
        )
        too_old = self._now_us() - start_us > FINE.keep_us
        fine_made, whole_made = await _computed(
            sum(len(one.fields) for one in found), _with_windows, fine_block, whole_block, found, kind, not too_old
        )
        (done,) = await _seal(
            store.bulk(),
            open=keys.open_windows(partition),
            listed=keys.listed_windows(partition, metric),
            due=keys.due(partition),
            rolled=keys.rolled(partition),
            fine=fine_key,
            minutes=whole_key,
            windows=[keys.metric_window(partition, window, metric) for window in windows],
            metric=metric,
            expected=expected,
            token=_token(),
            minute=index,
            fine_block=fine_made,
            minute_block=whole_made,
            fine_until_ms=_until_ms(FINE, start_us),
            keep_until_ms=_until_ms(level, start_us, keep_us),
            due_hour=due_hour,
            due_day=due_day,
            hour_ends_us=((hour + 1) * HOUR.window_us) if level is MINUTE else (day + 1) * DAY.window_us,
            day_ends_us=(day + 1) * DAY.window_us,
            read=[item for one in found for item in (f"{one.window}:{metric}", one.times)],
        )
        return done

    async def _is_rolled(self, due_hour: str) -> bool:
        """Whether an hour holds all of its minutes."""
        return await self._store.bulk().command("ZSCORE", self._store.keys.due(self._partition), due_hour) is None

    async def _due(self, level: Level) -> list[Member]:
        """Hours or days that are over, and whose parts are whole."""
        now_us = self._now_us() - 2 * SETTLE_US
        due = await self._store.bulk().command("ZRANGEBYSCORE", self._store.keys.due(self._partition), "-inf", now_us)
        members = [member for text in due if (member := Member.of(text.decode(errors="replace"))) is not None]
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
