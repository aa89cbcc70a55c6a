"""Log lines: JSON for machines, text on a terminal, with the bound dimensions, trace and span ids, service and instance."""

import json
import logging
import sys
from datetime import datetime
from typing import Any, Final, TextIO, cast, get_args

from ..errors import InvalidArgument
from ..redaction import Redactor
from ..settings.table import Log
from ..types import LogLevel
from .pen import FEW, RESERVED, Line, Pen, context, digest

INTERNAL = logging.getLogger("observatory")
"""Our own lines. A library's logger: no handler of its own until an Observatory opens, and yours win."""
INTERNAL.addHandler(logging.NullHandler())

LEVELS: Final[tuple[str, ...]] = get_args(LogLevel)


def level_named(name: str) -> LogLevel:
    """The level of this name; InvalidArgument names those there are."""
    if not isinstance(name, str) or name.lower() not in LEVELS:
        raise InvalidArgument(f"level must be one of {', '.join(LEVELS)}, got {name!r:.80}")
    return cast("LogLevel", name.lower())


class Logger:
    """One line per call, to stderr. Fields are keywords. A field you pass wins over what is bound."""

    def __init__(self, pen: Pen, *, level: str = "info") -> None:
        self._pen = pen
        self._fields: dict[str, Any] = {}
        self._own = self.level = level_named(level)
        self._fleet: LogLevel | None = None

    @classmethod
    def of(cls, service: str, instance: str, log: Log, redactor: Redactor) -> "Logger":
        """As the settings say."""
        pen = Pen(service, instance, format=log.format, redactor=redactor, max_repeats=log.max_repeats)
        return cls(pen, level=log.level)

    @property
    def level(self) -> LogLevel:
        """The lowest level written, here and by every logger bound from this one. May be set at any time."""
        return level_named(logging.getLevelName(self._pen.level))

    @level.setter
    def level(self, level: str) -> None:
        number = logging.getLevelNamesMapping()[level_named(level).upper()]
        self._pen.setLevel(number)
        if self._pen in INTERNAL.handlers:
            INTERNAL.setLevel(number)

    async def aclose(self, timeout: float) -> None:
        """Tell what was held back, and send what is buffered, within `timeout` seconds."""
        await self._pen.aclose(timeout)

    def forget(self, instance: str) -> None:
        """A forked child is another instance."""
        self._pen.forget(instance)

    def follow(self, level: str | None) -> None:
        """The fleet's level, as of the last beat: a change of it counts here too. None: there is none, the settings' own."""
        fleet = cast("LogLevel", level) if level in LEVELS else None
        if fleet != self._fleet:
            self._fleet, self.level = fleet, fleet or self._own
            INTERNAL.warning("log level is %s%s", self.level, ", as the fleet was told" if fleet else " again")

    def _log(self, level: int, message: str, fields: dict[str, Any], *, trace: bool = False) -> None:
        pen = self._pen
        if level < pen.level:
            return
        line: Line | None = None
        try:
            line = Line("observatory.app", level, sys.exc_info() if trace else None)
            said = line.said = pen.who(line)
            message = said["message"] = message if type(message) is str else str(message)
            known = context()
            same, said_by_you = pen.same(fields) if fields else (None, fields)
            if "trace_id" in fields and fields["trace_id"] != known.get("trace_id"):
                known.pop("span_id", None)  # of another trace than the caller speaks of
            said.update(known)
            for name, value in (*self._fields.items(), *said_by_you.items()):
                said[f"field_{name}" if name in RESERVED else name] = value
            line.key = (level, message if len(message) <= FEW else digest(message), same)
            if trace:
                line.key = (line.key, pen.raised(line))
            pen.handle(line)
        except Exception as error:  # a message that cannot be asked, a stack that is used up
            try:
                pen.excuse(line, error)
            except Exception:
                pen.lost += 1

    def bind(self, **fields: Any) -> "Logger":
        """A logger whose lines carry these fields too."""
        bound = object.__new__(Logger)
        bound._pen = self._pen
        bound._fields = {**self._fields, **fields}
        return bound

    @property
    def pen(self) -> Pen:
        """What writes the lines, ours as well while nobody else shows them."""
        return self._pen

    def to(self, stream: TextIO, format: str = "json") -> None:  # noqa: A002
        """Write to another stream from now on."""
        self._pen.to(stream, format)

    def debug(self, message: str, **fields: Any) -> None:
        self._log(logging.DEBUG, message, fields)

    def info(self, message: str, **fields: Any) -> None:
        self._log(logging.INFO, message, fields)

    def warning(self, message: str, **fields: Any) -> None:
        self._log(logging.WARNING, message, fields)

    def error(self, message: str, **fields: Any) -> None:
        self._log(logging.ERROR, message, fields)

    def critical(self, message: str, **fields: Any) -> None:
        self._log(logging.CRITICAL, message, fields)

    def exception(self, message: str, **fields: Any) -> None:
        """An error with the traceback of the exception being handled."""
        self._log(logging.ERROR, message, fields, trace=True)


def dumps(value: Any) -> str:
    """One line of JSON, for things printed to a machine."""
    return json.dumps(value, default=_readable, ensure_ascii=False, separators=(",", ":"))


def _readable(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)
