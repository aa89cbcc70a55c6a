"""What a value that is kept in this process costs there, and whether one object of it may be everybody's."""

import sys
from collections.abc import Hashable
from typing import cast

import msgspec

OVERHEAD = 400
"""Bytes that a kept value costs beside its payload and its shared key, measured (tests/features/test_near_weight.py)."""
PER_VERSION = 330
"""Bytes of a tag's version that an entry counts under, measured as well. Of one that many share, somewhat too much."""
_HEAD = 49
"""Bytes of an empty text; that of a value, and a key of some letters, are in OVERHEAD."""
_SHORT_KEY = 64
_ATOMS = frozenset((str, bytes, int, float, bool, type(None)))


def immutable(value: object) -> bool:
    """One object may be handed to every caller. Only what is known to be so; of tuples and frozen Structs, all parts."""
    kind = type(value)
    if kind in _ATOMS:
        return True
    if kind is tuple:
        return all(map(immutable, cast(tuple[object, ...], value)))
    if isinstance(value, msgspec.Struct):
        config = value.__struct_config__
        if config.frozen and not hasattr(value, "__dict__"):
            return all(immutable(getattr(value, field)) for field in value.__struct_fields__)
    return False


def weight(value: object) -> int:
    """Bytes of an immutable value with all that it is made of."""
    size = sys.getsizeof(value)
    if type(value) is tuple:
        return size + sum(map(weight, cast(tuple[object, ...], value)))
    if isinstance(value, msgspec.Struct):
        return size + sum(weight(getattr(value, field)) for field in value.__struct_fields__)
    return size


def cost(key: Hashable, where: bytes, payload: bytes, shared: object, versions: int) -> int:
    """Bytes of an entry: found by `key`, spelled `where` in the store. shared: its value where that is kept instead of the
    payload, else None. versions: how many it counts under; the first is its whole cache's."""
    size = len(payload) if shared is None else max(len(payload), weight(shared) - _HEAD)
    return size + OVERHEAD + len(where) + max(weight(key) - _SHORT_KEY, 0) + PER_VERSION * max(versions - 1, 0)
