"""The scripts' rules one by one, to the microsecond: what is kept, what is written, what is given back, who stands where."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import redis

from observatory.features.rate_limiter.shape import Shape
from tests.features.rate_limiter.scripts import ADVANCE, DECIDE, SETTLE, START_US, Scripts, shape
from tests.servers import Server

S = 1_000_000
HOUR_MS, MINUTE_MS = 3_720_000, 60_000
SECONDS = shape(100, 100)
"""A bucket whose unit is a second of debt."""
SLOTS = shape(3, unit="slots")


@pytest.fixture
def scripts(server: Server) -> Iterator[Scripts]:
    with redis.Redis.from_url(server.url) as client:
        yield Scripts(client)
        client.flushall()


class State:
    """What is written at a key, by its fields."""

    def __init__(self, scripts: Scripts, key: str) -> None:
        text = (scripts.client.get(key) or b"").decode()
        first, rest = text.split(",")[:4], text.split(",")[4:]
        self.debt, self.second, self.third, self.moment = map(int, first)
        self.more = bool(rest)
        numbers = [int(one) for one in rest[:5]] or [0] * 5
        self.reap_at, self.line_until, self.queued, self.leased_until, self.lease = numbers
        self.held, self.share, self.era = map(int, rest[5:8]) if rest else (0, 0, 0)
        self.ttl_ms = scripts.client.pttl(key)


def put(scripts: Scripts, key: str, text: str) -> None:
    scripts.client.set(key, text, px=HOUR_MS)


def fence_at(scripts: Scripts, since_us: int) -> None:
    """This server was found to have been restarted at that moment."""
    scripts.known = 1
    history = scripts.client.info("replication")["master_replid"]
    scripts.client.set(scripts.fence, f"{history},{scripts.client.info('server')['run_id']},{since_us}")


def ask(scripts: Scripts, now_us: int, limits: list[list[Any]], requests: list[list[Any]], keys: list[str]) -> list[Any]:
    """decide, with limits as the scripts take them."""
    arguments = [now_us, scripts.known, msgspec.json.encode(limits), msgspec.json.encode(requests)]
    return list(scripts._run(DECIDE, [scripts.fence, *keys], arguments))


def look(scripts: Scripts, now_us: int, limit: Shape, key: str, cost: int = 0) -> Any:
    (_, (part,)) = scripts.decide(now_us, "look", [(limit, key, cost)])
    return part


def take(scripts: Scripts, now_us: int, limit: Shape, key: str, cost: int) -> int:
    return scripts.decide(now_us, "take", [(limit, key, cost)])[0]


def hold(scripts: Scripts, now_us: int, limit: Shape, key: str, cost: int, name: str, lease_us: int = 60 * S) -> int:
    return scripts.decide(now_us, "hold", [(limit, key, cost)], hold=name, lease_us=lease_us)[0]


# Time, and what may be believed.


def test_server_is_asked_for_the_time(scripts: Scripts) -> None:
    """now_us 0: between two looks at the server's clock."""
    before, reply, after = scripts.client.time(), ask(scripts, 0, [], [], []), scripts.client.time()
    assert before[0] * S + before[1] <= reply[0] <= after[0] * S + after[1]
    assert ask(scripts, 7, [], [], []) == [7, 0]


@pytest.mark.parametrize(
    ("known", "record", "since"),
    [
        (2, None, 0),
        (0, None, 0),
        (1, None, START_US),
        (0, "{history},{run},5", 5),
        (1, "{history},{run},0", 0),
        (1, "{history},other,5", 5),
        (1, f"{{history}},{{run}},{START_US + S}", START_US + S),
        (1, f"{{history}},{{run}},{START_US + S + 1}", START_US),
        (1, "elsewhere,{run},5", 5),
        (0, "elsewhere,other,5", START_US),
        (1, "nonsense", START_US),
    ],
)
def test_fence_is_where_the_record_says(scripts: Scripts, known: int, record: str | None, since: int) -> None:
    """Written down under the present history whenever it was not so; never with a TTL; not at all where it sleeps."""
    history, run = (
        scripts.client.info(section)[name] for section, name in (("replication", "master_replid"), ("server", "run_id"))
    )
    scripts.known = known
    kept = record.format(history=history, run=run) if record else None
    if kept:
        scripts.client.set(scripts.fence, kept)
    assert ask(scripts, START_US, [], [], [])[1] == since
    written = scripts.client.get(scripts.fence)
    if known == 2:
        assert written is None
    elif kept and kept.startswith(history) and since != START_US:
        assert written == kept.encode()
    else:
        assert written == f"{history},{run},{since}".encode()
    assert scripts.client.ttl(scripts.fence) in {-1, -2}


