"""Roll-ups: every addition stands in one place at a time, whoever makes blocks of it, however late it comes."""

import asyncio
import random
import time
from typing import Any

import pytest

from observatory import InvalidArgument, Observatory
from observatory.features.metrics import read, rollup
from observatory.features.metrics.blocks import DAY, FINE, HOUR, MINUTE
from observatory.features.metrics.waiting import Group
from observatory.features.metrics.wire import Batch
from observatory.keys import WINDOW_US
from tests.conftest import Open
from tests.features.told import COUNTER, DEPTH, KINDS, SECONDS, Told, agree, moment, tidy, window_now, write
from tests.topologies import Cluster


@pytest.mark.parametrize("seed", range(4))
async def test_every_question_has_the_answer_of_plain_python(opening_any: Open, seed: int) -> None:
    """A day of recordings in any order, rolled up in between by two processes: any span, step and resolution."""
    first, second = await opening_any(), await opening_any()
    told = Told(seed)
    dice = told.dice
    now = time.time_ns() // 1000 // WINDOW_US
    everywhen = range(now - 8600, now)
    for _ in range(6):
        await write(first, told, dice.choices(everywhen, k=40) + dice.choices(range(now - 40, now), k=20))
        await write(second, told, dice.choices(range(now - 720, now), k=40))
        await asyncio.gather(first.metrics.compact(), second.metrics.compact())
        await write(second, told, dice.choices(everywhen, k=30))
        ago = dice.choice((30, 300, 700))
        await agree(first, told, now - ago, now, dice.choice((1, 2, 6, 7, 12)))
        await agree(second, told, now - ago, now - dice.randrange(0, 20), None)
        ago = dice.choice((2000, 5000, 8600))
        await agree(first, told, now - ago, now, dice.choice((6, 30, 360, 720, 2160)))
        await agree(second, told, now - ago, now - dice.randrange(0, 700), dice.choice((None, 90, 360)))
    await tidy(first)


async def test_what_is_rolled_up_while_it_is_written_and_read(opening: Open) -> None:
    """Writers of late windows, three processes that roll up and one that asks, all at once: no sum is ever too large or too
    small, and none falls."""
    several = [await opening() for _ in range(4)]
    now = time.time_ns() // 1000 // WINDOW_US
    written = answered = 0
    stop = asyncio.Event()

    async def roll(obs: Observatory) -> None:
        while not stop.is_set():
            await obs.metrics.compact()
            await asyncio.sleep(random.random() / 10)

    async def ask() -> None:
        nonlocal answered
        seen = 0.0
        while not stop.is_set():
            before = written
            found = (await several[3].metrics.query(COUNTER, since=moment(now - 700), step=60)).series
            total = sum(point.value for one in found for point in one.points)
            assert total >= max(before, seen)
            assert total <= written + 2
            seen, answered = total, answered + 1

    async def add(obs: Observatory, dice: random.Random) -> None:
        nonlocal written
        number = 0
        while number < 400 or answered < 5:
            number += 1
            group = Group(COUNTER, KINDS[COUNTER], [(f'w|model="{dice.choice("ab")}"', 1)])
            obs.metrics._outbox.put(Batch(dice.randrange(now - 600, now - 14) * WINDOW_US, (group,), None))
            await obs.metrics._outbox.deliver()
            written += 1
            await asyncio.sleep(0.05 if number % 40 == 0 else 0)

    rolling = [asyncio.create_task(roll(obs)) for obs in several[:3]]
    asking = asyncio.create_task(ask())
    async with asyncio.timeout(60):
        await asyncio.gather(*(add(obs, random.Random(number)) for number, obs in enumerate(several[:2])))
    stop.set()
    await asyncio.gather(*rolling, asking)
    assert (await several[0].metrics.query(COUNTER, since=moment(now - 700))).value == written
    await several[0].metrics.compact()
    assert (await several[0].metrics.query(COUNTER, since=moment(now - 700))).value == written
    await tidy(several[0])


