"""What cannot be counted is left out by itself, and told: nothing is lost in silence."""

import pytest

from observatory import InvalidArgument, Observatory
from observatory.envelope import Envelope, encoded, new_id, packed
from observatory.llm import CallData
from observatory.worker import Worker
from observatory.worker.apply import Meaning
from tests.conftest import Open
from tests.worker.events import call, settled, working
from tests.worker.test_worker import APPLIED

COUNTER = "test_things_total"
REFUSED = "observatory_additions_refused_total"


async def total(obs: Observatory, metric: str, /, **where: str) -> float | None:
    return (await obs.metrics.query(metric, "total", where=where)).value


async def test_additions_that_the_store_refuses_are_counted(obs: Observatory) -> None:
    """A sum that runs over takes nobody else's count with it, and shows in a metric of its own."""
    key = obs.store.keys.metric_total(obs._lifetime.partition(), COUNTER)
    await obs.store.command("HSET", key, "w|", 2**63 - 1)
    obs.metrics.increment_counter(COUNTER)
    obs.metrics.increment_counter("test_others_total")
    await obs.metrics.flush()
    await obs.metrics.flush()
    assert await total(obs, REFUSED, feature="metrics") == 1
    assert await total(obs, "test_others_total") == 1


async def test_additions_that_are_refused_to_a_worker_are_counted(opening: Open) -> None:
    """The same, where workers count."""
    obs = await opening()
    for partition in range(obs.store.keys.partitions):
        await obs.store.command("SET", obs.store.keys.metric_total(partition, APPLIED), "not a hash", "PX", 60_000)
    await obs.events.accept([call(at_us=obs.store.server_us() or 0) for _ in range(10)])
    worker = await opening(role="worker")
    async with working(Worker(worker)):
        await settled(obs, 10)
    await worker.metrics.flush()
    assert (await total(obs, REFUSED, feature="worker") or 0) > 0
    assert await total(obs, "observatory_requests_total") == 10


async def test_one_name_is_one_kind(opening: Open) -> None:
    """A second kind is an error where it is declared, counted where it is recorded, and refused by the store to others."""
    first, second = await opening(), await opening()
    second.metrics._partition = first.metrics._partition
    first.metrics.counter(COUNTER).add(3)
    with pytest.raises(InvalidArgument, match="is a counter here, and cannot be a histogram too"):
        first.metrics.histogram(COUNTER)
    with pytest.raises(InvalidArgument, match="is a counter here"):
        first.metrics.gauge("observatory_requests_total")
    await first.metrics.flush()
    second.metrics.histogram(COUNTER).record(0.5)
    second.metrics.increment_counter("test_others_total")
    await second.metrics.flush()
    await second.metrics.flush()
    assert await total(first, COUNTER) == 3
    assert await total(first, "test_others_total") == 1
    assert (await total(first, REFUSED) or 0) > 0


async def test_lost_batches_of_events_are_counted(obs: Observatory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failover that lost more events than are kept shows where lost batches of metrics do."""
    monkeypatch.setattr("observatory.store.outbox.KEEP_FOR", -1.0)
    outbox, keys, partition = obs.events._outbox, obs.store.keys, obs._lifetime.partition()
    for _ in range(5):
        obs.events.record({"type": "thing"})
        await obs.events.flush()
    await obs.store.command("SET", keys.event_writer(partition, outbox.writer), 2, "PX", 60_000)
    for _ in range(3):
        obs.events.record({"type": "thing"})
        await obs.events.flush()
    await obs.metrics.flush()
    assert outbox.lost == 3
    assert await total(obs, "observatory_batches_lost_total", feature="events") == 3


def test_series_of_a_worker_are_bounded() -> None:
    """Models that strangers make up fold into one series, as they do in a process that records."""
    now_us = 1_700_000_000_000_000
    meaning = Meaning((), now_us, max_series=10)
    events = [Envelope("llm_call", now_us, packed(CallData("p", f"m{number}"))) for number in range(50)]
    meaning.read([(b"1-0", [item for one in events for item in (new_id().encode(), encoded(one))])])
    counted = {group.metric: group.additions for _, group in meaning.groups()}
    assert len(counted["observatory_requests_total"]) == 11
    assert sum(number for _, number in counted["observatory_requests_total"]) == 50
    assert counted["observatory_series_folded_total"] == [('w|metric="observatory_requests_total"', 40)]


async def test_ids_that_are_remembered_are_bounded(obs: Observatory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many more ids than are kept: the sets stay small, every event is accepted, and the forgetting is counted."""
    monkeypatch.setattr("observatory.features.events.MAX_SEEN", 200)
    keys, now_us = obs.store.keys, obs.store.server_us() or 0
    for later_s in (0, 600):
        monkeypatch.setattr(obs.store, "server_us", lambda moved=now_us + later_s * 1_000_000: moved)
        for _ in range(20):
            posted = [call(at_us=now_us) for _ in range(100)]
            assert (await obs.events.accept(posted)).accepted == 100
    generation = (now_us + 600_000_000) // 600_000_000
    for partition in range(keys.partitions):
        known = [await obs.store.command("SCARD", keys.seen(partition, generation - back)) for back in (0, 1)]
        assert 150 <= sum(known) <= 200
        assert known[1] == 0, "the older generation went first"
    monkeypatch.undo()
    await obs.metrics.flush()
    assert await total(obs, "observatory_ids_forgotten_total") == 4000 - sum(
        [await obs.store.command("SCARD", keys.seen(partition, generation)) for partition in range(keys.partitions)]
    )
