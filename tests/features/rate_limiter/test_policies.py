"""Which limits a call meets, and what they say of it: by, match, overrides, shadow, several at once, settings over code."""

import asyncio
import logging
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from observatory import ConfigurationError, InvalidArgument, Limit, Observatory, Override, Settings, UnknownLimit
from observatory.testing import FrozenClock
from tests.conftest import Open


async def test_several_are_taken_or_none(obs: Observatory) -> None:
    """A refusal by one charges none; the verdict names who binds, and its wait."""
    wide, narrow = Limit("wide", 10, per="1h"), Limit("narrow", 2, per=100)
    for left in (9, 8):
        both = await obs.rate_limiter.check([wide, narrow])
        assert [part.remaining for part in both.parts] == [left, left - 8]
    refused = await obs.rate_limiter.check([wide, narrow])
    assert (refused.allowed, refused.limit) == (False, "narrow")
    assert refused.retry_after == pytest.approx(50, abs=1)
    assert [part.allowed for part in refused.parts] == [True, False]
    assert (await obs.rate_limiter.peek(wide)).remaining == 8
    assert refused.headers()["RateLimit-Policy"] == '"wide";q=10;w=3600, "narrow";q=2;w=100'
    assert refused.headers()["Retry-After"] == "50"


async def test_costs_by_unit(obs: Observatory) -> None:
    """Each limit takes what it counts; requests are one where nothing is said."""
    limits = [Limit("c-requests", 10, per=60), Limit("c-tokens", 1000, per=60, unit="tokens")]
    decision = await obs.rate_limiter.check(limits, None, {"tokens": 900})
    assert [(part.unit, part.cost, part.remaining) for part in decision.parts] == [
        ("requests", 1, 9),
        ("tokens", 900, 100),
    ]
    looked = await obs.rate_limiter.peek(limits)
    assert (looked.limit, looked.allowed) == ("c-tokens", True), "nearest to exhaustion"


@pytest.mark.parametrize(
    ("limits", "cost", "says"),
    [
        (["a", "a"], 1, "limit a is named twice in one call"),
        (["a", "t"], 5, "a plain cost does not say which is meant"),
        (["a", "t"], {"tokens": 1, "usd": 2}, "the cost brings usd, which none of a, t counts"),
        (["a", "t"], {"requests": 1}, "limit t counts tokens, and the cost brings requests"),
        ("t", {"usd": 1}, "the cost brings usd"),
        ("t", {}, "the cost brings nothing"),
        ([], 1, "no limit was named"),
        (["a"] * 65, 1, "at most 64 limits"),
        (7, 1, "limit must be a name"),
        ([7], 1, "limit must be a name or a Limit"),
        ("*", 1, '"\\*" needs dimensions'),
    ],
)
async def test_what_makes_no_sense_asks_nothing(obs: Observatory, limits: Any, cost: Any, says: str) -> None:
    """InvalidArgument with the remedy; no bucket moved."""
    obs.rate_limiter.define(Limit("a", 5, per="1h"), Limit("t", 50, per="1h", unit="tokens"))
    with pytest.raises(InvalidArgument, match=says):
        await obs.rate_limiter.check(limits, "ann" if limits == "*" else None, cost)
    assert (await obs.rate_limiter.peek("a")).remaining == 5
    assert (await obs.rate_limiter.peek("t")).remaining == 50