async def test_an_hour_is_not_made_of_minutes_that_have_changed(obs: Observatory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody seals a late minute between another's reading and writing: the hour is made again."""
    now = time.time_ns() // 1000 // WINDOW_US
    window = now - 1000
    group = Group(COUNTER, KINDS[COUNTER], [("w|", 1)])

    async def late() -> None:
        obs.metrics._outbox.put(Batch(window * WINDOW_US, (group,), None))
        await obs.metrics._outbox.deliver()

    await late()
    real = read.hash_pages
    meddled: list[str] = []

    async def pages(store: Any, key: Any, page: int = read.PAGE) -> list[tuple[bytes, bytes]]:
        found = await real(store, key, page)
        if f":{MINUTE.name}:" in key and not meddled:
            meddled.append(key)
            await late()
            await obs.metrics.compact()
        return found

    monkeypatch.setattr(read, "hash_pages", pages)
    await obs.metrics.compact()
    assert meddled
    for _ in range(2):
        assert (await obs.metrics.query(COUNTER, since=moment(window - 600), step=3600)).series[0].points[0].value == 2
        await obs.metrics.compact()


async def test_hours_and_days_are_kept_when_minutes_are_gone(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their hashes expire in steps; nothing expires before it stands in something coarser."""
    obs = await opening()
    told = Told(7)
    now = time.time_ns() // 1000 // WINDOW_US
    yesterday = [window for window in range(now - 8600, now) if window // 8640 < now // 8640] or list(
        range(now - 8600, now - 800)
    )
    await write(obs, told, told.dice.choices(yesterday, k=200))
    total = sum(told.counts.values())
    await obs.metrics.compact()
    ahead_us = 0
    real = obs.store.server_us
    monkeypatch.setattr(obs.store, "server_us", lambda: (real() or 0) + ahead_us)
    keys = obs.store.keys
    for level, days in ((MINUTE, 2), (HOUR, 100)):
        ahead_us = days * DAY.window_us
        await obs.metrics.compact()
        for partition in range(keys.partitions):
            for key in await obs.store.command("KEYS", keys.metric_blocks(partition, level.name, 0, "*").replace(":0:", ":*:")):
                # What the server would have done by then.
                assert await obs.store.command("PTTL", key) < days * 86_400_000
                await obs.store.command("DEL", key)
        found = await obs.metrics.query(COUNTER, since=f"{days + 2}d")
        assert found.value == total
    with pytest.raises(InvalidArgument, match="step must be a multiple of 86400 s") as told_so:
        await obs.metrics.query(COUNTER, since="102d", step=3600)
    assert told_so.value.remedy is not None
    assert "step=86400" in told_so.value.remedy


async def test_what_is_too_late_counts_and_is_told(opening: Open) -> None:
    """More than a day: in the lifetime totals, in no window, and in a metric of its own."""
    obs = await opening()
    now = time.time_ns() // 1000 // WINDOW_US
    group = Group(COUNTER, KINDS[COUNTER], [("w|", 3)])
    for window in (now - 8700, now + 100, now - 8000):
        obs.metrics._outbox.put(Batch(window * WINDOW_US, (group,), None))
    await obs.flush()
    await obs.flush()
    assert (await obs.metrics.query(COUNTER, since="25h")).value == 3
    assert f"{COUNTER} 9\n" in await obs.metrics.exposition()
    assert (await obs.metrics.query("observatory_additions_late_total")).value == 2


async def test_the_fleet_has_a_bound_of_series(opening_any: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten processes, each within its own bound, together beyond the fleet's: what comes beyond shares a series."""
    monkeypatch.setenv("OBSERVATORY_METRICS_MAX_SERIES", "20")
    monkeypatch.setenv("OBSERVATORY_EVENTS_PARTITIONS", "1")
    several = [await opening_any() for _ in range(10)]
    for process, obs in enumerate(several):
        for number in range(10):
            for _ in range(2):
                obs.metrics.increment_counter(COUNTER, 0.25, {"user": f"{process}-{number}"})
                obs.metrics.record_histogram(SECONDS, 0.5 + number, {"user": f"{process}-{number}"})
            await obs.flush()
    obs = several[0]
    found = await obs.metrics.query(COUNTER, by=("user", "observatory_overflow"))
    assert len(found.series) == 21
    assert found.series[0].labels == {"observatory_overflow": "true"}
    assert found.series[0].value == 80 * 0.5
    assert {one.value for one in found.series[1:]} == {0.5}
    waits = await obs.metrics.query(SECONDS, "count", by=("user", "observatory_overflow"))
    assert (len(waits.series), waits.series[0].value) == (21, 160)
    totals = (await read.totals(obs.store, [COUNTER, SECONDS]))[SECONDS]
    assert sum(value.count for value in totals.values()) == 200
    for one in several:
        await one.flush()
    folded = await obs.metrics.query("observatory_series_folded_total", where={"metric": COUNTER})
    assert folded.value == 80


async def test_spoilt_blocks_are_passed_over(obs: Observatory) -> None:
    """Bytes that are not ours cost their own window, no other, and no error."""
    told = Told(3)
    now = time.time_ns() // 1000 // WINDOW_US
    await write(obs, told, [now - 30] * 5 + [now - 60] * 5)
    await obs.metrics.compact()
    minute = (now - 60) * WINDOW_US // MINUTE.window_us
    for partition in range(obs.store.keys.partitions):
        for level in (FINE, MINUTE):
            key = obs.store.keys.metric_blocks(partition, level.name, minute * MINUTE.window_us // level.hash_us, COUNTER)
            if await obs.store.command("HEXISTS", key, minute):
                await obs.store.command("HSET", key, minute, b"z\x00nonsense")
    expected = sum(told.of(told.counts, now - 30, now))
    assert (await obs.metrics.query(COUNTER, since=moment(now - 90), step=60)).series[0].points[-1].value == expected


async def test_spoilt_keys_cost_their_own_window(obs: Observatory) -> None:
    """A key of another type where a window or a block should be: the others are written, rolled up and read."""
    store, keys, partition = obs.store, obs.store.keys, obs._lifetime.partition()
    now = time.time_ns() // 1000 // WINDOW_US
    minute_us = (now - 100) * WINDOW_US
    await store.command("SET", keys.metric_window(partition, now - 30, COUNTER), "no hash", "EX", 60)
    await store.command("SET", keys.metric_window(partition, now - 30, DEPTH), "no hash", "EX", 60)
    await store.command("SET", keys.metric_blocks(partition, MINUTE.name, minute_us // MINUTE.hash_us, SECONDS), "x", "EX", 60)
    told = Told(5)
    await write(obs, told, [*[now - 30] * 6, *[now - 50] * 6, *[now - 100] * 6])
    await obs.metrics.compact()
    found = await obs.metrics.query(COUNTER, since=moment(now - 54), until=moment(now - 42))
    assert found.value == sum(told.of(told.counts, now - 54, now - 42)) > 0
    assert (await obs.metrics.query("observatory_additions_refused_total")).value is None
    await obs.flush()
    assert (await obs.metrics.query("observatory_additions_refused_total")).value


async def test_on_a_cluster(cluster: Cluster, opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen partitions on three primaries: rolled up where they are, asked as one."""
    monkeypatch.setenv("OBSERVATORY_EVENTS_PARTITIONS", "16")
    several = [await opening(redis_url=cluster.url) for _ in range(5)]
    told = Told(11)
    now = time.time_ns() // 1000 // WINDOW_US
    for obs in several:
        await write(obs, told, told.dice.choices(range(now - 8600, now), k=60))
    assert len({obs._lifetime.partition() for obs in several}) > 1
    for _ in range(2):
        for step in (None, 6, 360):
            await agree(several[0], told, now - 8600 if step != 6 else now - 5000, now, step)
        await asyncio.gather(*(obs.metrics.compact() for obs in several))


async def test_gauges_recorded_have_a_history(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes, 400 series each, a minute: sums over processes, the lowest and the highest; sealed or not."""
    hands = [time.monotonic() - 200]
    for room in ("recorder", "handles"):
        monkeypatch.setattr(f"observatory.features.metrics.{room}.monotonic", lambda: hands[0])
    several = [await opening() for _ in range(3)]
    shift_us = time.time_ns() // 1000 - int(time.monotonic() * 1e6)
    hands[0] += 3 - (hands[0] + shift_us / 1e6) % 10
    for obs in several:
        monkeypatch.setattr(obs.store, "server_us", lambda: int(hands[0] * 1e6) + shift_us)
        # From now on its windows are the server's.
        await obs.flush()
    began = window_now(several[0])
    for turn in range(6):
        for process, obs in enumerate(several):
            for number in range(400):
                obs.metrics.set_gauge(DEPTH, number + process * 1000 - turn / 4, {"n": str(number)})
        hands[0] += 10
        for obs in several:
            await obs.flush()
    monkeypatch.undo()
    for _ in range(2):
        asked: dict[str, Any] = {"since": moment(began), "until": moment(began + 6), "step": 10}
        found = await several[0].metrics.query(DEPTH, "sum", by="n", **asked)
        assert len(found.series) == 400
        for one in found.series:
            number = int(one.labels["n"])
            assert [point.value for point in one.points] == [3 * number + 3000 - 3 * turn / 4 for turn in range(6)]
        for stat, expected in (("min", -5 / 4), ("max", 2399.0)):
            values = [point.value for point in (await several[0].metrics.query(DEPTH, stat, **asked)).series[0].points]
            assert (min if stat == "min" else max)(values) == expected
        await several[0].metrics.compact()


async def test_what_comes_when_the_minutes_have_gone_belongs_to_their_hour(
    opening: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accepted within a day, and nobody there to roll up for hours: the hour that it joins keeps what it had."""
    obs = await opening()
    now = time.time_ns() // 1000 // WINDOW_US
    window = now - 8600
    told = Told(1)
    await write(obs, told, [window] * 8)
    for _ in range(3):
        await obs.metrics.compact()
    before = sum(told.counts.values())
    await write(obs, told, [window] * 8)
    total = sum(told.counts.values())
    assert total > before > 0
    real = obs.store.server_us
    monkeypatch.setattr(obs.store, "server_us", lambda: (real() or 0) + 3 * HOUR.window_us)
    hour = window * WINDOW_US // MINUTE.hash_us
    for partition in range(obs.store.keys.partitions):
        for metric in KINDS:
            # What the server would have done by then.
            await obs.store.command("DEL", obs.store.keys.metric_blocks(partition, MINUTE.name, hour, metric))
    for _ in range(3):
        assert (await obs.metrics.query(COUNTER, since="50h")).value == total
        assert (await obs.metrics.query(COUNTER, since="50h", step=86400)).series[0].points[-1].value <= total
        await obs.metrics.compact()
    waits = await obs.metrics.query(SECONDS, "count", since="50h")
    assert waits.value == sum(map(len, told.waits.values()))


async def test_what_cannot_be_sealed_hides_nothing_behind_it(obs: Observatory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of windows at the head whose blocks somebody has spoilt, members that are none, a level of a later release."""
    monkeypatch.setattr(rollup, "LOOKED_AT", 20)
    store, keys, partition = obs.store, obs.store.keys, obs._lifetime.partition()
    now = time.time_ns() // 1000 // WINDOW_US
    spoilt = "test_spoilt_total"
    for hour in {window * WINDOW_US // MINUTE.hash_us for window in range(now - 700, now)}:
        await store.command("SET", keys.metric_blocks(partition, MINUTE.name, hour, spoilt), "x", "EX", 60)
    for ago in range(600, 300, -6):
        for metric, window in ((spoilt, now - ago), (COUNTER, now - ago + 100)):
            obs.metrics._outbox.put(Batch(window * WINDOW_US, (Group(metric, KINDS[COUNTER], [("w|", 1)]),), None))
    await obs.metrics._outbox.deliver()
    await store.command("ZADD", keys.open_windows(partition), 0, "nonsense", 0, b"\xff\xfe", 1, "7:")
    await store.command("ZADD", keys.due(partition), 0, "1y:5:x", 0, "nonsense", 0, b"1h:\xff:x")
    await obs.metrics.compact()
    members = await store.command("ZRANGE", keys.open_windows(partition), 0, -1)
    assert not [member for member in members if member.endswith(COUNTER.encode())]
    assert (await obs.metrics.query(COUNTER, since="2h")).value == 50
    looks: list[int] = []
    real = rollup._Partition._ready

    async def looking(one: Any, offset: int) -> Any:
        seen, ready = await real(one, offset)
        looks.extend([seen] if one._partition == partition else [])
        return seen, ready

    monkeypatch.setattr(rollup._Partition, "_ready", looking)
    await obs.metrics.compact()
    assert looks == [20, 20, 13], "the fifty and the three, each once"
    await store.command("DEL", keys.open_windows(partition), keys.due(partition))
