"""Holds: an estimate now, the truth later, and never lost or counted twice in between."""

import asyncio
import signal
from decimal import Decimal
from typing import Any

import pytest

from observatory import InvalidArgument, Limit, Observatory, RateLimitExceeded, ReservationLost
from tests.conftest import Open
from tests.servers import Server, process

TOKENS = Limit("tokens", 1000, per="1h", unit="tokens")
SLOTS = Limit("slots", 2, unit="slots")


async def left(obs: Observatory, limit: Limit) -> Any:
    return (await obs.rate_limiter.peek(limit)).remaining


async def test_settle_records_the_truth(opening_any: Open) -> None:
    """Less than the estimate is given back; more becomes debt."""
    obs = await opening_any()
    held = await obs.rate_limiter.reserve(TOKENS, cost=600)
    assert (held.decision.allowed, held.decision.remaining) == (True, 400)
    done = await held.settle(100)
    assert (done.returned, done.debt, done.late) == ({"tokens": 500}, {}, False)
    assert await left(obs, TOKENS) == 900
    more = await (await obs.rate_limiter.reserve(TOKENS, cost=200)).settle({"tokens": 350})
    assert (more.returned, more.debt) == ({}, {"tokens": 150})
    assert await left(obs, TOKENS) == 550


async def test_settling_twice_is_one_settlement(obs: Observatory) -> None:
    """The same numbers again are the same answer; others are an error; the bucket moves once."""
    held = await obs.rate_limiter.reserve(TOKENS, cost=600)
    first = await held.settle(100)
    assert await held.settle(100) == first
    with pytest.raises(ReservationLost, match="settled already, with other numbers"):
        await held.settle(200)
    with pytest.raises(ReservationLost):
        await held.cancel()
    with pytest.raises(ReservationLost, match="not held any more"):
        await held.renew()
    assert await left(obs, TOKENS) == 900


async def test_cancel_gives_all_back(obs: Observatory) -> None:
    """And again is nothing."""
    held = await obs.rate_limiter.reserve(TOKENS, cost=600)
    await held.cancel()
    await held.cancel()
    assert await left(obs, TOKENS) == 1000


async def test_same_id_is_held_once(opening: Open) -> None:
    """A caller that asks again after a lost reply takes nothing more, from whichever process."""
    one, other = await opening(), await opening()
    first = await one.rate_limiter.reserve(TOKENS, cost=600, id="order-7")
    again = await other.rate_limiter.reserve(TOKENS, cost=600, id="order-7")
    assert again.decision.remaining == first.decision.remaining == 400
    await again.settle(1)
    assert await left(one, TOKENS) == 999
    assert (await first.settle(1)).returned == {}, "it was settled over there"
    assert await left(one, TOKENS) == 999


async def test_id_of_a_limit_that_was_brought_along_settles_too(opening: Open) -> None:
    """The id spells the limit, where no name would be known."""
    one, other = await opening(), await opening()
    money = Limit("brought", Decimal("1.5"), per="1h", unit="usd", by="team")
    held = await one.rate_limiter.reserve(money, {"team": "x"}, Decimal("0.5"))
    assert (await other.rate_limiter.reservation(held.id).settle(0.25)).returned == {"usd": Decimal("0.25")}


async def test_id_settles_from_any_process(opening: Open) -> None:
    """What reserve gives out is enough: limits, identities, estimates."""
    one, other = await opening(), await opening()
    for obs in (one, other):
        obs.rate_limiter.define(Limit("t", 1000, per="1h", unit="tokens", by="user"), Limit("r", 10, per="1h", by="user"))
    held = await one.rate_limiter.reserve(["t", "r"], {"user": "ann"}, {"tokens": 600})
    done = await other.rate_limiter.reservation(held.id).settle({"tokens": 100})
    assert done.returned == {"tokens": 500}
    assert (await one.rate_limiter.peek("t", "ann")).remaining == 900
    assert (await one.rate_limiter.peek("r", "ann")).remaining == 9


@pytest.mark.parametrize("foreign", ["", "res_", "res_AAAA", "order-7", "res_" + "x" * 70_000, None, 7])
async def test_foreign_id_is_refused(obs: Observatory, foreign: Any) -> None:
    """Nothing that reserve did not give out is taken for a reservation."""
    with pytest.raises(InvalidArgument, match="not one that reserve gave out"):
        obs.rate_limiter.reservation(foreign)


