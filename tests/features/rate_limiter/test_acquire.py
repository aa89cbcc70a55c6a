"""Waiting in the fleet's line: nobody overtakes, shares are fair, the dead leave, and the wait is known."""

import asyncio
import itertools
import signal
import time
from collections import Counter

import msgspec
import pytest

from observatory import Limit, Observatory, RateLimitExceeded
from tests.conftest import Open
from tests.features.rate_limiter.scripts import START_US, Scripts, shape
from tests.servers import Server, process


async def test_waits_no_longer_than_it_must(opening_any: Open) -> None:
    """The decision says how long it was."""
    obs = await opening_any()
    limit = Limit("wait", 10, per=1, burst=1)
    assert (await obs.rate_limiter.acquire(limit)).waited == 0
    began = time.monotonic()
    decision = await obs.rate_limiter.acquire(limit, timeout=5)
    assert decision.allowed
    assert 0.05 < decision.waited <= time.monotonic() - began < 1.0


async def test_what_cannot_end_in_time_is_refused_at_once(obs: Observatory) -> None:
    """RateLimitExceeded with the decision, long before the timeout, and nobody is left in line."""
    limit = Limit("long", 1, per="1h")
    await obs.rate_limiter.acquire(limit)
    began = time.monotonic()
    with pytest.raises(RateLimitExceeded) as refused:
        await obs.rate_limiter.acquire(limit, timeout=5)
    assert time.monotonic() - began < 1.0
    assert refused.value.decision is not None
    assert refused.value.retry_after == pytest.approx(3600, abs=2)
    assert await obs.store.command("EXISTS", obs.store.keys.bucket("long", "") + ":line") == 0


async def test_cost_that_never_fits_is_refused_at_once(obs: Observatory) -> None:
    """Not after the timeout."""
    with pytest.raises(RateLimitExceeded) as refused:
        await obs.rate_limiter.acquire(Limit("tiny", 5, per=1), None, 6, timeout=None)
    assert refused.value.retryable is False


async def test_check_and_reserve_do_not_overtake(opening: Open) -> None:
    """While somebody waits for ten, there is room for one, and nobody gets it."""
    one, other = await opening(), await opening()
    limit = Limit("line", 20, per=1, burst=10)
    assert await one.rate_limiter.check(limit, None, 8)
    waiting = asyncio.create_task(one.rate_limiter.acquire(limit, None, 10, timeout=5))
    await asyncio.sleep(0.1)
    refused = await other.rate_limiter.check(limit, None, 1)
    assert not refused
    assert refused.remaining >= 1
    assert refused.retry_after is not None
    assert refused.retry_after > 0.2, "the line's wait, not its own"
    with pytest.raises(RateLimitExceeded):
        await other.rate_limiter.reserve(limit, cost=1)
    assert (await waiting).allowed
    await asyncio.sleep(0.1)
    assert await other.rate_limiter.check(limit, None, 1), "the line is gone"


async def test_first_come_first_served_over_processes(opening: Open) -> None:
    """Granted in the order of arrival, whoever's timer rings first."""
    clients = [await opening() for _ in range(3)]
    limit = Limit("fifo", 40, per=1, burst=1)
    await clients[0].rate_limiter.check(limit)
    granted: list[int] = []

    async def come(number: int) -> None:
        await clients[number % 3].rate_limiter.acquire(limit, timeout=10)
        granted.append(number)

    tasks = []
    for number in range(24):
        tasks.append(asyncio.create_task(come(number)))
        await asyncio.sleep(0.004)
    await asyncio.gather(*tasks)
    late = sum(granted[index] > granted[index + 1] + 3 for index in range(23))
    assert late == 0, granted


async def test_large_cost_is_not_starved_by_small_ones(opening: Open) -> None:
    """Who asks for the whole burst gets it, though others keep asking for one."""
    one, other = await opening(), await opening()
    limit = Limit("starve", 100, per=1, burst=20)
    await one.rate_limiter.check(limit, None, 20)
    stop = False

    async def small() -> None:
        while not stop:
            await other.rate_limiter.acquire(limit, timeout=10)

    crowd = [asyncio.create_task(small()) for _ in range(5)]
    await asyncio.sleep(0.1)
    began = time.monotonic()
    assert await one.rate_limiter.acquire(limit, None, 20, timeout=5)
    assert time.monotonic() - began < 1.0
    stop = True
    await asyncio.gather(*crowd)


