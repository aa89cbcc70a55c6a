"""What is known about the work at hand (tenant, team, user …), bound once and read by every room."""

import asyncio
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import sha256
from types import MappingProxyType

from .errors import InvalidArgument

_EMPTY: Mapping[str, str] = MappingProxyType({})
_bound: ContextVar[Mapping[str, str]] = ContextVar("observatory_dimensions", default=_EMPTY)
request_id: ContextVar[str | None] = ContextVar("observatory_request_id", default=None)
"""Of the HTTP request at hand, bound by the ASGI door."""


class _Threads:
    """What the threads of one request have bound, by name, each with its number.

    A thread works in a copy of the context: what it binds would end with it.
    """

    __slots__ = ("said", "told")

    def __init__(self) -> None:
        self.said: dict[str, tuple[int, str | None]] = {}
        self.told = 0


_threads: ContextVar[_Threads | None] = ContextVar("observatory_threads", default=None)
_heard: ContextVar[int] = ContextVar("observatory_heard", default=0)

MAX_DIMENSIONS = 64
MAX_VALUE = 8192


class Known(dict[str, str]):
    """Dimensions that were checked, and are not changed any more: they are not checked again."""

    __slots__ = ()


def checked(dimensions: Mapping[str, object], what: str = "dimension") -> dict[str, str]:
    """The same mapping with its names and values checked; InvalidArgument names what is wrong."""
    if type(dimensions) is Known:
        return dimensions
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
    return Known((name, str(value)) for name, value in dimensions.items())


_DIGEST = re.compile(r"[0-9a-f]{12}")


def key_of(credential: str) -> str:
    """The dimension `key` of a call: the first 12 hexadecimal digits of its API key's SHA-256. Of such a value, itself."""
    if _DIGEST.fullmatch(credential):
        return credential
    return sha256(credential.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def current() -> Mapping[str, str]:
    """What is bound here and now. Read-only."""
    threads = _threads.get()
    if threads is not None and threads.told > (heard := _heard.get()):
        new = {name: value for name, (number, value) in tuple(threads.said.items()) if number > heard}
        _heard.set(threads.told)
        _bound.set(_merged(_bound.get(), new))
    return _bound.get()


def _merged(before: Mapping[str, str], changes: Mapping[str, str | None]) -> Mapping[str, str]:
    kept = {name: value for name, value in before.items() if name not in changes}
    kept.update(checked({name: value for name, value in changes.items() if value is not None}))
    return MappingProxyType(kept)


def bind(**dimensions: str | None) -> None:
    """Bind for the rest of this task; None removes. From a thread of a request: for the rest of the request."""
    _bound.set(_merged(current(), dimensions))
    threads = _threads.get()
    if threads is not None and not _on_a_loop():
        number = threads.told + 1
        threads.said.update({name: (number, value) for name, value in dimensions.items()})
        threads.told = number


def _on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


@contextmanager
def bound(**dimensions: str | None) -> Iterator[None]:
    """Bind for a block."""
    token = _bound.set(_merged(current(), dimensions))
    heard = _heard.set(_heard.get())
    try:
        yield
    finally:
        _heard.reset(heard)
        _bound.reset(token)


@contextmanager
def request(**dimensions: str | None) -> Iterator[None]:
    """Bind for a request: what a thread of it binds, the rest of it knows."""
    threads, heard = _threads.set(_Threads()), _heard.set(0)
    try:
        with bound(**dimensions):
            yield
    finally:
        _heard.reset(heard)
        _threads.reset(threads)
