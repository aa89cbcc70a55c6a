"""What was recorded as plain Python counts it, written the way that every batch goes, and compared with what is answered."""

import random
import time
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from observatory import Observatory
from observatory.features.metrics import series
from observatory.features.metrics.waiting import Group
from observatory.features.metrics.wire import Batch
from observatory.keys import PERMANENT, WINDOW_US
from observatory.names import Definition

COUNTER, SECONDS, DEPTH = "test_things_total", "test_wait_seconds", "test_depth"
KINDS: dict[str, Any] = {COUNTER: Definition("counter"), SECONDS: Definition("histogram"), DEPTH: Definition("gauge")}
VALUES = [0.0, 0.001, 0.3, 0.31, 7.0, 250.0]


class Told:
    """Plain Python's idea of what was recorded: every addition, by window and series."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.counts: dict[tuple[int, str], int] = defaultdict(int)
        self.waits: dict[tuple[int, str], list[float]] = defaultdict(list)
        self.depths: dict[tuple[int, str], list[float]] = defaultdict(list)

    def record(self, window: int) -> list[Group]:
        """What one process says of one window, as it goes over the wire."""
        text = series.text({"model": self.dice.choice("abc"), "team": self.dice.choice("xy")})
        groups = []
        if self.dice.random() < 0.7:
            number = self.dice.randrange(1, 50)
            self.counts[window, text] += number
            groups.append(Group(COUNTER, KINDS[COUNTER], [(f"w|{text}", number), (f"n|{text}", 0)]))
        if self.dice.random() < 0.5:
            value = self.dice.choice(VALUES)
            self.waits[window, text].append(value)
            field = f"b{series.bucket(value)}|{text}" if value else f"z|{text}"
            whole, nano = divmod(round(value * 10**9), 10**9)
            groups.append(Group(SECONDS, KINDS[SECONDS], [(field, 1), (f"s|{text}", whole), (f"t|{text}", nano)]))
        if self.dice.random() < 0.4:
            depth = self.dice.randrange(-5, 40)
            self.depths[window, text].append(depth)
            groups.append(Group(DEPTH, KINDS[DEPTH], [(f"k|{text}", 1), (f"w|{text}", depth)]))
        return groups

    def of(self, found: dict[tuple[int, str], Any], since: int, until: int, model: str | None = None) -> Iterator[Any]:
        """Everything recorded in [since, until), in windows."""
        for (window, text), said in found.items():
            if since <= window < until and (model is None or series.labels(text)["model"] == model):
                yield said


async def write(obs: Observatory, told: Told, windows: list[int]) -> None:
    """Each window as a batch of its own, over the way that every batch goes."""
    for window in windows:
        if groups := told.record(window):
            obs.metrics._outbox.put(Batch(window * WINDOW_US, tuple(groups), None))
    await obs.metrics._outbox.deliver()


async def agree(obs: Observatory, told: Told, since: int, until: int, step: int | None) -> None:
    """One question to each metric; the answer is what plain Python says, to the last unit."""
    asked: dict[str, Any] = {
        "since": moment(since),
        "until": moment(until),
        "step": None if step is None else step * 10,
        "by": "model",
    }
    found = await obs.metrics.query(COUNTER, "total", **asked)
    # What was asked is rounded to what is kept of that time; the answer says to what.
    first, last = _window(found.since), -(-int(found.until.timestamp() * 1e6) // WINDOW_US)
    assert first <= since < until <= last
    steps = [(first, last)] if step is None else [(at, min(at + step, last)) for at in range(first, last, step)]
    got = {(one.labels["model"], at): value for one in found.series for at, value in _points(one, first)}
    want = {(model, at): sum(told.of(told.counts, at, end, model)) for model in "abc" for at, end in steps}
    assert got == {where: total for where, total in want.items() if total}
    for stat, expected in (("count", len), ("sum", sum)):
        found = await obs.metrics.query(SECONDS, stat, **asked)
        got = {(one.labels["model"], at): value for one in found.series for at, value in _points(one, first)}
        for model in "abc":
            for at, end in steps:
                values = [value for several in told.of(told.waits, at, end, model) for value in several]
                assert got.get((model, at), 0) == pytest.approx(expected(values)), (stat, model, at)
    if step is not None:
        by_model = dict(asked, by="")
        for stat in ("sum", "avg", "min", "max"):
            found = await obs.metrics.query(DEPTH, stat, **by_model)
            over = _window(found.until)
            depths = {at: value for one in found.series for at, value in _points(one, first)}
            for at, end in steps:
                by_window = {
                    window: [depth for several in told.of(told.depths, window, window + 1) for depth in several]
                    for window in range(at, end)
                }
                seen = [several for several in by_window.values() if several]
                if not seen:
                    assert at not in depths
                    continue
                every = [depth for several in seen for depth in several]
                expect = {
                    "avg": sum(every) / len(every),
                    "min": min(every),
                    "max": max(every),
                    "sum": sum(every) / max(min(end, over) - at, 1),
                }
                assert depths[at] == pytest.approx(expect[stat]), (stat, at)


def moment(window: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(window * 10))


def _window(at: datetime) -> int:
    return int(at.timestamp()) // 10


def _points(one: Any, first: int) -> Iterator[tuple[int, float]]:
    if one.points:
        yield from ((_window(point.at), point.value) for point in one.points)
    elif one.value is not None:
        yield first, one.value


def window_now(obs: Observatory) -> int:
    return (obs.store.server_us() or 0) // WINDOW_US


async def tidy(obs: Observatory) -> None:
    """What is over is in blocks alone, and everything that may expire will."""
    await obs.metrics.compact()
    keys = obs.store.keys
    for partition in range(keys.partitions):
        members = await obs.store.command("ZRANGE", keys.open_windows(partition), 0, -1)
        now = (obs.store.server_us() or 0) // WINDOW_US
        assert all(int(member.split(b":")[0]) >= now - 13 for member in members), "only the last two minutes are open"
        for key in await obs.store.command("KEYS", keys.metric_window(partition, 0, "*").replace(":0:", ":*:")):
            window, metric = key.decode().split(":")[-2:]
            assert f"{window}:{metric}".encode() in members, "every open window is listed"
    for key in await obs.store.command("KEYS", keys.pattern()):
        if not PERMANENT.fullmatch(key.decode()):
            assert 0 < await obs.store.command("PTTL", key) <= 740 * 86_400_000 + 367 * 86_400_000, key
