"""A store that went back: totals are held back until they are whole again, and for no longer than they can become so."""

import asyncio
import logging
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
import redis

from observatory import Observatory, StoreUnavailable
from observatory.features.metrics import gaps, read
from observatory.features.metrics.gaps import LONGEST, PATIENCE, SETTLE, Gaps
from observatory.keys import Key
from observatory.service.app import build
from observatory.store import outbox
from tests.conftest import Open
from tests.servers import Server
from tests.topologies import Sentinels


@pytest.fixture
async def eye(opening: Open, own_server: Server) -> Observatory:
    """Who shows the numbers."""
    return await opening(own_server)


@pytest.fixture
async def http(eye: Observatory) -> AsyncIterator[httpx2.AsyncClient]:
    app, _ = build(eye)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test") as client:
        yield client


def crash(server: Server) -> None:
    """What was not saved is gone."""
    server.stop()
    server.path.unlink(missing_ok=True)
    server.start()


def shown(text: str, name: str = "test_total") -> float | None:
    found = [one for one in text.splitlines() if one.startswith(f"{name} ")]
    return float(found[0].split()[1]) if found else None


async def answers(http: httpx2.AsyncClient, status: int, within: float) -> httpx2.Response:
    """The first answer of that status."""
    deadline = time.monotonic() + within
    while True:
        answer = await http.get("/metrics")
        # A store that is away is a 503 too.
        if answer.status_code == status and (status == 200 or "totals are held back" in answer.text):
            return answer
        assert answer.status_code == 503, answer.text
        assert time.monotonic() < deadline, answer.text
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("was_asked", [True, False], ids=["asked before", "only watched"])
async def test_no_step_back_is_ever_shown(
    http: httpx2.AsyncClient, opening: Open, own_server: Server, monkeypatch: pytest.MonkeyPatch, was_asked: bool
) -> None:
    """The store forgets two acknowledged batches. Until their writer, who is quiet, has sent them again: 503; then all."""
    # Not before the loss was seen: a store that is whole again by then is none to speak of.
    monkeypatch.setattr(outbox, "ASK_AFTER", 3600.0)
    writer = await opening(own_server)
    writer.metrics.increment_counter("test_total", 3)
    await writer.flush()
    with redis.Redis.from_url(own_server.url) as admin:
        admin.save()
    for _ in range(2):
        writer.metrics.increment_counter("test_total", 20)
        await writer.flush()
    if was_asked:
        assert shown((await http.get("/metrics")).text) == 43
    else:
        await asyncio.sleep(1.5)
    crash(own_server)
    held = await answers(http, 503, 10)
    assert (held.json()["code"], held.json()["retryable"], held.headers["retry-after"]) == ("store_unavailable", True, "1")
    assert (await http.get("/metrics?scope=instance")).status_code == 200
    await asyncio.sleep(0.5)
    assert (await http.get("/metrics")).status_code == 503
    monkeypatch.setattr(outbox, "ASK_AFTER", 0.2)
    assert shown((await answers(http, 200, 12)).text) == 43


