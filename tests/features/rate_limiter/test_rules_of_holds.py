"""The scripts' rules to the microsecond: what is lent, held, reaped, and given back."""

import msgspec
import pytest

from observatory.features.rate_limiter.shape import Shape
from tests.features.rate_limiter.rules import HOUR_MS, MINUTE_MS, SECONDS, SLOTS, S, State, fence_at, hold, look, put, take
from tests.features.rate_limiter.scripts import SETTLE, START_US, Scripts, shape


def test_part_of_what_is_given_back(scripts: Scripts) -> None:
    """Thirds of a microsecond are borrowed from the whole ones; what is held under another rate loses its fraction."""
    third, key = shape(3, 1, 30), scripts.key()
    hold(scripts, START_US, third, key, 4, "four")
    assert scripts.settle(START_US, "settle", third, key, 2, hold="four")[0] == 1
    assert (State(scripts, key).debt, State(scripts, key).second) == (666_666, 2)
    scripts.client.delete(key)
    hold(scripts, START_US, third, key, 5, "five")
    assert (State(scripts, key).debt, State(scripts, key).second) == (1_666_666, 2)
    hold(scripts, START_US, third, key, 2, "two")
    assert (State(scripts, key).debt, State(scripts, key).second) == (2_333_333, 1)
    assert scripts.settle(START_US, "settle", third, key, 0, hold="five")[0] == 1
    assert (State(scripts, key).debt, State(scripts, key).second) == (666_666, 2)
    assert scripts.settle(START_US, "settle", third, key, 4, hold="two")[0] == 1
    assert (State(scripts, key).debt, State(scripts, key).second) == (1_333_333, 1)
    assert take(scripts, START_US, third, key, 5) == 1
    assert (State(scripts, key).debt, State(scripts, key).second) == (3_000_000, 0)
    hold(scripts, START_US, third, key, 2, "under")
    take(scripts, START_US, third, key, 1)
    assert scripts.settle(START_US, "settle", third, key, 4, hold="under") == [1, 0, 0]
    assert (State(scripts, key).debt, State(scripts, key).second) == (4_666_666, 2)
    put(scripts, key, f"1333333,1,3,{START_US}")
    hold(scripts, START_US, third, key, 5, "more")
    seventh = shape(7, 1, 30)
    assert scripts.settle(START_US, "settle", seventh, key, 0, hold="more")[0] == 1
    assert (State(scripts, key).debt, State(scripts, key).second) == (3_000_000 - 1_666_666, 0)


def test_loan_is_kept_free_until_it_ends(scripts: Scripts) -> None:
    """Then it counts as spent at its end, and drains from there."""
    limit, key = shape(100, 1), scripts.key()
    status, (part,) = scripts.decide(START_US, "borrow", [(limit, key, 10)], lease_us=250_000)
    assert (status, part.debt, part.plain) == (1, 350_000, 0)
    state = State(scripts, key)
    assert (state.debt, state.leased_until, state.lease) == (100_000, START_US + 250_000, 250_000)
    assert MINUTE_MS + 320 < state.ttl_ms <= MINUTE_MS + 350
    for after, debt in ((60_000, 290_000), (249_999, 250_000), (250_000, 250_000), (300_000, 200_000), (600_000, 0)):
        assert look(scripts, START_US + after, limit, key).debt == debt
    assert look(scripts, START_US + 249_999, limit, key, 76).wait_us == 10_001
    assert look(scripts, START_US + 250_000, limit, key).plain == 1
    assert take(scripts, START_US + 300_000, limit, key, 1) == 1
    state = State(scripts, key)
    assert (state.debt, state.more) == (210_000, False)


def test_second_loan_extends_the_first(scripts: Scripts) -> None:
    """The longest end and the longest time; only what is longer is asked for in addition."""
    limit, key = shape(100, 1), scripts.key()
    scripts.decide(START_US, "borrow", [(limit, key, 10)], lease_us=200_000)
    assert scripts.decide(START_US, "borrow", [(limit, key, 71)], lease_us=200_000)[0] == 0
    assert scripts.decide(START_US, "borrow", [(limit, key, 66)], lease_us=250_000)[0] == 0
    assert scripts.decide(START_US, "borrow", [(limit, key, 5)], lease_us=250_000)[0] == 1
    assert State(scripts, key).leased_until == START_US + 250_000
    assert scripts.decide(START_US, "borrow", [(limit, key, 5)], lease_us=100_000)[0] == 1
    state = State(scripts, key)
    assert (state.leased_until, state.lease, state.debt) == (START_US + 250_000, 250_000, 200_000)
    assert scripts.decide(START_US, "borrow", [(limit, key, 55)], lease_us=250_000)[0] == 1, "to the last that is there"
    assert take(scripts, START_US, limit, key, 1) == 0


