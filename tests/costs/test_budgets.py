"""Budgets: what is spent, what is held, whose, until when; from any process, also one that has never heard of the limit."""

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from observatory import Budget, Limit, Observatory
from observatory.features.rate_limiter import Override
from observatory.features.rate_limiter import budgets as room
from observatory.features.rate_limiter.budgets import forecast
from observatory.features.rate_limiter.shape import Window
from tests.conftest import Open
from tests.costs.hand import HandClock, usd
from tests.servers import Server
from tests.worker.events import until

TEAM = Limit("team-budget", 500, per="month", unit="usd", by="team", match="*", overrides={"rich": Override(amount=2000)})


def us(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp()) * 1_000_000


async def known(obs: Observatory, *expected: tuple[str, str]) -> dict[tuple[str, str], Budget]:
    """By limit and identity, as soon as these are among them: who is charged is told beside the caller's way."""
    async with asyncio.timeout(10):
        while True:
            found = {(one.limit, one.identity): one for one in await obs.costs.budgets()}
            if set(expected) <= set(found):
                return found
            await asyncio.sleep(0.02)


async def test_spent_and_held_of_everybody(opening: Open) -> None:
    """Two processes charge; a third that was never told of the limit sees all of it, to the billionth."""
    one, other, stranger = await opening(), await opening(), await opening()
    for obs in (one, other):
        obs.rate_limiter.define(TEAM)
    held = await one.rate_limiter.reserve("team-budget", {"team": "search"}, Decimal("0.3"))
    await one.rate_limiter.check("team-budget", {"team": "search"}, Decimal("100.000000001"))
    await other.rate_limiter.check("team-budget", {"team": "search"}, 50)
    await other.rate_limiter.check("team-budget", "rich", 1000)
    wide = await other.rate_limiter.reserve("team-budget", {"team": "over"}, 1)
    await wide.settle({"usd": 600})
    await other.rate_limiter.peek("team-budget", {"team": "nobody"})
    found = await known(stranger, ("team-budget", "search"), ("team-budget", "rich"), ("team-budget", "over"))
    assert set(found) == {("team-budget", "search"), ("team-budget", "rich"), ("team-budget", "over")}, (
        "who only looked is none"
    )
    assert "nobody" not in (await room.charged(stranger.store)).identities["team-budget"], "and takes no place"
    search = found["team-budget", "search"]
    assert (search.amount_usd, search.spent_usd, search.reserved_usd) == usd(500, "150.000000001", "0.3")
    assert search.dimensions == {"team": "search"}
    assert search.used == pytest.approx(150.300000001 / 500)
    assert found["team-budget", "rich"].amount_usd == 2000
    assert [found["team-budget", "over"].spent_usd, found["team-budget", "over"].used] == [600, 1.2]
    await held.settle({"usd": Decimal("0.1")})
    search = (await known(stranger))["team-budget", "search"]
    assert (search.spent_usd, search.reserved_usd) == usd("150.100000001", 0)
    assert [one.identity for one in await stranger.costs.budgets()] == ["over", "rich", "search"]


