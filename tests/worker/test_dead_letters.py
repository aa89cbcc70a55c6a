"""Dead letters: looked at, put back, thrown away; each lies in one place, and the ledger's equation holds."""

import asyncio
import contextlib
import json
import os
from pathlib import Path

import httpx2
import pytest

from observatory import Metric, Observatory
from observatory.envelope import Envelope, encoded, new_id, packed
from observatory.errors import InvalidArgument, NotFound, StoreUnavailable
from observatory.features import survey
from observatory.features.dead_letters import DeadLetter
from observatory.service.app import build
from observatory.worker import Worker
from observatory.worker.apply import Meaning
from tests.conftest import Open
from tests.proxy import proxy
from tests.servers import Server, command, environment
from tests.worker.events import call, settled, working


def poison(now_us: int, *, text: str = "slow") -> tuple[str, bytes]:
    return new_id(), encoded(Envelope("llm_call", now_us, packed({"provider": "p", "model": "m", "latency": text})))


async def buried(opening: Open, number: int = 30) -> Observatory:
    """A client, and so many letters; one is no event at all."""
    obs = await opening(role="worker")
    now_us = obs.store.server_us() or 0
    await obs.events.accept([(new_id(), b"\xc1\x00"), *(poison(now_us) for _ in range(number - 1))])
    async with working(Worker(obs, ["events"])):
        assert (await settled(obs, number))["dead"] == number
    return obs


async def balanced(obs: Observatory) -> dict[str, int]:
    """The ledgers, after a look at what is really there."""
    for partition in range(obs.store.keys.partitions):
        assert await survey.drift(obs.store, partition) == (0, 0)
    return await obs.events.lag()


async def test_they_are_listed_by_pages_and_shown(opening: Open) -> None:
    """Every one once, over all partitions; what can be read of it is shown, and what cannot says why."""
    obs = await buried(opening)
    seen: list[DeadLetter] = []
    cursor = None
    while True:
        page = await obs.dead_letters.list(page_size=7, cursor=cursor)
        assert len(page.letters) <= 7
        seen += page.letters
        cursor = page.cursor
        if cursor is None:
            break
    assert len({one.id for one in seen}) == len(seen) == 30
    unreadable = next(one for one in seen if one.event_type is None)
    assert unreadable.reason.startswith("DecodeError")
    readable = await obs.dead_letters.show(next(one.id for one in seen if one.event_type))
    assert readable.content["data"] == {"provider": "p", "model": "m", "latency": "slow"}
    assert readable.reason.startswith("ValidationError: Expected `float")
    for wrong in ("", "7", "1:2", "a:1-1", "1:1-1; DROP", "9" * 30):
        with pytest.raises(InvalidArgument):
            await obs.dead_letters.show(wrong)
    for gone in ("0:1-1", "999:1-1"):
        with pytest.raises(NotFound):
            await obs.dead_letters.show(gone)
    with pytest.raises(InvalidArgument, match="page_size"):
        await obs.dead_letters.list(page_size=0)