async def test_what_nobody_sends_again_is_given_up(
    http: httpx2.AsyncClient,
    eye: Observatory,
    opening: Open,
    own_server: Server,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its writer is dead: after a while without progress the totals are shown as they are, and one line says so."""
    monkeypatch.setattr(gaps, "PATIENCE", 0.5)
    monkeypatch.setattr(gaps, "SETTLE", 0.1)
    dead = Observatory("dead", redis_url=own_server.url, namespace=eye.settings.namespace)
    async with dead:
        dead.metrics.increment_counter("test_total", 9)
    assert shown((await http.get("/metrics")).text) == 9
    with redis.Redis.from_url(own_server.url) as admin:
        for key in list(admin.scan_iter(match="*:metrics:*")):
            admin.delete(key)
    await answers(http, 503, 5)
    with caplog.at_level(logging.ERROR, "observatory"):
        assert shown((await answers(http, 200, 10)).text) is None
        for _ in range(3):
            assert (await http.get("/metrics")).status_code == 200
    assert [record.message for record in caplog.records].count(
        "the store lost batches that nobody sends again: totals may be lower than they were"
    ) == 1


async def test_a_store_that_goes_back_while_it_is_read(
    obs: Observatory, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read may be of two moments: it is not shown."""
    obs.metrics.increment_counter("test_total", 9)
    await obs.flush()
    whole = read.totals

    async def and_back(store: Any, metrics: list[str]) -> Any:
        found = await whole(store, metrics)
        await store.command("DECR", store.keys.metric_flushes(obs._lifetime.partition()))
        return found

    await obs.metrics.families()
    monkeypatch.setattr(read, "totals", and_back)
    with pytest.raises(StoreUnavailable, match="lost batches"):
        await obs.metrics.families()


async def refilled(server: Server, obs: Observatory, place: Key, count: int) -> None:
    """The server forgets everything, and by the next look others have added as many batches as there were."""
    await asyncio.to_thread(crash, server)
    with redis.Redis.from_url(server.url) as admin:
        admin.set(place, count)
    async with asyncio.timeout(10):
        while True:
            try:
                await obs.store.bulk().command("PING")
                return
            except StoreUnavailable:
                await asyncio.sleep(0.05)


async def test_batches_of_others_do_not_hide_a_restart(eye: Observatory, own_server: Server) -> None:
    """As many as before were counted when somebody looks again: the totals settle all the same."""
    watch = Gaps()
    place = eye.store.keys.metric_flushes(0)
    await eye.store.command("SET", place, 5)
    assert await watch.look(eye.store)
    await refilled(own_server, eye, place, 1000)
    began = time.monotonic()
    assert not await watch.look(eye.store)
    while not await watch.look(eye.store):
        await asyncio.sleep(0.1)
    assert SETTLE - 0.5 < time.monotonic() - began < SETTLE + 2
    assert watch.given_up == 0


@pytest.mark.parametrize("somebody_settled", [False, True])
async def test_a_restart_in_the_middle_of_a_scrape(
    eye: Observatory, own_server: Server, monkeypatch: pytest.MonkeyPatch, somebody_settled: bool
) -> None:
    """Fallen and refilled between the two looks: what was read may be of two lives, and is not shown; not even if another
    look has found the store settled by then."""
    whole = read.totals

    async def and_restarted(store: Any, metrics: list[str]) -> Any:
        found = await whole(store, metrics)
        await refilled(own_server, eye, store.keys.metric_flushes(0), 1000)
        if somebody_settled:
            watch = eye.metrics._export.gaps
            await watch.look(store)
            watch._fell_at = -SETTLE
            assert await watch.look(store)
        return found

    assert eye._lifetime._background
    await eye._lifetime._background.stop()
    await eye.store.command("SET", eye.store.keys.metric_flushes(0), 5)
    await eye.metrics.families()
    monkeypatch.setattr(read, "totals", and_restarted)
    with pytest.raises(StoreUnavailable, match="went back" if somebody_settled else "held back"):
        await eye.metrics.families()


async def test_a_spoilt_count_is_one_that_nobody_watches(obs: Observatory, caplog: pytest.LogCaptureFixture) -> None:
    """Text where a number was, or another type: told once, and the others are watched."""
    keys = obs.store.keys
    await obs.store.command("SET", keys.metric_flushes(0), "many")
    await obs.store.command("SET", keys.metric_flushes(1), 7)
    await obs.store.command("SADD", keys.offset(0), "x")
    watch = Gaps()
    with caplog.at_level(logging.ERROR, "observatory"):
        for _ in range(2):
            assert await watch.look(obs.store)
    told = [record.message for record in caplog.records]
    assert sorted(told) == [
        f"metrics: {place} is no count; it is passed over" for place in (keys.offset(0), keys.metric_flushes(0))
    ]
    await obs.store.command("SET", keys.metric_flushes(1), 6)
    assert not await watch.look(obs.store)


async def test_what_workers_apply_is_watched_too(obs: Observatory) -> None:
    """Their totals move with the offset in the stream: a store where it stands lower has lost what they added."""
    offset = obs.store.keys.offset(0)
    for later, earlier in (("1795420887953-2", "1795420887953-1"), ("1795420887954-0", "1795420887953-9")):
        await obs.store.command("SET", offset, later)
        await obs.metrics.families()
        await obs.store.command("SET", offset, earlier)
        with pytest.raises(StoreUnavailable, match="lost batches"):
            await obs.metrics.families()
        await obs.store.command("SET", offset, later)
        obs.metrics._export.gaps._fell_at = -SETTLE
        await obs.metrics.families()


async def test_duplicates_do_not_count(obs: Observatory) -> None:
    """A batch that is sent twice was added once: otherwise a lost batch would hide behind a repeated one."""
    box = obs.metrics._outbox
    key = obs.store.keys.metric_flushes(obs._lifetime.partition())
    obs.metrics.increment_counter("test_total")
    await obs.metrics.flush()
    before = int(await obs.store.command("GET", key))
    number, batch, _ = box._kept[-1]
    assert (await box._send(box.writer, number, batch)).what == 0
    assert (await box._send(box.writer, number + 2, batch)).what == 2
    assert int(await obs.store.command("GET", key)) == before


def at(*counts: int) -> dict[Key, int]:
    """So many batches in each partition."""
    return {Key(f"partition {number}"): count for number, count in enumerate(counts)}


def test_how_long_totals_are_held_back() -> None:
    """At least SETTLE, until every partition is where it was; without progress PATIENCE, and never longer than LONGEST."""
    watch = Gaps()
    assert watch._judge(at(10, 5), 0)
    assert watch._judge(at(12, 5), 1)
    assert not watch._judge(at(8, 5), 2)
    assert not watch._judge(at(12, 9), 2 + SETTLE - 0.1), "other writers' batches may be among them"
    assert watch._judge(at(12, 9), 2 + SETTLE)
    # No progress.
    assert not watch._judge(at(2, 9), 100)
    assert not watch._judge(at(3, 9), 110)
    assert not watch._judge(at(3, 9), 110 + PATIENCE - 0.1)
    assert watch._judge(at(3, 9), 110 + PATIENCE)
    assert watch.given_up == 1
    # Progress that never arrives: new batches are being counted, not the old ones.
    assert not watch._judge(at(0, 9), 200)
    held = [watch._judge(at(0, 9 + second), 200 + second) for second in range(1, 1 + int(LONGEST))]
    assert held == [False] * (len(held) - 1) + [True]
    # Back twice: what counts is the highest that was ever seen.
    assert watch._judge(at(50, 90), 300)
    assert not watch._judge(at(40, 90), 301)
    assert not watch._judge(at(30, 90), 303)
    assert not watch._judge(at(40, 90), 303 + SETTLE)
    assert watch._judge(at(50, 90), 304 + SETTLE)


async def test_a_replica_that_was_behind_becomes_primary(own_sentinels: Sentinels, namespace: str) -> None:
    """An acknowledged batch never reached it: its writer sends it again, and until then no lower total is shown."""
    given: dict[str, Any] = {"redis_url": own_sentinels.url, "namespace": namespace}
    async with Observatory("eye", **given) as eye, Observatory("writer", **given) as writer:
        app, _ = build(eye)
        writer.metrics.increment_counter("test_total", 3)
        await writer.flush()
        primary, behind = own_sentinels.primary, own_sentinels.replicas
        assert primary("WAIT", 2, 5000) == 2
        for replica in behind:
            replica.signal(signal.SIGSTOP)
        primary("CLIENT", "KILL", "TYPE", "replica")
        writer.metrics.increment_counter("test_total", 40)
        await writer.flush()
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test") as http:
            assert shown((await http.get("/metrics")).text) == 43
            primary.stop()
            for replica in behind:
                replica.signal(signal.SIGCONT)
            await asyncio.sleep(1)
            writer.metrics.increment_counter("test_total", 1)
            async with asyncio.timeout(40):
                while (answer := await http.get("/metrics")).status_code == 503 or shown(answer.text) != 44:
                    assert answer.status_code in (200, 503), answer.text
                    assert answer.status_code == 503 or shown(answer.text) == 43, answer.text
                    await asyncio.sleep(0.02)