async def test_block_settles_at_the_estimate_also_on_an_exception(obs: Observatory) -> None:
    """Money that may have been spent is not given back by an exception."""
    async with obs.rate_limiter.reserve(TOKENS, cost=100):
        pass
    assert await left(obs, TOKENS) == 900
    with pytest.raises(ZeroDivisionError):
        async with obs.rate_limiter.reserve(TOKENS, cost=100):
            raise ZeroDivisionError
    assert await left(obs, TOKENS) == 800
    async with obs.rate_limiter.reserve(TOKENS, cost=100) as held:
        await held.settle(1)
    assert await left(obs, TOKENS) == 799
    async with obs.rate_limiter.reserve(TOKENS, cost=100) as held:
        await held.cancel()
    assert await left(obs, TOKENS) == 799
    assert await obs.store.command("EXISTS", obs.store.keys.bucket("tokens", "") + ":holds") == 0


async def test_cancelled_block_is_settled(obs: Observatory) -> None:
    """The caller that is cancelled inside the block has used what it used."""

    async def call() -> None:
        async with obs.rate_limiter.reserve(TOKENS, cost=100):
            await asyncio.sleep(60)

    task = asyncio.create_task(call())
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await left(obs, TOKENS) == 900
    assert await obs.store.command("EXISTS", obs.store.keys.bucket("tokens", "") + ":holds") == 0


async def test_block_renews_while_it_is_open(obs: Observatory) -> None:
    """A stream that lasts longer than the lease keeps its slot."""
    async with obs.rate_limiter.reserve(SLOTS, lease=0.3) as held:
        await asyncio.sleep(0.8)
        assert (await obs.rate_limiter.peek(SLOTS)).remaining == 1
        assert not held.lost
    assert (await obs.rate_limiter.peek(SLOTS)).remaining == 2


async def test_estimate_above_the_capacity_is_held_as_the_capacity(obs: Observatory) -> None:
    """The first call of a small limit passes; what it really used is recorded as debt."""
    small = Limit("small", 100, per="1h", unit="tokens")
    async with obs.rate_limiter.reserve(small, cost=5000) as held:
        assert held.decision.cost == 100
        await held.settle(150)
    refused = await obs.rate_limiter.check(small, None, 1)
    assert refused.retry_after == pytest.approx(51 * 36, abs=2)


async def test_debt_is_capped(obs: Observatory) -> None:
    """A runaway number does not lock an identity for years: ten times the capacity, and no more."""
    done = await (await obs.rate_limiter.reserve(TOKENS, cost=1)).settle(10**15)
    assert done.debt["tokens"] == pytest.approx(9999, abs=1)
    assert (await obs.rate_limiter.peek(TOKENS)).reset_after == pytest.approx(36_000, abs=5)


async def test_late_settlement_is_recorded_once(obs: Observatory) -> None:
    """The hold had run out and come back; the use counts all the same, once."""
    held = await obs.rate_limiter.reserve(TOKENS, cost=600, lease=0.1)
    await asyncio.sleep(0.15)
    assert await left(obs, TOKENS) == 1000, "it came back by itself"
    first, again = obs.rate_limiter.reservation(held.id), obs.rate_limiter.reservation(held.id)
    assert (await first.settle(250)).late
    assert not (await again.settle(250)).late
    assert await left(obs, TOKENS) == 750
    other = await obs.rate_limiter.reserve(TOKENS, cost=1, lease=0.05, id="gone")
    await asyncio.sleep(0.1)
    await obs.rate_limiter.peek(TOKENS)
    with pytest.raises(ReservationLost, match="has run out"):
        await obs.rate_limiter.reserve(TOKENS, cost=1, id=other.hold)


@pytest.mark.parametrize("actual", [-1, 1.5, float("nan"), {"usd": 1}, {"tokens": -5}, "7", {"tokens": 2**53}])
async def test_wrong_numbers_settle_nothing(obs: Observatory, actual: Any) -> None:
    """InvalidArgument, and the hold stands."""
    held = await obs.rate_limiter.reserve(TOKENS, cost=600)
    with pytest.raises(InvalidArgument, match="actual"):
        await held.settle(actual)
    assert await left(obs, TOKENS) == 400
    await held.settle(0)


async def test_slots_are_held_fenced_and_returned(opening: Open) -> None:
    """Never more than there are; each holder's fence is higher than the last; check says what to use."""
    one, other = await opening(), await opening()
    first, second = await one.rate_limiter.reserve(SLOTS), await other.rate_limiter.reserve(SLOTS)
    assert second.fence > first.fence > 0
    with pytest.raises(RateLimitExceeded):
        await one.rate_limiter.reserve(SLOTS)
    await first.settle()
    third = await other.rate_limiter.reserve(SLOTS)
    assert third.fence > second.fence
    with pytest.raises(InvalidArgument, match="use reserve"):
        await one.rate_limiter.check(SLOTS)
    with pytest.raises(InvalidArgument, match="use reserve"):
        await one.rate_limiter.acquire(SLOTS)


