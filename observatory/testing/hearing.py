"""Our own lines, for the sandbox of the Observatory that they come from."""

import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType, MethodType
from typing import Any

from ..client import Observatory
from ..clock import RoomClock
from ..lifetime import Lifetime
from ..logs import INTERNAL
from ..logs.pen import Pen

_DEEP = 4
"""So far behind what logs its Observatory is looked for: a room's part has its clock, or its room."""


class Hears(logging.Handler):
    """While it is there nobody else needs to show them. whose: those that are one sandbox's."""

    def __init__(self, pen: Pen, whose: Callable[[], Iterable[Observatory]], hear: Callable[[dict[str, Any]], object]) -> None:
        super().__init__(pen.level)
        self._pen = pen
        self._whose = whose
        self._hear = hear

    def emit(self, record: logging.LogRecord) -> None:
        said_by = _speaker(sys._getframe())  # noqa: SLF001
        # Of what is nobody's, as of a catalogue of prices that all share, each is told.
        if said_by is None or any(said_by in (one._clock, one._lifetime) for one in self._whose()):  # noqa: SLF001
            self._hear(dict(self._pen.says(record)))


def _speaker(frame: FrameType | None) -> RoomClock | Lifetime | None:
    """The clock or the lifetime of the Observatory that says this: rooms know no more of it."""
    while frame is not None:
        speaking = frame.f_locals.get("self")
        if speaking is not None and not isinstance(speaking, logging.Handler):
            near = {id(speaking): speaking}
            for _ in range(_DEEP):
                found = next((one for one in near.values() if isinstance(one, RoomClock | Lifetime)), None)
                if found is not None:
                    return found
                parts = (
                    part.__self__ if isinstance(part, MethodType) else part for one in near.values() for part in _parts(one)
                )
                near = {id(part): part for part in parts}
        frame = frame.f_back
    return None


def _parts(one: object) -> Iterator[object]:
    if type(one).__module__.startswith("observatory."):
        yield from getattr(one, "__dict__", {}).values()
        for kind in type(one).__mro__:
            for name in getattr(kind, "__slots__", ()):
                yield getattr(one, name, None)


class _Level:
    """Of the logger of our lines: the lowest that one of its hearers wants, and afterwards what it was."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hearers: list[Hears] = []
        self._before = logging.NOTSET

    def begin(self, hearer: Hears) -> None:
        with self._lock:
            if not self._hearers:
                self._before = INTERNAL.level
            self._hearers.append(hearer)
            INTERNAL.addHandler(hearer)
            INTERNAL.setLevel(min(one.level for one in self._hearers))

    def end(self, hearer: Hears) -> None:
        with self._lock:
            self._hearers.remove(hearer)
            INTERNAL.removeHandler(hearer)
            INTERNAL.setLevel(min((one.level for one in self._hearers), default=self._before))


LEVEL = _Level()
