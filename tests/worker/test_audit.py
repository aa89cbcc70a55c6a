"""The audit: zero when nothing is lost, whatever happened; and not zero when something is."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from observatory import Limit, Metric, Observatory
from observatory.envelope import new_id
from observatory.errors import StoreUnavailable
from observatory.features import survey
from observatory.features.rate_limiter import ledger
from observatory.features.rate_limiter.ledger import Reservations, reservations
from observatory.worker import Worker
from observatory.worker.audit import Audit
from tests.conftest import Open
from tests.proxy import proxy
from tests.servers import Server, die_with_parent, environment, find, process
from tests.worker.events import call, settled, working

WORK = ["-m", "observatory", "worker"]


async def gauges(obs: Observatory, metric: str) -> dict[str, float | None]:
    await obs.flush()
    found = await obs.metrics.query(metric, "sum", by="ledger")
    return {one.labels.get("ledger", ""): one.value for one in found.series}


async def test_what_is_published(obs: Observatory) -> None:
    """Lag, dead letters, and drift by ledger; all of it gone, or 0, when the role is another's."""
    audit = Audit(obs)
    await obs.events.accept([(new_id(), b"bad"), *(call() for _ in range(150))])
    await asyncio.sleep(0.3)
    await audit.step(1)
    assert await gauges(obs, "observatory_conservation_drift") == {"events": 0, "dead_letters": 0, "reservations": 0}
    lag = (await obs.metrics.query("observatory_stream_lag_seconds", "max")).value
    assert lag is not None
    assert 0.2 < lag < 5
    async with working(Worker(obs, ["events"])):
        await settled(obs, 151)
    await audit.step(1)
    await obs.flush()
    assert (await obs.metrics.query("observatory_stream_lag_seconds", "max")).value == 0
    assert (await obs.metrics.query("observatory_dead_letters", "sum")).value == 1
    audit.leave()
    await obs.flush()
    assert (await obs.metrics.query("observatory_dead_letters", "sum")).value == 0


