"""The breakers around the code that runs: what was known when each block was entered."""

from contextvars import ContextVar
from typing import Any

Inside = tuple[Any, int, float, str, Any]
"""Breaker, epoch, began, token, and what is around it: a plain tuple, since more would cost as much as all the rest."""
entered: ContextVar[Inside | None] = ContextVar("observatory_breakers", default=None)


def without(found: Inside | None, breaker: object) -> Inside | None:
    """The innermost of a breaker, with all others around it: blocks that are not left in the order in which they were entered,
    as those of async generators may be. None: it was entered in another context."""
    others = []
    while found is not None and found[0] is not breaker:
        others.append(found)
        found = found[4]
    if found is None:
        return None
    outer = found[4]
    for one in reversed(others):
        outer = (*one[:4], outer)
    return (*found[:4], outer)
