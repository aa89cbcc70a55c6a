"""Delivery: what was recorded is counted once, whatever is lost, cancelled, closed or away on the way."""

import asyncio
import sys
import threading
from pathlib import Path

import pytest

from observatory import Observatory, StoreUnavailable
from observatory.errors import StoreError
from observatory.features.metrics.recorder import Recorder
from observatory.features.metrics.wire import MAX_FIELDS, Batch
from observatory.store.outbox import Verdict
from tests.conftest import Open
from tests.proxy import proxy
from tests.servers import Server

COUNTER = "test_things_total"


async def total(obs: Observatory, metric: str = COUNTER, /, **where: str) -> float | None:
    return (await obs.metrics.query(metric, "total", where=where)).value


async def test_two_processes_are_one_total(opening_any: Open) -> None:
    """Any instance answers for the fleet."""
    first, second = await opening_any(), await opening_any()
    first.metrics.increment_counter(COUNTER, 3, {"a": "1"})
    second.metrics.increment_counter(COUNTER, 4, {"a": "1"})
    await first.flush()
    await second.flush()
    assert await total(first) == await total(second) == 7


async def test_lost_replies_count_once(opening: Open, server: Server, tmp_path: Path) -> None:
    """The store applies a batch and its answer is lost; sent again, it counts once."""
    async with proxy(server.path, tmp_path / "p") as between:
        obs = await opening(redis_url=between.url)
        for _ in range(5):
            obs.metrics.increment_counter(COUNTER)
            obs.events.record({"type": "thing"})
            between.swallow_replies = True
            flushing = asyncio.gather(obs.metrics.flush(), obs.events.flush(), return_exceptions=True)
            await asyncio.sleep(0.1)
            between.cut()
            assert {type(error) for error in await flushing} == {StoreUnavailable}
            between.swallow_replies = False
            obs.metrics.increment_counter(COUNTER)
            await obs.flush()
        assert await total(obs) == 10
        assert (await obs.events.lag())["accepted"] == 5


async def test_cancelled_flush_counts_once(opening: Open) -> None:
    """A flush that is cancelled at any moment leaves nothing behind and doubles nothing."""
    obs = await opening()
    for number in range(200):
        obs.metrics.increment_counter(COUNTER)
        task = asyncio.create_task(obs.metrics.flush())
        for _ in range(number % 12):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await obs.metrics.flush()
    assert await total(obs) == 200


async def test_batches_that_a_failover_lost_are_sent_again(obs: Observatory) -> None:
    """The store goes back to an earlier moment, watermark and data together; the writer refills it."""
    outbox = obs.metrics._outbox
    keys, partition = obs.store.keys, obs._lifetime.partition()
    touched = [keys.metric_writer(partition, outbox.writer), keys.metric_total(partition, COUNTER)]
    obs.metrics.increment_counter(COUNTER, 1)
    await obs.metrics.flush()
    earlier = [await obs.store.command("DUMP", key) for key in touched]
    for _ in range(3):
        obs.metrics.increment_counter(COUNTER, 10)
        await obs.metrics.flush()
    for key, dump in zip(touched, earlier, strict=True):
        await obs.store.command("RESTORE", key, 86_400_000 if "writer" in key else 0, dump, "REPLACE")
    obs.metrics.increment_counter(COUNTER, 100)
    await obs.metrics.flush()
    assert await obs.store.command("HGET", touched[1], "w|") == b"131"
    assert outbox.lost == 0


