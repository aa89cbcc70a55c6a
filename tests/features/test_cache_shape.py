"""The fingerprint of a type: the same in every process, another when what is written would be read otherwise."""

import os
import subprocess
import sys
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
import pytest

from observatory import NotEncodable, Observatory
from observatory.features.cache.shape import fingerprint
from tests.features.test_cache_tags import fleet

__all__ = ["fleet"]

T = TypeVar("T")


class Check:
    """Says nothing about a shape, and has no repr of its own."""


class Box(msgspec.Struct, Generic[T]):
    """Of something."""

    inside: T


class Cat(msgspec.Struct, tag=True):
    """One of two."""

    lives: int


class Dog(msgspec.Struct, tag=True):
    """The other."""

    name: str | None = None


class User(msgspec.Struct):
    """With a default that has another order in each process."""

    name: str
    roles: frozenset[str] = frozenset({"reader", "writer", "admin", "owner", "guest"})
    friends: "list[User]" = []


class Sparse(User, omit_defaults=True):
    """Whose defaults are not written."""


KINDS: tuple[Any, ...] = (
    User,
    Sparse,
    list[User | None],
    dict[str, Cat | Dog],
    Annotated[str, Check()],
    list[Annotated[int, Check(), msgspec.Meta(ge=1)]],
    Box[Annotated[int, Check()]],
    Box[Annotated[int, Check()]] | None,
    Literal["q", "w", "e", "r"],
    tuple[int, ...],
    set[str],
    Any,
)


def test_every_process_has_the_same(request: pytest.FixtureRequest) -> None:
    """Whatever the order of its sets, and wherever its objects are."""
    code = (
        "import sys; keep = [object() for _ in range(int(sys.argv[1]))];"
        "from tests.features.test_cache_shape import KINDS, fingerprint; print(*map(fingerprint, KINDS))"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code, seed],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(request.config.rootpath)},
            cwd=request.config.rootpath,
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2", "777")
    }
    assert len(seen) == 1, seen
    assert seen.pop().split() == [fingerprint(kind) for kind in KINDS]


def test_another_shape_has_another() -> None:
    """Each of these would be read otherwise, or refused; what only describes says nothing."""

    def box(**config: Any) -> Any:
        return msgspec.defstruct("Made", [("a", int, 1), ("default", str, "x")], module="m", **config)

    kinds: list[Any] = [
        box(),
        box(array_like=True),
        box(rename="upper"),
        box(tag="t"),
        box(forbid_unknown_fields=True),
        box(omit_defaults=True),
        msgspec.defstruct("Made", [("a", int, 2), ("default", str, "x")], module="m", omit_defaults=True),
        msgspec.defstruct("Made", [("a", int, 1)], module="m"),
        msgspec.defstruct("Made", [("a", int), ("default", str, "x")], module="m"),
        msgspec.defstruct("Made", [("a", int, 1), ("default", bytes, b"x")], module="m"),
        msgspec.defstruct("Made", [("a", int, 1), ("default", str, "x")], module="n"),
        msgspec.defstruct("Other", [("a", int, 1), ("default", str, "x")], module="m"),
        *(Box[int], Box[str], Box[Box[int]], list[Box[int]], Cat, Dog, Cat | Dog, Cat | None, User, list[User], Any, None),
        *(Annotated[int, msgspec.Meta(ge=1)], Annotated[int, msgspec.Meta(ge=2)], int, Literal["a"], Literal["b"], str),
        *(list[int], set[int], tuple[int, ...], tuple[int], tuple[int, int], dict[str, int], int | None),
    ]
    found = [fingerprint(kind) for kind in kinds]
    assert len(set(found)) == len(kinds), [kind for kind in kinds if found.count(fingerprint(kind)) > 1]
    described = msgspec.Meta(title="t", description="d", examples=[1])
    assert fingerprint(Annotated[int, described]) == fingerprint(int)
    assert fingerprint(Cat | Dog) == fingerprint(Dog | Cat)
    assert fingerprint(msgspec.defstruct("Made", [("a", int, 2), ("default", str, "y")], module="m")) == found[0]
    with pytest.raises(NotEncodable, match="not possible"):
        fingerprint(object())


async def test_a_record_names_so_many_generations_and_no_more(fleet: tuple[Observatory, Observatory]) -> None:
    """A write goes through all of them. One more than that begins the cache anew: what was there is a miss."""
    one, two = fleet
    cache, same = one.cache(str, name="many"), two.cache(str, name="many")
    key = one.store.keys.cache_record("many")

    async def crowd(others: int) -> None:
        await cache.set("k", "v")
        record: bytes = await one.store.command("GET", key)
        named = (record.split()[0], cache._room.codec.fingerprint.encode(), *(b"%012x" % number for number in range(others)))
        await one.store.command("SET", key, b" ".join(named), "PX", 60_000)

    async def generations() -> int:
        return len((await one.store.command("GET", key)).split()) - 1

    await crowd(63)
    assert await same.set("other", "v")
    assert (await generations(), await cache.get("k")) == (64, "v")
    third = Observatory("third", settings=one.settings)
    async with third:
        other = third.cache(int, name="many")
        assert await other.set("number", 1)
        assert (await generations(), await cache.get("k", "miss"), await other.get("number")) == (1, "miss", 1)
        await crowd(600)
        assert await cache.set("k", "again"), "also of a record that had grown before"
        assert (await generations(), await same.get("k"), await other.get("number", 0)) == (1, "again", 0)