def test_loan_leaves_its_own_length_free_to_the_microsecond(scripts: Scripts) -> None:
    """The rate goes on while what was lent is spent."""
    limit, key = shape(10**6, 1), scripts.key()
    assert scripts.decide(START_US, "borrow", [(limit, key, 750_001)], lease_us=250_000)[1][0].wait_us == 1
    assert scripts.decide(START_US, "borrow", [(limit, key, 750_000)], lease_us=250_000)[0] == 1


def test_loan_that_has_ended_is_counted_once(scripts: Scripts) -> None:
    """Also while something is held, when the state has more to say."""
    limit, key = shape(100, 1), scripts.key()
    assert hold(scripts, START_US, limit, key, 1, "h") == 1
    scripts.decide(START_US, "borrow", [(limit, key, 10)], lease_us=250_000)
    assert take(scripts, START_US + 300_000, limit, key, 1) == 1
    state = State(scripts, key)
    assert (state.debt, state.leased_until, state.lease) == (210_000, 0, 0)
    assert look(scripts, START_US + 310_000, limit, key).debt == 200_000


def test_plain_check_asks_for_the_state_and_nothing_else(scripts: Scripts) -> None:
    """What is held, lent or queued costs those nothing who have none of it."""
    key = scripts.key()
    for after in (0, S):
        take(scripts, START_US + after, SECONDS, key, 1)
        scripts.client.config_resetstat()
    take(scripts, START_US + 2 * S, SECONDS, key, 1)
    assert set(scripts.client.info("commandstats")) - {"cmdstat_config|resetstat"} == {
        *("cmdstat_evalsha", "cmdstat_get", "cmdstat_set")
    }


def test_hold_whose_record_is_gone_is_not_looked_for_again(scripts: Scripts) -> None:
    """The state says that nothing is held."""
    key = scripts.key()
    hold(scripts, START_US, SECONDS, key, 30, "h", S)
    scripts.client.delete(f"{key}:holds")
    assert look(scripts, START_US + S, SECONDS, key).debt == 29 * S
    assert not State(scripts, key).more


def test_deadlines_are_the_earliest_and_holds_outlive_them(scripts: Scripts) -> None:
    """The state says when somebody must look; all three keys last longer than any hold."""
    key = scripts.key()
    for name, lease, reap_at in (("a", 10, 10), ("b", 5, 5), ("c", 20, 5)):
        _, (part,) = scripts.decide(START_US, "hold", [(SECONDS, key, 1)], hold=name, lease_us=lease * S)
        assert (State(scripts, key).reap_at, part.plain) == (START_US + reap_at * S, 0)
    for name in (key, f"{key}:holds", f"{key}:deadlines"):
        assert HOUR_MS - 5000 < scripts.client.pttl(name) <= HOUR_MS
    assert scripts.client.hget(f"{key}:holds", "b") == f"{S},0,1,{START_US},{10**15},0".encode()
    assert scripts.settle(START_US, "settle", SECONDS, key, 1, hold="b")[0] == 1
    assert State(scripts, key).reap_at == START_US + 10 * S
    assert scripts.settle(START_US, "renew", SECONDS, key, 0, hold="a", lease_us=30 * S)[0] == 1
    assert State(scripts, key).reap_at == START_US + 20 * S
    for name in ("a", "c"):
        assert scripts.settle(START_US, "settle", SECONDS, key, 1, hold=name)[0] == 1
    assert not State(scripts, key).more
    assert not scripts.client.exists(f"{key}:holds", f"{key}:deadlines")
    assert look(scripts, START_US, SECONDS, key).plain == 1


def test_renewal_makes_all_last(scripts: Scripts) -> None:
    """The hour begins again."""
    key = scripts.key()
    hold(scripts, START_US, SECONDS, key, 1, "a")
    names = (key, f"{key}:holds", f"{key}:deadlines")
    for name in names:
        scripts.client.pexpire(name, 100_000)
    assert scripts.settle(START_US + S, "renew", SECONDS, key, 0, hold="a", lease_us=60 * S) == [1, 0, 0]
    assert all(scripts.client.pttl(name) > HOUR_MS - 5000 for name in names)
    assert scripts.settle(START_US + S, "renew", SECONDS, key, 0, hold="z", lease_us=60 * S) == [3, 0, 0]