async def test_a_month_ends_where_its_zone_says(opening: Open) -> None:
    """A minute before midnight in Berlin and a minute behind it are two months; in UTC they are one."""
    clock = HandClock(us("2026-11-30T22:59:00+00:00"))
    obs = await opening(clock=clock)
    obs.rate_limiter.define(
        Limit("berlin", 100, per="month", unit="usd", timezone="Europe/Berlin"),
        Limit("utc", 100, per="month", unit="usd"),
        Limit("fixed", 100, per="1h", unit="usd", algorithm="fixed_window"),
        Limit("bucket", 100, per="30d", unit="usd"),
    )
    for name in ("berlin", "utc", "fixed", "bucket"):
        await obs.rate_limiter.check(name, None, 30)
    found = {one.limit: one for one in await obs.costs.budgets()}
    assert {name: one.spent_usd for name, one in found.items()} == dict.fromkeys(("berlin", "utc", "fixed", "bucket"), 30)
    assert found["berlin"].resets_at == datetime(2026, 11, 30, 23, tzinfo=UTC)
    assert found["utc"].resets_at == datetime(2026, 12, 1, tzinfo=UTC)
    assert found["fixed"].resets_at == datetime(2026, 11, 30, 23, tzinfo=UTC)
    month, over = 30 * 86_400, 30 * 86_400 - 60
    assert float(found["berlin"].forecast_usd or 0) == pytest.approx(30 * month / over)
    assert found["bucket"].forecast_usd is None
    assert (found["bucket"].resets_at - datetime(2026, 11, 30, 22, 59, tzinfo=UTC)).days == 9
    clock.us = us("2026-11-30T23:01:00+00:00")
    found = {one.limit: one for one in await obs.costs.budgets()}
    assert (found["berlin"].spent_usd, found["utc"].spent_usd, found["fixed"].spent_usd) == usd(0, 30, 0)
    assert found["berlin"].resets_at == datetime(2026, 12, 31, 23, tzinfo=UTC)
    await obs.rate_limiter.check("berlin", None, 60)
    berlin = {one.limit: one for one in await obs.costs.budgets()}["berlin"]
    assert berlin.over, "sixty dollars in its first minute"


async def test_what_was_held_before_the_month_is_not_held_in_it(opening: Open) -> None:
    """A hold over midnight belongs to the month in which it was taken."""
    clock = HandClock(us("2026-11-30T23:59:30+00:00"))
    obs = await opening(clock=clock)
    obs.rate_limiter.define(Limit("utc", 100, per="month", unit="usd"))
    await obs.rate_limiter.reserve("utc", None, 10, lease=300)
    (before,) = await obs.costs.budgets()
    assert (before.spent_usd, before.reserved_usd) == usd(0, 10)
    clock.us = us("2026-12-01T00:00:30+00:00")
    await obs.rate_limiter.reserve("utc", None, 7, lease=300)
    await obs.rate_limiter.check("utc", None, 50)
    (after,) = await obs.costs.budgets()
    assert (after.spent_usd, after.reserved_usd) == usd(50, 7)


async def test_several_dimensions_and_odd_names(opening: Open) -> None:
    """What was folded into one identity comes apart again; what is too long is limited, and in no list."""
    obs, stranger = await opening(), await opening()
    obs.rate_limiter.define(Limit("both", 9, per="day", unit="usd", by=("team", "project")))
    odd = {"team": "a&b=c%", "project": "ü 1"}
    await obs.rate_limiter.check("both", odd, 1)
    assert await obs.rate_limiter.check("both", {"team": "x" * 600, "project": "y"}, 1)
    identity = "team=a%26b%3Dc%25&project=ü 1"
    found = await known(stranger, ("both", identity))
    assert found["both", identity].dimensions == odd
    assert len(found) == 1


