"""Keys made of arguments: different calls never share one; the same call has one however it is written."""

import asyncio
import datetime as dt
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from functools import partial
from typing import Any
from uuid import UUID

import msgspec
import pytest

from observatory import InvalidArgument, Observatory
from observatory.features.cache.arguments import key_of


class Colour(Enum):
    """Some."""

    RED = 1


class User(msgspec.Struct, frozen=True):
    """With a method that may be cached."""

    id: int

    async def ask(self, q: str) -> str:
        return f"{self.id}{q}"


@dataclass
class Other:
    """Alike, and not the same."""

    id: int

    async def ask(self, q: str) -> str:
        return f"{self.id}{q}"


class Opaque:
    """No key can be made of it."""

    async def ask(self, q: str) -> str:
        return q


VALUES: list[Any] = [
    *(1, "1", 1.0, True, b"1", None, "None", 0, False, -0.0, 0.0, "", b"", (), [], {}, set(), frozenset(), "()"),
    *(
        (1,),
        [1],
        ["1"],
        {"a": 1},
        {"a": "1"},
        {"b": 1},
        {1: "a"},
        {1},
        {"1"},
        ("a", "b"),
        ("ab",),
        ("a,b",),
        [[1], []],
        [[], [1]],
    ),
    *(Colour.RED, Decimal(1), Decimal("1.0"), UUID(int=1), dt.date(2026, 1, 1), User(1), Other(1), User, Other),
    *(float("inf"), float("nan"), 2**70, -(2**70), 10**5000, "é", "\ud800", "\x00"),
]


async def asked(a: Any, b: Any = 2, *more: Any, c: Any = 3, **others: Any) -> str:
    return ""


def test_every_value_has_a_key_of_its_own() -> None:
    """By type and by content."""
    key = key_of(asked, None)
    keys = [key(value) for value in VALUES]
    for number, one in enumerate(keys):
        assert keys.index(one) == number, (VALUES[number], VALUES[keys.index(one)])
        assert len(one) < 200
    assert keys == [key(value) for value in VALUES]


def test_one_call_has_one_key() -> None:
    """Positional or named, in any order, defaults given or not."""
    key = key_of(asked, None)
    assert key(1) == key(a=1) == key(1, 2) == key(1, b=2) == key(b=2, a=1, c=3)
    assert key(1, x=1, y=2) == key(1, y=2, x=1)
    different = [key(1), key(2), key(1, 3), key(1, c=2), key(1, 2, 3), key(1, 2, 3, 4), key(1, x=1), key(1, x="1"), key(1, y=1)]
    assert len(set(different)) == len(different)


def test_methods_and_functions_are_told_apart() -> None:
    """A bound method belongs to its object; two functions are two."""
    keys = {
        key_of(one, None)("q")
        for one in (User(1).ask, User(2).ask, Other(1).ask, partial(asked, b=1), partial(asked, b=2), asked)
    }
    assert len(keys) == 6
    assert key_of(User(1).ask, None)("q") == key_of(User(1).ask, None)("q")
    with pytest.raises(InvalidArgument, match="Give key="):
        key_of(Opaque().ask, None)("q")
    with pytest.raises(InvalidArgument, match="argument a is a Opaque"):
        key_of(asked, None)(Opaque())
    deep: Any = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(InvalidArgument, match="nested"):
        key_of(asked, None)(deep)


def test_templates_keep_their_fields_apart() -> None:
    """No argument can look like the text between two of them."""
    key = key_of(asked, "user:{a}/{b}")
    assert key(42, "x y@z.com") == "user:42/x y@z.com"
    pairs = [("1", "2/3"), ("1/2", "3"), ("1%2F2", "3"), ("1:2", "3"), ("1", "2"), ("é", "2"), ("\ud800", "2")]
    assert len({key(*pair) for pair in pairs}) == len(pairs)
    assert key_of(asked, "u:{a.id}")(User(5)) == "u:5"
    for wrong in ("{a}{b}", "{a}x{b}", "{a}-{b}", "{nobody}", "{a!r}", "{a:>5}", "{", "{}"):
        with pytest.raises(InvalidArgument, match="key template"):
            key_of(asked, wrong)
    for value in (1.0, True, None, [1]):
        with pytest.raises(InvalidArgument, match="a function as key"):
            key(value)
    with pytest.raises(InvalidArgument, match="key must be"):
        key_of(asked, 5)  # type: ignore[arg-type]


async def test_cached(obs: Observatory) -> None:
    """As a decorator, bare and with words, of a function and of a method."""
    cache = obs.cache(str)
    calls: list[Any] = []

    @cache.cached
    async def plain(a: Any, *, b: int = 0) -> str:
        calls.append((a, b))
        return f"{a!r}"

    @cache.cached(key="user:{user_id}", ttl=60, tags=["users"])
    async def load(user_id: int) -> str:
        calls.append(user_id)
        return f"user {user_id}"

    assert [await plain(a) for a in (1, "1", 1.0, True)] == ["1", "'1'", "1.0", "True"]
    assert [await plain(a, b=0) for a in (1, "1", 1.0, True)] == ["1", "'1'", "1.0", "True"]
    assert len(calls) == 4
    assert await asyncio.gather(*(load(7) for _ in range(10))) == ["user 7"] * 10
    assert await cache.get("user:7") == "user 7"
    assert load.key(user_id=7) == "user:7"  # type: ignore[attr-defined]
    assert load.__name__ == "load"
    await cache.invalidate("users")
    assert await load(7) == "user 7"
    assert len(calls) == 6

    class Service:
        name = "s"

        @cache.cached(key=lambda self, q: f"{self.name}:{q}")
        async def ask(self, q: str) -> str:
            calls.append(q)
            return q

    assert await Service().ask("x") == await Service().ask("x") == "x"
    assert len(calls) == 7


def test_a_key_is_remembered_of_what_cannot_change() -> None:
    """And of nothing else: equal is not the same, and an object's method has the object's key."""

    async def load(number: Any, text: str = "") -> None: ...

    key = key_of(load, None)
    assert key(1) == key(1) != key("1")
    assert len({key(1), key(True), key(1.0), key(1, "a"), key("1", "a")}) == 5
    assert key(1, text="a") == key(1, "a")
    assert key("x" * 1000) == key("x" * 1000) != key("x" * 999)
    for number in range(3000):
        assert key(number) == key(number=number)

    @dataclass
    class Loader:
        region: str

        async def load(self, number: int) -> None: ...

    loader = Loader("eu")
    key = key_of(loader.load, None)
    before = key(1)
    loader.region = "us"
    assert key(1) != before
    shared: list[int] = []

    async def listed(number: int, seen: list[int] = shared) -> None: ...

    key = key_of(listed, None)
    before = key(1)
    shared.append(1)
    assert key(1) != before
