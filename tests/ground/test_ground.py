"""The ground: errors, keys, units, dimensions."""

import asyncio
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from observatory import dimensions, errors, units
from observatory.errors import InvalidArgument, ObservatoryError
from observatory.features.rate_limiter import Decision
from observatory.keys import PERMANENT, Keys, part

KEYS = Keys("ns", 4, b"salt")


@pytest.mark.parametrize("name", errors.__all__)
def test_errors_survive_the_wire(name: str) -> None:
    """As a problem document and back: class, code, message, remedy, wait, context."""
    error = getattr(errors, name)("it happened", remedy="do this", retry_after=1.5, context={"limit": "x"})
    back = ObservatoryError.from_problem(msgspec.json.decode(msgspec.json.encode(error.problem())))
    assert type(back) is type(error)
    assert (back.message, back.remedy, back.retry_after, dict(back.context)) == ("it happened", "do this", 1.5, {"limit": "x"})
    assert back.retryable == error.retryable
    assert error.problem()["status"] == error.status


def test_tree_is_what_the_page_says() -> None:
    """Each class stands in the drawing, with its code and status."""
    drawing = (errors.__doc__ or "").splitlines()
    for name in errors.__all__:
        kind = getattr(errors, name)
        if kind is not ObservatoryError:
            assert any(re.search(rf" {name} .*\b{kind.code} +{kind.status} ", line) for line in drawing), name
    codes = [getattr(errors, name).code for name in errors.__all__]
    assert len(set(codes)) == len(codes)


def test_refusal_names_the_limit_in_its_problem() -> None:
    """The draft's type, and the policy that was violated."""
    decision = Decision(False, "chat", "ann", "requests", 1, 0, 10, 0.4, 9.4)
    problem = errors.RateLimitExceeded.of(decision).problem()
    assert problem["violated-policies"] == ["chat"]
    assert problem["type"].endswith("#quota-exceeded")
    assert problem["retry_after"] == 0.4


@given(one=st.text(min_size=1), other=st.text(min_size=1))
def test_different_parts_are_different_keys(one: str, other: str) -> None:
    """Injective over any text, and nothing in a part can end it, open a tag, or leave a line."""
    assert (part(one) == part(other)) == (one == other)
    for text in (part(one), part("x" * 200 + one)):
        assert not set(text) & set(":{}\r\n *?[]")
        assert len(text) <= 96


@given(identity=st.text(max_size=50), key=st.text(min_size=1, max_size=50))
def test_keys_have_one_tag_and_one_form(identity: str, key: str) -> None:
    """Whatever a user calls himself."""
    for made in (KEYS.bucket("l", identity), KEYS.entry("c", "f", key), KEYS.lease(key)):
        assert made.count("{") == made.count("}") == 1
        assert made.startswith("obs1:ns:")
        assert made.isascii()


def test_who_may_live_for_ever() -> None:
    """The list in keys.py, and nothing that a user can name."""
    for key in (KEYS.metric_total(0, "x_total"), KEYS.metric_flushes(15), KEYS.metric_start()):
        assert PERMANENT.fullmatch(key)
    for key in (
        KEYS.bucket("l", "i"),
        KEYS.metric_window(0, 0, "x"),
        KEYS.entry("c", "f", "k"),
        KEYS.seen(0, 1),
        KEYS.lease("x"),
    ):
        assert not PERMANENT.fullmatch(key)


def test_partitions_are_even_and_secret() -> None:
    """Another salt deals differently; each of four gets its share of a thousand."""
    dealt = [KEYS.partition_of(str(number)) for number in range(1000)]
    assert all(180 < dealt.count(partition) < 320 for partition in range(4))
    other = Keys("ns", 4, b"other")
    assert dealt != [other.partition_of(str(number)) for number in range(1000)]


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        *((1, 10**6), (0.1, 100_000), ("250ms", 250_000), ("1.5s", 1_500_000), ("5m", 300 * 10**6), ("7d", 604_800 * 10**6)),
        *(("30", 3 * 10**7), (timedelta(minutes=1), 6 * 10**7), (Decimal("0.000001"), 1), ("2us", 2)),
    ],
)
def test_durations(given_: Any, expected: int) -> None:
    """Seconds, timedeltas, and words."""
    assert units.microseconds(given_) == expected


