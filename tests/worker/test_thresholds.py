"""What is told of a limit that is nearly used up: at the fraction, of this amount, once; again where the store lost it."""

import decimal
import json
from decimal import Decimal

import msgspec
import pytest

from observatory import Limit, Observatory
from observatory.features.alerts import Outbox
from tests.conftest import Open
from tests.costs.hand import HandClock
from tests.worker.alerting import BUDGET, cross, told_all


async def test_a_budget_that_is_raised_is_told_again(opening: Open) -> None:
    """The same fraction of ten times the money is another thing to know, and has an id of its own; the same is told once."""
    obs, other = await opening(), await opening()
    for amount, dollars in ((100, 60), (1000, 500), (1000, 1)):
        for one in (obs, other):
            one.rate_limiter.define(msgspec.structs.replace(BUDGET, amount=amount))
            await one.rate_limiter.check("team-budget", {"team": "search"}, Decimal(dollars) / 2)
            await told_all(one)
    entries = await Outbox(obs.store).entries()
    assert [(json.loads(one.body)["threshold"], json.loads(one.body)["amount_usd"]) for one in entries] == [
        (0.5, "100"),
        (0.5, "1000"),
    ]
    assert len({one.id for one in entries}) == 2


async def test_what_the_store_lost_is_told_minutes_later(opening: Open) -> None:
    """With all of its data gone: who is over a threshold still, or again, is heard of before the month is over."""
    clock = HandClock(1_794_830_400_000_000)
    obs = await opening(clock=clock)
    await cross(obs)
    (first,) = await told_all(obs)
    async for key in obs.store.scan(obs.store.keys.pattern().replace(":*", ":rate_limiter:*")):
        await obs.store.command("DEL", key)
    await obs.store.command("DEL", obs.store.keys.alerts_outbox())
    clock.us += 300_000_000
    await cross(obs, dollars=70)
    (again,) = await told_all(obs)
    assert again.id == first.id
    clock.us += 300_000_000
    await cross(obs, dollars=1)
    assert await told_all(obs) == [again], "and once"


@pytest.mark.parametrize("unit", ["usd", "requests"])
async def test_exactly_the_fraction(obs: Observatory, unit: str) -> None:
    """Two of ten are 0.2, whatever the doubles next to it say; a billionth less is not."""
    fractions = tuple(n / 10 for n in range(1, 11))
    for name, tenths in (("none", 0), *((f"t{n}", n) for n in range(1, 11))):
        limit = Limit(name, 10, per="day", unit=unit, alert_at=fractions)
        await obs.rate_limiter.check(limit, None, tenths)
    if unit == "usd":
        await obs.rate_limiter.check(Limit("less", 10, per="day", unit=unit, alert_at=(0.2,)), None, Decimal("1.999999999"))
    found: dict[str, int] = {}
    for entry in await told_all(obs):
        said = json.loads(entry.body)
        found[said["limit"]] = found.get(said["limit"], 0) + 1
        assert said["threshold"] <= float(said.get("spent_usd", said.get("used"))) / 10
    assert found == {f"t{n}": n for n in range(1, 11)}


async def test_the_applications_decimals_round_no_alert(obs: Observatory) -> None:
    """An application that counts with three digits."""
    with decimal.localcontext() as context:
        context.prec = 3
        await cross(obs, dollars=Decimal("61.123456789"))
        (entry,) = await told_all(obs)
    assert json.loads(entry.body)["spent_usd"] == "61.123456789"
