"""The scripts against plain-Python twins with fractions, on both servers, with a moved clock."""

from fractions import Fraction
from math import ceil, floor

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from observatory import Limit
from observatory.features.rate_limiter.shape import Shape, shape_of
from tests.features.rate_limiter.scripts import START_US, Scripts, shape

relaxed = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SECOND = 1_000_000


class Bucket:
    """A token bucket in fractions: debt in units leaks at amount / period. What the holds have taken together, and has not
    grown back, is never more than the debt; when the debt falls below it, each loses the same share."""

    def __init__(self, limit: Shape) -> None:
        self.rate = Fraction(limit.amount, limit.period_us)
        self.capacity = limit.capacity
        self.debt, self.at = Fraction(0), 0
        self.holds: dict[str, tuple[int, Fraction, int]] = {}
        """id -> estimate, what of it has not grown back, deadline."""
        self.reaped: set[str] = set()

    def move(self, now_us: int, *, reap: bool = True) -> int:
        """Drain until now; the clock may stand still for up to a second, a larger step back is believed."""
        lag = max(self.at - now_us, 0)
        if lag > SECOND:
            lag, self.at = 0, now_us
        start = max(self.at, now_us)
        self.debt, self.at = max(self.debt - (start - self.at) * self.rate, Fraction(0)), start
        due = sorted(
            (name for name, one in self.holds.items() if one[2] <= start), key=lambda name: (self.holds[name][2], name)
        )
        for name in due[:8] if reap else ():
            self.end(name, 0)
            self.reaped.add(name)
        return lag

    def wait(self, cost: int, lag: int) -> int:
        over = self.debt + cost - self.capacity
        return ceil(over / self.rate) + lag if over > 0 else 0

    def shrink(self) -> None:
        held = sum(left for _, left, _ in self.holds.values())
        if held > self.debt:
            self.holds = {name: (cost, left * self.debt / held, end) for name, (cost, left, end) in self.holds.items()}

    def take(self, cost: int) -> None:
        self.shrink()
        self.debt += cost

    def hold(self, name: str, cost: int, lease_us: int) -> None:
        self.take(cost)
        self.holds[name] = (cost, Fraction(cost), self.at + lease_us)

    def end(self, name: str, actual: int) -> None:
        self.shrink()
        cost, left, _ = self.holds.pop(name)
        if actual >= cost:
            self.take(actual - cost)
        else:
            self.debt -= min(Fraction(cost - actual), left, self.debt)


buckets = st.builds(
    lambda amount, period, burst: shape_of(Limit("l", amount, per=period / 1e6, burst=min(burst, amount * 40))),
    st.one_of(st.integers(1, 50), st.integers(1, 10**9)),
    st.one_of(st.integers(1, 10**7), st.sampled_from([10**6, 60 * 10**6, 3600 * 10**6, 30 * 86400 * 10**6])),
    st.one_of(st.integers(1, 100), st.integers(1, 10**9)),
)
moves = st.one_of(st.integers(-2_000_000, 5_000_000), st.integers(0, 10**10))


@relaxed
@given(limit=buckets, steps=st.lists(st.tuples(moves, st.integers(0, 12)), min_size=1, max_size=25))
def test_bucket_agrees_with_fractions(scripts: Scripts, limit: Shape, steps: list[tuple[int, int]]) -> None:
    """Allowed, remaining and wait are those of exact arithmetic, for any amount and period, also when the clock steps back."""
    twin, key, now_us = Bucket(limit), scripts.key(), START_US
    for forward, tenths in steps:
        now_us += forward
        cost = limit.capacity * tenths // 10
        before, written = scripts.client.get(key), (twin.debt, twin.at)
        jumped = twin.at - now_us > SECOND
        status, (part,) = scripts.decide(now_us, "take", [(limit, key, cost)])
        lag = twin.move(now_us)
        wait = twin.wait(cost, lag)
        assert (status, part.fits) == (int(wait == 0),) * 2
        if wait:
            assert cost > limit.capacity or part.wait_us == wait
            assert jumped or scripts.client.get(key) == before, "a refusal changed the state"
            assert_tight(scripts, limit, key, cost, now_us, wait)
        else:
            twin.take(cost)
            assert not cost or scripts.client.pttl(key) > 55_000, "the state must outlive its debt"
        assert limit.remaining(part.debt, part.part) == max(floor(limit.capacity - twin.debt), 0)
        if (wait or not cost) and not jumped:
            # Nothing was written, so the next call begins from where the last one that took had left it.
            twin.debt, twin.at = written


