"""Alerts: told once whoever sees it, and carried to every webhook, whatever receivers and leaders do."""

import asyncio
import base64
import contextlib
import hmac
import json
import logging
import os
import re
import signal
import sys
import time
from functools import partial
from typing import Any

import msgspec
import pytest

from observatory import ConfigurationError, Limit, Observatory
from observatory.envelope import Envelope
from observatory.features.alerts import Outbox, outbox
from observatory.settings import Settings
from observatory.worker import Worker, delivery
from observatory.worker.delivery import Delivery
from tests.conftest import Open
from tests.servers import ROOT, Server, environment, process
from tests.worker.alerting import carrying, cross, quickly, settings, told, waiting
from tests.worker.events import until, working
from tests.worker.receiver import SECRET, SPELLED, Receiver

HOOK = {"secret": SPELLED}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quickly(monkeypatch)


async def streamed(obs: Observatory) -> list[tuple[Envelope, str]]:
    """Every event of thresholds on the streams, with its id."""
    found = []
    for partition in range(obs.store.keys.partitions):
        for _, fields in await obs.store.bulk().command("XRANGE", obs.store.keys.stream(partition), "-", "+"):
            for id_, payload in zip(fields[::2], fields[1::2], strict=False):
                with contextlib.suppress(msgspec.DecodeError):
                    event = msgspec.msgpack.decode(payload, type=Envelope)
                    if event.type.endswith(".threshold"):
                        found.append((event, id_.decode()))
    return found


CROSSING = """
import asyncio, sys
from observatory import Limit, Observatory

async def main():
    async with Observatory("spender") as obs:
        obs.rate_limiter.define(Limit("team-budget", 100, per="month", unit="usd", by="team", alert_at=(0.5, 1.0)))
        await obs.rate_limiter.peek("team-budget", "search")
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        for _ in range(30):
            await obs.rate_limiter.check("team-budget", "search", 1)

asyncio.run(main())
"""


async def test_four_processes_cross_together(opening: Open, server: Server, namespace: str) -> None:
    """Each threshold is told once: one entry, one event, one count; and is carried once, signed."""
    env = environment(OBSERVATORY_REDIS_URL=server.url, OBSERVATORY_NAMESPACE=namespace)
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(process(["-c", CROSSING], env)) for _ in range(4)]
        for one in running:
            assert one.stdout
            assert await asyncio.to_thread(one.stdout.readline) == "ready\n"
        for one in running:
            assert one.stdin
            one.stdin.write("go\n")
            one.stdin.flush()
        for one in running:
            assert await asyncio.to_thread(one.wait, 60) == 0
    async with Receiver().running() as receiver, carrying(opening, {"url": receiver.url}) as obs:
        events = await streamed(obs)
        await until(lambda: len(receiver.posted) == 2, "both were carried")
        await told(obs, 0)
        assert sorted(post.said["threshold"] for post in receiver.posted) == [0.5, 1.0]
        assert set(receiver.ids) == {id_ for _, id_ in events}
        assert len(events) == 2
        for post in receiver.posted:
            said = post.said
            assert post.headers["webhook-signature"] == post.signature()
            assert post.headers["content-type"] == "application/json"
            assert (said["type"], said["limit"], said["dimensions"]) == ("budget.threshold", "team-budget", {"team": "search"})
            assert isinstance(said["spent_usd"], str)
            assert said["amount_usd"] == "100"
            assert 100 * said["threshold"] <= float(said["spent_usd"]) <= 100
            assert said["resets_at"].endswith("-01T00:00:00Z")
            assert float(said["forecast_usd"]) >= float(said["spent_usd"])
        event = next(event for event, _ in events if msgspec.msgpack.decode(event.data)["threshold"] == 1.0)
        assert event.dimensions == {"team": "search"}
        assert msgspec.msgpack.decode(event.data)["spent_usd"] == "100"
        found = await obs.metrics.query("observatory_limit_alerts_total", by="fraction")
        assert {one.labels["fraction"]: one.value for one in found.series} == {"0.5": 1.0, "1": 1.0}


