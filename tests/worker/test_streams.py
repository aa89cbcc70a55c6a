"""Partitions worked off: poison in every position, runs read ahead, memory bounded, drained in time."""

import asyncio
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from observatory import Metric, Observatory
from observatory.envelope import Envelope, encoded, new_id, packed
from observatory.features.events import ENTRY_BYTES
from observatory.llm import CallData
from observatory.worker import Worker, presence_of
from observatory.worker import apply as apply_of
from observatory.worker.streams import MOST_ADDITIONS
from tests.conftest import Open
from tests.servers import Server, environment, process, wait_until
from tests.worker.events import call, settled, until, working

WORK = ["-m", "observatory", "worker"]


def broken(payload: bytes, rng: random.Random) -> bytes:
    """Bytes that some client might have meant as an event."""
    match rng.randrange(5):
        case 0:
            return rng.randbytes(rng.randrange(60))
        case 1:
            return payload[: rng.randrange(len(payload))]
        case 2:
            at = rng.randrange(len(payload))
            return payload[:at] + rng.randbytes(1) + payload[at + 1 :]
        case 3:
            return b"\xdd\xff\xff\xff\xff" + payload
        case _:
            return payload + b"\x00"


def peak_memory(pid: int) -> int:
    """KiB."""
    said = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in said.splitlines() if line.startswith("VmHWM")))


