"""Workers: each event applied once, partitions shared, the dead succeeded, poison buried."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from observatory import Metric, Observatory
from observatory.envelope import Envelope, encoded, new_id, packed
from observatory.worker import Worker
from observatory.worker.apply import Meaning, apply
from tests.conftest import Open
from tests.servers import Server, environment, process
from tests.worker.events import call, settled, working

APPLIED = "observatory_events_applied_total"


async def test_events_of_strangers_become_the_ten_metrics(opening_any: Open) -> None:
    """Accepted over HTTP's way, counted by the worker, at the time they say; each id once."""
    obs = await opening_any()
    now_us = obs.store.server_us() or 0
    posted = [call(at_us=now_us) for _ in range(250)]
    done = await obs.events.accept(posted)
    again = await obs.events.accept(posted[:30])
    assert (done.accepted, again.accepted, again.duplicates) == (250, 0, 30)
    async with working(Worker(await opening_any(role="worker"))):
        assert await settled(obs, 250) == {"accepted": 250, "applied": 250, "dead": 0, "dropped": 0, "waiting": 0}
    for metric, stat, expected in (
        (Metric.REQUESTS_TOTAL, "total", 250),
        (Metric.TOKENS_PROCESSED, "total", 3750),
        (Metric.REQUEST_LATENCY, "count", 250),
        (APPLIED, "total", 250),
    ):
        assert (await obs.metrics.query(metric, stat)).value == expected