async def test_star_is_every_limit_that_matches(obs: Observatory) -> None:
    """By globs over the dimensions, by the units that the call brings; by nothing at all it is allowed."""
    obs.rate_limiter.define(
        Limit("gpt", 5, per="1h", match={"model": "gpt-4*"}),
        Limit("claude", 5, per="1h", match={"model": "claude*"}),
        Limit("all-tokens", 1000, per="1h", unit="tokens", match="*"),
        Limit("team-budget", 10, per="month", unit="usd", by="team", match="*"),
        Limit("by-name-only", 1, per="1h"),
        Limit("parallel", 1, unit="slots", match={"model": "gpt-4*"}),
    )
    call = {"model": "gpt-4o", "team": "search"}
    decision = await obs.rate_limiter.check("*", call, {"tokens": 100, "usd": 1})
    assert [part.limit for part in decision.parts] == ["gpt", "all-tokens", "team-budget"]
    assert [limit.name for limit in obs.rate_limiter.match(call)] == ["gpt"]
    assert [limit.name for limit in obs.rate_limiter.match(call, ("tokens", "usd"))] == ["all-tokens", "team-budget"]
    async with obs.rate_limiter.reserve("*", call, {"tokens": 100}) as held:
        assert [part.limit for part in held.decision.parts] == ["gpt", "all-tokens", "parallel"]
    other = await obs.rate_limiter.check("*", {"model": "llama"}, 1)
    assert (other.allowed, other.parts) == (True, ())
    async with obs.rate_limiter.reserve("*", {"model": "llama"}, 1) as nothing:
        assert (await nothing.settle()).returned == {}


async def test_unidentified_share_one_bucket(obs: Observatory) -> None:
    """By "*" an unknown dimension is `-`: an anonymous call is not unlimited."""
    obs.rate_limiter.define(Limit("per-user", 1, per="1h", by="user", match="*"))
    assert await obs.rate_limiter.check("*", {"route": "/a"})
    assert not await obs.rate_limiter.check("*", {"route": "/b"})
    assert await obs.rate_limiter.check("*", {"user": "ann"})


async def test_shadow_watches_and_never_refuses(obs: Observatory) -> None:
    """It says that it would have; it is counted as such; alone and beside others."""
    shadow, real = Limit("shadow", 1, per="1h", shadow=True), Limit("real", 2, per="1h")
    first = await obs.rate_limiter.check(shadow)
    assert (first.allowed, first.shadow) == (True, False)
    second = await obs.rate_limiter.check(shadow)
    assert (second.allowed, second.shadow, second.remaining, second.retry_after) == (True, True, 0, 0.0)
    both = [await obs.rate_limiter.check([shadow, real]) for _ in range(3)]
    assert [(one.allowed, one.shadow) for one in both] == [(True, True), (True, True), (False, True)]
    await obs.flush()
    found = await obs.metrics.query("observatory_rate_limit_rejections_total", by=("limit", "shadow"))
    counts = {(dict(one.labels)["limit"], dict(one.labels)["shadow"]): one.value for one in found.series}
    assert counts == {("shadow", "true"): 4.0, ("real", "false"): 1.0}


async def test_overrides_for_single_identities(obs: Observatory) -> None:
    """Other numbers, everything, or nothing; the others have the limit's own."""
    obs.rate_limiter.define(
        Limit(
            "tiers",
            1,
            per="1h",
            by="user",
            overrides={"gold": Override(amount=3), "root": Override(allow=True), "spam": Override(deny=True)},
        )
    )
    check = obs.rate_limiter.check
    assert [bool(await check("tiers", "gold")) for _ in range(4)] == [True, True, True, False]
    assert [bool(await check("tiers", "ann")) for _ in range(2)] == [True, False]
    assert all([bool(await check("tiers", "root")) for _ in range(5)])
    denied = await check("tiers", "spam")
    assert (denied.allowed, denied.retry_after) == (False, None)
    both = await check(["tiers", "api"], {"user": "spam"})
    assert not both
    assert (await obs.rate_limiter.peek("api")).remaining == 100, "a refusal charges nothing"


