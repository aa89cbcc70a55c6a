"""What was recorded in past windows and not yet frozen, each window by itself, in bounded memory.

A window stands here while the store is away. There are at most MAX_WINDOWS of them, and about MAX_ADDITIONS additions over all;
beyond either, windows are folded: neighbours become one of twice the length, again and again. Sums stay exact; what becomes
coarser is when.
"""

from collections.abc import Iterator
from typing import NamedTuple

from ...keys import WINDOW_US
from ...names import Definition

MAX_WINDOWS = 360
"""An hour of 10 s windows; two hours of 20 s, four of 40 s …"""
MAX_ADDITIONS = 200_000


class Group(NamedTuple):
    """One metric's part of a batch: integer additions to fields (see series.py)."""

    metric: str
    definition: Definition
    additions: list[tuple[str, int]]


class Window(NamedTuple):
    """What was recorded around one moment."""

    at_us: int
    groups: list[Group]


class Waiting:
    """Windows by the moments they were recorded at, on whatever clock. Held by the recorder's lock."""

    def __init__(self) -> None:
        self._windows: list[Window] = []
        self._additions = 0
        self._length_us = WINDOW_US

    def __len__(self) -> int:
        return len(self._windows)

    def __iter__(self) -> Iterator[Window]:
        return iter(self._windows)

    def put(self, window: Window) -> int:
        """One more, later than all others. Returns how many windows were folded into an earlier one for it."""
        self._windows.append(window)
        self._additions += _size(window)
        before = len(self._windows)
        if self._length_us > WINDOW_US:
            self._fold(self._windows[-2:])
        while len(self._windows) > 1 and (len(self._windows) > MAX_WINDOWS or self._additions > MAX_ADDITIONS):
            self._length_us *= 2
            self._fold(self._windows)
        return before - len(self._windows)

    def _fold(self, last: list[Window]) -> None:
        """Make those of the last windows one that fall into the same length of time."""
        kept: list[list[Window]] = []
        for window in last:
            if kept and kept[-1][0].at_us // self._length_us == window.at_us // self._length_us:
                kept[-1].append(window)
            else:
                kept.append([window])
        folded = [alike[0] if len(alike) == 1 else _one(alike) for alike in kept]
        self._windows[len(self._windows) - len(last) :] = folded
        self._additions += sum(map(_size, folded)) - sum(map(_size, last))

    def take(self) -> list[Window]:
        """All of them, in order; none is left, and windows are short again."""
        taken = self._windows
        self._windows, self._additions, self._length_us = [], 0, WINDOW_US
        return taken


def _size(window: Window) -> int:
    return sum(len(group.additions) for group in window.groups)


def _one(windows: list[Window]) -> Window:
    """The sum, at the moment of the first."""
    definitions: dict[str, Definition] = {}
    sums: dict[str, dict[str, int]] = {}
    for window in windows:
        for metric, definition, additions in window.groups:
            definitions.setdefault(metric, definition)
            into = sums.setdefault(metric, {})
            for field, number in additions:
                into[field] = into.get(field, 0) + number
    return Window(windows[0].at_us, [Group(metric, definitions[metric], list(into.items())) for metric, into in sums.items()])