def assert_tight(scripts: Scripts, limit: Shape, key: str, cost: int, now_us: int, wait_us: int) -> None:
    """One microsecond before, the same call is refused; at it, allowed. Asked on copies of the state."""
    if cost > limit.capacity or wait_us < 2:
        return
    for when, expected in ((wait_us - 1, 0), (wait_us, 1)):
        scripts.client.copy(key, f"{key}:copy", replace=True)
        assert scripts.decide(now_us + when, "take", [(limit, f"{key}:copy", cost)])[0] == expected
        scripts.client.delete(f"{key}:copy")


@relaxed
@given(
    limit=st.builds(shape, st.integers(1, 40), st.sampled_from([1, 7, 60]), st.integers(1, 60)),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["take", "hold", "settle", "renew", "look"]),
            st.one_of(st.integers(0, 300_000), st.integers(0, 9 * SECOND)),
            st.integers(0, 12),
            st.integers(0, 4),
        ),
        min_size=1,
        max_size=30,
    ),
)
def test_holds_agree_with_fractions(scripts: Scripts, limit: Shape, steps: list[tuple[str, int, int, int]]) -> None:
    """Holds, settlements, renewals and reaping: never more is given back than has not grown back, never twice."""
    twin, key, now_us, lease = Bucket(limit), scripts.key(), START_US, 5 * SECOND
    for verb, forward, tenths, number in steps:
        now_us += forward
        name, cost = f"h{number}", limit.capacity * tenths // 10
        if verb == "settle":
            settle_both(scripts, limit, key, twin, now_us, name, cost)
            continue
        if verb == "renew":
            known = name in twin.holds
            status = scripts.settle(now_us, "renew", limit, key, 0, hold=name, lease_us=lease)[0]
            assert status == (1 if known else 3)
            if known:
                twin.holds[name] = (*twin.holds[name][:2], now_us + lease)
            twin.move(now_us)
            continue
        twin.move(now_us)
        status, parts = scripts.decide(now_us, verb, [(limit, key, cost)], hold=name, lease_us=lease)
        wait = twin.wait(cost, 0)
        if verb == "hold" and name in twin.reaped:
            assert status == -2
        elif verb == "hold" and name in twin.holds:
            assert status == 2, "the same hold again is the same answer"
        else:
            assert status == int(wait == 0)
            if wait == 0 and verb != "look":
                if verb == "hold":
                    twin.hold(name, cost, lease)
                else:
                    twin.take(cost)
        for part in parts:
            assert abs(limit.remaining(part.debt, part.part) - max(floor(limit.capacity - twin.debt), 0)) <= 1
    assert -1 not in [scripts.client.pttl(name) for name in scripts.client.keys(f"{key}*")], "no key without a TTL"


def settle_both(scripts: Scripts, limit: Shape, key: str, twin: Bucket, now_us: int, name: str, actual: int) -> None:
    """The settlement comes before the reaping of others, so that a late one is still in time if nobody looked."""
    status, excess, excess_part = scripts.settle(now_us, "settle", limit, key, actual, hold=name)
    twin.move(now_us, reap=False)
    if name in twin.holds:
        assert status == 1
        twin.end(name, actual)
    elif name in twin.reaped:
        assert status == 2
        twin.reaped.discard(name)
        twin.take(actual)
    else:
        assert status == 3
    assert (excess, excess_part) == (0, 0)
    twin.move(now_us)


class Windowed:
    """Fixed and sliding windows in fractions."""

    def __init__(self, limit: Shape) -> None:
        self.limit = limit
        self.used: dict[int, int] = {}

    def counted(self, now_us: int) -> int:
        length = self.limit.period_us
        start = now_us - now_us % length
        found = self.used.get(start, 0)
        if self.limit.kind == "s":
            ticks = ceil(Fraction(length, self.limit.tick_us))
            left = ticks - (now_us - start) // self.limit.tick_us
            found += ceil(Fraction(self.used.get(start - length, 0) * left, ticks))
        return found

    def take(self, now_us: int, cost: int) -> bool:
        if self.counted(now_us) + cost > self.limit.capacity:
            return False
        start = now_us - now_us % self.limit.period_us
        self.used[start] = self.used.get(start, 0) + cost
        return True


windows = st.builds(
    lambda amount, period, kind: shape_of(Limit("l", amount, per=period / 1e6, algorithm=kind)),
    st.one_of(st.integers(1, 50), st.integers(1, 10**12)),
    st.one_of(st.integers(1000, 10**7), st.sampled_from([60 * 10**6, 3600 * 10**6])),
    st.sampled_from(["fixed_window", "sliding_window"]),
)