async def test_settings_lay_over_code(namespace: str, server: Any, tmp_path: Path) -> None:
    """Field by field, all of them; what only the file says is a limit too."""
    file = tmp_path / "observatory.toml"
    file.write_text("""
        [limits.code]
        amount = 7
        on_store_down = "closed"
        shadow = false
        [limits.code.overrides]
        vip = { amount = 70 }
        [limits.whole]
        amount = "0.25"
        per = "month"
        unit = "usd"
        by = ["team", "user"]
        match = { model = "gpt-*" }
        alert_at = [0.5, 1.0]
        timezone = "Europe/Berlin"
        [limits.gpus]
        amount = 4
        unit = "slots"
    """)
    settings = Settings.load(str(file), environ={}, redis_url=server.url, namespace=namespace)
    async with Observatory("x", settings=settings) as obs:
        obs.rate_limiter.define(Limit("code", 3, per="1h", shadow=True, overrides={"root": Override(allow=True)}))
        found = {limit.name: limit for limit in obs.rate_limiter.limits()}
        assert (found["code"].amount, found["code"].per, found["code"].on_store_down) == (7, "1h", "closed")
        assert found["code"].overrides == {"root": Override(allow=True), "vip": Override(amount=70)}
        assert found["whole"].match == {"model": "gpt-*"}
        assert found["gpus"].unit == "slots"
        assert (await obs.rate_limiter.check("code", "vip")).remaining == 69
        both = {"team": "a", "user": "b", "model": "gpt-4"}
        assert (await obs.rate_limiter.check("*", both, {"usd": 0.1})).remaining == Decimal("0.15")
        await obs.rate_limiter.reset("code", "vip")
        assert (await obs.rate_limiter.peek("code", "vip")).remaining == 70


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("amount = 7\nper = 60\non_store_down = 'maybe'", "limits.bad: on_store_down must be one of"),
        (
            "amount = 7\nper = 60\noverrides = { x = { amuont = 3 } }",
            "limits.bad: overrides.x.amuont: unknown key, known are amount",
        ),
        (
            "amount = 7\nper = 60\noverrides = { x = 'allowed' }",
            "limits.bad: overrides.x: must be a table of amount, burst, allow, deny, got 'allowed'. Write x = { allow = true }",
        ),
        (
            "amount = 7\nper = 60\noverrides = { x = { allow = 1 } }",
            "limits.bad: overrides.x.allow: must be true or false, got a",
        ),
        ("amount = 7\nper = 'day'\nburst = 3", "limits.bad: burst is of token buckets"),
        ("amount = 7\nper = 60\nweights = { gold = 0 }", "limits.bad: weights.gold"),
        (
            "amount = 7\nper = 'monthly'",
            'limits.bad: per: \'monthly\' is not a duration. Write seconds, "5m", "1h", or "day", "week"',
        ),
        ("amount = 7\nper = 60\nalert_at = 80", "at most 10, got 80.0. Write 0.8 for 80 %"),
        (
            "amount = 7\nper = 60\nalert_at = [0.5, 95]",
            "limits.bad: alert_at must be fractions of the capacity, above 0 and at most",
        ),
        ("amount = 7\nper = 60\nalert_at = 0", "got 0.0. Write 0.8 for 80 %"),
        ("amount = 0\nper = 60", "limits.bad: amount, per and burst must be above 0"),
    ],
)
def test_wrong_setting_names_the_file_the_limit_and_the_field(tmp_path: Path, table: str, says: str) -> None:
    """ConfigurationError, before anything is asked; the limit is named once."""
    file = tmp_path / "bad.toml"
    file.write_text(f"[limits.bad]\n{table}\n")
    with pytest.raises(ConfigurationError) as caught:
        Observatory("x", settings=Settings.load(str(file), environ={})).rate_limiter.limits()
    assert str(caught.value).startswith("bad.toml: limits.bad")
    assert says in str(caught.value)
    assert "limit bad" not in str(caught.value)