async def test_shares_are_fair_by_weight(opening: Open) -> None:
    """Gold counts three times as much as the others: of the grants while all wait, at least nine tenths of three fifths."""
    clients = [await opening() for _ in range(2)]
    limit = Limit("fair", 200, per=1, burst=1, fair_by="tier", weights={"gold": 3})
    await clients[0].rate_limiter.check(limit)
    granted: Counter[str] = Counter()
    ends = time.monotonic() + 2.0

    async def wait(obs: Observatory, tier: str) -> None:
        with obs.bound(tier=tier):
            while time.monotonic() < ends:
                await obs.rate_limiter.acquire(limit, "all", timeout=20)
                if time.monotonic() < ends:
                    granted[tier] += 1

    callers = [wait(clients[n % 2], tier) for tier, many in (("gold", 10), ("iron", 30), ("tin", 10)) for n in range(many)]
    await asyncio.gather(*callers)
    total = sum(granted.values())
    assert granted["gold"] >= 0.9 * 0.6 * total, granted
    assert min(granted["iron"], granted["tin"]) >= 0.9 * 0.2 * total, granted


async def test_cancelled_caller_leaves_and_takes_nothing(opening: Open) -> None:
    """The next one moves up; the line is empty in the end."""
    one, other = await opening(), await opening()
    limit = Limit("cancel", 4, per=1, burst=1)
    await one.rate_limiter.check(limit)
    gone = asyncio.create_task(one.rate_limiter.acquire(limit, timeout=10))
    await asyncio.sleep(0.05)
    stays = asyncio.create_task(other.rate_limiter.acquire(limit, timeout=10))
    await asyncio.sleep(0.05)
    gone.cancel()
    assert (await stays).waited < 0.6
    key = one.store.keys.bucket("cancel", "")
    assert await one.store.command("EXISTS", f"{key}:line") == 0


async def test_cancelled_with_the_grant_in_its_hands_gives_it_back(obs: Observatory) -> None:
    """Over many races of a cancellation with a grant, the bucket loses nothing."""
    limit = Limit("race", 1000, per=1, burst=1)
    for delay in range(30):
        await obs.rate_limiter.check(limit)
        task = asyncio.create_task(obs.rate_limiter.acquire(limit, timeout=5))
        await asyncio.sleep(delay * 0.0003)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await asyncio.sleep(0.1)
    assert await obs.store.command("EXISTS", obs.store.keys.bucket("race", "") + ":line") == 0


WAITER = """
import asyncio, sys
from observatory import Limit, Observatory
async def main():
    async with Observatory("waiter", redis_url=sys.argv[1], namespace=sys.argv[2]) as obs:
        limit = Limit("dead", 20, per=1, burst=10)
        tasks = [asyncio.create_task(obs.rate_limiter.acquire(limit, None, 10, timeout=60)) for _ in range(50)]
        await asyncio.sleep(0.3)
        print("waiting", flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_dead_process_leaves_the_line_within_a_second(obs: Observatory, server: Server, namespace: str) -> None:
    """Fifty tickets of a SIGKILLed process hold nobody up for longer."""
    with process(["-c", WAITER, server.url, namespace]) as waiter:
        assert waiter.stdout is not None
        assert await asyncio.to_thread(waiter.stdout.readline) == "waiting\n"
        waiter.send_signal(signal.SIGKILL)
        began = time.monotonic()
        assert await obs.rate_limiter.acquire(Limit("dead", 20, per=1, burst=10), timeout=None)
    assert time.monotonic() - began < 2.5


FORKED = """
import asyncio, os, sys
from observatory import Limit, Observatory
obs = Observatory("forks", redis_url=sys.argv[1], namespace=sys.argv[2])
limit = Limit("forked", 5, per=1, burst=1)

async def child():
    async with obs:
        print("child", (await obs.rate_limiter.acquire(limit, timeout=10)).allowed, flush=True)

async def main():
    async with obs:
        await obs.rate_limiter.check(limit)
        waiting = [asyncio.create_task(obs.rate_limiter.acquire(limit, timeout=10)) for _ in range(2)]
        await asyncio.sleep(0.05)
        if os.fork() == 0:
            asyncio.events._set_running_loop(None)
            asyncio.set_event_loop(None)
            asyncio.run(child())
            os._exit(0)
        await asyncio.gather(*waiting)
        os.wait()
        print("parent", flush=True)
