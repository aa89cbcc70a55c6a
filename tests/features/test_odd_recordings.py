"""What nobody should record, and somebody will: it costs its recorder a little memory, and the fleet nothing."""

import asyncio
import subprocess
import sys
import tracemalloc

from observatory import Observatory
from observatory.envelope import Envelope, encoded, new_id, packed
from observatory.keys import WINDOW_US
from observatory.llm import CallData
from observatory.llm.call import LLM_CALL
from observatory.worker import Worker
from tests.conftest import Open
from tests.servers import Server, environment
from tests.worker.events import settled, working

COUNTER = "test_things_total"


async def test_a_hundred_thousand_label_values(obs: Observatory) -> None:
    """A user's name as a label: the metric's first 2,000 stand, the rest share one series, and the sum is whole."""
    tracemalloc.start()
    for number in range(100_000):
        obs.metrics.increment_counter(COUNTER, 1, {"user": f"user-{number}"})
    await obs.flush()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 30 * 2**20
    assert (await obs.metrics.query(COUNTER)).value == 100_000
    assert (await obs.metrics.query(COUNTER, where={"observatory_overflow": "true"})).value == 98_000
    assert (await obs.metrics.query("observatory_series_folded_total", where={"metric": COUNTER})).value == 98_000


async def test_a_label_of_a_megabyte(obs: Observatory) -> None:
    """Refused and counted; nothing of it is kept."""
    obs.metrics.increment_counter(COUNTER, 1, {"prompt": "x" * 2**20})
    obs.metrics.increment_counter(COUNTER, 1, {"x" * 2**20: "y"})
    obs.metrics.increment_counter("x" * 2**20)
    obs.metrics.increment_counter(COUNTER, 1)
    await obs.flush()
    assert (await obs.metrics.query(COUNTER)).value == 1
    assert (await obs.metrics.query("observatory_values_refused_total")).value == 3


DAY_OFF = """
import asyncio, sys, time
from observatory import Observatory

async def main():
    async with Observatory("off", redis_url=sys.argv[1], namespace=sys.argv[2]) as obs:
        await obs.ready()
        obs.metrics.increment_counter("test_things_total", 5)
        obs.record_request("openai", "m", latency=0.5)

# The clock of the wall, not that which counts.
real = time.time_ns
time.time_ns = lambda: real() + int(sys.argv[3]) * 10**9
time.time = lambda: time.time_ns() / 1e9
asyncio.run(main())
"""


async def test_a_client_whose_clock_is_a_day_off(opening: Open, server: Server, namespace: str) -> None:
    """A day behind or ahead: what it records stands in the window of the server's clock."""
    obs = await opening()
    for seconds in ("86400", "-86400"):
        call = [sys.executable, "-c", DAY_OFF, server.url, namespace, seconds]
        await asyncio.to_thread(subprocess.run, call, check=True, env=environment(), timeout=30)
    assert (await obs.metrics.query(COUNTER, since="2m")).value == 10
    assert (await obs.metrics.query("observatory_requests_total", since="2m")).value == 2
    entries = [
        entry
        for partition in range(obs.store.keys.partitions)
        for entry in await obs.store.command("XRANGE", obs.store.keys.stream(partition), "-", "+")
    ]
    assert len(entries) == 2


async def test_events_from_the_future_and_from_long_ago(opening: Open) -> None:
    """Counted once, now: no window of next year, none of 1970; what is late within a day stands where it belongs."""
    obs = await opening()
    now_us = obs.store.server_us() or 0
    moments = [now_us + 10 * 86_400_000_000, 0, 2**62, now_us - 40 * 86_400_000_000, now_us - 3600_000_000]
    posted = [(new_id(), encoded(Envelope(LLM_CALL, at_us, packed(CallData("openai", "m", latency=1.0))))) for at_us in moments]
    await obs.events.accept(posted)
    async with working(Worker(await opening(role="worker"))):
        await settled(obs, len(posted))
    found = await obs.metrics.query("observatory_requests_total", since="2h", step=60)
    assert sorted(point.value for point in found.series[0].points) == [1, 4]
    assert abs(found.series[0].points[0].at.timestamp() * 1e6 - (now_us - 3600_000_000)) < 6 * WINDOW_US + 60_000_000