async def test_what_was_lost_and_is_told_again_has_the_same_id(opening: Open) -> None:
    """A failover took the claim: who receives it twice can know. Another team's is another."""
    obs = await opening()
    await cross(obs)
    await told(obs, 1)
    async for key in obs.store.scan(f"obs1:{obs.store.keys.namespace}:rate_limiter:*alert:*"):
        await obs.store.command("DEL", key)
    await cross(await opening(), dollars=1)
    await told(obs, 2)
    await cross(obs, "support")
    await told(obs, 3)
    first, again, other = [entry.id for entry in await Outbox(obs.store).entries()]
    assert first == again != other


async def test_before_any_worker_came(opening: Open) -> None:
    """It waits in the outbox; and is for whoever asked for such."""
    obs = await opening()
    await cross(obs)
    await obs.rate_limiter.check(Limit("calls", 10, per="1h", alert_at=(0.5,)), None, 6)
    await told(obs, 2)
    both, budgets, limits = Receiver(), Receiver(), Receiver()
    async with both.running(), budgets.running(), limits.running():
        hooks = (
            {"url": both.url},
            {"url": budgets.url, "events": ["budget"]},
            {"url": limits.url, "events": ["limit.threshold"]},
        )
        async with carrying(opening, *hooks):
            await told(obs, 0)
    assert sorted(one.said["type"] for one in both.posted) == ["budget.threshold", "limit.threshold"]
    assert [one.said["limit"] for one in budgets.posted] == ["team-budget"]
    (calls,) = limits.posted
    assert {name: calls.said[name] for name in ("unit", "used", "amount", "threshold")} == {
        "unit": "requests",
        "used": 6,
        "amount": 10,
        "threshold": 0.5,
    }


@pytest.mark.parametrize("first", [500, 429, 404, 302, "", "garbage\r\n\r\n"], ids=str)
async def test_a_receiver_that_fails_first(opening: Open, first: int | str) -> None:
    """Again and again until it says yes, under one id, each attempt signed with its own moment; a redirect is no yes, and
    nobody follows it."""
    elsewhere = Receiver()
    async with elsewhere.running():
        moved = f"HTTP/1.1 302 Found\r\nlocation: {elsewhere.url}\r\ncontent-length: 0\r\n\r\n"
        receiver = Receiver(lambda number: (moved if first == 302 else first) if number < 5 else 200)
        async with receiver.running(), carrying(opening, {"url": receiver.url}) as obs:
            await cross(obs)
            await until(lambda: len(receiver.posted) == 6, "it was tried until it took it")
            await told(obs, 0)
            assert len(set(receiver.ids)) == 1
            assert all(one.headers["webhook-signature"] == one.signature() for one in receiver.posted)
            assert not elsewhere.posted


