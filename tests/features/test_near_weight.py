"""What near values are counted as, and which of them are shared."""

import tracemalloc
from typing import Any

import msgspec
import pytest

from observatory.features.cache.weight import OVERHEAD, immutable
from observatory.keys import Key
from tests.features.nearby import FOR_EVER, where
from tests.features.test_near import alone


class Frozen(msgspec.Struct, frozen=True):
    text: str
    more: Any = None


class Loose(msgspec.Struct):
    text: str


@pytest.mark.parametrize(
    ("value", "shared"),
    [
        *(("x", True), (b"x", True), (1, True), (1.5, True), (True, True), (None, True), ((1, ("x",)), True)),
        *((Frozen("x"), True), (Frozen("x", (1,)), True), (Frozen("x", []), False), (Loose("x"), False), ([1], False)),
        *(({}, False), ((1, []), False), (Frozen("x", Loose("x")), False), (bytearray(b"x"), False)),
    ],
)
def test_only_what_cannot_change_is_shared(value: Any, shared: bool) -> None:
    """A tuple is as frozen as its parts."""
    assert immutable(value) is shared


@pytest.mark.parametrize("what", ["text", "long keys", "tags", "tuple", "struct", "not ascii", "tenants"])
def test_what_an_entry_costs_is_what_is_counted(what: str) -> None:
    """Within a quarter, whatever of it is large."""
    near = alone(bytes.decode, max_entries=100_000, max_bytes=1 << 30)
    count = 2_000

    def entry(number: int) -> None:
        key: Any = f"user-{number}"
        value: Any = f"{number:0100}"
        tags: list[Key] = []
        if what == "long keys":
            key += "q" * 20_000
        elif what == "tenants":
            key = (f"tenant={number:040}", key)
        elif what == "tags":
            tags = [where(f"{number}-{tag}") for tag in range(48)]
        elif what == "tuple":
            value = tuple(number * 1000 + index for index in range(1000, 1100))
        elif what == "struct":
            value = Frozen(value, tuple(Frozen(f"{number}-{index}") for index in range(20)))
        elif what == "not ascii":
            value = f"{number}" + "ä" * 500 + "\u20ac" * 500
        payload = msgspec.msgpack.encode(value)
        tokens = near.expect(where(f"{number}"), where("version"), *tags)
        near.keep(tokens, [payload], key, payload, value, FOR_EVER)

    entry(-1)
    counted = near.stats.bytes
    tracemalloc.start()
    for number in range(count):
        entry(number)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    counted = near.stats.bytes - counted
    print(f"{what}: {used / count:.0f} bytes an entry, counted {counted / count:.0f}, overhead {OVERHEAD}")
    assert 0.75 < used / counted < 1.25