async def test_poison_in_every_position(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """First, last and every place between of an entry; entries of poison alone; whatever the bytes are: the others count."""
    monkeypatch.setenv("OBSERVATORY_EVENTS_PARTITIONS", "1")
    obs = await opening()
    now_us = obs.store.server_us() or 0
    good = 0
    for position in range(7):
        batch = [call(at_us=now_us) for _ in range(7)]
        batch[position] = (new_id(), b"\xc1")
        good += 6
        await obs.events.accept(batch)
    await obs.events.accept([(new_id(), b"") for _ in range(5)])
    async with working(Worker(await opening(role="worker"))):
        found = await settled(obs, 7 * 7 + 5)
    assert (found["applied"], found["dead"]) == (good, 12)
    assert (await obs.metrics.query(Metric.REQUESTS_TOTAL)).value == good


async def test_no_bytes_stop_a_worker(opening: Open) -> None:
    """2,000 events that were damaged at random: each is applied or buried, and none is neither."""
    rng, obs = random.Random(4), await opening()
    now_us = obs.store.server_us() or 0
    damaged = [(new_id(), broken(call(at_us=now_us)[1], rng)) for _ in range(2_000)]
    await obs.events.accept([*damaged, *(call(at_us=now_us) for _ in range(50))])
    async with working(Worker(await opening(role="worker"))):
        found = await settled(obs, 2_050)
    assert found["applied"] + found["dead"] == 2_050
    assert found["dead"] > 1_000
    assert found["applied"] >= 50


async def test_what_was_read_ahead_of_a_refused_run_is_read_again(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else moves the offset while two runs are in hand: every event is applied once."""
    monkeypatch.setenv("OBSERVATORY_EVENTS_PARTITIONS", "1")
    obs = await opening()
    worker = Worker(await opening(role="worker"), concurrency=4)
    other = Worker(await opening(role="worker"), concurrency=6)
    for one in (worker, other):
        monkeypatch.setattr(one.partitions, "held", lambda: [0])
    now_us = obs.store.server_us() or 0
    for _ in range(120):
        await obs.events.accept([call(at_us=now_us) for _ in range(20)])
    async with working(worker, other):
        assert (await settled(obs, 2_400))["applied"] == 2_400
    assert (await obs.metrics.query(Metric.REQUESTS_TOTAL)).value == 2_400
    assert worker.applied + other.applied == 2_400


async def test_more_partitions_than_may_be_in_hand_take_turns(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Concurrency 4 on 32 partitions: no partition starves."""
    monkeypatch.setenv("OBSERVATORY_EVENTS_PARTITIONS", "32")
    obs = await opening()
    now_us = obs.store.server_us() or 0
    for _ in range(5):
        await obs.events.accept([call(at_us=now_us) for _ in range(200)])
    async with working(Worker(await opening(role="worker"), concurrency=4)):
        assert (await settled(obs, 1_000))["applied"] == 1_000


async def test_one_sick_partition_does_not_hold_up_the_others(opening: Open) -> None:
    """The names of one are no hash any more: the other three are worked off, and it is when it is well again."""
    obs = await opening()
    keys, now_us = obs.store.keys, obs.store.server_us() or 0
    await obs.events.accept([*(call(at_us=now_us) for _ in range(400)), *((new_id(), b"no event") for _ in range(40))])
    sick = keys.metric_names(2)
    await obs.store.command("SET", sick, "not a hash", "PX", 60_000)
    worker = Worker(await opening(role="worker"))
    async with working(worker):
        lengths = [keys.stream(partition) for partition in (0, 1, 3)]
        async with asyncio.timeout(10):
            while any([await obs.store.command("XLEN", stream) for stream in lengths]):
                await asyncio.sleep(0.05)
        assert await obs.store.command("XLEN", keys.stream(2)) > 0
        assert await obs.store.command("XLEN", keys.dead(2)) == 0, "what was refused has buried nothing"
        assert "WRONGTYPE" in worker.streams.troubles[2]
        await obs.store.command("DEL", sick)
        found = await settled(obs, 440)
    assert (found["applied"], found["dead"]) == (400, 40)


async def test_what_was_read_while_an_apply_failed_is_read_again(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every reading outlasts the apply that is under way, and the applies of a while are refused: the worker goes on."""
    monkeypatch.setenv("OBSERVATORY_EVENTS_PARTITIONS", "1")
    obs = await opening(role="worker")
    sick = obs.store.keys.metric_names(0)
    await obs.store.command("SET", sick, "not a hash", "PX", 60_000)
    for _ in range(20):
        await obs.events.accept([call() for _ in range(3)])
    worker = Worker(obs, ["events"], concurrency=4)
    real = obs.store.command

    async def slow(*command: str, **link: Any) -> Any:
        reply = await real(*command, **link)
        if command[0] in ("XREAD", "GET") and worker.streams._under_way:
            await asyncio.wait(worker.streams._under_way.values())
        return reply

    monkeypatch.setattr(obs.store, "command", slow)
    async with working(worker):
        await until(lambda: worker.streams.troubles, "it is refused")
        await asyncio.sleep(1.2)
        await real("DEL", sick)
        assert (await settled(obs, 60))["applied"] == 60


async def test_no_run_holds_the_server_for_long(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that each have a window, or a bucket, of their own: runs end where they add enough, between two entries."""
    monkeypatch.setenv("OBSERVATORY_EVENTS_PARTITIONS", "1")
    obs = await opening(role="worker")
    now_us = obs.store.server_us() or 0
    await obs.events.accept([call(at_us=now_us - number * 20_000_000) for number in range(1_500)])
    long = (CallData("openai", f"m{number % 20}", latency=1.01 ** (number % 1_500)) for number in range(3_000))
    await obs.events.accept([(new_id(), encoded(Envelope("llm_call", now_us, packed(one)))) for one in long])
    sizes: list[int] = []
    real = apply_of._apply

    def counting(*given: Any, **slots: Any) -> Any:
        sizes.append(len(slots["deltas"]) // 2)
        return real(*given, **slots)

    monkeypatch.setattr(apply_of, "_apply", counting)
    async with working(Worker(obs, ["events"])):
        assert (await settled(obs, 4_500))["applied"] == 4_500
    # An entry of 100 calls in 100 windows makes about 3,000; of each group there are two items more than its pairs.
    assert max(sizes) <= MOST_ADDITIONS + 2_500
    assert len(sizes) < 45, "and no sooner"
    assert (await obs.metrics.query(Metric.REQUESTS_TOTAL, since="10h")).value == 4_500


@pytest.mark.parametrize("roles", [["audit"], ["events"], ["events", "audit"]])
async def test_drain_without_a_store_is_not_in_order(own_server: Server, namespace: str, roles: list[str]) -> None:
    """Whatever it held, or nothing: it could not give it back."""
    async with Observatory("test", redis_url=own_server.url, namespace=namespace, role="worker") as obs:
        worker, stop = Worker(obs, roles), asyncio.Event()
        task = asyncio.create_task(worker.run(stop))
        await until(lambda: worker.partitions.held() or worker.leaders.leads, "it has something")
        own_server.stop()
        await asyncio.sleep(0.3)
        stop.set()
        assert await task is False


async def test_big_events_do_not_make_a_worker_big(opening: Open, server: Server, namespace: str) -> None:
    """12,000 events of 60 KB, 700 MB in all: entries are bounded by bytes, and so is what a worker has in hand."""
    obs = await opening()
    big = encoded(Envelope("blob", obs.store.server_us() or 0, packed({"text": "x" * 60_000})))
    keys = obs.store.keys
    env = environment(OBSERVATORY_REDIS_URL=server.url, OBSERVATORY_NAMESPACE=namespace)
    with process([*WORK, "--roles", "events"], env) as worker:
        assert worker.stdout
        worker.stdout.readline()
        for _ in range(60):
            await obs.events.accept([(new_id(), big) for _ in range(200)])
        rows = await obs.store.command("XRANGE", keys.stream(0), "-", "+", "COUNT", 1)
        for _, fields in rows:
            assert sum(map(len, fields[1::2])) <= ENTRY_BYTES + 65_536
        await settled(obs, 12_000, within=60)
        peak = peak_memory(worker.pid)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(10) == 0
    # 64 entries of at most 320 KiB are 20 MiB; the process itself has about 60, and the parser keeps what it last had.
    assert peak < 160 * 1024, f"{peak} KiB"


async def test_events_of_bytes_beyond_the_bound_make_room(obs: Observatory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose store is away keeps so many bytes, however few events they are; what went is a metric."""
    monkeypatch.setattr("observatory.features.events.MAX_BUFFERED_BYTES", 1_000_000)
    started = time.perf_counter()
    for _ in range(100):
        obs.events.record({"type": "blob", "text": "x" * 50_000})
    assert time.perf_counter() - started < 1.0
    assert 79 <= obs.events.dropped <= 82
    await obs.flush()
    assert (await obs.events.lag())["accepted"] == 100 - obs.events.dropped
    await obs.flush()
    found = await obs.metrics.query("observatory_events_dropped_total", by="reason")
    assert [(one.labels, one.value) for one in found.series] == [({"reason": "buffer"}, obs.events.dropped)]


async def test_what_made_room_on_the_stream_is_a_metric(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that heard of it says so, and the number is the ledger's."""
    monkeypatch.setenv("OBSERVATORY_EVENTS_MAX_ENTRIES", "5")
    obs = await opening()
    for _ in range(1_000):
        obs.events.record({"type": "thing"})
    await obs.flush()
    await obs.flush()
    dropped = (await obs.events.lag())["dropped"]
    found = await obs.metrics.query("observatory_events_dropped_total", where={"reason": "stream"})
    assert found.value == dropped == 500


async def test_deadline_ends_a_drain(own_server: Server, namespace: str) -> None:
    """The server stops answering in the midst of a drain: the worker is gone when the deadline is over, and says so by 1."""
    env = environment(OBSERVATORY_REDIS_URL=own_server.url, OBSERVATORY_NAMESPACE=namespace, OBSERVATORY_SHUTDOWN_TIMEOUT="1")
    with process([*WORK, "--drain-timeout", "1s"], env) as worker:
        assert worker.stdout
        worker.stdout.readline()
        await asyncio.sleep(1.0)
        own_server.signal(signal.SIGSTOP)
        began = time.monotonic()
        worker.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(worker.wait, 15)
        took = time.monotonic() - began
        own_server.signal(signal.SIGCONT)
    assert code == 1
    assert took < 1 + 1 + 2.5


async def test_told_twice_it_leaves_at_once(own_server: Server, namespace: str) -> None:
    """A second SIGTERM does not wait for the deadline."""
    env = environment(OBSERVATORY_REDIS_URL=own_server.url, OBSERVATORY_NAMESPACE=namespace)
    with process([*WORK, "--drain-timeout", "20s"], env) as worker:
        assert worker.stdout
        worker.stdout.readline()
        await asyncio.sleep(1.0)
        own_server.signal(signal.SIGSTOP)
        worker.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.5)
        assert worker.poll() is None
        began = time.monotonic()
        os.kill(worker.pid, signal.SIGTERM)
        assert await asyncio.to_thread(worker.wait, 5) == 1
        assert time.monotonic() - began < 0.5
        own_server.signal(signal.SIGCONT)


async def test_partitions_are_of_those_who_take_them(opening: Open) -> None:
    """A worker that only leads roles is no peer in dividing partitions: the other one has all four."""
    await opening(role=presence_of(["audit"]))
    worker = Worker(await opening(role="worker"), roles=["events"])
    async with working(worker):
        await until(lambda: len(worker.partitions.held()) == 4, "one worker has all partitions", 5)
    wait_until(lambda: not worker.partitions.held(), "and gave them back")
