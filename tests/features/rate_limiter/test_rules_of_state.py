"""The scripts' rules to the microsecond: what is believed, what is written, what is said."""

from typing import Any

import pytest
import redis

from tests.features.rate_limiter.rules import MINUTE_MS, SECONDS, SLOTS, S, State, ask, fence_at, hold, look, put, take
from tests.features.rate_limiter.scripts import DECIDE, START_US, Scripts, shape


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