def test_fence_sleeps_where_info_is_refused(scripts: Scripts) -> None:
    """The client then passes what it knows; nothing is written."""
    scripts.client.execute_command("ACL", "SETUSER", "narrow", "on", "nopass", "~*", "+@all", "-info")
    path = scripts.client.connection_pool.connection_kwargs["path"]
    with redis.Redis(unix_socket_path=path, username="narrow", password="") as narrow:
        reply = narrow.eval(DECIDE.text, 1, scripts.fence, START_US, 1, "[]", "[]")
    scripts.client.execute_command("ACL", "DELUSER", "narrow")
    assert reply == [START_US, 0]
    assert not scripts.client.exists(scripts.fence)


@pytest.mark.parametrize(
    ("state", "moment", "fence", "expected"),
    [
        ((30, 0), 0, 10, 95),
        ((500, 0), 0, 10, 485),
        ((30, 0), 10, 10, 25),
        ((30, 0), 11, 10, 26),
        (None, 0, 10, 95),
        (None, 0, 0, 0),
    ],
)
def test_bucket_from_before_the_fence_was_full_at_it(
    scripts: Scripts, state: Any, moment: int, fence: int, expected: int
) -> None:
    """At least; and drains from there. What was written at the fence or after is believed; of a kept limit all is."""
    key = scripts.key()
    fence_at(scripts, START_US + fence * S if fence else 0)
    if state:
        put(scripts, key, f"{state[0] * S},{state[1]},1,{START_US + moment * S}")
    assert look(scripts, START_US + 15 * S, SECONDS, key).debt == expected * S
    kept = shape(100, 100, after_failover="keep")
    assert look(scripts, START_US + 15 * S, kept, key).debt == (max(state[0] + moment - 15, 0) * S if state else 0)


@pytest.mark.parametrize(
    ("state", "expected"), [("3333333,0", (3333333, 1)), ("3333333,2", (3333333, 2)), ("3333334,0", (3333334, 0))]
)
def test_full_is_meant_to_the_fraction(scripts: Scripts, state: str, expected: tuple[int, int]) -> None:
    """A third of a microsecond counts too."""
    limit, key = shape(3, 10, 1), scripts.key()
    fence_at(scripts, START_US + 1)
    debt, part = map(int, state.split(","))
    put(scripts, key, f"{debt + 1},{part},3,{START_US}")
    seen = look(scripts, START_US + 1, limit, key)
    assert (seen.debt, seen.part) == expected


@pytest.mark.parametrize("kind", ["w", "s"])
@pytest.mark.parametrize(
    ("fence", "counted"),
    [(1005, (10, 3)), (1000, (10, 3)), (999, (2, 10)), (900, (2, 10)), (899, (2, 3))],
)
def test_window_that_the_fence_lies_in_is_full(scripts: Scripts, kind: str, fence: int, counted: tuple[int, int]) -> None:
    """And the one before, which a sliding window counts; older ones do not matter. Asked at the start of the window."""
    key, begins = scripts.key(), 1000 * S
    limit = [kind, 10, 0, 1, begins if kind == "w" else S, 100 * S, 0, 0]
    fence_at(scripts, fence * S)
    put(scripts, key, f"2,3,{begins},{fence * S - 1}")
    now_us = begins + 10 * S
    expected = counted[0] + (counted[1] * 90 + 99) // 100 if kind == "s" else counted[0]
    assert ask(scripts, now_us, [limit], [["look", 0, 0, 1, 0, 0]], [key])[4] == expected
    put(scripts, key, f"2,3,{begins},{fence * S}")
    believed = 2 + (3 if kind == "s" else 0)
    assert ask(scripts, now_us, [limit], [["look", 0, 0, 1, 0, 0]], [key])[4] == believed
    limit[6] = 1
    put(scripts, key, f"2,3,{begins},{fence * S - 1}")
    assert ask(scripts, now_us, [limit], [["look", 0, 0, 1, 0, 0]], [key])[4] == believed