@pytest.mark.parametrize("wrong", ["", "5 minutes", "1e3", -1, float("nan"), float("inf"), None, True, [], "m5", 10**12, "-5s"])
def test_wrong_durations(wrong: Any) -> None:
    with pytest.raises(InvalidArgument):
        units.microseconds(wrong)


@pytest.mark.parametrize(("given_", "expected"), [(5, 5), ("64MiB", 64 * 2**20), ("1kB", 1000), ("7B", 7)])
def test_sizes(given_: Any, expected: int) -> None:
    assert units.size(given_) == expected


@given(value=st.floats(0, 1e6, exclude_max=True))
def test_short_way_to_billionths_is_the_long_one(value: float) -> None:
    """To the last place."""
    assert abs(units.nano(value) - units.nano(Decimal(str(value)))) <= 1


def test_moments() -> None:
    """Ages, dates, RFC 3339; naive ones are refused."""
    now = 1_700_000_000_000_000
    assert units.moment_us("now", now) == now
    assert units.moment_us("1h", now) == now - 3_600_000_000
    assert units.moment_us("1970-01-02", now) == 86_400_000_000
    assert units.moment_us("1970-01-01T00:00:01Z", now) == 1_000_000
    assert units.moment_us(datetime(1970, 1, 1, 0, 0, 2, tzinfo=UTC), now) == 2_000_000
    for wrong in ("1970-01-01T00:00:01", "soon", datetime(1970, 1, 1)):  # noqa: DTZ001
        with pytest.raises(InvalidArgument):
            units.moment_us(wrong, now)


async def test_dimensions_belong_to_their_task() -> None:
    """bind lasts for the task, bound for the block; two tasks do not mix; None removes."""

    async def request(user: str) -> dict[str, str]:
        dimensions.bind(user=user, team="x")
        await asyncio.sleep(0)
        with dimensions.bound(team=None, feature="faq"):
            await asyncio.sleep(0)
            inside = dict(dimensions.current())
        return {**inside, "after": dimensions.current()["team"]}

    answers = await asyncio.gather(*(asyncio.create_task(request(user)) for user in ("ann", "bob")))
    assert answers == [{"user": user, "feature": "faq", "after": "x"} for user in ("ann", "bob")]
    assert not dimensions.current()


async def test_what_a_thread_of_a_request_binds_the_rest_knows() -> None:
    """Its tasks and what comes after; whoever binds later wins; a sibling task stays by itself, and the request ends."""

    async def sibling(user: str) -> str:
        dimensions.bind(user=user)
        await asyncio.sleep(0.01)
        return dimensions.current()["user"]

    with dimensions.request(route="/"):
        assert list(await asyncio.gather(sibling("ann"), sibling("bob"))) == ["ann", "bob"]
        assert "user" not in dimensions.current()
        with dimensions.bound(team="search"):
            await asyncio.to_thread(dimensions.bind, user="cat", route=None)
            assert dict(dimensions.current()) == {"team": "search", "user": "cat"}
        assert dict(dimensions.current()) == {"user": "cat"}
        assert list(await asyncio.gather(sibling("ann"), sibling("bob"))) == ["ann", "bob"]
        dimensions.bind(user="dan")
        await asyncio.to_thread(dimensions.bind, team="chat")
        assert dict(dimensions.current()) == {"user": "dan", "team": "chat"}
    assert not dimensions.current()
    await asyncio.to_thread(dimensions.bind, user="eve")
    assert not dimensions.current()


@pytest.mark.parametrize("wrong", [{"user": ""}, {"user": 5}, {"user": "x" * 9000}, {"a b": "x"}])
def test_wrong_dimensions(wrong: Any) -> None:
    with pytest.raises(InvalidArgument, match="dimension"):
        dimensions.bind(**wrong)