async def test_replayed_they_are_read_again_each_once(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a worker that understands them they are applied; by one that does not they are buried again; never both."""
    obs = await buried(opening)
    ids = [one.id for one in (await obs.dead_letters.list()).letters]
    first = await obs.dead_letters.replay(*ids[:10], ids[0])
    assert (first.done, first.missing) == (10, 0)
    assert await obs.dead_letters.replay(*ids[:10]) == type(first)(0, 10, 0)
    found = await balanced(obs)
    assert (found["dead"], found["waiting"]) == (20, 10)
    async with working(Worker(obs, ["events"])):
        found = await settled(obs, 30)
    assert (found["applied"], found["dead"]) == (0, 30)
    assert (await obs.dead_letters.replay_all()).done == 30
    # A newer release, which reads what this one cannot.
    monkeypatch.setattr(Meaning, "_one", lambda meaning, payload: setattr(meaning, "applied", meaning.applied + 1))
    async with working(Worker(obs, ["events"])):
        found = await settled(obs, 30)
    assert found == {"accepted": 30, "applied": 30, "dead": 0, "dropped": 0, "waiting": 0}
    await balanced(obs)


async def test_dropped_they_are_counted_as_dropped(opening: Open) -> None:
    """In the ledger, and in the metric of who did it."""
    obs = await buried(opening)
    ids = [one.id for one in (await obs.dead_letters.list()).letters]
    assert (await obs.dead_letters.drop(*ids[:4])).done == 4
    again = await obs.dead_letters.drop(*ids[:5])
    assert (again.done, again.missing) == (1, 4)
    assert (await obs.dead_letters.drop_all()).done == 25
    assert await balanced(obs) == {"accepted": 30, "applied": 0, "dead": 0, "dropped": 30, "waiting": 0}
    await obs.flush()
    assert (await obs.metrics.query("observatory_events_dropped_total", where={"reason": "thrown_away"})).value == 30


async def test_lost_replies_replay_nothing_twice(opening: Open, server: Server, namespace: str, tmp_path: Path) -> None:
    """The store moves letters and its answer is lost; asked again until all are gone: each is on its stream once."""
    obs = await buried(opening, 60)
    ids = [one.id for one in (await obs.dead_letters.list()).letters]
    lost = 0
    async with (
        proxy(server.path, tmp_path / "p") as between,
        Observatory("asking", redis_url=between.url, namespace=namespace) as asking,
    ):
        await asking.dead_letters.replay(ids[0])
        for verb in (asking.dead_letters.replay, asking.dead_letters.drop):
            for id_ in ids[1::2] if verb == asking.dead_letters.replay else ids[2::2]:
                between.swallow_replies = True
                waiting = asyncio.ensure_future(verb(id_))
                await asyncio.sleep(0.005)
                between.cut()
                between.swallow_replies = False
                with contextlib.suppress(StoreUnavailable):
                    await waiting
                await asking.ready()
                lost += (await verb(id_)).missing
    assert lost > 20, "the store had moved it, and its answer was lost"
    found = await balanced(obs)
    assert (found["dead"], found["waiting"], found["dropped"]) == (0, 31, 29)


async def test_full_stream_takes_no_letters(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for a worker does not make room for what a worker could not apply."""
    monkeypatch.setenv("OBSERVATORY_EVENTS_MAX_ENTRIES", "3")
    monkeypatch.setenv("OBSERVATORY_EVENTS_PARTITIONS", "1")
    obs = await buried(opening, 5)
    for _ in range(3):
        await obs.events.accept([call()])
    found = await obs.dead_letters.replay_all()
    assert (found.done, found.missing, found.left) == (0, 0, 5)
    assert (await balanced(obs))["dead"] == 5


async def test_they_are_bounded_and_what_made_room_is_counted(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest go; the ledger and the metric say how many."""
    monkeypatch.setattr("observatory.worker.apply.MAX_DEAD", 20)
    monkeypatch.setenv("OBSERVATORY_EVENTS_PARTITIONS", "1")
    obs = await opening()
    now_us = obs.store.server_us() or 0
    worker_of = await opening(role="worker")
    async with working(Worker(worker_of, ["events"])):
        for _ in range(5):
            await obs.events.accept([poison(now_us) for _ in range(10)])
        found = await settled(obs, 50)
    assert (found["dead"], found["dropped"]) == (20, 30)
    await balanced(obs)
    await worker_of.flush()
    assert (await obs.metrics.query("observatory_events_dropped_total", where={"reason": "dead_letters"})).value == 30


async def test_over_http(opening: Open) -> None:
    """List, show, replay, drop; mistakes are problem documents."""
    obs = await buried(opening, 6)
    app, _ = build(obs)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test") as http:
        page = (await http.get("/v1/dead_letters", params={"page_size": 4})).json()
        assert len(page["letters"]) == 4
        rest = (await http.get("/v1/dead_letters", params={"cursor": page["cursor"]})).json()
        assert (len(rest["letters"]), rest["cursor"]) == (2, None)
        ids = [one["id"] for one in (*page["letters"], *rest["letters"])]
        one = (await http.get(f"/v1/dead_letters/{ids[0]}")).json()
        assert one["id"] == ids[0]
        assert one["reason"]
        done = await http.post("/v1/dead_letters/replay", json={"ids": ids[:2]})
        assert done.json() == {"done": 2, "missing": 0, "left": 0}
        assert (await http.post("/v1/dead_letters/drop", json={"all": True})).json()["done"] == 4
        for status, answer in (
            (404, await http.get(f"/v1/dead_letters/{ids[0]}")),
            (400, await http.get("/v1/dead_letters/x")),
            (400, await http.get("/v1/dead_letters", params={"page_size": "many"})),
            (400, await http.get("/v1/dead_letters", params={"size": "1"})),
            (400, await http.post("/v1/dead_letters/drop", json={})),
            (400, await http.post("/v1/dead_letters/drop", json={"ids": ids, "all": True})),
            (400, await http.post("/v1/dead_letters/replay", json={"ids": [1]})),
        ):
            assert answer.status_code == status, answer.text
            assert answer.headers["content-type"].startswith("application/problem+json")
    assert (await balanced(obs))["waiting"] == 2


async def test_by_hand(opening: Open, server: Server, namespace: str) -> None:
    """The commands, their exit codes, and that nothing is thrown away unasked."""
    obs = await buried(opening, 5)
    env = environment(OBSERVATORY_REDIS_URL=server.url, OBSERVATORY_NAMESPACE=namespace, HOME=os.environ.get("HOME", ""))

    async def run(*arguments: str) -> tuple[int, str, str]:
        done = await asyncio.to_thread(command, *arguments, env=env)
        return done.returncode, done.stdout, done.stderr

    code, said, _ = await run("dead-letters", "list", "--json")
    assert code == 0
    ids = [one["id"] for one in json.loads(said)["letters"]]
    code, said, _ = await run("dead-letters", "show", ids[1])
    assert (code, "reason" in said) == (0, True)
    code, said, _ = await run("--json", "dead-letters", "replay", ids[0], ids[0])
    assert (code, json.loads(said)) == (0, {"replayed": 1, "missing": 0, "left": 0})
    code, said, _ = await run("dead-letters", "replay", ids[0])
    assert (code, "were not there" in said) == (1, True)
    for refused in (("drop", ids[1]), ("drop", "--all"), ("replay", "--all"), ("drop",), ("drop", ids[1], "--all", "--yes")):
        code, _, said = await run("dead-letters", *refused)
        assert (code, "--yes" in said or "say which" in said) == (2, True), refused
    assert (await balanced(obs))["dead"] == 4
    assert (await run("dead-letters", "drop", "--all", "--yes"))[:2] == (0, "dropped 4\n")
    assert (await run("dead-letters", "show", ids[1]))[0] == 1
    code, said, _ = await run("events", "lag", "--json")
    lag = json.loads(said)
    assert (lag["accepted"], lag["dropped"], lag["waiting"], lag["dead"]) == (5, 4, 1, 0)
    assert sum(one["waiting"] for one in lag["partitions"]) == 1
    assert lag["oldest_age"] > 0


async def test_tail_shows_what_is_asked_for(opening: Open, server: Server, namespace: str) -> None:
    """As it comes, beside a worker that takes it away."""
    obs = await opening()
    env = environment(OBSERVATORY_REDIS_URL=server.url, OBSERVATORY_NAMESPACE=namespace)
    asked = ("events", "tail", "--json", "--where", 'type="thing",number=~"[13]"', "--count", "2", "--for", "20s")
    tail = asyncio.create_task(asyncio.to_thread(command, *asked, env=env))
    async with working(Worker(await opening(role="worker"), ["events"])):
        while not tail.done():
            for number in range(4):
                obs.events.record({"type": "thing", "number": number})
            obs.events.record({"type": "other", "number": 1})
            await obs.flush()
            await asyncio.sleep(0.1)
    done = await tail
    shown = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert [(one["type"], one["data"]["number"] in (1, 3)) for one in shown] == [("thing", True)] * 2
    assert (await obs.metrics.query(Metric.REQUESTS_TOTAL)).value is None