async def test_what_is_lost_shows(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry that somebody took from the stream, a ledger that somebody changed, a letter that somebody deleted."""
    monkeypatch.setenv("OBSERVATORY_EVENTS_PARTITIONS", "1")
    obs = await opening()
    keys, audit = obs.store.keys, Audit(obs)
    await obs.events.accept([(new_id(), b"bad")])
    async with working(Worker(obs, ["events"])):
        await settled(obs, 1)
    for _ in range(3):
        await obs.events.accept([call() for _ in range(7)])
    rows = await obs.store.command("XRANGE", keys.stream(0), "-", "+", "COUNT", 1)
    await obs.store.command("XDEL", keys.stream(0), rows[0][0])
    await audit.step(1)
    assert await gauges(obs, "observatory_conservation_drift") == {"events": 7, "dead_letters": 0, "reservations": 0}
    await obs.store.command("HINCRBY", keys.ledger(0), "applied", 9)
    await obs.store.command("DEL", keys.dead(0))
    await audit.step(1)
    assert await gauges(obs, "observatory_conservation_drift") == {"events": -2, "dead_letters": 1, "reservations": 0}


async def test_holds_are_reserved_once_and_end_once(opening: Open, server: Server, namespace: str, tmp_path: Path) -> None:
    """Settled, cancelled, run out, settled late or twice, answers lost, renewed, of several limits: in the ledger once."""
    obs = await opening()
    obs.rate_limiter.define(
        Limit("tokens", 100_000, per="1s", unit="tokens"), Limit("calls", 100_000, per="1s"), Limit("slots", 50, unit="slots")
    )
    reserve = obs.rate_limiter.reserve
    for one in [await reserve("tokens", "ann", 10) for _ in range(10)]:
        await one.settle(7)
        await one.settle(7)
    for one in [await reserve("slots", "ann") for _ in range(5)]:
        await one.settle()
    await (await reserve("tokens", "ann", 10)).cancel()
    both = await reserve(["tokens", "calls"], "ann", {"tokens": 5})
    await reserve(["tokens", "calls"], "ann", {"tokens": 5}, id=both.hold)
    assert await reservations(obs.store) == Reservations(18, 15, 1, 0, 2)
    await both.renew(30.0)
    await both.settle()
    late = await reserve("tokens", "bob", 10, lease=0.05)
    await reserve("tokens", "bob", 10, lease=0.05)
    await asyncio.sleep(0.1)
    await obs.rate_limiter.peek("tokens", "bob")
    assert (await late.settle(3)).late
    assert await reservations(obs.store) == Reservations(20, 17, 1, 2, 0), (
        "what was reaped has ended; a late settlement ends nothing"
    )
    async with (
        proxy(server.path, tmp_path / "p") as between,
        Observatory("asking", redis_url=between.url, namespace=namespace) as asking,
    ):
        asking.rate_limiter.define(Limit("lossy", 100_000, per="1s", on_store_down="closed"))
        for number in range(30):
            held = None if number % 2 else await asking.rate_limiter.reserve("lossy", "ann")
            between.swallow_replies = True
            asked = held.settle() if held else asking.rate_limiter.reserve("lossy", "ann", lease=0.05)
            waiting = asyncio.ensure_future(asked)
            await asyncio.sleep(0.005)
            between.cut()
            between.swallow_replies = False
            with suppress(StoreUnavailable):
                await waiting
            await asking.ready()
            if held:
                await held.settle()
    found = await reservations(obs.store)
    assert found.drift == 0
    assert found.reserved > 20 + 20
    assert found.settled == 17 + 15


async def test_holds_of_the_dead_are_reaped_in_the_ledger_too(obs: Observatory) -> None:
    """Of buckets that nobody asks any more: a minute after they ran out, by the audit or by the next who holds something."""
    obs.rate_limiter.define(Limit("calls", 100_000, per="1s"))
    for number in range(20):
        await obs.rate_limiter.reserve("calls", f"dead-{number}", lease=0.05)
    await asyncio.sleep(0.1)
    assert await reservations(obs.store) == Reservations(20, 0, 0, 0, 20)
    later = (obs.store.server_us() or 0) + 61_000_000
    assert list(await ledger._survey(obs.store.bulk(), fence=obs.store.keys.fence(), now_us=later)) == [20, 0, 0, 20, 0]
    # Who comes by after all ends nothing a second time.
    for number in range(20):
        await obs.rate_limiter.peek("calls", f"dead-{number}")
    audit = Audit(obs)
    await audit.step(1)
    assert await gauges(obs, "observatory_conservation_drift") == {"events": 0, "dead_letters": 0, "reservations": 0}
    await obs.store.command("HINCRBY", f"{obs.store.keys.fence()}:holds:ledger", "settled", 3)
    await audit.step(1)
    assert (await gauges(obs, "observatory_conservation_drift"))["reservations"] == -3


WRITER = """
import asyncio, os, signal, sys
from observatory import Observatory
from observatory.errors import StoreError
from observatory.envelope import Envelope, encoded, new_id, packed
from observatory.llm import CallData, Usage

STOP = False


async def main():
    async with Observatory("writer", redis_url=sys.argv[1], namespace=sys.argv[2]) as obs:
        loop, accepted, recorded = asyncio.get_running_loop(), 0, 0
        stop = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        print("ready", flush=True)
        while not stop.is_set():
            data = packed(CallData("openai", "m", latency=0.5, usage=Usage(10, 5)))
            batch = [(new_id(), encoded(Envelope("llm_call", obs.store.server_us() or 0, data))) for _ in range(40)]
            while True:
                # An answer that was lost: the same ids again, until they are acknowledged.
                try:
                    await obs.events.accept(batch)
                    break
                except StoreError:
                    await asyncio.sleep(0.05)
            accepted += 40
            obs.record_request("openai", "m", latency=0.5, tokens=Usage(10, 5))
            recorded += 1
            await asyncio.sleep(0.02)
        while True:
            try:
                await obs.flush()
                break
            except StoreError:
                await asyncio.sleep(0.1)
        print(accepted, recorded, flush=True)


asyncio.run(main())
"""


@pytest.fixture
def durable(tmp_path: Path) -> Iterator[Server]:
    """A server that has on disk what it has acknowledged."""
    (tmp_path / "durable").mkdir()
    one = Server(find("valkey"), tmp_path / "durable", "--appendonly", "yes", "--appendfsync", "always")
    one.start()
    yield one
    one.stop()


def start(env: dict[str, str]) -> "subprocess.Popen[bytes]":
    """A worker that says nothing."""
    quiet = subprocess.DEVNULL
    return subprocess.Popen(
        [sys.executable, *WORK], env=env, stdin=quiet, stdout=quiet, stderr=quiet, preexec_fn=die_with_parent
    )


async def torment(workers: list["subprocess.Popen[bytes]"], server: Server, env: dict[str, str]) -> None:
    """Fifty deaths of workers, two of the server."""
    rng = random.Random(11)
    for killed in range(50):
        await asyncio.sleep(rng.uniform(0.2, 0.7))
        at = rng.randrange(len(workers))
        os.kill(workers[at].pid, signal.SIGKILL)
        workers[at].wait()
        workers[at] = start(env)
        if killed in (16, 33):
            server.stop()
            await asyncio.sleep(0.3)
            server.start()


async def acknowledged(writers: list["subprocess.Popen[str]"]) -> int:
    """How many events they know to be accepted; all of them have ended when it returns."""
    for writer in writers:
        writer.send_signal(signal.SIGTERM)
    number = 0
    for writer in writers:
        assert writer.stdout
        number += sum(map(int, (await asyncio.to_thread(writer.stdout.readline)).split()))
        await asyncio.to_thread(writer.wait, 10)
    return number


async def test_totals_are_what_was_acknowledged(durable: Server, namespace: str) -> None:
    """4 writers, 3 workers; workers are SIGKILLed 50 times at random, the server is killed and restarted twice. Every event
    that was acknowledged is counted once, and the audit finds no drift."""
    env = environment(OBSERVATORY_REDIS_URL=durable.url, OBSERVATORY_NAMESPACE=namespace, OBSERVATORY_WORKER_LEASE="1")
    env["OBSERVATORY_LOG_LEVEL"] = "critical"
    workers: list[subprocess.Popen[bytes]] = []
    with ExitStack() as stack:
        writers = [stack.enter_context(process(["-c", WRITER, durable.url, namespace], env)) for _ in range(4)]
        for writer in writers:
            assert writer.stdout
            assert writer.stdout.readline() == "ready\n"
        try:
            workers = [start(env) for _ in range(3)]
            await torment(workers, durable, env)
            async with Observatory("auditor", redis_url=durable.url, namespace=namespace) as obs:
                meanwhile = (await obs.events.lag())["applied"]
                accepted = await acknowledged(writers)
                found = await settled(obs, accepted)
                assert found == {"accepted": accepted, "applied": accepted, "dead": 0, "dropped": 0, "waiting": 0}
                assert meanwhile > 0.3 * accepted > 2_000, "workers came to something between two deaths"
                for metric, value in ((Metric.REQUESTS_TOTAL, accepted), (Metric.TOKENS_PROCESSED, 15 * accepted)):
                    assert (await obs.metrics.query(metric)).value == value
                assert (await obs.metrics.query("observatory_events_applied_total")).value == accepted
                for partition in range(obs.store.keys.partitions):
                    assert await survey.drift(obs.store, partition) == (0, 0)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
