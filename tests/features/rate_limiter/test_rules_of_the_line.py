"""The scripts' rules to the microsecond: who stands where, what is promised, and who leaves."""

from typing import Any

import msgspec
import pytest
import redis

from observatory.features.rate_limiter.shape import Shape
from tests.features.rate_limiter.rules import MINUTE_MS, SECONDS, SLOTS, S, State, hold, look, put, take
from tests.features.rate_limiter.scripts import ADVANCE, START_US, Scripts


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
    """Each class advances by cost / weight from the last that was granted; front is before all."""
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
    ]
    stand(scripts, START_US, key, "me", joins(*asked))
    assert tags() == {"f1": 0, "z1": 0.5, "g1": S, "i1": 2 * S, "g2": 3 * S}
    last = {name: float(scripts.client.hget(f"{key}:owners", name)) for name in ("#gold", "#iron", "#zero")}
    assert last == {"#gold": 3 * S, "#iron": 2 * S, "#zero": 0.5}
    queued = 12 * S
    assert State(scripts, key).queued == int(scripts.client.hget(f"{key}:owners", "queued")) == queued
    stand(scripts, START_US, key, "me", joins(asked[0]))
    assert len(tags()) == 5
    assert State(scripts, key).queued == queued, "the same ticket again is the same ticket"
    granted = stand(scripts, START_US + 3 * S, key, "me")[4]
    assert granted == [b"f1", 0, b"z1", 0]
    assert State(scripts, key).queued == queued - S
    granted = stand(scripts, START_US + 3 * S + 2, key, "me", joins(["n1", 4 * S, 0, "new", 1, "front", -1, 0]))[4]
    assert granted == []
    assert tags()["n1"] == 0.5


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
