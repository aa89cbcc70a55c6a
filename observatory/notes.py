"""What the limits said during one request, kept for the door that answers it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_taken: ContextVar[dict[str, Any] | None] = ContextVar("observatory_notes", default=None)

MOST = 64
"""Limits that one answer speaks of."""


def note(limit: str, decision: Any) -> None:
    """The last word of a limit, where somebody takes notes."""
    taken = _taken.get()
    if taken is not None and (limit in taken or len(taken) < MOST):
        taken[limit] = decision


@contextmanager
def taking() -> Iterator[dict[str, Any]]:
    """For a block, and for the tasks and threads that it starts: the last word of every limit, by its name."""
    taken: dict[str, Any] = {}
    token = _taken.set(taken)
    try:
        yield taken
    finally:
        _taken.reset(token)
