"""Attributes that are made when first used, and once, whoever comes first."""

import os
import threading
from functools import cached_property
from typing import Any, Self, TypeVar, overload

T = TypeVar("T")


class _Making:
    lock = threading.RLock()


class room(cached_property[T]):  # noqa: N801 (a decorator)
    """As cached_property, whose lock Python 3.12 took away: two threads that come first at one moment get the same one.

    It costs nothing once it is made. One lock for all, since rooms need each other.
    """

    @overload
    def __get__(self, instance: None, owner: type[Any] | None = None) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type[Any] | None = None) -> T: ...
    def __get__(self, instance: Any, owner: type[Any] | None = None) -> Any:
        if instance is None:
            return self
        with _Making.lock:
            name = self.attrname
            if name is not None and name in instance.__dict__:
                return instance.__dict__[name]
            return super().__get__(instance, owner)


def _after_fork_in_child() -> None:
    """A thread that was making one is not here any more."""
    _Making.lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork_in_child)
