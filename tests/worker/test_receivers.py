"""Receivers of alerts that are each their own trouble: secrets that change, alerts that one never takes, lists that differ."""

import asyncio
import base64
import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from observatory import Observatory
from observatory.features.alerts import Outbox, outbox
from observatory.worker import delivery
from observatory.worker.delivery import Delivery
from tests.conftest import Open
from tests.worker.alerting import carrying, cross, quickly, settings, told, told_all, waiting
from tests.worker.events import until
from tests.worker.receiver import SPELLED, Receiver

NEW = b"n" * 24
NEW_SPELLED = "whsec_" + base64.b64encode(NEW).decode()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quickly(monkeypatch)


def took(receiver: Receiver, team: str) -> bool:
    return team in [one.said["identity"] for one in receiver.posted]


@pytest.mark.parametrize("spoilt", [None, "plain", ""], ids=["gone", "no secret", "empty"])
async def test_an_unreadable_secret_is_that_receivers_failure(
    opening: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture, spoilt: str | None
) -> None:
    """The other has its alerts; this one has them when the secret is back. Told once, and never the secret."""
    secret = tmp_path / "secret"
    secret.write_text(SPELLED)
    lacking, well = Receiver(), Receiver()
    async with lacking.running(), well.running():
        with caplog.at_level(logging.INFO):
            async with carrying(opening, {"url": lacking.url, "secret_file": str(secret)}, {"url": well.url}) as obs:
                if spoilt is None:
                    secret.unlink()
                else:
                    secret.write_text(spoilt)
                for team in "abc":
                    await cross(obs, team)
                    await until(partial(took, well, team), "the other has it")
                failed = "fails (alerts.webhooks of 127.0.0.1: "
                await until(lambda: any(failed in record.getMessage() for record in caplog.records), "it is said")
                assert not lacking.posted
                secret.write_text(SPELLED)
                await told(obs, 0)
    assert sorted(lacking.ids) == sorted(well.ids)
    assert all(one.headers["webhook-signature"] == one.signature() for one in lacking.posted)
    assert sum(failed in record.getMessage() for record in caplog.records) == 1


async def test_a_leader_is_told_another_secret(opening: Open, tmp_path: Path) -> None:
    """As documented: both in the file, then the old one out; one worker leads all the time, and each alert is signed by what
    stands there."""
    secrets = tmp_path / "secrets"
    secrets.write_text(SPELLED)
    async with Receiver().running() as receiver:
        async with carrying(opening, {"url": receiver.url, "secret_file": str(secrets)}) as obs:
            for team, written in (("old", SPELLED), ("both", f"{NEW_SPELLED}\n{SPELLED}\n"), ("new", NEW_SPELLED)):
                secrets.write_text(written)
                await cross(obs, team)
                await until(partial(took, receiver, team), "carried")
        old, both, new = receiver.posted
    assert old.headers["webhook-signature"] == old.signature()
    assert both.headers["webhook-signature"].split() == [both.signature(NEW), both.signature()]
    assert new.headers["webhook-signature"] == new.signature(NEW)


@pytest.mark.parametrize("poisons", [1, 3])
@pytest.mark.parametrize("answer", [500, ""], ids=["500", "closed"])
async def test_an_alert_that_breaks_its_receiver_keeps_no_other_back(opening: Open, poisons: int, answer: int | str) -> None:
    """It answers 500 to one, for ever: the later ones arrive, and those go on waiting."""
    names = [f"poison{number}" for number in range(poisons)]
    receiver = Receiver(lambda number: answer if receiver.posted[number].said["identity"] in names else 204)
    async with receiver.running(), carrying(opening, {"url": receiver.url}) as obs:
        for name in names:
            await cross(obs, name)
        await until(lambda: set(names) <= {one.said["identity"] for one in receiver.posted}, "each was tried")
        for team in "abcd":
            await cross(obs, team)
            await until(partial(took, receiver, team), "it has it")
        assert all(b"poison" in entry.body for entry in await waiting(obs, poisons))
        receiver.answer = lambda number: 204
        await told(obs, 0)
    assert len([one for one in receiver.posted if one.said["identity"] in "abcd"]) == 4, "and has each once"


