"""What the audit can count: long partitions while they are worked off, what it says of others, and a cluster."""

import asyncio
from typing import Any

import pytest

from observatory import Limit, Observatory
from observatory.envelope import new_id
from observatory.features import survey
from observatory.features.rate_limiter.ledger import Reservations, reservations
from observatory.worker import Worker
from observatory.worker import audit as audit_of
from observatory.worker.audit import Audit
from tests.conftest import Open
from tests.topologies import Cluster
from tests.worker.events import call, settled, until, working


@pytest.fixture
async def alone(opening: Open, monkeypatch: pytest.MonkeyPatch) -> Observatory:
    """One partition, pages of ten entries."""
    monkeypatch.setattr(survey, "PAGE", 10)
    monkeypatch.setenv("OBSERVATORY_EVENTS_PARTITIONS", "1")
    return await opening(role="worker")


def said(obs: Observatory) -> dict[str, float]:
    """What this process publishes of its audit: drift by ledger, and partitions."""
    return {
        text.partition("=")[2].strip('"') or metric: value
        for metric, _, text, value in obs.metrics._recorder.gauges()
        if metric in ("observatory_conservation_drift", "observatory_audited_partitions")
    }


async def test_long_stream_is_counted_while_it_is_worked_off(alone: Observatory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events come in, are taken from its beginning, buried and put back: what is missing shows all the same, to the event."""
    obs = alone
    for number in range(300):
        await obs.events.accept([call(), call(), (new_id(), b"\xc1") if number % 10 == 0 else call()])
    await obs.store.command("HINCRBY", obs.store.keys.ledger(0), "accepted", 17)
    worker = Worker(obs, ["events"], concurrency=4)
    real, pages = survey._survey, 0

    async def busy(*given: Any, **slots: Any) -> Any:
        nonlocal pages
        pages += 1
        reply = await real(*given, **slots)
        await obs.events.accept([call()])
        if pages % 7 == 0:
            await obs.dead_letters.replay_all()
        return reply

    monkeypatch.setattr(survey, "_survey", busy)
    async with working(worker):
        await until(lambda: worker.applied > 30, "it is at work")
        found = None
        for _ in range(5):
            found = await survey.drift(obs.store, 0)
            assert found in ((17, 0), None)
            if found:
                break
        assert found == (17, 0)
        assert worker.applied < 900, "it was at work all the time"


async def test_count_that_was_overtaken_begins_again(alone: Observatory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry with which a page was to begin is gone: what is counted is what is there."""
    obs = alone
    for _ in range(120):
        await obs.events.accept([call() for _ in range(3)])
    real, seen = survey._survey, 0

    async def overtaking(*given: Any, **slots: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == 3:
            async with working(Worker(obs, ["events"])):
                await settled(obs, 360)
            await obs.events.accept([call() for _ in range(5)])
        return await real(*given, **slots)

    monkeypatch.setattr(survey, "_survey", overtaking)
    assert await survey.drift(obs.store, 0) == (0, 0)
    assert seen == 4


async def test_what_is_not_known_is_not_published(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing at first; with the first that is counted its drift, and how many they are; forgotten when it is old."""
    monkeypatch.setenv("OBSERVATORY_EVENTS_PARTITIONS", "2")
    obs = await opening(role="worker")
    keys, audit = obs.store.keys, Audit(obs)
    await obs.store.command("HINCRBY", keys.ledger(0), "accepted", 5)
    for partition in range(2):
        await obs.store.command("SET", keys.stream(partition), "foreign", "PX", 60_000)
    await audit.step(1)
    assert said(obs) == {"observatory_audited_partitions": 0, "reservations": 0}
    await obs.store.command("DEL", keys.stream(0))
    await audit.step(1)
    assert said(obs) == {"observatory_audited_partitions": 1, "reservations": 0, "events": 5, "dead_letters": 0}
    await obs.store.command("SET", keys.stream(0), "foreign", "PX", 60_000)
    monkeypatch.setattr(audit_of, "STALE_AFTER", 0.0)
    await audit.step(1)
    assert said(obs) == {"observatory_audited_partitions": 0, "reservations": 0, "events": 0, "dead_letters": 0}


async def test_ledgers_of_a_cluster(cluster: Cluster, namespace: str) -> None:
    """Events over partitions on several servers, holds over its slots: all of them are in the sums."""
    async with Observatory("test", redis_url=cluster.url, namespace=namespace, role="worker") as obs:
        obs.rate_limiter.define(Limit("calls", 100_000, per="1s"))
        held = [await obs.rate_limiter.reserve("calls", f"caller-{number}") for number in range(30)]
        for one in held[:20]:
            await one.settle()
        assert await reservations(obs.store) == Reservations(30, 20, 0, 0, 10)
        await obs.events.accept([(new_id(), b"\xc1"), *(call() for _ in range(200))])
        audit = Audit(obs)
        await audit.step(1)
        await obs.store.command("HINCRBY", obs.store.keys.ledger(2), "accepted", 3)
        async with working(Worker(obs, ["events"])):
            async with asyncio.timeout(20):
                while (await obs.events.lag())["waiting"] != 3:
                    await asyncio.sleep(0.05)
            assert (await obs.dead_letters.drop_all()).done == 1
        await audit.step(1)
        assert said(obs) == {"observatory_audited_partitions": 4, "reservations": 0, "events": 3, "dead_letters": 0}
        for one in held[20:]:
            await one.cancel()
        assert await reservations(obs.store) == Reservations(30, 20, 10, 0, 0)