async def test_id_is_remembered_over_the_turn_of_a_generation(obs: Observatory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Posted again ten minutes later, or to an instance whose clock is a little ahead: known; after twenty it is new."""
    store, posted = obs.store, [call(at_us=1)]
    now_us = store.server_us() or 0
    for later_s, expected in ((0, 1), (500, 0), (599, 0), (-300, 0), (1_900, 1)):
        monkeypatch.setattr(store, "server_us", lambda moved=now_us + later_s * 1_000_000: moved)
        assert (await obs.events.accept(posted)).accepted == expected, later_s


async def test_own_calls_are_not_counted_again(opening: Open) -> None:
    """One writer a series: what the process has counted, the worker only applies."""
    obs = await opening()
    for _ in range(120):
        obs.record_request("openai", "m", latency=0.1, tokens=3)
    await obs.flush()
    async with working(Worker(await opening(role="worker"))):
        await settled(obs, 120)
    assert (await obs.metrics.query(Metric.REQUESTS_TOTAL)).value == 120
    assert (await obs.metrics.query(APPLIED)).value == 120


async def test_two_workers_share_four_partitions(opening: Open) -> None:
    """One alone holds all; with two, each holds two and applies at least a quarter; when one leaves, the other takes over."""
    obs = await opening()
    workers = [Worker(await opening(role="worker"))]
    first_stop = asyncio.Event()
    async with working(workers[0]):
        async with asyncio.timeout(10):
            while len(workers[0].partitions.held()) != 4:
                await asyncio.sleep(0.05)
        workers.insert(0, Worker(await opening(role="worker")))
        task = asyncio.create_task(workers[0].run(first_stop))
        async with asyncio.timeout(10):
            while [len(worker.partitions.held()) for worker in workers] != [2, 2]:
                await asyncio.sleep(0.05)
        await obs.events.accept([call(at_us=obs.store.server_us() or 0) for _ in range(2_000)])
        await settled(obs, 2_000)
        async with asyncio.timeout(5):
            while sum(worker.applied for worker in workers) != 2_000:
                await asyncio.sleep(0.05)
        assert all(worker.applied >= 500 for worker in workers)
        first_stop.set()
        await task
        await workers[0]._obs.aclose()
        await obs.events.accept([call(at_us=obs.store.server_us() or 0) for _ in range(400)])
        await settled(obs, 2_400, within=6)
    assert (await obs.metrics.query(Metric.REQUESTS_TOTAL)).value == 2_400


async def test_zombie_is_refused_by_the_offset(obs: Observatory) -> None:
    """A worker that read, slept and woke up after its successor has applied the same run changes nothing."""
    keys = obs.store.keys
    await obs.events.accept([call(at_us=obs.store.server_us() or 0) for _ in range(40)])
    for partition in range(keys.partitions):
        entries = await obs.store.command("XRANGE", keys.stream(partition), "-", "+")
        run = [(entry[0], list(entry[1])) for entry in entries]
        if not run:
            continue
        for expected in (True, False, False):
            meaning = Meaning((), obs.store.server_us() or 0, 2000)
            meaning.read(run)
            done, stands_at, *_ = await apply(obs.store.bulk(), partition, "0-0", run, meaning)
            assert (done, stands_at) == (expected, run[-1][0].decode())
    assert (await obs.metrics.query(Metric.REQUESTS_TOTAL)).value == 40
    assert (await obs.events.lag())["applied"] == 40


async def test_poison_is_buried_with_its_reason_and_the_rest_goes_on(opening: Open) -> None:
    """Bytes that are no event, a call that is no call, a text where a number belongs."""
    obs = await opening()
    now_us = obs.store.server_us() or 0
    poison = [
        (new_id(), b"\xc1"),
        (new_id(), encoded(Envelope("llm_call", now_us, packed({"provider": "p"})))),
        (new_id(), encoded(Envelope("llm_call", now_us, packed({"provider": "p", "model": "m", "latency": "slow"})))),
    ]
    await obs.events.accept([*poison, *(call(at_us=now_us) for _ in range(10))])
    async with working(Worker(await opening(role="worker"))):
        found = await settled(obs, 13)
    assert (found["applied"], found["dead"]) == (10, 3)
    keys, reasons = obs.store.keys, []
    for partition in range(keys.partitions):
        for _, fields in await obs.store.command("XRANGE", keys.dead(partition), "-", "+"):
            reasons.append(dict(zip(fields[::2], fields[1::2], strict=True))[b"reason"].decode())
    assert sorted(reason.split(":")[0] for reason in reasons) == ["DecodeError", "ValidationError", "ValidationError"]
    assert (await obs.metrics.query(Metric.REQUESTS_TOTAL)).value == 10


async def test_stream_is_bounded_and_what_makes_room_is_counted(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no worker for long: the oldest go, and the sums say so."""
    monkeypatch.setenv("OBSERVATORY_EVENTS_MAX_ENTRIES", "5")
    obs = await opening()
    for _ in range(20):
        await obs.events.accept([call(at_us=1) for _ in range(40)])
    found = await obs.events.lag()
    assert found["accepted"] == 800
    assert found["dropped"] > 0
    keys = obs.store.keys
    left = 0
    for partition in range(keys.partitions):
        entries = await obs.store.command("XRANGE", keys.stream(partition), "-", "+")
        assert len(entries) <= 5
        left += sum(len(fields) // 2 for _, fields in entries)
    assert found["waiting"] == left
    async with working(Worker(await opening(role="worker"))):
        found = await settled(obs, 800)
    assert found["applied"] + found["dropped"] == 800


async def test_cancelled_worker_leaves_no_task_behind(opening: Open) -> None:
    """At rest, in a blocking read, or in the midst of an apply."""
    obs = await opening(role="worker")
    for delay in (0.0, 0.02, 0.7):
        task = asyncio.create_task(Worker(obs).run(asyncio.Event()))
        await asyncio.sleep(delay)
        await obs.events.accept([call(at_us=1)])
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not [one for one in asyncio.all_tasks() if "Worker" in repr(one.get_coro())]


async def test_what_is_dropped_in_a_workers_hands_is_counted_once(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker has the oldest in hand when they must make room: they are applied, and not dropped after all."""
    monkeypatch.setenv("OBSERVATORY_EVENTS_MAX_ENTRIES", "5")
    monkeypatch.setenv("OBSERVATORY_EVENTS_PARTITIONS", "1")
    obs = await opening()

    async def record(times: int) -> None:
        for _ in range(times):
            obs.events.record({"type": "thing"})
            await obs.events.flush()

    for more in (3, 5, 9):
        await record(5)
        begin = await obs.store.command("GET", obs.store.keys.offset(0)) or b"0-0"
        entries = await obs.store.command("XRANGE", obs.store.keys.stream(0), "-", "+")
        await record(more)
        meaning = Meaning((), obs.store.server_us() or 0, 2000)
        meaning.read(entries)
        assert (await apply(obs.store.bulk(), 0, begin.decode(), entries, meaning))[0]
        found = await obs.events.lag()
        assert found["waiting"] == await obs.store.command("XLEN", obs.store.keys.stream(0))
    async with working(Worker(await opening(role="worker"))):
        found = await settled(obs, 32)
    assert found["applied"] + found["dropped"] == 32
    assert found["waiting"] == 0


async def test_own_events_that_make_room_are_counted_too(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,200 of one process on a stream of five entries: what was dropped and what waits are all of them."""
    monkeypatch.setenv("OBSERVATORY_EVENTS_MAX_ENTRIES", "5")
    obs = await opening()
    for number in range(1_200):
        obs.events.record({"type": "thing", "number": number})
    await obs.flush()
    found = await obs.events.lag()
    assert (found["accepted"], found["dropped"], found["waiting"]) == (1_200, 700, 500)


WORK = ["-m", "observatory", "worker"]


@pytest.fixture
def started(server: Server, namespace: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Two worker processes on the shared server."""
    env = environment(OBSERVATORY_REDIS_URL=server.url, OBSERVATORY_NAMESPACE=namespace)
    with process(WORK, env) as first, process(WORK, env) as second:
        for one in (first, second):
            assert one.stdout
            assert one.stdout.readline() == f"working on namespace {namespace}\n"
        yield [first, second]


async def test_killed_worker_is_succeeded_within_ten_seconds(opening: Open, started: list[subprocess.Popen[str]]) -> None:
    """SIGKILL in the midst of 6,000 events: none lost, none doubled, and the other goes on in time."""
    obs = await opening()
    loop = asyncio.get_running_loop()
    sent, killed_at = 0, 0.0
    for number in range(30):
        await obs.events.accept([call(at_us=obs.store.server_us() or 0) for _ in range(200)])
        sent += 200
        if number == 10:
            os.kill(started[0].pid, signal.SIGKILL)
            killed_at = loop.time()
        await asyncio.sleep(0.02)
    assert await settled(obs, sent, within=15) == {"accepted": 6_000, "applied": 6_000, "dead": 0, "dropped": 0, "waiting": 0}
    assert loop.time() - killed_at < 10 + 0.6
    assert (await obs.metrics.query(Metric.REQUESTS_TOTAL)).value == 6_000
    assert (await obs.metrics.query(APPLIED)).value == 6_000


async def test_sigterm_drains(opening: Open, started: list[subprocess.Popen[str]]) -> None:
    """It ends with 0, its partitions are free at once, and nothing waits for a lease to run out."""
    obs = await opening()
    await obs.events.accept([call(at_us=obs.store.server_us() or 0) for _ in range(1_000)])
    started[0].send_signal(signal.SIGTERM)
    assert started[0].wait(10) == 0
    await obs.events.accept([call(at_us=obs.store.server_us() or 0) for _ in range(1_000)])
    await settled(obs, 2_000, within=4)
    assert (await obs.metrics.query(Metric.REQUESTS_TOTAL)).value == 2_000