async def test_the_list_is_bounded(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who were charged last stay; the limit's own state knows everybody."""
    monkeypatch.setattr(room, "MOST_CHARGED", 3)
    obs, stranger = await opening(), await opening()
    obs.rate_limiter.define(TEAM)
    for number in range(6):
        await obs.rate_limiter.check("team-budget", f"t{number}", 1)
        await known(stranger, ("team-budget", f"t{number}"))
    assert {one.identity for one in await stranger.costs.budgets() if one.spent_usd} == {"t3", "t4", "t5"}


async def test_strangers_push_nobody_out_of_another_limit(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who charges one budget under a thousand names takes no place in the list of another."""
    monkeypatch.setattr(room, "MOST_CHARGED", 3)
    obs, stranger = await opening(), await opening()
    obs.rate_limiter.define(TEAM, Limit("user-budget", 9, per="day", unit="usd", by="user"))
    await obs.rate_limiter.check("team-budget", {"team": "search"}, 60)
    await known(stranger, ("team-budget", "search"))
    for number in range(6):
        await obs.rate_limiter.check("user-budget", {"user": f"u{number}"}, 1)
        await known(stranger, ("user-budget", f"u{number}"))
    assert ("team-budget", "search") in await known(stranger)


@pytest.mark.parametrize("lost", ["pushed out", "deleted"])
async def test_who_is_charged_comes_back(opening: Open, monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    """By others of the same limit, or with the store's data: minutes later who is still charged is in the list again."""
    monkeypatch.setattr(room, "MOST_CHARGED", 3)
    clock = HandClock(us("2026-11-16T12:00:00+00:00"))
    obs, stranger = await opening(clock=clock), await opening(clock=clock)
    obs.rate_limiter.define(TEAM)
    await obs.rate_limiter.check("team-budget", {"team": "search"}, 60)
    await known(stranger, ("team-budget", "search"))
    if lost == "deleted":
        await obs.store.command("DEL", obs.store.keys.charged("team-budget"))
    for number in range(3 if lost == "pushed out" else 0):
        await obs.rate_limiter.check("team-budget", {"team": f"t{number}"}, 1)
        await known(stranger, ("team-budget", f"t{number}"))
    await obs.rate_limiter.check("team-budget", {"team": "search"}, 1)
    await until(lambda: not obs.rate_limiter._judge._notices._tasks, "all is told")
    assert ("team-budget", "search") not in await known(stranger), "not with every call"
    clock.us += 300_000_000
    await obs.rate_limiter.check("team-budget", {"team": "search"}, 1)
    found = await known(stranger, ("team-budget", "search"))
    assert found["team-budget", "search"].spent_usd == 62


async def test_opened_again_it_tells_again(opening: Open, server: Server, namespace: str) -> None:
    """A store may be another, or empty, when the same Observatory is opened again: each test of an application."""
    obs, stranger = Observatory("test", redis_url=server.url, namespace=namespace), await opening()
    obs.rate_limiter.define(TEAM)
    for _ in range(2):
        async with obs:
            await obs.rate_limiter.check("team-budget", {"team": "search"}, 60)
            await known(stranger, ("team-budget", "search"))
        await stranger.store.command("DEL", stranger.store.keys.charged("team-budget"))


async def test_what_is_told_while_the_store_hiccups_is_told_with_the_next_charge(
    opening: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure to remember is no reason to forget for a month."""
    from observatory.errors import StoreUnavailable
    from observatory.features.rate_limiter import notices

    obs, real = await opening(), room.remember
    tried: list[Any] = []

    async def failing(*about: Any) -> None:
        tried.append(about)
        if len(tried) == 1:
            raise StoreUnavailable("away")
        await real(*about)

    monkeypatch.setattr(notices, "remember", failing)
    obs.rate_limiter.define(TEAM)
    await obs.rate_limiter.check("team-budget", "a", 1)
    async with asyncio.timeout(10):
        while len(tried) < 2:
            await asyncio.sleep(0.01)
            await obs.rate_limiter.check("team-budget", "a", 1)
    assert ("team-budget", "a") in await known(obs, ("team-budget", "a"))


async def test_a_state_that_cannot_be_read_hides_no_other(opening: Open, server: Server) -> None:
    """Somebody has spoilt one key."""
    obs = await opening()
    obs.rate_limiter.define(TEAM)
    for team in ("good", "bad"):
        await obs.rate_limiter.check("team-budget", team, 1)
    await known(obs, ("team-budget", "good"), ("team-budget", "bad"))
    policy = obs.rate_limiter._policies.find("team-budget")
    await obs.store.command("SET", obs.store.keys.bucket("team-budget", "bad", policy.form), "nonsense", "PX", 60_000)
    assert ("team-budget", "good") in await known(obs)
    assert ("team-budget", "bad") not in await known(obs)


def test_forecasts_are_linear() -> None:
    """Half of the time, half of the money; never beyond what counting can hold."""
    half = Window(1_000_000_000, 2_000_000)
    assert forecast(7, half, 1_001_000_000) == 14
    assert forecast(7, half, 1_002_000_000) == 7
    assert forecast(7, half, 1_009_000_000) == 7
    assert forecast(7, half, 1_000_000_000) == 14_000_000