@relaxed
@given(limit=windows, steps=st.lists(st.tuples(st.integers(0, 2500), st.integers(0, 12)), min_size=1, max_size=25))
def test_windows_agree_with_fractions(scripts: Scripts, limit: Shape, steps: list[tuple[int, int]]) -> None:
    """Steps are thousandths of the window, so that some land in the same, the next, and one beyond."""
    twin, key, now_us = Windowed(limit), scripts.key(), START_US
    for thousandths, tenths in steps:
        now_us += limit.period_us * thousandths // 1000
        cost = limit.capacity * tenths // 10
        before = scripts.client.get(key)
        status, (part,) = scripts.decide(now_us, "take", [(limit, key, cost)])
        assert status == int(twin.take(now_us, cost))
        assert part.debt == twin.counted(now_us)
        if not status:
            assert scripts.client.get(key) == before
            assert_tight(scripts, limit, key, cost, now_us, part.wait_us)
        elif cost:
            assert scripts.client.pttl(key) > 0


@relaxed
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["hold", "settle", "renew"]), st.integers(0, 3 * SECOND), st.integers(1, 3), st.integers(0, 5)
        ),
        min_size=1,
        max_size=30,
    )
)
def test_slots_agree_with_a_set(scripts: Scripts, steps: list[tuple[str, int, int, int]]) -> None:
    """Never more held than there are; every fence larger than the one before; a silent holder's slots come back."""
    limit, key, now_us, lease = shape(4, unit="slots"), scripts.key(), START_US, 5 * SECOND
    held: dict[str, tuple[int, int]] = {}
    reaped: set[str] = set()
    fence = 0

    def sweep() -> None:
        for name in [name for name, (_, end) in held.items() if end <= now_us]:
            del held[name]
            reaped.add(name)

    for verb, forward, cost, number in steps:
        now_us += forward
        name = f"s{number}"
        if verb == "hold":
            sweep()
            status, parts = scripts.decide(now_us, "hold", [(limit, key, cost)], hold=name, lease_us=lease)
            taken = sum(units for units, _ in held.values())
            if name in held:
                assert status == 2
            elif name in reaped:
                assert status == -2
            else:
                assert status == int(taken + cost <= 4)
                if status:
                    held[name] = (cost, now_us + lease)
                    assert parts[0].part > fence
                    fence = parts[0].part
        elif verb == "settle":
            status = scripts.settle(now_us, "settle", limit, key, 0, hold=name)[0]
            assert status == (1 if name in held else 2 if name in reaped else 3)
            held.pop(name, None)
            reaped.discard(name)
            sweep()
        else:
            status = scripts.settle(now_us, "renew", limit, key, cost, hold=name, lease_us=lease)[0]
            assert status == (1 if name in held else 3)
            if status == 1:
                held[name] = (held[name][0], now_us + lease)
            sweep()
        _, (seen,) = scripts.decide(now_us, "look", [(limit, key, 0)])
        assert seen.debt == sum(units for units, _ in held.values()) <= 4


@relaxed
@given(
    costs=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12),
    gaps=st.lists(st.integers(0, 400_000), min_size=12, max_size=12),
)
def test_several_are_all_or_nothing(scripts: Scripts, costs: list[tuple[int, int, int]], gaps: list[int]) -> None:
    """Of a bucket, a window and a sliding window: taken if and only if each alone would have been; else nothing changes."""
    limits = [shape(10, 2), shape(8, 1, algorithm="fixed_window"), shape(9, 1, algorithm="sliding_window")]
    keys, now_us = [scripts.key() for _ in limits], START_US
    for asked, gap in zip(costs, gaps, strict=False):
        now_us += gap
        alone = [
            scripts.decide(now_us, "look", [(limit, key, cost)])[0]
            for limit, key, cost in zip(limits, keys, asked, strict=True)
        ]
        before = scripts.client.mget(keys)
        status, answers = scripts.decide(now_us, "take", list(zip(limits, keys, asked, strict=True)))
        assert status == int(all(alone))
        assert [part.fits for part in answers] == alone
        if not status:
            assert scripts.client.mget(keys) == before


@relaxed
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5)), min_size=1, max_size=40))
def test_one_batch_is_a_sequence(scripts: Scripts, asked: list[tuple[int, int]]) -> None:
    """Callers that share a script call get what they would have got one after the other."""
    limits = [shape(7, 3), shape(5, 1, algorithm="fixed_window"), shape(6, 2, algorithm="sliding_window")]
    together, apart = [scripts.key() for _ in limits], [scripts.key() for _ in limits]
    batch = scripts.batch(START_US, [("take", [(limits[n], together[n], cost)], "", 0) for n, cost in asked])
    alone = [scripts.decide(START_US, "take", [(limits[n], apart[n], cost)]) for n, cost in asked]
    assert batch == alone
    assert scripts.client.mget(together) == scripts.client.mget(apart)


