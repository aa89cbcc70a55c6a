"""A worker that carries alerts, a budget that is crossed, and what waits."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest

from observatory import Limit, Observatory
from observatory.features.alerts import Entry, Outbox
from observatory.settings import Settings
from observatory.worker import Worker, delivery
from tests.conftest import Open
from tests.worker.events import until, working
from tests.worker.receiver import SPELLED

BUDGET = Limit("team-budget", 100, per="month", unit="usd", by="team", alert_at=(0.5, 1.0))


def settings(*hooks: dict[str, Any], **more: Any) -> Settings:
    tables = [hook if "secret_file" in hook else {"secret": SPELLED, **hook} for hook in hooks]
    return Settings.load(environ={}, alerts_webhooks=tables, worker_lease=1.0, **more)


def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second of a pause is as good as a minute."""
    monkeypatch.setattr(delivery, "LOOK_EVERY", 0.05)
    monkeypatch.setattr(delivery, "LONGEST_PAUSE", 0.2)
    monkeypatch.setattr(delivery, "_TIDY_EVERY", 0.1)
    for name, value in (("WAIT_INITIAL", "0.01"), ("WAIT_JITTER", "0.01"), ("ATTEMPTS", "2")):
        monkeypatch.setenv(f"OBSERVATORY_RETRY_{name}", value)


@contextlib.asynccontextmanager
async def carrying(opening: Open, *hooks: dict[str, Any]) -> AsyncIterator[Observatory]:
    """A worker with the one role, in this process."""
    more = {"retry_wait_initial": 0.01, "retry_wait_jitter": 0.01, "retry_attempts": 2}
    obs = await opening(role="worker", settings=settings(*hooks, **more))
    async with working(Worker(obs, ["alerts"])):
        yield obs


async def told(obs: Observatory, entries: int) -> None:
    """So many wait in the outbox."""
    async with asyncio.timeout(10):
        while len(await Outbox(obs.store).entries()) != entries:
            await asyncio.sleep(0.02)


async def cross(obs: Observatory, team: str = "search", dollars: int | Decimal = 60) -> None:
    obs.rate_limiter.define(BUDGET)
    await obs.rate_limiter.check("team-budget", {"team": team}, dollars)


async def waiting(obs: Observatory, entries: int) -> list[Entry]:
    await told(obs, entries)
    return await Outbox(obs.store).entries()


async def told_all(obs: Observatory) -> list[Entry]:
    """What is in the outbox, as soon as nobody is telling anything."""
    await until(lambda: not obs.rate_limiter._judge._notices._tasks, "all is told")
    return await Outbox(obs.store).entries()