async def test_what_breaks_its_receiver_waits_by_itself(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer each time, and the others do not wait with it: five of those go past it between two of its attempts."""
    monkeypatch.setattr(delivery, "LONGEST_PAUSE", 3600.0)
    receiver = Receiver(lambda number: 500 if receiver.posted[number].said["identity"] == "poison" else 204)

    def poisoned() -> int:
        return sum(one.said["identity"] == "poison" for one in receiver.posted)

    async with receiver.running(), carrying(opening, {"url": receiver.url}) as obs:
        await cross(obs, "poison")
        await cross(obs, "first")
        await until(lambda: took(receiver, "first") and poisoned() >= 12, "it failed again and again")
        before = poisoned()
        for team in "abcde":
            await cross(obs, team)
            await until(partial(took, receiver, team), "it has it")
        # Two requests an attempt; one attempt may have come, of a pause that is seconds now.
        assert poisoned() - before <= 4
        await waiting(obs, 1)


async def test_who_is_away_is_tried_with_one_alert_at_a_time(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two pauses one alert is tried, twice; another each time; and all arrive when it is back."""
    monkeypatch.setattr(delivery, "LONGEST_PAUSE", 3600.0)
    obs = await opening()
    for team in "abcde":
        await cross(obs, team)
    await told(obs, 5)
    receiver = Receiver(lambda number: 503)
    async with receiver.running(), carrying(opening, {"url": receiver.url}):
        await until(lambda: len(receiver.posted) >= 10, "it was tried five times")
        receiver.answer = lambda number: 204
        tried = receiver.ids[:10]
        await told(obs, 0)
    assert tried[::2] == tried[1::2]
    assert len(set(tried)) == 5


async def rolled(opening: Open, *hooks: dict[str, Any]) -> Observatory:
    """What a leader with these webhooks removes."""
    obs = await opening(role="worker", settings=settings(*hooks))
    await Delivery(obs)._tidied(Outbox(obs.store))
    return obs


async def test_a_leader_with_another_list_removes_nothing_that_others_wait_for(
    opening: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change that rolls out: one leader has two webhooks, the next has one of them, then the first again."""
    here, away = Receiver(), Receiver()
    async with away.running():
        pass
    async with here.running():
        async with carrying(opening, {"url": here.url}, {"url": away.url, "events": ["budget"]}) as obs:
            await cross(obs)
            await until(lambda: here.posted, "one has it")
            place = (await waiting(obs, 1))[0].place
        async with carrying(opening, {"url": here.url}) as obs:
            await cross(obs, "support")
            await until(lambda: len(here.posted) == 2, "it leads")
            await rolled(opening, {"url": here.url})
            assert place in [one.place for one in await waiting(obs, 2)]
        async with away.running(), carrying(opening, {"url": here.url}, {"url": away.url, "events": ["budget"]}) as obs:
            await told(obs, 0)
    assert sorted(away.ids) == sorted(here.ids)
    assert len(here.posted) == 2


async def test_a_leader_that_dies_at_once_had_its_list_noted(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first alert is sent, and not when it first tidies: what it sent to one of two only is removed by nobody."""
    monkeypatch.setattr(Delivery, "_tidy", lambda self: asyncio.Event().wait())
    here, away = Receiver(), Receiver()
    async with away.running():
        pass
    async with here.running(), carrying(opening, {"url": here.url}, {"url": away.url}) as obs:
        await cross(obs)
        await until(lambda: here.posted, "one has it")
    obs = await rolled(opening, {"url": here.url})
    await waiting(obs, 1)


async def test_a_receiver_that_is_gone_for_good(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour after its last leader nobody waits for it; before, what is a day old is counted for it."""
    here, gone = {"url": "http://127.0.0.1:9/here", "events": ["limit"]}, {"url": "http://127.0.0.1:9/gone"}
    obs = await rolled(opening, here, gone)
    for team in ("search", "support"):
        await cross(obs, team)
    entries = await told_all(obs)
    await rolled(opening, here)
    await waiting(obs, 2)
    monkeypatch.setattr(outbox, "TOO_OLD_MS", -1)
    worker = await rolled(opening, here)
    await told(obs, 0)
    await worker.flush()
    found = await obs.metrics.query("observatory_alerts_dropped_total", by="reason")
    assert {one.labels["reason"]: one.value for one in found.series} == {"expired": len(entries)}
    monkeypatch.setattr(outbox, "TOO_OLD_MS", 86_400_000)
    await cross(obs, "third")
    await told_all(obs)
    key = obs.store.keys.alerts_receivers()
    assert 0 < await obs.store.command("PTTL", key) <= 3_600_000
    for member in await obs.store.command("ZRANGE", key, 0, -1):
        await obs.store.command("ZINCRBY", key, -3_601_000, member)
    await rolled(opening, here)
    await told(obs, 0)
    assert len(await obs.store.command("ZRANGE", key, 0, -1)) == 1
