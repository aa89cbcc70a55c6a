"""Windows of 10 s: a value counts in the one in which it was recorded, and a query answers in whole ones."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from itertools import pairwise

import pytest

from observatory import Observatory, StoreUnavailable
from observatory.features.metrics import read, waiting
from observatory.features.metrics.recorder import Recorder
from observatory.features.metrics.span import Span
from observatory.keys import WINDOW_US
from tests.conftest import Open
from tests.servers import Server

COUNTER = "test_things_total"
FOLDED = "observatory_windows_folded_total"


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The recorder's clock, to be moved by hand."""
    found = [1_000_000.0]
    monkeypatch.setattr("observatory.features.metrics.recorder.monotonic", lambda: found[0])
    return found


async def following(obs: Observatory, hands: list[float], monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """The server's clock as this client knows it, five minutes late, since a window ahead of it would be refused; moved by the
    same hand, and three seconds into a window when it begins."""
    now_us = time.time_ns() // 1000 - 300_000_000
    shift_us = now_us - now_us % WINDOW_US + 3_000_000 - int(hands[0] * 1e6)
    monkeypatch.setattr(obs.store, "server_us", lambda: int(hands[0] * 1e6) + shift_us)
    await obs.metrics.flush()
    return lambda: int(hands[0] * 1e6) + shift_us


async def by_window(obs: Observatory, since_us: int, until_us: int) -> dict[int, int]:
    """The counter's number in each 10 s window that has any."""
    found = await read.found(obs.store, COUNTER, "counter", Span(since_us, until_us, WINDOW_US))
    return {start_us: table[""][0] for one in found for start_us, table in one.tables() if table}


async def test_what_waits_for_the_store_counts_when_it_was_recorded(
    opening: Open, own_server: Server, hands: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five windows of an outage, delivered in one go: each has its own number, and none another's."""
    obs = await opening(own_server)
    now_us = await following(obs, hands, monkeypatch)
    began_us = now_us() - now_us() % WINDOW_US
    own_server.stop()
    for number in range(1, 6):
        obs.metrics.increment_counter(COUNTER, number)
        hands[0] += 6.9
        obs.metrics.increment_counter(COUNTER, number * 10)
        hands[0] += 3.1
    own_server.start()
    await _delivered(obs)
    found = await by_window(obs, began_us, now_us())
    assert {(start - began_us) // WINDOW_US: number for start, number in found.items()} == {
        number - 1: number * 11 for number in range(1, 6)
    }


async def test_batch_under_way_keeps_its_window(
    opening: Open, own_server: Server, hands: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen and refused, it is sent again as it was; what comes after it is not stamped with its time, nor it with theirs."""
    obs = await opening(own_server)
    now_us = await following(obs, hands, monkeypatch)
    began_us = now_us() - now_us() % WINDOW_US
    obs.metrics.increment_counter(COUNTER, 1)
    own_server.stop()
    await _refused(obs)
    hands[0] += 20
    obs.metrics.increment_counter(COUNTER, 2)
    hands[0] += 20
    await _refused(obs)
    assert len(obs.metrics._outbox) == 1, "what came later is not frozen while the store is away"
    own_server.start()
    await _delivered(obs)
    found = await by_window(obs, began_us, now_us())
    assert {(start - began_us) // WINDOW_US: number for start, number in found.items()} == {0: 1, 2: 2}


async def _refused(obs: Observatory) -> None:
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await obs.metrics.flush()


async def _delivered(obs: Observatory) -> None:
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(StoreUnavailable):
                return await obs.metrics.flush()
            await asyncio.sleep(0.05)


def test_hours_without_a_store_are_bounded(hands: list[float]) -> None:
    """Six hours: at most an hour's number of windows, evenly longer, every one counted once, and the folding told."""
    recorder = Recorder()
    for _ in range(6 * 360):
        for series in range(3):
            recorder.add(COUNTER, "counter", 1, {"n": str(series)})
        recorder.add("test_seconds", "histogram", 0.5)
        hands[0] += 10
        assert len(recorder._waiting) <= waiting.MAX_WINDOWS
    began_us = int(hands[0] * 1e6) - 6 * 3600 * 1_000_000
    taken = recorder.windows(int(hands[0] * 1e6))
    assert 180 <= len(taken) <= waiting.MAX_WINDOWS + 1
    sums: dict[tuple[str, str], int] = {}
    for window in taken:
        for group in window.groups:
            for field, number in group.additions:
                sums[group.metric, field] = sums.get((group.metric, field), 0) + number
    assert {field: number for (metric, field), number in sums.items() if metric == COUNTER} == {
        f'w|n="{series}"': 6 * 360 for series in range(3)
    }
    assert sums["test_seconds", "c|"] == 6 * 360
    assert sums[FOLDED, "w|"] + len(taken) >= 6 * 360 - 1, "the last folding is told with the next window"
    moments = [window.at_us for window in taken]
    assert all(0 < later - earlier <= 160_000_000 for earlier, later in pairwise(moments))
    assert moments[0] - began_us < 80_000_000
    hands[0] += 10
    recorder.add(COUNTER, "counter", 1)
    hands[0] += 10
    recorder.add(COUNTER, "counter", 1)
    later = recorder.windows(int(hands[0] * 1e6))
    assert sum(group.metric == COUNTER for window in later for group in window.groups) == 2, "windows are short again"


def test_wide_windows_are_folded_sooner(hands: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is on what is kept, not only on how many windows it is in."""
    monkeypatch.setattr(waiting, "MAX_ADDITIONS", 1_000)
    recorder = Recorder()
    for _ in range(50):
        for series in range(300):
            recorder.add(COUNTER, "counter", 1, {"n": str(series)})
        hands[0] += 10
    kept = recorder.windows(int(hands[0] * 1e6))
    assert sum(len(group.additions) for window in kept for group in window.groups) < 2_000
    added = [number for window in kept for group in window.groups if group.metric == COUNTER for _, number in group.additions]
    assert sum(added) == 50 * 300


async def test_rate_is_over_what_the_answer_covers(opening: Open, hands: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """One a second for two minutes is a rate of one, however `since` and `until` fall into their windows."""
    obs = await opening()
    now_us = await following(obs, hands, monkeypatch)
    hands[0] += 7
    for _ in range(120):
        obs.metrics.increment_counter(COUNTER)
        hands[0] += 1
    await obs.metrics.flush()
    assert now_us() % WINDOW_US == 0
    for later in (0.0, 1.0, 5.5, 9.9):
        if later:
            hands[0] += later - (now_us() % WINDOW_US) / 1e6
        for since in ("10s", "15s", "59s", "60s", "100s"):
            found = await obs.metrics.query(COUNTER, "rate", since=since, until=f"{later}s" if later else "now")
            assert found.value == pytest.approx(1.0), (later, since)
    found = await obs.metrics.query(COUNTER, "rate", since="100s")
    assert (found.until - found.since).total_seconds() == pytest.approx(109.9)
    assert found.value == pytest.approx(100 / 109.9, rel=1e-3)


async def test_steps_begin_with_the_first_window(opening: Open, hands: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """No point before the first, and the last one's rate is over what is over of it."""
    obs = await opening()
    await following(obs, hands, monkeypatch)
    hands[0] += 7
    for _ in range(95):
        obs.metrics.increment_counter(COUNTER)
        hands[0] += 1
    await obs.metrics.flush()
    found = await obs.metrics.query(COUNTER, "rate", since="65s", step=20)
    points = found.series[0].points
    assert points[0].at == found.since
    assert [point.value for point in points] == pytest.approx([1.0] * len(points))
    assert len(points) == 4
