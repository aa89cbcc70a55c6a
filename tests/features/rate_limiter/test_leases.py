"""Borrowed tokens: spent without asking, debited first; nobody admits more for it, whatever dies."""

import asyncio
import time
from fractions import Fraction

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from observatory import Limit, Observatory
from tests.conftest import Open
from tests.features.rate_limiter.scripts import START_US, Scripts, shape
from tests.servers import Server

HOT = Limit("hot", 5000, per=1, burst=5000, leases=True)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["borrow", "take", "take"]), st.integers(0, 400_000), st.integers(1, 60), st.integers(0, 100)
        ),
        min_size=1,
        max_size=40,
    )
)
def test_no_interval_ever_has_more_than_burst_and_rate(scripts: Scripts, steps: list[tuple[str, int, int, int]]) -> None:
    """Everything that was lent is spent at the worst moment, its deadline: still burst + rate * time over every interval."""
    limit, key, now_us = shape(100, 1), scripts.key(), START_US
    lease_us = limit.lease_us
    spent: list[tuple[int, int]] = []
    for verb, forward, cost, when in steps:
        now_us += forward
        status, _ = scripts.decide(now_us, verb, [(limit, key, cost)], lease_us=lease_us)
        if status:
            spent.append((now_us + (lease_us * when // 100 if verb == "borrow" else 0), cost))
    spent.sort()
    for first in range(len(spent)):
        total = 0
        for moment, cost in spent[first:]:
            total += cost
            assert total <= limit.capacity + Fraction(limit.amount, limit.period_us) * (moment - spent[first][0])


def test_the_mark_binds_who_does_not_borrow(scripts: Scripts) -> None:
    """While tokens are lent, everybody has the capacity without the rate over the lease."""
    limit, key = shape(100, 1), scripts.key()
    assert scripts.decide(START_US, "borrow", [(limit, key, 10)], lease_us=250_000)[0] == 1
    assert scripts.decide(START_US, "take", [(limit, key, 66)])[0] == 0
    assert scripts.decide(START_US, "take", [(limit, key, 65)])[0] == 1
    assert scripts.decide(START_US, "borrow", [(limit, key, 1)], lease_us=250_000)[0] == 0


def test_what_is_given_back_late_has_grown_back(scripts: Scripts) -> None:
    """Unused tokens are returned less what can have regenerated meanwhile."""
    limit, key = shape(100, 1), scripts.key()
    scripts.decide(START_US, "borrow", [(limit, key, 50)], lease_us=250_000)
    scripts.settle(START_US + 100_000, "return", limit, key, 50, opened_us=START_US)
    _, (part,) = scripts.decide(START_US + 100_000, "look", [(limit, key, 0)])
    assert limit.remaining(part.debt, part.part) == 75, "50 - 10 grown - 40 returned, and 25 kept free for the lease"


async def test_most_checks_do_not_ask(opening: Open) -> None:
    """Two processes on one hot key: never above the limit, and few calls."""
    one, other = await opening(), await opening()
    await one.store.command("CONFIG", "RESETSTAT")
    began = time.monotonic()
    decided: dict[str, int] = {}

    async def spend(obs: Observatory) -> int:
        admitted = 0
        for _ in range(1500):
            decision = await obs.rate_limiter.check(HOT)
            decided[decision.decided_by] = decided.get(decision.decided_by, 0) + 1
            admitted += decision.allowed
        return admitted

    admitted = sum(await asyncio.gather(spend(one), spend(other)))
    assert admitted <= 5000 + 5000 * (time.monotonic() - began)
    said = (await one.store.command("INFO", "commandstats")).decode()
    calls = int(said.split("cmdstat_evalsha:calls=")[1].split(",")[0])
    assert decided["lease"] > 0.8 * admitted
    assert calls < 600


async def test_unused_tokens_are_returned_on_close(opening: Open, server: Server, namespace: str) -> None:
    """Within the deadline, and less what has grown back."""
    watcher = await opening()
    slow = Limit("slow", 1000, per=100, burst=1000, leases=True)
    async with Observatory("leaves", redis_url=server.url, namespace=namespace) as obs:
        assert (await obs.rate_limiter.check(slow)).decided_by == "lease"
    assert (await watcher.rate_limiter.peek(Limit("slow", 1000, per=100, burst=1000))).remaining >= 985


async def test_automatic_lending_begins_when_it_is_hot(opening: Open) -> None:
    """Cold keys ask; above two hundred a second they borrow."""
    obs = await opening()
    limit = Limit("auto", 100_000, per=1, burst=100_000, leases="auto")
    assert (await obs.rate_limiter.check(limit)).decided_by == "redis"
    ends = time.monotonic() + 20
    found: set[str] = set()
    while "lease" not in found and time.monotonic() < ends:
        # Many at once: a busy machine must not make it look cold.
        found = {decision.decided_by for decision in await asyncio.gather(*(obs.rate_limiter.check(limit) for _ in range(50)))}
    assert "lease" in found


async def test_nearly_empty_bucket_is_asked_exactly(opening: Open) -> None:
    """What cannot be lent is taken one by one, up to the last that the lease leaves."""
    obs = await opening()
    limit = Limit("last", 100, per="1h", burst=100, leases=True)
    admitted = [await obs.rate_limiter.check(limit) for _ in range(120)]
    assert sum(map(bool, admitted)) in range(90, 101)
    assert not admitted[-1]