asyncio.run(main())
"""


async def test_forked_child_stands_in_line_for_itself(server: Server, namespace: str) -> None:
    """Its parent's places are its parent's."""
    with process(["-W", "ignore", "-c", FORKED, server.url, namespace]) as forks:
        out, err = await asyncio.to_thread(forks.communicate, timeout=20)
    assert sorted(out.split("\n")) == ["", "child True", "parent"], err


async def test_several_limits_wait_for_the_one_that_binds(obs: Observatory) -> None:
    """First one binds, then the other; in the end both are charged once."""
    slow, slower = Limit("slow", 10, per=1, burst=2), Limit("slower", 4, per=1, burst=3)
    for limit, cost in ((slow, 2), (slower, 3)):
        await obs.rate_limiter.check(limit, None, cost)
    decision = await obs.rate_limiter.acquire([slow, slower], timeout=5)
    assert decision.allowed
    assert len(decision.parts) == 2
    assert 0.1 < decision.waited < 1.5
    for limit in (slow, slower):
        held = obs.store.keys.bucket(limit.name, "") + ":holds"
        assert await obs.store.command("EXISTS", held) == 0


async def test_thousand_waiters_are_admitted_at_the_rate(opening: Open) -> None:
    """Never more than burst + rate * time; few calls per grant."""
    clients = [await opening() for _ in range(2)]
    limit = Limit("many", 400, per=1, burst=10)
    await clients[0].store.command("CONFIG", "RESETSTAT")
    began = time.monotonic()
    moments: list[float] = []

    async def wait(number: int) -> None:
        await clients[number % 2].rate_limiter.acquire(limit, timeout=30)
        moments.append(time.monotonic() - began)

    await asyncio.gather(*[wait(number) for number in range(500)])
    for index, moment in enumerate(sorted(moments), 1):
        assert index <= 10 + 400 * moment + 1
    said = (await clients[0].store.command("INFO", "commandstats")).decode()
    calls = int(said.split("cmdstat_evalsha:calls=")[1].split(",")[0])
    assert calls <= 3 * 500


async def test_idle_line_asks_four_times_a_second(obs: Observatory) -> None:
    """One timer per process and limit, however many wait."""
    limit = Limit("idle", 1, per=8, burst=1)
    await obs.rate_limiter.check(limit)
    tasks = [asyncio.create_task(obs.rate_limiter.acquire(limit, timeout=None)) for _ in range(20)]
    await asyncio.sleep(0.3)
    before = await asks(obs)
    await asyncio.sleep(2.0)
    assert await asks(obs) - before <= 9
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def asks(obs: Observatory) -> int:
    """Scripts run by the server, without this one's beats and flushes (one a second each)."""
    said = (await obs.store.command("INFO", "commandstats")).decode()
    return int(said.split("cmdstat_zrange:calls=")[1].split(",")[0]) if "cmdstat_zrange:" in said else 0


def test_ahead_is_earmarked_for_who_is_ahead(scripts: Scripts) -> None:
    """A later timer of another process delays nobody, and takes nothing from those ahead."""
    limit, key = shape(10, 1, 10), scripts.key()
    scripts.decide(START_US, "take", [(limit, key, 10)])
    for owner, ticket in (("a", "a1"), ("b", "b1")):
        reply = scripts.advance(START_US, limit, key, owner, [(ticket, 6, "", 1, -1, 0)])
        assert reply[4] == []
    # At 700 ms there is room for seven: a's six are promised to a, so b has to wait although it asks first.
    assert scripts.advance(START_US + 700_000, limit, key, "b")[4] == []
    assert scripts.advance(START_US + 700_000, limit, key, "a")[4] == [b"a1", 0]
    late = scripts.advance(START_US + 1_100_000, limit, key, "b")
    assert late[4] == []
    assert late[3] == 100_000
    assert scripts.advance(START_US + 1_200_000, limit, key, "b")[4] == [b"b1", 0]


def test_silent_owner_is_passed_after_a_second(scripts: Scripts) -> None:
    """Not before; and its tickets are gone."""
    limit, key = shape(10, 1, 10), scripts.key()
    scripts.decide(START_US, "take", [(limit, key, 10)])
    scripts.advance(START_US, limit, key, "dead", [("d", 10, "", 1, -1, 0)])
    scripts.advance(START_US, limit, key, "live", [("l", 5, "", 1, -1, 0)])
    assert scripts.advance(START_US + 999_000, limit, key, "live")[4] == []
    assert scripts.advance(START_US + 1_000_001, limit, key, "live")[4] == [b"l", 0]
    assert scripts.advance(START_US + 1_100_000, limit, key, "dead")[3] == -1