def test_one_fraction_of_a_file_needs_no_list(tmp_path: Path) -> None:
    file = tmp_path / "one.toml"
    file.write_text("[limits.one]\namount = 7\nper = 60\nalert_at = 0.8\n[limits.api]\nalert_at = 1\n")
    limiter = Observatory("x", settings=Settings.load(str(file), environ={})).rate_limiter
    assert {limit.name: limit.alert_at for limit in limiter.limits()} == {"one": (0.8,), "api": (1.0,)}


async def test_a_table_that_belongs_to_no_limit_is_told_at_opening(
    server: Any, namespace: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, with the nearest name; asking by its name does not propose what is there already."""
    file = tmp_path / "typo.toml"
    file.write_text('[limits.opnai-tokens]\namount = 5\n[limits.t]\nshadow = true\n[limits.own]\namount = 5\nper = "1m"\n')
    settings = Settings.load(str(file), environ={}, redis_url=server.url, namespace=namespace)
    obs = Observatory("x", settings=settings)
    obs.rate_limiter.define(Limit("openai-tokens", 100, per="1m"))
    of_its_own = "belongs to no limit that code defines, and has no amount and per of its own"
    with caplog.at_level(logging.WARNING, "observatory"):
        async with obs, obs:
            with pytest.raises(UnknownLimit) as caught:
                await obs.rate_limiter.check("opnai-tokens")
            with pytest.raises(UnknownLimit) as other:
                await obs.rate_limiter.check("t")
            assert (await obs.rate_limiter.peek("own")).capacity == 5
    told = [record.getMessage() for record in caplog.records if "[limits." in record.getMessage()]
    assert told == [
        f"typo.toml: [limits.opnai-tokens] {of_its_own}: did you mean openai-tokens?",
        f"typo.toml: [limits.t] {of_its_own}",
    ]
    assert caught.value.message == f"typo.toml: [limits.opnai-tokens] {of_its_own}"
    assert (caught.value.remedy or "").startswith('Did you mean "openai-tokens"? Write amount and per in that table, or define')
    assert "[limits.t]" not in (other.value.remedy or "")
    obs.rate_limiter.define(Limit("opnai-tokens", 1, per="1m"), Limit("t", 1, per="1m"))
    with caplog.at_level(logging.WARNING, "observatory"):
        caplog.clear()
        async with obs:
            assert (await obs.rate_limiter.peek("opnai-tokens")).capacity == 5
    assert not [record for record in caplog.records if "[limits." in record.getMessage()]


async def test_nothing_is_remembered_beyond_a_change(obs: Observatory) -> None:
    """A refusal is answered from memory for a moment; a raised limit, another cost, and reset are seen at once."""
    obs.rate_limiter.define(Limit("memory", 2, per="1h"))
    await obs.rate_limiter.check("memory", None, 2)
    first, second = await obs.rate_limiter.check("memory"), await obs.rate_limiter.check("memory")
    assert (first.decided_by, second.decided_by) == ("redis", "denial")
    assert second.retry_after is not None
    assert second.retry_after <= (first.retry_after or 0)
    assert (await obs.rate_limiter.check("memory", None, 2)).decided_by == "redis", "another cost"
    await obs.rate_limiter.reset("memory")
    assert await obs.rate_limiter.check("memory")
    await obs.rate_limiter.check("memory")
    assert not await obs.rate_limiter.check("memory")
    obs.rate_limiter.define(Limit("memory", 2000, per="1h"))
    assert (await obs.rate_limiter.check("memory")).decided_by == "redis"


async def test_denial_is_forgotten_after_a_second_and_never_lasts_longer_than_it_should(obs: Observatory) -> None:
    """What is said from memory is what the script would say."""
    limit = Limit("short", 20, per=1, burst=1)
    await obs.rate_limiter.check(limit)
    refused = await obs.rate_limiter.check(limit)
    assert refused.retry_after is not None
    await asyncio.sleep(refused.retry_after)
    assert await obs.rate_limiter.check(limit)


async def test_held_limits_are_never_denied_from_memory(obs: Observatory) -> None:
    """A settlement may free something at any moment."""
    limit = Limit("held", 10, per="1h")
    held = await obs.rate_limiter.reserve(limit, cost=10)
    assert (await obs.rate_limiter.check(limit)).decided_by == "redis"
    assert (await obs.rate_limiter.check(limit)).decided_by == "redis"
    await held.cancel()
    assert await obs.rate_limiter.check(limit)


async def test_alert_is_told_once_in_the_fleet(opening: Open, caplog: pytest.LogCaptureFixture) -> None:
    """At each fraction, whoever sees it first."""
    one, other = await opening(), await opening()
    limit = Limit("alert", 10, per="1h", alert_at=(0.5, 1.0))
    with caplog.at_level(logging.WARNING, "observatory"):
        for number in range(10):
            await (one, other)[number % 2].rate_limiter.check(limit)
        await asyncio.sleep(0.2)
    told = [record.getMessage() for record in caplog.records if "% used" in record.getMessage()]
    assert [text.split(",")[0] for text in told] == ["limit alert of all: 50 % used", "limit alert of all: 100 % used"]
    for obs in (one, other):
        await obs.flush()
    found = await one.metrics.query("observatory_limit_alerts_total", by="fraction")
    assert {dict(series.labels)["fraction"]: series.value for series in found.series} == {"0.5": 1.0, "1": 1.0}


async def test_two_shapes_of_one_name_are_told_once_with_both(opening: Open, caplog: pytest.LogCaptureFixture) -> None:
    """Each process applies its own; the fleet hears of it once."""
    clients = [await opening() for _ in range(3)]
    with caplog.at_level(logging.WARNING, "observatory"):
        for obs, amount in zip(clients, (60, 120, 120), strict=True):
            obs.rate_limiter.define(Limit("twice", amount, per="1m"))
            assert (await obs.rate_limiter.check("twice")).capacity == amount
            await asyncio.sleep(0.1)
    told = [record.getMessage() for record in caplog.records if "two shapes" in record.getMessage()]
    assert len(told) == 1
    assert '"120"' in told[0]
    assert '"60"' in told[0]


async def test_requires_is_a_check_on_what_is_bound(obs: Observatory) -> None:
    """For frameworks' dependencies: without arguments, refusing by exception."""
    obs.rate_limiter.define(Limit("chat", 1, per="1h", by="user"))
    required = obs.rate_limiter.requires("chat")
    with obs.bound(user="ann"):
        assert (await required()).identity == "ann"
        with pytest.raises(Exception, match="limit chat of ann"):
            await required()
    with pytest.raises(InvalidArgument, match="by user"):
        await required()
    with pytest.raises(UnknownLimit):
        await obs.rate_limiter.requires("nothing")()


async def test_calendar_windows_end_when_the_calendar_says(opening: Open) -> None:
    """A day in New York, a week from Monday, a month in UTC: with a moved clock over daylight saving."""
    clock = FrozenClock(1_741_456_800)  # Saturday 2025-03-08 18:00 UTC; the clocks go forward on Sunday
    obs = await opening(clock=clock)
    obs.rate_limiter.define(
        Limit("day", 5, per="day", timezone="America/New_York"), Limit("month", 5, per="month"), Limit("week", 5, per="week")
    )
    for name, hours in (("day", 11), ("week", 30), ("month", (31 - 8) * 24 + 6)):
        decision = await obs.rate_limiter.check(name, None, 5)
        assert decision.reset_after == hours * 3600
        refused = await obs.rate_limiter.check(name)
        assert refused.retry_after == hours * 3600
    clock.advance(11 * 3600)
    assert (await obs.rate_limiter.check("day", None, 5)).reset_after == 23 * 3600, "a day of 23 hours"
    clock.advance(23 * 3600 - 0.000_001)
    assert not await obs.rate_limiter.check("day")
    clock.advance(0.000_001)
    assert await obs.rate_limiter.check("day")
