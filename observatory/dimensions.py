"""What is known about the work at hand (tenant, team, user …), bound once and read by every room."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

from .errors import InvalidArgument

_EMPTY: Mapping[str, str] = MappingProxyType({})
_bound: ContextVar[Mapping[str, str]] = ContextVar("observatory_dimensions", default=_EMPTY)

MAX_DIMENSIONS = 64
MAX_VALUE = 8192


def checked(dimensions: Mapping[str, object], what: str = "dimension") -> dict[str, str]:
    """The same mapping with its names and values checked; InvalidArgument names what is wrong."""
    if not isinstance(dimensions, Mapping):
        raise InvalidArgument(f"{what}s must be a mapping of strings, got {type(dimensions).__name__}")
    if len(dimensions) > MAX_DIMENSIONS:
        raise InvalidArgument(f"at most {MAX_DIMENSIONS} {what}s, got {len(dimensions)}")
    for name, value in dimensions.items():
        if not isinstance(name, str) or not name.isidentifier() or len(name) > 64:
            raise InvalidArgument(f"{what} name {name!r:.80} must be an identifier of at most 64 characters")
        if not isinstance(value, str) or not value:
            raise InvalidArgument(f"{what} {name} must be a non-empty string, got {value!r:.80}")
        if len(value) > MAX_VALUE:
            raise InvalidArgument(f"{what} {name} must be at most {MAX_VALUE} characters, got {len(value)}")
    return {name: str(value) for name, value in dimensions.items()}


def current() -> Mapping[str, str]:
    """What is bound here and now. Read-only."""
    return _bound.get()


def _merged(changes: Mapping[str, str | None]) -> Mapping[str, str]:
    kept = {name: value for name, value in _bound.get().items() if name not in changes}
    kept.update(checked({name: value for name, value in changes.items() if value is not None}))
    return MappingProxyType(kept)


def bind(**dimensions: str | None) -> None:
    """Bind for the rest of this task; None removes."""
    _bound.set(_merged(dimensions))


@contextmanager
def bound(**dimensions: str | None) -> Iterator[None]:
    """Bind for a block."""
    token = _bound.set(_merged(dimensions))
    try:
        yield
    finally:
        _bound.reset(token)