def test_lost_line_begins_a_new_epoch(scripts: Scripts) -> None:
    """Who stood there hears of it by another epoch, and joins again."""
    limit, key = shape(1, 60), scripts.key()
    scripts.decide(START_US, "take", [(limit, key, 1)])
    first = scripts.advance(START_US, limit, key, "me", [("t", 1, "", 1, -1, 0)])
    same = scripts.advance(START_US + 1000, limit, key, "me")
    assert first[2] == same[2]
    scripts.client.delete(f"{key}:line", f"{key}:owners")
    lost = scripts.advance(START_US + 2000, limit, key, "me")
    assert lost[2] != first[2]
    assert lost[3] == -1


def test_impatient_ticket_is_told_its_wait(scripts: Scripts) -> None:
    """It is not added to the line."""
    limit, key = shape(1, 60), scripts.key()
    scripts.decide(START_US, "take", [(limit, key, 1)])
    reply = scripts.advance(START_US, limit, key, "me", [("t", 1, "", 1, 5_000_000, 0)])
    assert reply[5] == [b"t", 60_000_000]
    assert scripts.client.exists(f"{key}:line") == 0


def test_id_that_stands_in_line_twice_is_held_once(scripts: Scripts) -> None:
    """Asked again from another process while the first ticket still stands: both are granted, one slot is taken."""
    limit, key = shape(2, unit="slots"), scripts.key()
    for hold in "ab":
        scripts.decide(START_US, "hold", [(limit, key, 1)], hold=hold, lease_us=60_000_000)
    for owner in ("one", "two"):
        scripts.advance(START_US, limit, key, owner, [("job", 1, "", 1, -1, 60_000_000)])
    for hold in "ab":
        scripts.settle(START_US, "settle", limit, key, 0, hold=hold)
    for owner in ("one", "two"):
        assert scripts.advance(START_US, limit, key, owner)[4][0] == b"job"
    _, (part,) = scripts.decide(START_US, "look", [(limit, key, 0)])
    assert part.debt == 1


async def test_what_waiting_costs_is_told(opening: Open) -> None:
    """How long, by limit and outcome; how full the limit was; and who is here."""
    obs = await opening()
    limit = Limit("narrow", 10, per=1, burst=1)
    assert await obs.rate_limiter.check(limit, "ann")
    assert (await obs.rate_limiter.acquire(limit, "ann", timeout=5)).waited > 0
    with pytest.raises(RateLimitExceeded):
        await obs.rate_limiter.acquire(limit, "ann", 1, timeout=0.001)
    await obs.flush()
    waits = await obs.metrics.query("observatory_wait_seconds", "count", by="outcome", where={"limit": "narrow"})
    assert {one.labels["outcome"]: one.value for one in waits.series} == {"admitted": 1, "gave_up": 1}
    longest = (await obs.metrics.query("observatory_wait_seconds", "p100", where={"outcome": "admitted"})).value
    assert longest is not None
    assert 0.05 < longest < 5
    used = await obs.metrics.query("observatory_limit_utilization_ratio", "max", where={"limit": "narrow"})
    assert used.value == 1.0
    assert (await obs.metrics.query("observatory_instances", by="role")).series[0].labels == {"role": "client"}


async def test_a_limit_that_drains_is_not_told_with_each_call(obs: Observatory, monkeypatch: pytest.MonkeyPatch) -> None:
    """How full it is: by the hundredth, when it is full, and every ten seconds."""
    told: list[float] = []
    monkeypatch.setattr(obs.metrics, "set_gauge", lambda metric, value, labels: told.append(round(value, 6)))
    limit, notices = Limit("drains", 10_000, per="1d"), obs.rate_limiter._judge._notices
    (one,) = obs.rate_limiter._wanted(limit, None, 1)
    empty = await obs.rate_limiter.peek(limit)

    def look(remaining: int, seconds: float) -> list[float]:
        told.clear()
        notices.look(one, msgspec.structs.replace(empty, remaining=remaining), START_US + int(seconds * 1e6))
        return told

    notices._used.clear()
    every = [value for left in range(10_000, 9000, -1) for value in look(left, 0)]
    assert every[0] == 0
    assert 10 <= len(every) <= 12
    assert all(later - earlier > 0.0099 for earlier, later in itertools.pairwise(every))
    assert look(10, 1) == [0.999]
    assert look(1, 1) == []
    assert look(0, 1) == [1.0]
    assert look(0, 2) == []
    assert look(9000, 10.9) == []
    assert look(9000, 11.1) == [0.1]
