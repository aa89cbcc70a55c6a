"""Lines that say the same again and again: a few are written, the others are counted, and the count is told."""

from collections import OrderedDict
from collections.abc import Hashable
from logging import LogRecord
from typing import NamedTuple

WINDOW: float = 10.0
"""Seconds."""
MAX_KNOWN = 1024
"""Lines that are told apart; of further ones the oldest is told and forgotten."""


class Told(NamedTuple):
    """A line to be written, and how many that said the same were not."""

    record: LogRecord
    repeated: int


class _Known:
    __slots__ = ("held", "last", "since", "written")

    def __init__(self, since: float) -> None:
        self.since = since
        self.written = 0
        self.held = 0
        self.last: LogRecord | None = None


class Repeats:
    """Of the same line `most` are written in ten seconds. What is held back is counted; each is either written or told.

    Not for several threads at once: whoever writes lines has a lock.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        """0: all."""
        self._known: OrderedDict[Hashable, _Known] = OrderedDict()
        """By when their windows began."""
        self.held = 0
        """Lines held back. Whoever counts them sets it back."""

    def heard(self, key: Hashable, record: LogRecord, now: float) -> tuple[Told, ...]:
        """What is to be written now: nothing, this line, or what was due before it too."""
        if not self.most:
            return (Told(record, 0),)
        repeated = 0
        known = self._known.get(key)
        if known is not None and now - known.since >= WINDOW:
            # This line itself tells what was held of it.
            repeated = self._known.pop(key).held
            known = None
        if known is None:
            due = self._due(now, MAX_KNOWN - 1)
            self._known[key] = known = _Known(now)
            known.written = 1
            return (*due, Told(record, repeated))
        due = self._due(now, MAX_KNOWN)
        if known.written < self.most:
            known.written += 1
            return (*due, Told(record, 0))
        known.held += 1
        known.last = record
        self.held += 1
        return due

    def _due(self, now: float, room: int) -> tuple[Told, ...]:
        """Of windows that are over, and of the oldest where there are more than `room`, the last line that was held."""
        due: list[Told] = []
        while self._known:
            key, oldest = next(iter(self._known.items()))
            if now - oldest.since < WINDOW and len(self._known) <= room:
                break
            del self._known[key]
            if oldest.last is not None:
                due.append(Told(oldest.last, oldest.held - 1))
        return tuple(due)

    def settle(self, now: float) -> tuple[Told, ...]:
        """What is due without a line that came. now: infinity for all."""
        return self._due(now, MAX_KNOWN)
