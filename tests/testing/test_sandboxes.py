"""Sandboxes one after the other, which leave nothing to the next, and beside each other, which hear nothing of each other."""

import asyncio
from collections.abc import Awaitable, Callable
from decimal import Decimal

import pytest

from observatory import InvalidArgument, Limit, Observatory
from observatory.errors import UnknownLimit
from observatory.logs import INTERNAL
from observatory.names import LIMIT_ALERTS, LIMIT_UTILIZATION
from observatory.testing import FrozenClock, Sandbox, sandbox

BUDGET = Limit("budget", 100, per="month", unit="usd", by="team", match="*", alert_at=(0.5,))

obs, other = Observatory("their-app"), Observatory("another")
for one in (obs, other):
    one.rate_limiter.define(BUDGET)

tried = 0


@obs.retry
async def as_the_settings_say() -> None:
    await fails()


@obs.retry(attempts=2, wait_initial=0)
async def twice() -> None:
    await fails()


@obs.retry(name="in-a-block")
async def named() -> None:
    await fails()


async def fails() -> None:
    global tried  # noqa: PLW0603
    tried += 1
    raise ConnectionError


async def attempts(call: Callable[[], Awaitable[object]]) -> int:
    global tried  # noqa: PLW0603
    tried = 0
    with pytest.raises(ConnectionError):
        await call()
    return tried


async def until(fact: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(10):
        while not await fact():
            await asyncio.sleep(0.005)


async def spend(one: Observatory, box: Sandbox) -> None:
    """More than half of it, which is told once."""
    assert await one.rate_limiter.check("budget", {"team": "search"}, cost=60)
    await until(lambda: told(box))
    assert await box.total(LIMIT_ALERTS, limit="budget") == 1


async def told(box: Sandbox) -> bool:
    return any(used(line) for line in box.logs)


def used(line: dict[str, object]) -> bool:
    return "limit budget of search: 50 % used" in str(line["message"])


@pytest.mark.parametrize("clock", [None, FrozenClock()], ids=["real", "frozen"])
async def test_each_sandbox_tells_its_alerts_and_lists_its_budgets(clock: FrozenClock | None) -> None:
    for _ in range(3):
        async with sandbox(obs, clock=clock) as box:
            await spend(obs, box)
            (budget,) = await obs.costs.budgets()
            assert (budget.limit, budget.identity, budget.spent_usd) == ("budget", "search", Decimal(60))


async def test_each_sandbox_tells_how_far_a_limit_is_used() -> None:
    for _ in range(2):
        async with sandbox(obs, clock=FrozenClock()) as box:
            assert await obs.rate_limiter.check("budget", {"team": "search"}, cost=60)
            await box.settle()
            found = await obs.metrics.query(LIMIT_UTILIZATION, "max", where={"limit": "budget"})
            assert found.value == pytest.approx(0.6)


async def test_limits_that_a_test_defines_end_with_it() -> None:
    """Those of before are as they were, also where it has defined them anew."""
    async with sandbox(obs, settings={"limits": {"of-settings": {"amount": 3, "per": "1m"}}}):
        obs.rate_limiter.define(Limit("of-the-test", 1, per="1h"), Limit("budget", 5, per="day", unit="usd", by="team"))
        assert await obs.rate_limiter.check("of-the-test")
        assert not await obs.rate_limiter.check("of-the-test")
        assert {limit.name for limit in obs.rate_limiter.limits()} == {"api", "budget", "of-the-test", "of-settings"}
    async with sandbox(obs):
        assert {limit.name: limit for limit in obs.rate_limiter.limits()}["budget"] == BUDGET
        assert {limit.name for limit in obs.rate_limiter.limits()} == {"api", "budget"}
        with pytest.raises(UnknownLimit):
            await obs.rate_limiter.check("of-the-test")
    assert {limit.name for limit in obs.rate_limiter.declared} == {"api", "budget"}


async def test_limits_end_with_a_test_that_used_none_before() -> None:
    own = Observatory("their-app")
    for _ in range(2):
        async with sandbox(own):
            assert {limit.name for limit in own.rate_limiter.limits()} == {"api"}
            own.rate_limiter.define(Limit("of-the-test", 1, per="1h"))


async def test_decorators_of_before_go_by_a_sandbox_s_settings() -> None:
    """In all that code has not said; and after it by their own again."""
    policy = obs.retry(wait_max=0.5)
    async with sandbox(obs, settings={"retry": {"attempts": 5}}):
        assert [await attempts(call) for call in (as_the_settings_say, twice, named)] == [5, 2, 5]
        assert await attempts(lambda: policy.execute(fails)) == 5
        assert await attempts(lambda: blocks(policy)) == 5
        assert await attempts(lambda: obs.retry.execute(fails)) == 5
    async with sandbox(obs):
        assert [await attempts(call) for call in (as_the_settings_say, twice, named)] == [3, 2, 3]
    assert obs.retry_budget.staged is None
    with pytest.raises(InvalidArgument, match="'said'"):
        obs.retry(said=frozenset())  # type: ignore[call-overload]


async def blocks(policy: object) -> None:
    async for attempt in policy:  # type: ignore[attr-defined]
        with attempt:
            await fails()


async def test_sandboxes_beside_each_other_hear_their_own_lines() -> None:
    """Of limits, breakers and the store, whichever was opened last; those of another process are the sandbox's too."""
    async with sandbox(obs) as box, sandbox(other) as beside:
        await spend(obs, box)
        assert not any(used(line) for line in beside.logs)
        await spend(other, beside)
        assert sum(used(line) for line in box.logs) == 1
        await other.pauses.begin("openai", seconds=3)
        assert any("asks for a pause" in line["message"] for line in beside.logs)
        assert not any("asks for a pause" in line["message"] for line in box.logs)
        async with box.other_process() as replica:
            await replica.pauses.begin("openai", seconds=3)
        await box.redis_down()
        assert (await obs.rate_limiter.check("budget", {"team": "ads"}, cost=1)).decided_by == "local"
        await box.redis_up()
        assert any("asks for a pause" in line["message"] for line in box.logs)
        assert any("store away" in line["message"] for line in box.logs)
        assert not any("store away" in line["message"] for line in beside.logs)
        INTERNAL.warning("nobody's")
        for each in (box, beside):
            assert [line["message"] for line in each.logs][-1] == "nobody's"


@pytest.mark.parametrize("first", [0, 1])
async def test_the_level_is_as_it_was_whoever_ends_first(first: int) -> None:
    before = INTERNAL.level, list(INTERNAL.handlers)
    both = [sandbox(obs, settings={"log": {"level": "warning"}}), sandbox(other, settings={"log": {"level": "debug"}})]
    loud, low = [await one.__aenter__() for one in both]
    INTERNAL.debug("low")
    INTERNAL.warning("loud")
    assert "low" in [line["message"] for line in low.logs]
    assert [line["message"] for line in loud.logs] == ["loud"]
    await both.pop(first).__aexit__(None, None, None)
    INTERNAL.warning("still heard")
    (left,) = {loud, low} - {(loud, low)[first]}
    assert left.logs[-1]["message"] == "still heard"
    await both.pop().__aexit__(None, None, None)
    assert (INTERNAL.level, INTERNAL.handlers) == before