def test_overfull_window_stays_overfull_at_the_fence(scripts: Scripts) -> None:
    """More than the capacity was used before: that is believed."""
    key, begins = scripts.key(), 1000 * S
    fence_at(scripts, begins + 5)
    put(scripts, key, f"25,3,{begins},{begins}")
    assert ask(scripts, begins + 10, [["w", 10, 0, 1, begins, 100 * S, 0, 0]], [["look", 0, 0, 1, 0, 0]], [key])[4] == 25


@pytest.mark.parametrize(
    ("start", "now", "answer"),
    [
        (1000, 1000, [1, 4, 100]),
        (1000, 1099, [1, 4, 1]),
        (1000, 1100, [-3]),
        (1000, 999, [-3]),
        (1050, 1060, [1, 4, 90]),
        (1050, 1050, [1, 4, 100]),
        (1050, 1049, [1, 4, 51]),
        (950, 1010, [1, 0, 90]),
        (900, 1010, [1, 0, 90]),
    ],
)
def test_named_window_and_the_state_s(scripts: Scripts, start: int, now: int, answer: list[int]) -> None:
    """The later of both, if it has begun; outside of it the caller is told so."""
    key = scripts.key()
    put(scripts, key, f"4,0,{start * S},{min(now, start) * S}")
    limit = ["w", 10, 0, 1, 1000 * S, 100 * S, 0, 0]
    reply = ask(scripts, now * S, [limit], [["look", 0, 0, 1, 0, 0]], [key])[2:]
    assert [reply[0], *(reply[2:3] + [one // S for one in reply[3:4]])] == answer


def test_stale_window_takes_nothing_and_harms_no_other(scripts: Scripts) -> None:
    """The other part of that request is not charged; the next request is answered."""
    key, other = scripts.key(), scripts.key()
    limits = [["w", 10, 0, 1, 1000 * S, 100 * S, 0, 0], ["w", 10, 0, 1, 1200 * S, 100 * S, 0, 0]]
    requests: list[list[Any]] = [["take", 0, 0, 2, 1, 0, 1, 1, 0, 2, 1, 0], ["take", 0, 0, 2, 3, 0]]
    reply = ask(scripts, 1210 * S, limits, requests, [other, key, other, other])
    assert reply[2:] == [-3, 1, 1, 3, 90 * S, 0, 1]


# The clock of the server steps back.


def test_step_back_of_a_second_stands_still(scripts: Scripts) -> None:
    """Waits are longer by the lag, nothing is moved; of each kind."""
    later = START_US + 10 * S
    bucket, slots, fixed, sliding = (scripts.key() for _ in range(4))
    window: list[Any] = ["w", 1, 0, 1, later - later % (100 * S), 100 * S, 0, 0]
    put(scripts, bucket, f"{100 * S},0,1,{later}")
    hold(scripts, later, SLOTS, slots, 3, "h", 5 * S)
    put(scripts, fixed, f"1,0,{window[4]},{later}")
    before = State(scripts, slots)
    assert look(scripts, later - S, SECONDS, bucket, 1).wait_us == 2 * S
    assert look(scripts, later - S, SLOTS, slots, 1).wait_us == 6 * S
    assert ask(scripts, later - S, [window], [["look", 0, 0, 1, 1, 0]], [fixed])[6] == window[4] + 101 * S - later
    assert State(scripts, slots).reap_at == before.reap_at == later + 5 * S
    limit = shape(4, 100, algorithm="sliding_window")
    assert take(scripts, later, limit, sliding, 4) == 1
    assert look(scripts, later - S, limit, sliding, 1).wait_us == look(scripts, later, limit, sliding, 1).wait_us + S


def test_larger_step_back_moves_what_is_held(scripts: Scripts) -> None:
    """Deadlines and loans end when they would have; what was held gives nothing back; the line ends."""
    key, later = scripts.key(), START_US + 100 * S
    for number in range(3):
        assert hold(scripts, later, SECONDS, key, 10, f"h{number}", (20 + number) * S) == 1
    assert scripts.decide(later, "borrow", [(SECONDS, key, 1)], lease_us=S)[0] == 1
    scripts.advance(later, SECONDS, key, "me", [("t", 100, "", 1, -1, 0)])
    assert State(scripts, key).line_until > later
    now_us = later - 50 * S
    assert take(scripts, now_us, SECONDS, key, 200) == 0
    state = State(scripts, key)
    assert (state.moment, state.debt) == (now_us, 31 * S)
    assert (state.reap_at, state.line_until, state.leased_until) == (now_us + 20 * S, 0, now_us + S)
    assert (state.held, state.era) == (0, 1)
    deadlines = scripts.client.zrange(f"{key}:deadlines", 0, -1, withscores=True)
    assert deadlines == [(f"h{n}".encode(), now_us + (20 + n) * S) for n in range(3)]
    assert scripts.settle(now_us, "settle", SECONDS, key, 0, hold="h0")[0] == 1
    assert State(scripts, key).debt == 31 * S


def test_step_back_before_a_deadline_that_has_passed(scripts: Scripts) -> None:
    """Moments do not fall below 0; without holds there are no marks."""
    key = scripts.key()
    put(scripts, key, f"{5 * S},0,1,{100 * S},{20 * S},0,0,{30 * S},{2 * S},0,{10**15},0")
    assert look(scripts, 10 * S, SECONDS, key).debt == 5 * S
    state = State(scripts, key)
    assert (state.reap_at, state.leased_until, state.held) == (0, 0, 0)


# Buckets: marks, loans.


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


# Holds.


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


# Settlement.


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


# What is written, and what is said.


def test_states_last_a_minute_longer_than_they_matter(scripts: Scripts) -> None:
    """The bucket until it is full again, the window until it ends, the sliding one until the next has."""
    now_us = 1000 * S + 20 * S
    for limit, lasts in (
        (SECONDS, 50),
        (shape(100, 100, algorithm="fixed_window"), 80),
        (shape(100, 100, algorithm="sliding_window"), 180),
    ):
        key = scripts.key()
        status, (part,) = scripts.decide(now_us, "take", [(limit, key, 50)])
        assert (status, part.plain) == (1, 1)
        assert MINUTE_MS + lasts * 1000 - 2000 < scripts.client.pttl(key) <= MINUTE_MS + lasts * 1000
        assert part.part == (0 if limit.kind == "b" else lasts * S)
    long, key = shape(100, 10**6), scripts.key()
    assert hold(scripts, now_us, long, key, 100, "h") == 1
    assert scripts.client.pttl(key) > 10**9


def test_empty_sliding_window_is_free_at_its_end(scripts: Scripts) -> None:
    """Of the window before something counts until then."""
    limit, key, begins = shape(100, 100, algorithm="sliding_window"), scripts.key(), 1000 * S
    put(scripts, key, f"40,0,{begins - 100 * S},{begins - 1}")
    seen = look(scripts, begins + 25 * S, limit, key)
    assert (seen.debt, seen.part) == (30, 75 * S)


@pytest.mark.parametrize(
    ("used", "before", "after", "cost", "counted", "wait"),
    [
        (0, 1000, 0, 0, 1000, 0),
        (0, 1000, 10 * S - 1, 0, 1000, 0),
        (0, 1000, 10 * S, 0, 900, 0),
        (0, 1000, 15 * S, 150, 900, 5 * S),
        (0, 1000, 15 * S, 100, 900, 0),
        (0, 1000, 15 * S, 101, 900, 5 * S),
        (100, 1000, 15 * S, 900, 1000, 80 * S),
        (0, 1000, 94 * S, 1000, 100, S),
        (0, 999, 15 * S, 0, 900, 0),
        (0, 999, 15 * S, 101, 900, 5 * S),
        (1000, 0, 15 * S, 0, 1000, 0),
        (1, 0, 15 * S, 0, 1, 0),
        (1000, 0, 15 * S, 150, 1000, 100 * S),
        (1000, 500, 15 * S, 1000, 1450, 175 * S),
        (1000, 500, 15 * S, 1001, 1450, 175 * S),
        (900, 1000, 15 * S, 100, 1800, 80 * S),
        (900, 1000, 15 * S, 101, 1800, 90 * S),
        (0, 0, 15 * S, 1001, 0, 80 * S),
    ],
)
def test_sliding_window_falls_tick_by_tick(
    scripts: Scripts, used: int, before: int, after: int, cost: int, counted: int, wait: int
) -> None:
    """Ten ticks of ten seconds, the last cut to five: shares are rounded against the caller, waits end with a tick."""
    key, begins = scripts.key(), 950 * S
    put(scripts, key, f"{used},{before},{begins},{begins}")
    reply = ask(scripts, begins + after, [["s", 1000, 0, 1, 10 * S, 95 * S, 0, 0]], [["look", 0, 0, 1, cost, 0]], [key])
    fits, debt, reset, wait_us = reply[3:7]
    assert (debt, reset) == (counted, (95 if used == 0 else 190) * S - after)
    assert (wait_us, fits) == (wait, int(wait == 0))


def test_shadow_is_charged_while_it_fits_and_refuses_nobody(scripts: Scripts) -> None:
    """What it would have refused is not charged to it, but to the others."""
    shadow, watched, real = shape(2, 2, shadow=True), scripts.key(), scripts.key()
    told = [scripts.decide(START_US, "take", [(shadow, watched, 1), (SECONDS, real, 1)]) for _ in range(3)]
    assert [status for status, _ in told] == [1, 1, 1]
    assert [parts[0].fits for _, parts in told] == [1, 1, 0]
    assert told[2][1][0].wait_us == S
    assert (State(scripts, watched).debt, State(scripts, real).debt) == (2 * S, 3 * S)


def test_one_key_under_two_limits_in_one_batch(scripts: Scripts) -> None:
    """The second reads what the first has written."""
    key, other = scripts.key(), shape(50, 50)
    batch = [("take", [(limit, key, 20)], "", 0) for limit in (SECONDS, other, SECONDS)]
    told = scripts.batch(START_US, batch)
    assert [parts[0].debt for _, parts in told] == [20 * S, 40 * S, 60 * S]
    assert State(scripts, key).debt == 60 * S


# The line.


def joins(*tickets: list[Any]) -> str:
    return msgspec.json.encode(tickets).decode()


def stand(
    scripts: Scripts, now_us: int, key: str, owner: str, asked: str = "[]", leaves: Any = (), limit: Shape = SECONDS
) -> Any:
    """advance, with joins as the script takes them: ticket, cost, part, class, weight, place, patience, lease."""
    limits = b"[" + limit.wire(now_us) + b"]"
    arguments = [now_us, scripts.known, limits, owner, asked, msgspec.json.encode(leaves)]
    return scripts._run(ADVANCE, [scripts.fence, key], arguments)


def test_line_stands_in_the_state(scripts: Scripts) -> None:
    """For a quarter second longer than a silent owner; who looks is not held up; the rest waits for all of it."""
    key = scripts.key()
    take(scripts, START_US, SECONDS, key, 95)
    reply = stand(scripts, START_US, key, "me", joins(["t", 10 * S, 0, "", 1, "back", -1, 0]))
    assert reply == [START_US, 0, START_US, 5 * S, [], [], 95 * S, 0]
    state = State(scripts, key)
    assert (state.reap_at, state.line_until, state.queued) == (0, START_US + 1_250_000, 10 * S)
    assert (state.leased_until, state.lease, state.held) == (0, 0, 0)
    for name in (":line", ":owners"):
        assert MINUTE_MS - 5000 < scripts.client.pttl(key + name) <= MINUTE_MS
    seen = look(scripts, START_US, SECONDS, key, 1)
    assert (seen.fits, seen.wait_us, seen.plain) == (1, 0, 0)
    for verb in ("take", "hold", "borrow"):
        status, (part,) = scripts.decide(START_US, verb, [(SECONDS, key, 1)], hold="h", lease_us=S)
        assert (status, part.wait_us) == (0, 6 * S)
    assert scripts.decide(START_US + 1_249_999, "take", [(SECONDS, key, 1)])[0] == 0
    assert look(scripts, START_US + 1_250_000, SECONDS, key, 1).plain == 1
    assert take(scripts, START_US + 1_250_000, SECONDS, key, 1) == 1
    assert not State(scripts, key).more, "the line is over"


def test_line_that_everybody_fits_beside_holds_up_for_a_millisecond(scripts: Scripts) -> None:
    """The wait is never 0 while it stands."""
    key = scripts.key()
    put(scripts, key, f"0,0,1,{START_US},0,{START_US + S},0,0,0,0,{10**15},0")
    status, (part,) = scripts.decide(START_US, "take", [(SECONDS, key, 1)])
    assert (status, part.wait_us) == (0, 1000)


def test_tags_are_by_class_and_weight(scripts: Scripts) -> None:
    """Each class advances by cost / weight from the last that was granted; front is before all; a tag is kept."""
    key = scripts.key()
    take(scripts, START_US, SECONDS, key, 100)

    def tags() -> dict[str, float]:
        found = scripts.client.zrange(f"{key}:line", 0, -1, withscores=True)
        return {member.decode().split("|")[1]: score for member, score in found}

    asked = [
        ["g1", 3 * S, 0, "gold", 3, "back", -1, 0],
        ["g2", 6 * S, 0, "gold", 3, "back", -1, 0],
        ["i1", 2 * S, 0, "iron", 1, "back", -1, 0],
        ["z1", 0, 1, "zero", 2, "back", -1, 0],
        ["f1", S, 0, "gold", 3, "front", -1, 0],
        ["k1", S, 0, "iron", 1, "2500000.5", -1, 0],
        ["k2", S, 0, "iron", 1, "5", -1, 0],
    ]
    stand(scripts, START_US, key, "me", joins(*asked))
    assert tags() == {"f1": 0, "z1": 0.5, "k2": 5, "g1": S, "i1": 2 * S, "k1": 2500000.5, "g2": 3 * S}
    last = {name: float(scripts.client.hget(f"{key}:owners", name)) for name in ("#gold", "#iron", "#zero")}
    assert last == {"#gold": 3 * S, "#iron": 2500000.5, "#zero": 0.5}
    queued = 14 * S
    assert State(scripts, key).queued == int(scripts.client.hget(f"{key}:owners", "queued")) == queued
    stand(scripts, START_US, key, "me", joins(asked[0]))
    assert len(tags()) == 7
    assert State(scripts, key).queued == queued, "the same ticket again is the same ticket"
    granted = stand(scripts, START_US + 5 * S, key, "me")[4]
    assert granted == [b"f1", 0, b"z1", 0, b"k2", 0]
    assert State(scripts, key).queued == queued - 2 * S
    granted = stand(scripts, START_US + 5 * S + 2, key, "me", joins(["n1", 4 * S, 0, "new", 1, "front", -1, 0]))[4]
    assert granted == []
    assert tags()["n1"] == 5


def test_leaving_takes_the_promise_away(scripts: Scripts) -> None:
    """Once; the last one's line is gone with all that stood beside it."""
    key = scripts.key()
    take(scripts, START_US, SECONDS, key, 100)
    asked = [[name, 10 * S, 0, "", 1, "back", -1, 0] for name in ("a", "b")]
    assert stand(scripts, START_US, key, "me", joins(*asked))[3] == 10 * S
    gone = [f"a|{10 * S}|0|0"]
    assert stand(scripts, START_US + S, key, "me", leaves=gone)[3] == 9 * S
    assert State(scripts, key).queued == 10 * S
    stand(scripts, START_US + S, key, "me", leaves=gone)
    assert State(scripts, key).queued == 10 * S
    reply = stand(scripts, START_US + S, key, "me", leaves=[f"b|{10 * S}|0|0"])
    assert reply[3:6] == [-1, [], []]
    assert not scripts.client.exists(f"{key}:line", f"{key}:owners")
    assert not State(scripts, key).more
    assert take(scripts, START_US + 2 * S, SECONDS, key, 1) == 1


def test_grant_with_a_lease_is_a_hold(scripts: Scripts) -> None:
    """Under the ticket's name, until its deadline."""
    key = scripts.key()
    reply = stand(
        scripts, START_US, key, "me", joins(["t", 10 * S, 0, "", 1, "back", -1, 7 * S], ["u", S, 0, "", 1, "back", -1, 0])
    )
    assert reply[3:] == [-1, [b"t", 0, b"u", 0], [], 11 * S, 0]
    assert scripts.client.hgetall(f"{key}:holds") == {b"t": f"{10 * S},0,1,{START_US},{10**15},0".encode()}
    state = State(scripts, key)
    assert (state.reap_at, state.line_until, state.queued) == (START_US + 7 * S, 0, 0)


def test_nobody_overtakes_and_all_ahead_are_promised(scripts: Scripts) -> None:
    """Also one's own tickets wait for each other; another's are not computed once somebody blocks."""
    key = scripts.key()
    take(scripts, START_US, SECONDS, key, 95)
    assert stand(scripts, START_US, key, "a", joins(["a1", 10 * S, 0, "", 1, "back", -1, 0]))[3] == 5 * S
    assert stand(scripts, START_US, key, "b", joins(["b1", S, 0, "", 1, "back", -1, 0]))[3:5] == [6 * S, []]
    assert stand(scripts, START_US, key, "a", joins(["a2", S, 0, "", 1, "back", -1, 0]))[3:5] == [5 * S, []]
    assert stand(scripts, START_US + 4 * S // 10, key, "b")[3] == 5_600_000
    part = stand(scripts, START_US, key, "c", joins(["c0", 0, 1, "", 1, "back", -1, 0], ["c1", 0, 0, "", 1, "back", 0, 0]))
    assert part[4] == []


def test_promises_are_rounded_against_who_comes_later(scripts: Scripts) -> None:
    """A fraction that is promised counts as a whole microsecond."""
    key = scripts.key()
    take(scripts, START_US, SECONDS, key, 95)
    assert stand(scripts, START_US, key, "a", joins(["a1", 10 * S, 1, "", 1, "back", -1, 0]))[3] == 5 * S + 1
    assert stand(scripts, START_US, key, "b", joins(["b1", S, 0, "", 1, "back", -1, 0]))[3] == 6 * S + 1


def test_ticket_whose_owner_is_not_known_is_passed(scripts: Scripts) -> None:
    """When the owners are lost and the line is not, those who still ask stay."""
    key = scripts.key()
    take(scripts, START_US, SECONDS, key, 100)
    for owner in ("dead", "live"):
        stand(scripts, START_US, key, owner, joins([owner, 9 * S, 0, "", 1, "back", -1, 0]))
    scripts.client.delete(f"{key}:owners")
    assert stand(scripts, START_US, key, "live")[3] == 9 * S
    assert scripts.client.zcard(f"{key}:line") == 1


def test_impatient_one_behind_a_patient_one(scripts: Scripts) -> None:
    """All that were new in this call are looked at."""
    key = scripts.key()
    take(scripts, START_US, SECONDS, key, 100)
    asked = [["p", 5 * S, 0, "", 1, "back", -1, 0], ["i", S, 0, "", 1, "back", 5 * S, 0]]
    reply = stand(scripts, START_US, key, "me", joins(*asked))
    assert (reply[3], reply[5]) == (5 * S, [b"i", 6 * S])
    assert State(scripts, key).queued == 5 * S


def test_patience_is_of_new_tickets_only(scripts: Scripts) -> None:
    """Who would wait longer than it can is told the wait; to the microsecond; who only asks again stays."""
    key = scripts.key()
    take(scripts, START_US, SECONDS, key, 100)
    for patience, refused in ((5 * S - 1, [b"t", 5 * S]), (0, [b"t", 5 * S]), (5 * S, []), (-1, [])):
        reply = stand(scripts, START_US, key, "me", joins(["t", 5 * S, 0, "", 1, "back", patience, 0]))
        assert reply[5] == refused
        if not refused:
            assert stand(scripts, START_US, key, "me", leaves=[f"t|{5 * S}|0|0"])[3] == -1
        assert State(scripts, key).queued == 0


def test_nobody_is_sent_away_where_anything_may_come_back(scripts: Scripts) -> None:
    """Slots, and buckets of which something is held."""
    slots, key = scripts.key(), scripts.key()
    hold(scripts, START_US, SLOTS, slots, 3, "h")
    hold(scripts, START_US, SECONDS, key, 100, "h")
    for limit, name, cost in ((SLOTS, slots, 1), (SECONDS, key, S)):
        reply = stand(scripts, START_US, name, "me", joins(["t", cost, 0, "", 1, "back", 0, 0]), limit=limit)
        assert reply[5] == []
        assert reply[3] == (60 * S if limit is SLOTS else S)


def test_full_line_turns_away(scripts: Scripts) -> None:
    """Ten thousand, and the wait for all of them is told; the one that fits still comes in."""
    key = scripts.key()
    take(scripts, START_US, SECONDS, key, 100)
    stand(scripts, START_US, key, "me", joins(["first", S, 0, "", 1, "back", -1, 0]))
    members = {f"me|x{n}|{S}|0|0": n + 10 * S for n in range(9997)}
    scripts.client.zadd(f"{key}:line", members)
    asked = [[name, S, 0, "", 1, "back", -1, 0] for name in ("last but one", "last", "over")]
    reply = stand(scripts, START_US, key, "me", joins(*asked))
    assert reply[5] == [b"over", 4 * S]
    assert scripts.client.zcard(f"{key}:line") == 10_000
    other = stand(scripts, START_US, key, "other")
    assert other[3] == 3 * S, "beyond the first 512: the wait for all that is queued"


def test_silent_owner_is_forgotten_and_its_promise_with_it(scripts: Scripts) -> None:
    """A second and no longer."""
    key = scripts.key()
    take(scripts, START_US, SECONDS, key, 100)
    stand(scripts, START_US, key, "dead", joins(["d", 50 * S, 0, "", 1, "back", -1, 0]))
    assert stand(scripts, START_US, key, "live", joins(["l", S, 0, "", 1, "back", -1, 0]))[3] == 51 * S
    assert stand(scripts, START_US + S, key, "live")[3] == 50 * S
    assert scripts.client.hexists(f"{key}:owners", "dead")
    stand(scripts, START_US + S + 1, key, "live")
    assert not scripts.client.hexists(f"{key}:owners", "dead")
    assert State(scripts, key).queued in {0, S}


def test_epoch_is_when_the_line_began(scripts: Scripts) -> None:
    """Kept while it stands; in the future it is now."""
    key = scripts.key()
    take(scripts, START_US, SECONDS, key, 100)
    stand(scripts, START_US + 5, key, "me", joins(["t", 50 * S, 0, "", 1, "back", -1, 0]))
    assert stand(scripts, START_US + 9, key, "me")[2] == START_US + 5
    assert stand(scripts, START_US + 5, key, "me")[2] == START_US + 5
    assert stand(scripts, START_US + 4, key, "me")[2] == START_US + 4
    assert stand(scripts, START_US + 9, key, "me")[2] == START_US + 4


def test_line_of_a_state_that_cannot_be_read_is_an_error(scripts: Scripts) -> None:
    """And nothing is written."""
    key = scripts.key()
    put(scripts, key, "nonsense")
    with pytest.raises(redis.ResponseError, match="cannot be read"):
        stand(scripts, START_US, key, "me", joins(["t", S, 0, "", 1, "back", -1, 0]))
    assert scripts.client.keys(f"{key}*") == [key.encode()]