async def test_slot_waits_in_line(opening: Open) -> None:
    """Freed by one process, taken by who waits in another."""
    one, other = await opening(), await opening()
    held = [await one.rate_limiter.reserve(SLOTS) for _ in range(2)]
    waiting = asyncio.ensure_future(other.rate_limiter.reserve(SLOTS, timeout=5).__aenter__())
    await asyncio.sleep(0.3)
    assert not waiting.done()
    await held[0].settle()
    taken = await asyncio.wait_for(waiting, 1)
    assert taken.decision.waited > 0.2
    await taken.settle()


async def test_mixed_limits_are_held_together(obs: Observatory) -> None:
    """Requests, tokens, dollars, slots: all or nothing, settled by unit."""
    limits = [
        Limit("m-requests", 5, per="1h"),
        Limit("m-tokens", 1000, per="1h", unit="tokens"),
        Limit("m-usd", 10, per="month", unit="usd"),
        Limit("m-slots", 1, unit="slots"),
    ]
    cost: dict[str, int | float | Decimal] = {"tokens": 400, "usd": Decimal("2.5")}
    async with obs.rate_limiter.reserve(limits, cost=cost) as held:
        assert [part.remaining for part in held.decision.parts] == [4, 600, Decimal("7.5"), 0]
        with pytest.raises(RateLimitExceeded) as refused:
            await obs.rate_limiter.reserve(limits, cost=cost)
        assert refused.value.decision is not None
        assert refused.value.decision.limit == "m-slots"
        done = await held.settle({"tokens": 500, "usd": 1})
    assert (done.returned, done.debt) == ({"usd": Decimal("1.5")}, {"tokens": 100})
    assert [await left(obs, limit) for limit in limits] == [4, 500, Decimal(9), 1]


HOLDER = """
import asyncio, sys
from observatory import Limit, Observatory
async def main():
    async with Observatory("holder", redis_url=sys.argv[1], namespace=sys.argv[2]) as obs:
        for limit in (Limit("tokens", 1000, per="1h", unit="tokens"), Limit("slots", 2, unit="slots")):
            await obs.rate_limiter.reserve(limit, cost=1 if limit.unit == "slots" else 600, lease=1.0)
        print("held", flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_killed_owner_loses_its_holds_without_anybody_running(obs: Observatory, server: Server, namespace: str) -> None:
    """SIGKILL: after the lease the next caller finds all there again; no role, no timer."""
    with process(["-c", HOLDER, server.url, namespace]) as holder:
        assert holder.stdout is not None
        assert await asyncio.to_thread(holder.stdout.readline) == "held\n"
        assert (await left(obs, TOKENS), await left(obs, SLOTS)) == (400, 1)
        holder.send_signal(signal.SIGKILL)
        await asyncio.sleep(1.1)
    assert (await left(obs, TOKENS), await left(obs, SLOTS)) == (1000, 2)


async def test_give_back_after_it_has_grown_back_gives_nothing(obs: Observatory) -> None:
    """What was held has regenerated meanwhile and been spent by others: returning it would admit more than the limit."""
    fast = Limit("fast", 100, per=0.2, burst=100)
    held = await obs.rate_limiter.reserve(fast, cost=100)
    await asyncio.sleep(0.3)
    assert await obs.rate_limiter.check(fast, None, 100)
    await held.cancel()
    assert not await obs.rate_limiter.check(fast, None, 60)


@pytest.mark.parametrize("lease", [0, -1, 3601, float("nan"), float("inf"), "60", None, True])
async def test_wrong_lease_is_refused(obs: Observatory, lease: Any) -> None:
    """Between 50 ms and an hour."""
    with pytest.raises(InvalidArgument, match="lease must be between"):
        await obs.rate_limiter.reserve(TOKENS, lease=lease)


async def test_thousand_tasks_hold_and_settle_one_bucket_exactly(opening: Open) -> None:
    """Two processes' worth of racing callers: what is left is what was not used, to the unit."""
    limit = Limit("hot", 1_000_000, per="10000h", unit="tokens")
    one, other = await opening(), await opening()

    async def call(obs: Observatory, number: int) -> int:
        async with obs.rate_limiter.reserve(limit, cost=100 + number) as held:
            await held.settle(number)
        return number

    used = await asyncio.gather(*[call((one, other)[number % 2], number) for number in range(1000)])
    assert await left(one, limit) == 1_000_000 - sum(used)
    assert await one.store.command("EXISTS", one.store.keys.bucket("hot", "") + ":holds") == 0