def test_eight_are_reaped_per_call_in_their_order(scripts: Scripts) -> None:
    """At the deadline, not before; what cannot be read any more is let go too."""
    key = scripts.key()
    for number in range(10):
        hold(scripts, START_US, SECONDS, key, 3, f"h{number}", (10 + number) * S)
    scripts.client.hdel(f"{key}:holds", "h1")
    assert look(scripts, START_US + 10 * S - 1, SECONDS, key).debt == 20 * S + 1
    assert scripts.client.hlen(f"{key}:holds") == 9
    assert look(scripts, START_US + 10 * S, SECONDS, key).debt == 18 * S, "a third of each has grown back"
    assert scripts.client.zrange(f"{key}:deadlines", 0, 0) == [b"h1"]
    assert look(scripts, START_US + 19 * S, SECONDS, key).debt == 2 * S, (
        "the last one's second, and that of the one that was lost"
    )
    assert scripts.client.hkeys(f"{key}:holds") == [b"h9"]
    assert State(scripts, key).reap_at == START_US + 19 * S
    look(scripts, START_US + 19 * S, SECONDS, key)
    assert not scripts.client.exists(f"{key}:holds", f"{key}:deadlines")
    assert scripts.client.zcard(f"{key}:reaped") == 10


def test_ids_are_remembered_for_an_hour_and_a_thousand_of_them(scripts: Scripts) -> None:
    """A debit is recorded once per id; a second one does not make it last longer."""
    key, limit = scripts.key(), shape(10**6, 10**6)

    def debit(after_s: int, name: str) -> int:
        return scripts.settle(START_US + after_s * S, "debit", limit, key, 7, hold=name)[0]

    assert [debit(at, "x") for at in (0, 1, 1800, 3599, 3600, 3601)] == [1, 3, 3, 3, 1, 3]
    assert HOUR_MS - 5000 < scripts.client.pttl(f"{key}:reaped") <= HOUR_MS
    for number in range(1000):
        assert debit(3602 + number // 500, f"n{number}") == 1
    assert scripts.client.zcard(f"{key}:reaped") == 1000
    assert debit(3604, "n0") == 3
    assert scripts.client.zscore(f"{key}:reaped", "x") is None


def test_fences_only_rise(scripts: Scripts) -> None:
    """Of the server's time, or one above the last; also after the state was forgotten."""
    key = scripts.key()

    def fence(now_us: int, name: str) -> int:
        status, (part,) = scripts.decide(now_us, "hold", [(SLOTS, key, 1)], hold=name, lease_us=60 * S)
        assert (status, part.plain) == (1, 0)
        return int(part.part)

    assert [fence(START_US, "a"), fence(START_US, "b"), fence(START_US + 9, "c")] == [START_US, START_US + 1, START_US + 9]
    assert look(scripts, START_US + 9, SLOTS, key, 1).wait_us == 60 * S - 9
    assert scripts.settle(START_US + 9, "settle", SLOTS, key, 0, hold="a") == [1, 0, 0]
    state = State(scripts, key)
    assert (state.debt, state.second, state.third, state.moment) == (2, START_US + 9, 0, START_US + 9)
    for name in ("b", "c"):
        scripts.settle(START_US + 9, "settle", SLOTS, key, 0, hold=name)
    assert MINUTE_MS - 5000 < State(scripts, key).ttl_ms <= MINUTE_MS
    scripts.client.delete(key)
    assert fence(START_US + 20, "d") == START_US + 20


def test_full_slots_are_asked_again_within_a_millisecond_at_least(scripts: Scripts) -> None:
    """Nobody waits for 0 because a deadline is near."""
    key = scripts.key()
    hold(scripts, START_US, SLOTS, key, 3, "a", 2 * S)
    assert look(scripts, START_US + S, SLOTS, key, 1).wait_us == S
    assert look(scripts, START_US + 2 * S - 999, SLOTS, key, 1).wait_us == 1000
    assert look(scripts, START_US + S, SLOTS, key, 0).wait_us == 0


def test_ten_thousand_are_held_at_most(scripts: Scripts) -> None:
    """Then only holds are refused, until the first ends or for a millisecond."""
    key, limit = scripts.key(), shape(10**6, 10**6)
    hold(scripts, START_US, limit, key, 1, "first", 9 * S)
    scripts.client.hset(f"{key}:holds", mapping={f"h{n}": f"1,0,1,{START_US}" for n in range(9998)})
    assert hold(scripts, START_US, limit, key, 1, "last") == 1
    status, (part,) = scripts.decide(START_US, "hold", [(limit, key, 1)], hold="over", lease_us=S)
    assert (status, part.wait_us) == (0, 9 * S)
    assert take(scripts, START_US, limit, key, 1) == 1
    later = START_US + 9 * S - 5
    assert scripts.decide(later, "hold", [(limit, key, 1)], hold="over", lease_us=S)[1][0].wait_us == 1000


def test_held_id_is_the_same_answer_a_reaped_one_is_none(scripts: Scripts) -> None:
    """Over two limits: held in one is held; reaped in the first that is asked is reaped."""
    one, two = scripts.key(), scripts.key()
    both = [(SECONDS, one, 60), (SECONDS, two, 60)]
    assert scripts.decide(START_US, "hold", both, hold="h", lease_us=S)[0] == 1
    status, parts = scripts.decide(START_US, "hold", both, hold="h", lease_us=S)
    assert (status, [(part.fits, part.debt, part.wait_us) for part in parts]) == (2, [(1, 60 * S, 0)] * 2)
    assert scripts.client.hlen(f"{one}:holds") == 1
    look(scripts, START_US + S, SECONDS, one)
    assert scripts.decide(START_US, "hold", both, hold="h", lease_us=S) == (-2, [])
    assert scripts.decide(START_US, "hold", both[::-1], hold="h", lease_us=S)[0] == -2
    assert scripts.decide(START_US, "take", both[:1], hold="h", lease_us=S)[0] == 0 or look(scripts, START_US, SECONDS, one)
    assert State(scripts, two).debt == 60 * S


def test_hold_of_nothing_is_a_hold_a_take_of_nothing_is_none(scripts: Scripts) -> None:
    """What costs nothing writes nothing, unless somebody wants to settle it."""
    key, fine = scripts.key(), shape(10**9, 1, 10**9)
    assert take(scripts, START_US, SECONDS, key, 0) == 1
    assert not scripts.client.exists(key)
    assert take(scripts, START_US, fine, key, 1) == 1
    assert State(scripts, key).second == 1, "a thousandth of a microsecond is something"
    assert hold(scripts, START_US, SECONDS, key, 0, "h") == 1
    assert scripts.client.hlen(f"{key}:holds") == 1


def test_settlement_after_the_fence(scripts: Scripts) -> None:
    """Held before, on a server that is gone: what was more than held is recorded; of a kept limit all; slots nothing."""
    kept, later = shape(100, 100, after_failover="keep"), START_US + 20 * S
    fence_at(scripts, START_US + 10 * S)

    def settle(limit: Shape, used: int, opened: int) -> tuple[list[int], int]:
        key = scripts.key()
        put(scripts, key, f"{50 * S},0,1,{later}")
        told = scripts.settle(later, "settle", limit, key, used, hold="h", held=5, opened_us=opened and START_US + opened * S)
        return told, State(scripts, key).debt // S

    assert settle(SECONDS, 8, 5) == ([1, 0, 0], 53)
    assert settle(SECONDS, 3, 5) == ([1, 0, 0], 50)
    assert settle(kept, 8, 5) == ([2, 0, 0], 58)
    assert settle(SECONDS, 8, 10) == ([3, 0, 0], 50)
    assert settle(SECONDS, 8, 0) == ([3, 0, 0], 50)
    key = scripts.key()
    assert scripts.settle(later, "settle", SLOTS, key, 1, hold="h", held=1, opened_us=START_US) == [3, 0, 0]


@pytest.mark.parametrize(("opened", "debt"), [(9, 90), (10, 87), (11, 87)])
def test_hold_of_before_the_fence_is_not_given_back(scripts: Scripts, opened: int, debt: int) -> None:
    """It was counted as spent; from the fence on it is given back."""
    key, later = scripts.key(), START_US + 20 * S
    fence_at(scripts, START_US + 10 * S)
    put(scripts, key, f"{90 * S},0,1,{later},{START_US + 90 * S},0,0,0,0,{3 * S},{10**15},0")
    scripts.client.hset(f"{key}:holds", "h", f"{3 * S},0,1,{START_US + opened * S},{10**15},0")
    scripts.client.zadd(f"{key}:deadlines", {"h": START_US + 90 * S})
    assert scripts.settle(later, "settle", SECONDS, key, 0, hold="h") == [1, 0, 0]
    assert State(scripts, key).debt == debt * S
    scripts.client.pexpire(f"{key}:holds", 1000)


def test_ten_times_the_capacity_is_the_most(scripts: Scripts) -> None:
    """To the microsecond, and what is above is told."""
    key = scripts.key()
    assert scripts.settle(START_US, "debit", SECONDS, key, 995, hold="a") == [1, 0, 0]
    assert scripts.settle(START_US, "debit", SECONDS, key, 5, hold="b") == [1, 0, 0]
    assert scripts.settle(START_US, "debit", SECONDS, key, 5, hold="c") == [1, 5 * S, 0]
    assert scripts.settle(START_US + 2 * S, "debit", SECONDS, key, 5, hold="d") == [1, 3 * S, 0]
    assert look(scripts, START_US + 2 * S, SECONDS, key).debt == 1000 * S
    put(scripts, key, f"{2000 * S},0,1,{START_US}")
    assert scripts.settle(START_US, "debit", SECONDS, key, 5, hold="e") == [1, 5 * S, 0]
    assert State(scripts, key).debt == 2000 * S
    tiny, key = shape(3 * 10**6, 1, 1), scripts.key()
    assert scripts.settle(START_US, "debit", tiny, key, 34, hold="a") == [1, 1, 1], "ten microseconds, also of less than one"


def test_what_was_taken_without_a_hold_is_returned_less_what_has_grown(scripts: Scripts) -> None:
    """Of buckets; of windows if they still count it: this one, or for sliding the one before."""
    key = scripts.key()
    for opened, debt in ((0, 85), (4, 89 - 0), (5, 90)):
        put(scripts, key, f"{90 * S},0,1,{START_US}")
        assert scripts.settle(START_US, "return", SECONDS, key, 5, opened_us=START_US - opened * S) == [1, 0, 0]
        assert State(scripts, key).debt == debt * S
    begins = 1000 * S
    for kind in ("fixed_window", "sliding_window"):
        limit, now_us = shape(10, 100, algorithm=kind), begins + 50 * S
        for opened, cost, kept in (
            (begins, 3, (4, 8)),
            (begins, 30, (0, 8)),
            (begins - 1, 3, (7, 5 if limit.kind == "s" else 8)),
            (begins - 100 * S, 30, (7, 0 if limit.kind == "s" else 8)),
            (begins - 100 * S - 1, 3, (7, 8)),
        ):
            put(scripts, key, f"7,8,{begins},{now_us}")
            assert scripts.settle(now_us, "return", limit, key, cost, opened_us=opened) == [1, 0, 0]
            assert (State(scripts, key).debt, State(scripts, key).second) == kept


def test_settlements_of_one_call_are_told_in_their_order(scripts: Scripts) -> None:
    """One that cannot be read among them."""
    keys = [scripts.key() for _ in range(4)]
    put(scripts, keys[1], "nonsense")
    requests = [["debit", f"d{n}", 0, 1, cost, 0, 0, 0, 0] for n, cost in enumerate((1, 1, 2000 * S, 3))]
    requests.append(["renew", "none", S, 1, 0, 0, 0, 0, 0])
    arguments = [START_US, 2, b"[" + SECONDS.wire(START_US) + b"]", msgspec.json.encode(requests)]
    reply = scripts._run(SETTLE, [scripts.fence, *keys, keys[0]], arguments)
    assert reply == [START_US, 0, 1, 0, 0, -1, 0, 0, 1, 1000 * S, 0, 1, 0, 0, 3, 0, 0]


def test_slots_wait_for_unknown_holders(scripts: Scripts) -> None:
    """For a minute after the fence all are taken; who renews counts from then; who is settled late takes nothing."""
    key = scripts.key()
    fence_at(scripts, START_US)
    seen = look(scripts, START_US + 59 * S, SLOTS, key, 1)
    assert (seen.debt, seen.wait_us, seen.plain) == (3, S, 0)
    assert scripts.settle(START_US + 59 * S, "renew", SLOTS, key, 0, hold="g", lease_us=60 * S, held=2) == [1, 0, 0]
    assert State(scripts, key).debt == 2
    seen = look(scripts, START_US + 60 * S, SLOTS, key, 1)
    assert (seen.debt, seen.wait_us) == (2, 0)
    assert scripts.settle(START_US + 60 * S, "renew", SLOTS, key, 0, hold="late", lease_us=60 * S, held=1) == [3, 0, 0]
    kept = shape(3, unit="slots", after_failover="keep")
    assert look(scripts, START_US + S, kept, scripts.key(), 3).wait_us == 0
    look(scripts, START_US + 119 * S, SLOTS, key)
    assert scripts.settle(START_US + 119 * S, "settle", SLOTS, key, 2, hold="g") == [2, 0, 0]
    assert State(scripts, key).debt == 0
