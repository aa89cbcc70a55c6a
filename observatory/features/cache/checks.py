"""What a cache is told, checked: each argument by its name, before anything is sent."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from ... import units
from ...errors import InvalidArgument
from .entry import MAX_TAGS

_LONGEST_MS = 366 * 100 * 86_400_000


def milliseconds(seconds: Any, what: str, least: int = 1) -> int:
    """Of a duration that ends."""
    if seconds is None:
        bound = "seconds above 0" if least else "seconds of at least 0"
        raise InvalidArgument(f"{what} must be {bound}: every shared entry expires", remedy="Give a number, 60 say")
    number = units.microseconds(seconds, what) // 1000
    if not least <= number <= _LONGEST_MS:
        raise InvalidArgument(f"{what} must be at least {least} ms and end within a century, got {units.shown(seconds, 40)}")
    return number


def at_least_1(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidArgument(
            f"{what} must be a whole number of at least 1, got {units.shown(value)}", remedy="near=False keeps none"
        )
    return value


F = TypeVar("F")


def asynchronous(function: F, what: str) -> F:
    """As far as can be said before it is called."""
    if not callable(function):
        raise InvalidArgument(f"{what} must be an async function, got {units.shown(function, 60)}")
    return function


def threshold(value: Any) -> int | None:
    """compress_over."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise InvalidArgument(
            f"compress_over must be bytes, at least 0, got {units.shown(value)}", remedy="Leave it out for cache.compress_over"
        )
    return value


def nearness(value: Any) -> bool | None:
    """near."""
    if value is not None and not isinstance(value, bool):
        raise InvalidArgument(
            f"near must be True, False or None, got {units.shown(value)}", remedy="Leave it out for what cache.near says"
        )
    return value


def dimensions_of(by: Any) -> str | tuple[str, ...] | None:
    """by."""
    if by is None or isinstance(by, str):
        return by
    return _strings(by, "by", 'Write by="tenant" or by=("team", "tenant")')


def labels(tags: Any) -> tuple[str, ...]:
    """Tags, each once."""
    several = tuple(dict.fromkeys(_strings(tags, "tags", 'Write tags=["a", "b"]')))
    if len(several) > MAX_TAGS:
        raise InvalidArgument(
            f"tags must be at most {MAX_TAGS} non-empty strings, got {len(several)}", remedy='Write tags=["a", "b"]'
        )
    return several


def invalidated(tags: tuple[Any, ...]) -> tuple[str, ...]:
    """Those of `invalidate(*tags)`; there is one at least: nobody means to invalidate nothing."""
    if not tags:
        raise InvalidArgument("tags must name at least one", remedy="Write invalidate('a', 'b'); clear() takes all entries")
    if not isinstance(tags[0], str):
        raise InvalidArgument(
            f"tags must be strings, got {units.shown(tags[0])}", remedy="Write invalidate('a', 'b'), or invalidate(*tags)"
        )
    return labels(tags)


def several_keys(keys: Any) -> tuple[str, ...]:
    """As they come."""
    return _strings(keys, "keys", 'Write ["a", "b"]')


def pairs_of(entries: Any) -> Mapping[str, Any]:
    """Entries of set_many."""
    if not isinstance(entries, Mapping):
        raise InvalidArgument(
            f"entries must be a mapping of keys and values, got {units.shown(entries)}", remedy='Write {"key": value}'
        )
    return entries


def pairs_in(pairs: Any) -> Mapping[str, Any]:
    """Entries of multi_set."""
    try:
        return dict(pairs)
    except (TypeError, ValueError):
        raise InvalidArgument(
            f"pairs must be keys and values, got {units.shown(pairs)}", remedy='Write [("key", value)]'
        ) from None


def _strings(values: Any, what: str, remedy: str) -> tuple[str, ...]:
    if isinstance(values, str):
        raise InvalidArgument(f"{what} must be several strings, got the string {units.shown(values)}", remedy=remedy)
    if not isinstance(values, Iterable):
        raise InvalidArgument(f"{what} must be several strings, got {units.shown(values)}", remedy=remedy)
    return tuple(_each(values, what, remedy))


def _each(values: Iterable[Any], what: str, remedy: str) -> Iterator[str]:
    for value in values:
        if not isinstance(value, str) or not value:
            raise InvalidArgument(f"{what} must be non-empty strings, got {units.shown(value)}", remedy=remedy)
        yield value