async def test_slow_and_dead_ones_keep_nobody_waiting(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """One never answers, one is not there, one refuses: the fourth has all alerts at once, and those get theirs when they
    can."""
    monkeypatch.setattr(delivery, "ATTEMPT", 1.0)
    slow, dead, refusing, well = Receiver(lambda number: None), Receiver(), Receiver(lambda number: 400), Receiver()
    async with dead.running():
        pass  # its port is free now
    async with slow.running(), refusing.running(), well.running():
        hooks = [{"url": one.url} for one in (slow, dead, refusing, well)]
        async with carrying(opening, *hooks) as obs:
            began = asyncio.get_running_loop().time()
            await cross(obs)
            await cross(obs, "support")
            await until(lambda: len(well.posted) == 2, "it has them")
            assert asyncio.get_running_loop().time() - began < 1.0, "before the slow one was given up"
            await until(lambda: len(set(refusing.ids)) == 2, "who refuses one may take the next")
            slow.answer = refusing.answer = lambda number: 202
            async with dead.running():
                await told(obs, 0)
    assert set(dead.ids) == set(well.ids) <= set(slow.ids)
    assert len(well.posted) == 2, "and has each once"


async def test_what_is_refused_holds_up_nothing_new(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """One alert that a receiver will never take, for hours: the next one is sent at once all the same."""
    monkeypatch.setattr(delivery, "LONGEST_PAUSE", 3600.0)
    receiver = Receiver(lambda number: 400 if receiver.posted[number].said["identity"] == "poison" else 204)
    async with receiver.running(), carrying(opening, {"url": receiver.url}) as obs:
        await cross(obs, "poison")
        await until(lambda: len(receiver.posted) >= 6, "it was refused again and again")
        began = asyncio.get_running_loop().time()
        for team in "abc":
            await cross(obs, team)
            await until(partial(took, receiver, team), "it has it")
        assert asyncio.get_running_loop().time() - began < 3.0
        assert [entry.body.count(b"poison") > 0 for entry in await waiting(obs, 1)] == [True]


def took(receiver: Receiver, team: str) -> bool:
    return team in [one.said["identity"] for one in receiver.posted]


async def test_a_killed_leader_is_succeeded_in_the_middle(opening: Open, server: Server, namespace: str, tmp_path: Any) -> None:
    """SIGKILL while the receiver has the request in hand: the next leader sends it again, with the same id."""
    receiver = Receiver(lambda number: None)
    async with receiver.running():
        (tmp_path / "secret").write_text(f"{SPELLED}\n")
        said = f'[[alerts.webhooks]]\nurl = "{receiver.url}"\nsecret_file = "{tmp_path / "secret"}"\nevents = ["budget"]\n'
        (tmp_path / "observatory.toml").write_text(said)
        env = environment(
            OBSERVATORY_REDIS_URL=server.url,
            OBSERVATORY_NAMESPACE=namespace,
            OBSERVATORY_CONFIG=str(tmp_path / "observatory.toml"),
            OBSERVATORY_WORKER_LEASE="1",
        )
        work = ["-m", "observatory", "worker", "--roles", "alerts"]
        await cross(await opening())
        with process(work, env) as first:
            await until(lambda: receiver.posted, "it is being delivered", 30)
            os.kill(first.pid, signal.SIGKILL)
            first.wait()
            receiver.answer = lambda number: 204
            with process(work, env) as second:
                await until(lambda: len(receiver.posted) >= 2, "and again", 30)
                obs = await opening()
                await told(obs, 0)
                second.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(second.wait, 30) == 0
    assert len(receiver.posted) == 2
    assert len(set(receiver.ids)) == 1
    assert all(one.headers["webhook-signature"] == one.signature() for one in receiver.posted)


async def test_no_secret_and_no_address_in_any_line(
    opening: Open, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Told once when it begins and once when it ends, by the host; also the settings hide both."""
    receiver = Receiver(lambda number: 500 if number < 4 else 204)
    async with receiver.running():
        with caplog.at_level(logging.DEBUG):
            async with carrying(opening, {"url": receiver.url}) as obs:
                await cross(obs)
                await until(lambda: len(receiver.posted) == 5, "it took it")
                await told(obs, 0)
                shown = repr(obs.settings) + repr(obs.settings.alerts) + repr(obs.settings.alerts.webhooks)
    lines = [record.getMessage() for record in caplog.records]
    assert [line for line in lines if line.startswith("alerts: ")] == [
        "alerts: the webhook at 127.0.0.1 fails (HTTP 500); they are kept for a day, and tried again",
        "alerts: the webhook at 127.0.0.1 takes them again",
    ]
    everything = "\n".join([*lines, *(str(record.exc_info) for record in caplog.records), shown, *capfd.readouterr()])
    for secret in (SPELLED, SPELLED[6:], "T0KEN", str(SECRET)):
        assert secret not in everything


async def test_old_ones_and_too_many_are_counted(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The outbox is bounded, and a day is long enough: what is dropped has a number."""
    monkeypatch.setattr(outbox, "MOST", 3)
    obs = await opening()
    for team in "abcde":
        await cross(obs, team)
    await until(lambda: not obs.rate_limiter._judge._notices._tasks, "all of them")
    await told(obs, 3)
    monkeypatch.setattr(outbox, "TOO_OLD_MS", -1)
    async with Receiver().running() as receiver, carrying(opening, {"url": receiver.url}) as worker:
        await told(obs, 0)
        assert not receiver.posted
        await asyncio.gather(obs.flush(), worker.flush())
    found = await obs.metrics.query("observatory_alerts_dropped_total", by="reason")
    assert {one.labels["reason"]: one.value for one in found.series} == {"full": 2.0, "expired": 3.0}


async def test_a_changed_secret_is_used_by_both(opening: Open, tmp_path: Any) -> None:
    """Two in the file: each signs, until the old one is taken out."""
    new = b"n" * 24
    (tmp_path / "secrets").write_text(f"{SPELLED}\nwhsec_{base64.b64encode(new).decode()}\n")
    async with Receiver().running() as receiver:
        hooks = [{"url": receiver.url, "secret_file": str(tmp_path / "secrets")}]
        made = Settings.load(environ={}, alerts_webhooks=hooks, worker_lease=1.0)
        obs = await opening(role="worker", settings=made)
        async with working(Worker(obs, ["alerts"])):
            await cross(obs)
            await until(lambda: receiver.posted, "carried")
    (one,) = receiver.posted
    assert one.headers["webhook-signature"].split(" ") == [one.signature(), one.signature(new)]


async def test_the_page_verifies_what_is_sent(opening: Open) -> None:
    """The snippet of docs/costs.md, as printed; a changed body, another secret, an old moment are refused."""
    page = (ROOT / "docs" / "costs.md").read_text()
    (snippet,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "def verified" in block]
    room: dict[str, Any] = {"base64": base64, "hmac": hmac, "time": time}
    exec(snippet, room)  # noqa: S102 (the page's own)
    verified = room["verified"]
    async with Receiver().running() as receiver, carrying(opening, {"url": receiver.url}) as obs:
        await cross(obs)
        await until(lambda: receiver.posted, "carried")
    (one,) = receiver.posted
    assert verified(one.headers, one.body, SPELLED)
    assert not verified(one.headers, one.body.replace(b"60", b"10"), SPELLED)
    assert not verified(one.headers, one.body, "whsec_" + base64.b64encode(b"x" * 24).decode())
    assert not verified({**one.headers, "webhook-timestamp": str(int(time.time()) - 900)}, one.body, SPELLED)
    assert not verified({**one.headers, "webhook-id": "msg_x"}, one.body, SPELLED)


async def test_what_is_wrong_is_said_at_the_door(opening: Open, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By key and place, and never the secret or the address; a worker without webhooks does not stand for the role."""
    url = "https://hooks.example.com/T0KEN"
    for hooks, said in (
        ([{"url": "ftp://x", **HOOK}], r"\[0\].url: must be http"),
        ([{"url": "https://u:pw@x/T0KEN", **HOOK}], "without user and password"),
        ([{"url": url}], "secret_file, or secret, must be there"),
        ([{"url": url, **HOOK, "secret_file": "x"}], "one of them"),
        ([{"url": url, **HOOK, "events": ["bugdet"]}], "'bugdet' is never told; known are budget, limit"),
        ([{"url": url, **HOOK, "every": 3}], "every: unknown key"),
        ([{"url": url, **HOOK}] * 2, "there twice"),
        ("https://x", "not JSON"),
        ({}, "must be at most 32 tables"),
    ):
        with pytest.raises(ConfigurationError, match=said) as caught:
            Settings.load(environ={"OBSERVATORY_ALERTS_WEBHOOKS": hooks if isinstance(hooks, str) else json.dumps(hooks)})
        assert "T0KEN" not in str(caught.value)
        assert SPELLED not in str(caught.value)
    for secret, said in (("whsec_%%%", "is not a signing secret"), ("plain", "is not a signing secret")):
        with pytest.raises(ConfigurationError, match=said) as caught:
            Delivery(await opening(settings=Settings.load(environ={}, alerts_webhooks=[{"url": url, "secret": secret}])))
        assert secret not in str(caught.value)
    missing = Settings.load(environ={}, alerts_webhooks=[{"url": url, "secret_file": str(tmp_path / "none")}])
    with pytest.raises(ConfigurationError, match=r"hooks.example.com: secret_file .*cannot be read"):
        Worker(await opening(settings=missing))
    with pytest.raises(ConfigurationError, match="no webhook is configured"):
        Worker(await opening(), ["alerts"])
    assert "alerts" not in Worker(await opening()).roles
    assert "alerts" in Worker(await opening(settings=settings({"url": url}))).roles
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(ConfigurationError, match="httpx2 is not installed"):
        Worker(await opening(settings=settings({"url": url})))