@pytest.mark.parametrize("how", ["flush", "close"])
async def test_quiet_writer_of_events_asks_whether_they_stayed(
    opening: Open, server: Server, namespace: str, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The store goes back, and the writer has nothing new to say: what it said lately is there again all the same."""
    monkeypatch.setenv("OBSERVATORY_METRICS_FLUSH_EVERY", "3600")
    eye, obs = await opening(), Observatory("x", redis_url=server.url, namespace=namespace)
    async with obs:
        keys, partition, writer = obs.store.keys, obs._lifetime.partition(), obs.events._outbox.writer
        touched = [keys.event_writer(partition, writer), keys.stream(partition), keys.ledger(partition)]
        obs.events.record({"type": "thing"})
        await obs.flush()
        earlier = [await obs.store.command("DUMP", key) for key in touched]
        for _ in range(3):
            obs.events.record({"type": "thing"})
            await obs.flush()
        for key, dump in zip(touched, earlier, strict=True):
            await obs.store.command("RESTORE", key, 86_400_000 if "writer" in key else 0, dump, "REPLACE")
        assert (await obs.events.lag())["accepted"] == 1
        monkeypatch.setattr("observatory.store.outbox.ASK_AFTER", 0.0)
        if how == "flush":
            await obs.flush()
            assert (await obs.events.lag())["accepted"] == 4
    found = await eye.events.lag()
    assert found["accepted"] == found["waiting"] == 4


async def test_forked_child_records_ids_of_its_own(obs: Observatory) -> None:
    """What its parent recorded under an id is nothing that the child has recorded."""
    assert obs.events.put("thing", {}, {}, id="one", counted=True)[1]
    assert not obs.events.put("thing", {}, {}, id="one", counted=True)[1]
    obs.events.forget()
    assert obs.events.put("thing", {}, {}, id="one", counted=True)[1]


async def test_batches_that_are_gone_are_counted(obs: Observatory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failover that lost more than what is kept: the rest goes on under another identity, and the loss is a metric."""
    monkeypatch.setattr("observatory.store.outbox.KEEP_FOR", -1.0)
    outbox, keys, partition = obs.metrics._outbox, obs.store.keys, obs._lifetime.partition()
    for _ in range(5):
        obs.metrics.increment_counter(COUNTER)
        await obs.metrics.flush()
    before = outbox.writer
    last = int(await obs.store.command("GET", keys.metric_writer(partition, before)))
    await obs.store.command("SET", keys.metric_writer(partition, before), last - 3, "PX", 60_000)
    for _ in range(3):
        obs.metrics.increment_counter(COUNTER, 10)
        await obs.metrics.flush()
    assert outbox.writer != before
    assert outbox.lost == 3
    await obs.metrics.flush()
    assert await total(obs) == 35
    assert await total(obs, "observatory_batches_lost_total", feature="metrics") == 3


async def test_watermark_that_expired_in_a_quiet_week_doubles_nothing(
    obs: Observatory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a long quiet the writer takes another identity; and an old acknowledged batch is never sent again."""
    outbox, keys, partition = obs.metrics._outbox, obs.store.keys, obs._lifetime.partition()
    obs.metrics.increment_counter(COUNTER)
    await obs.metrics.flush()
    before = outbox.writer
    for expired in (False, True):
        if expired:
            await obs.store.command("DEL", keys.metric_writer(partition, outbox.writer))
        monkeypatch.setattr("observatory.store.outbox.RENEW_AFTER", 10**9 if expired else -1.0)
        monkeypatch.setattr("observatory.store.outbox.KEEP_FOR", -1.0)
        obs.metrics.increment_counter(COUNTER)
        await obs.metrics.flush()
    assert outbox.writer != before
    assert await total(obs) == 3


async def test_reopening_counts_nothing_again(opening: Open, server: Server, namespace: str) -> None:
    """Five openings of one process: its writer, its number and its partition stay what they were."""
    obs = Observatory("x", redis_url=server.url, namespace=namespace)
    for _ in range(5):
        async with obs:
            obs.metrics.increment_counter(COUNTER)
            obs.events.record({"type": "thing"})
    eye = await opening()
    assert await total(eye) == 5
    assert (await eye.events.lag())["accepted"] == 5


async def test_outage_longer_than_ten_seconds_loses_nothing(obs: Observatory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was acknowledged just before it is still there to be sent again just after it."""
    clock = [1000.0]
    monkeypatch.setattr("observatory.store.outbox.monotonic", lambda: clock[0])
    outbox, keys, partition = obs.metrics._outbox, obs.store.keys, obs._lifetime.partition()
    for _ in range(2):
        obs.metrics.increment_counter(COUNTER)
        await obs.metrics.flush()
    clock[0] += 60
    last = int(await obs.store.command("GET", keys.metric_writer(partition, outbox.writer)))
    await obs.store.command("SET", keys.metric_writer(partition, outbox.writer), last - 1, "PX", 60_000)
    await obs.store.command("HINCRBY", keys.metric_total(partition, COUNTER), "w|", -1)
    obs.metrics.increment_counter(COUNTER)
    await obs.metrics.flush()
    assert outbox.lost == 0
    assert await obs.store.command("HGET", keys.metric_total(partition, COUNTER), "w|") == b"3"


async def test_gauges_leave_with_their_process(opening: Open, server: Server, namespace: str) -> None:
    """An orderly close takes them along at once; opened again, they stand again."""
    eye, leaving = await opening(), Observatory("x", redis_url=server.url, namespace=namespace)
    async with leaving:
        leaving.metrics.set_gauge("test_open", 5)
        await leaving.flush()
        assert (await eye.metrics.query("test_open", "sum")).value == 5
    assert "test_open" not in await eye.metrics.exposition()
    async with leaving:
        leaving.metrics.increment_counter(COUNTER)
        await leaving.flush()
        assert (await eye.metrics.query("test_open", "sum")).value == 5


async def test_flush_says_so_when_the_store_was_never_reached() -> None:
    """Nothing was acknowledged, so it does not return as if."""
    obs = Observatory("x", redis_url="unix:///nowhere/s")
    async with obs:
        obs.metrics.increment_counter(COUNTER)
        with pytest.raises(StoreUnavailable):
            await obs.metrics.flush()


async def test_flushed_store_gets_the_last_seconds_again(opening: Open, own_server: Server) -> None:
    """FLUSHALL: what was counted in the last seconds comes back, and the fleet agrees on one record again."""
    obs = await opening(own_server)
    obs.metrics.increment_counter(COUNTER, 5)
    await obs.metrics.flush()
    await obs.store.command("FLUSHALL")
    obs.metrics.increment_counter(COUNTER, 7)
    await obs.metrics.flush()
    assert await obs.store.command("HGET", obs.store.keys.metric_total(obs._lifetime.partition(), COUNTER), "w|") == b"12"
    other = await opening(own_server)
    await obs._lifetime.presence.beat()  # type: ignore[union-attr]
    await other._lifetime.presence.beat()  # type: ignore[union-attr]
    assert obs.store.proposed_salt == other.store.proposed_salt


async def test_what_is_recorded_without_a_store_arrives_later(opening: Open, own_server: Server) -> None:
    """Opened with the store away: it opens, records, and delivers when the store is there."""
    own_server.stop()
    obs = await opening(own_server)
    obs.metrics.increment_counter(COUNTER, 5)
    obs.record_request("openai", "gpt-4o", latency=0.1)
    with pytest.raises(StoreUnavailable):
        await obs.rate_limiter.check("api")
    own_server.start()
    await obs.ready()
    await obs.flush()
    assert await total(obs) == 5
    assert (await obs.events.lag())["accepted"] == 1


async def test_close_flushes_also_when_cancelled(opening: Open, server: Server, namespace: str) -> None:
    """The body is cancelled, and closing is too: what was recorded is there."""
    reader = await opening()

    opened: list[Observatory] = []

    async def body() -> None:
        async with Observatory("x", redis_url=server.url, namespace=namespace) as obs:
            opened.append(obs)
            obs.metrics.increment_counter(COUNTER)
            await asyncio.sleep(60)

    for cancels in (1, 2, 3):
        task = asyncio.create_task(body())
        await asyncio.sleep(0.15)
        for _ in range(cancels):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert opened[-1]._lifetime._store is None, "it is closed when the caller hears of the cancellation"
    assert await total(reader) == 3


async def test_close_ends_in_two_seconds_with_the_store_away(own_server: Server, namespace: str) -> None:
    """Nobody's shutdown hangs on a dead Redis."""
    obs = Observatory("x", redis_url=own_server.url, namespace=namespace)
    await obs.open()
    obs.metrics.increment_counter(COUNTER)
    own_server.signal(19)  # SIGSTOP: half-open, the worst kind of away
    loop = asyncio.get_running_loop()
    began = loop.time()
    await obs.aclose()
    assert loop.time() - began < 2.9
    own_server.signal(18)


def test_recording_from_many_threads_loses_nothing() -> None:
    """Eight threads, one series, 80,000 additions."""
    recorder = Recorder()
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def work() -> None:
        for _ in range(10_000):
            recorder.add(COUNTER, "counter", 1, {"a": "b"})

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    taken = [group.additions for _ in range(20) for group in recorder.freeze()]
    for thread in threads:
        thread.join()
    sys.setswitchinterval(usual)
    taken += [group.additions for group in recorder.freeze()]
    assert sum(number for additions in taken for _, number in additions) == 80_000


async def test_wide_batches_go_in_pieces(obs: Observatory) -> None:
    """5,000 series of several metrics arrive whole, at most 2,000 fields a call."""
    for number in range(1_700):
        for metric in ("test_a_total", "test_b_total", "test_c_total"):
            obs.metrics.increment_counter(metric, 2, {"n": str(number)})
    await obs.flush()
    for metric in ("test_a_total", "test_b_total", "test_c_total"):
        assert await total(obs, metric) == 3_400


@pytest.mark.parametrize("spoilt", ["names", "sizes", "open", "flushes", "gauges"])
async def test_batch_that_a_spoilt_key_stops_waits_for_its_repair(obs: Observatory, spoilt: str) -> None:
    """A key of another type, which somebody else has put there: nothing of the batch is added, and nothing is lost."""
    partition, keys = obs._lifetime.partition(), obs.store.keys
    key = {
        "names": keys.metric_names(partition),
        "sizes": keys.metric_sizes(partition),
        "open": keys.open_windows(partition),
        "flushes": keys.metric_flushes(partition),
        "gauges": keys.gauge_writers(partition),
    }[spoilt]
    await obs.metrics.flush()
    await obs.store.command("DEL", key)
    await (obs.store.command("SET", key, "x") if spoilt != "flushes" else obs.store.command("SADD", key, "x"))
    obs.metrics.increment_counter(COUNTER, 7)
    obs.metrics.set_gauge("test_depth", 5)
    for _ in range(3):
        with pytest.raises(StoreError):
            await obs.metrics.flush()
        assert not await obs.store.command("EXISTS", keys.metric_total(partition, COUNTER))
    await obs.store.command("DEL", key)
    await obs.metrics.flush()
    assert await total(obs) == 7


async def test_one_room_that_fails_keeps_no_other_from_its_last_words(opening: Open, server: Server, namespace: str) -> None:
    """The stream of the events is spoilt; the metrics of a process that closes arrive all the same."""
    eye, leaving = await opening(), Observatory("x", redis_url=server.url, namespace=namespace)
    async with leaving:
        await leaving.ready()
        for number in range(3000):
            leaving.metrics.increment_counter(COUNTER, 1, {"n": str(number % 1900)})
        leaving.events.record({"type": "thing"})
        stream = leaving.store.keys.stream(leaving._lifetime.partition())
        await eye.store.command("SET", stream, "x", "EX", 60)
    assert await total(eye) == 3000


async def test_gauges_are_told_in_slices_and_when_they_change(obs: Observatory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand of them: no script call has more than it may, and one that stands where it stood is not told again."""
    sent: list[int] = []
    send = obs.metrics._send

    async def counting(writer: str, number: int, batch: Batch) -> Verdict:
        sent.append(len(batch.gauges or ()))
        assert sum(len(group.additions) for group in batch.groups) + sent[-1] <= MAX_FIELDS
        return await send(writer, number, batch)

    await obs.metrics.flush()
    monkeypatch.setattr(obs.metrics._outbox, "_send", counting)
    for gauge in range(5):
        for number in range(2000):
            obs.metrics.set_gauge(f"test_depth_{gauge}", number, {"n": str(number)})
    await obs.metrics.flush_regularly()
    assert sum(sent) == 10_000
    sent.clear()
    obs.metrics.set_gauge("test_depth_0", 5.0, {"n": "7"})
    await obs.metrics.flush_regularly()
    assert sum(sent) == 1
    assert (await obs.metrics.query("test_depth_0", "sum")).value == sum(range(2000)) - 2