def test_fraction_of_another_rate_is_rounded_against_the_caller(scripts: Scripts) -> None:
    """A third of a microsecond left over from an amount of three becomes a whole one under an amount of seven."""
    key = scripts.key()
    for limit, expected in ((shape(3, 10), (10, 1)), (shape(7, 10), (11, 0))):
        scripts.client.set(key, f"10,1,3,{START_US}", px=60_000)
        _, (part,) = scripts.decide(START_US, "look", [(limit, key, 0)])
        assert (part.debt, part.part) == expected


def test_state_that_cannot_be_read_harms_nobody_else(scripts: Scripts) -> None:
    """A foreign value under one key is that caller's error; the others of the batch are answered."""
    limit, good, text, other = shape(5, 60), scripts.key(), scripts.key(), scripts.key()
    scripts.client.set(text, "nonsense", px=60_000)
    scripts.client.rpush(other, "a list")
    answers = scripts.batch(START_US, [("take", [(limit, key, 1)], "", 0) for key in (good, text, other, good)])
    assert [status for status, _ in answers] == [1, -1, -1, 1]
    scripts.client.delete(other)


def test_settlements_under_a_long_hold_give_back_what_they_say(scripts: Scripts) -> None:
    """One hold stays open while a thousand others come, are checked around, and go: nothing that has not grown back is kept."""
    limit, key, now_us = shape(1_000_000, 86_400), scripts.key(), START_US
    scripts.decide(now_us, "hold", [(limit, key, 10)], hold="long", lease_us=3_600 * SECOND)
    for round_ in range(100):
        names = [f"h{round_}-{number}" for number in range(10)]
        scripts.batch(now_us := now_us + 700, [("hold", [(limit, key, 1000)], name, 60 * SECOND) for name in names])
        for _ in range(10):
            scripts.decide(now_us := now_us + 150, "take", [(limit, key, 1)])
        for name in names:
            now_us += 150
            assert scripts.settle(now_us, "settle", limit, key, 600, hold=name)[0] == 1
    _, (part,) = scripts.decide(now_us, "look", [(limit, key, 0)])
    gone = 10 + 1000 * 600 + 1000
    assert limit.capacity - limit.remaining(part.debt, part.part) <= gone
    assert limit.capacity - limit.remaining(part.debt, part.part) >= gone - (now_us - START_US) * 12 // SECOND - 2


def test_two_holds_do_not_have_the_same_room_back(scripts: Scripts) -> None:
    """Both were held when half of it had grown back; the one that is settled first has it."""
    limit, key = shape(10, 10), scripts.key()
    for hold in "ab":
        assert scripts.decide(START_US, "hold", [(limit, key, 5)], hold=hold, lease_us=60 * SECOND)[0] == 1
    now_us = START_US + 5 * SECOND
    assert scripts.decide(now_us, "take", [(limit, key, 5)])[0] == 1
    for hold in "ab":
        scripts.settle(now_us, "settle", limit, key, 0, hold=hold)
    _, (part,) = scripts.decide(now_us, "look", [(limit, key, 0)])
    assert limit.remaining(part.debt, part.part) == 5


def test_hold_of_several_is_whole_before_it_is_the_same_answer_again(scripts: Scripts) -> None:
    """An id that is held of one limit only does not open the others: they are taken, or all is refused."""
    slots, tokens, one, other = shape(1, unit="slots"), shape(10, 3600), scripts.key(), scripts.key()
    both = [(slots, one, 1), (tokens, other, 10)]
    scripts.decide(START_US, "hold", both[:1], hold="x", lease_us=SECOND)
    assert scripts.decide(START_US, "hold", both, hold="x", lease_us=SECOND)[0] == 1
    assert scripts.decide(START_US, "hold", both, hold="x", lease_us=SECOND)[0] == 2
    assert scripts.decide(START_US, "take", both[1:])[0] == 0


def test_wait_is_true_while_tokens_are_lent(scripts: Scripts) -> None:
    """What is lent does not drain before it has come back."""
    limit, key = shape(100, 1), scripts.key()
    scripts.decide(START_US, "borrow", [(limit, key, 10)], lease_us=250_000)
    for cost in (70, 80, 100):
        _, (part,) = scripts.decide(START_US + 1000, "take", [(limit, key, cost)])
        assert_tight(scripts, limit, key, cost, START_US + 1000, part.wait_us)


def test_window_keeps_its_use_when_the_clock_steps_back_over_its_edge(scripts: Scripts) -> None:
    """Two seconds back from a new window into the one before: one capacity more at most, not two."""
    limit, key = shape(100, 3600, algorithm="fixed_window"), scripts.key()
    edge = START_US - START_US % (3600 * SECOND) + 3600 * SECOND
    taken = 0
    for now_us in (edge - SECOND, edge + SECOND, edge - SECOND, edge + 3 * SECOND):
        taken += sum(scripts.decide(now_us, "take", [(limit, key, 1)])[0] for _ in range(150))
    assert taken <= 300
