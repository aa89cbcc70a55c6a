"""Gauges across the fleet: what is said of them is known with the first value, and they go soon after their process."""

import asyncio
import time

from observatory import Observatory
from observatory.features.metrics import read
from observatory.features.metrics.wire import GAUGE_KEEP_MS, gauge_keep_ms
from tests.conftest import Open


async def still(obs: Observatory) -> None:
    """As a killed process: nothing is sent any more, and nothing was taken back."""
    assert obs._lifetime._background
    await obs._lifetime._background.stop()


async def test_what_is_said_of_a_gauge_is_the_fleets(opening: Open) -> None:
    """Unit and description come with the first value, long before its first window is over; and stay when it has gone."""
    one, other = await opening(), await opening()
    one.metrics.gauge("test_held_bytes", unit="By", description="What is held").set(7)
    await one.metrics.flush()
    assert not await one.store.command("ZRANGE", one.store.keys.open_windows(one._lifetime.partition()), 0, -1)
    text = await other.metrics.exposition(form="openmetrics")
    assert "# HELP test_held_bytes What is held\n# TYPE test_held_bytes gauge\n# UNIT test_held_bytes bytes\n" in text
    found = await other.metrics.query("test_held_bytes")
    assert (found.unit, found.value) == ("By", 7)
    await one.metrics.retire()
    found = await other.metrics.query("test_held_bytes")
    assert (found.unit, found.value) == ("By", None)
    assert (await read.known(other.store))["test_held_bytes"].description == "What is held"


async def test_a_gauge_whose_name_is_a_counter_elsewhere(opening: Open) -> None:
    """It is shown as what it is, and the counter's description is not its own."""
    one, other = await opening(), await opening()
    await still(one)
    one.metrics.counter("test_things", description="a counter").add(5)
    await one.metrics.flush()
    other.metrics.set_gauge("test_things", 3)
    await other.metrics.flush()
    families = {(family.definition.kind, family.definition.description) for family in await one.metrics.families()}
    assert {("counter", "a counter"), ("gauge", "")} <= families


async def test_a_killed_process_is_soon_out_of_the_sum(opening: Open) -> None:
    """Ten seconds after its last word; one that is alive and idle stays."""
    killed, idle = await opening(), await opening()
    for one in (killed, idle):
        one.metrics.set_gauge("test_level", 4)
        await one.metrics.flush()
    await still(killed)
    began = time.monotonic()
    assert (await idle.metrics.query("test_level")).value == 8
    while (await idle.metrics.query("test_level")).value != 4:
        assert time.monotonic() - began < GAUGE_KEEP_MS / 1000 + 2
        await asyncio.sleep(0.2)
    assert time.monotonic() - began > GAUGE_KEEP_MS / 1000 - 4
    await asyncio.sleep(4)
    assert (await idle.metrics.query("test_level")).value == 4


async def test_rare_flushes_keep_their_gauges_for_longer(opening: Open) -> None:
    """Three renewals; and a process that flushes often does not take those of one that seldom does."""
    assert [gauge_keep_ms(every) for every in (0.01, 1, 60)] == [10_000, 10_000, 180_000]
    rare, often = await opening(), await opening()
    for one, keep_ms in ((rare, 60_000), (often, 300)):
        await still(one)
        one.metrics._gauge_keep_ms = keep_ms
        one.metrics.set_gauge("test_level", 4)
        await one.metrics.flush()
    await asyncio.sleep(0.5)
    assert (await rare.metrics.query("test_level")).value == 4
    await often.metrics.flush()
    assert (await rare.metrics.query("test_level")).value == 8
