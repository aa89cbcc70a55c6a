"""Log lines: JSON for machines, text on a terminal, with the bound dimensions, trace and span ids, service and instance."""

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

from pythonjsonlogger.json import JsonFormatter

from . import dimensions, tracing

INTERNAL = logging.getLogger("observatory")
"""Our own lines. A library's logger: no handler of its own until an Observatory opens, and yours win."""
INTERNAL.addHandler(logging.NullHandler())

_RESERVED = frozenset({"timestamp", "level", "message", "service", "instance"})


class _Json(JsonFormatter):
    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        return log_data

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        moment = datetime.fromtimestamp(record.created, UTC)
        log_data["timestamp"] = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        log_data["level"] = record.levelname.lower()
        log_data["message"] = record.getMessage()
        log_data.update(getattr(record, "observatory", {"service": record.name}))
        if record.exc_info:
            log_data["exception"] = self.formatException(record.exc_info)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).astimezone().strftime("%H:%M:%S")
        said = getattr(record, "observatory", {})
        shown = " ".join(f"{name}={value}" for name, value in said.items() if name not in ("service", "instance"))
        line = f"{moment} {record.levelname.lower():<7} {said.get('service', record.name)}  {record.getMessage()}"
        line = f"{line}  {shown}" if shown else line
        # A newline or an escape in what was said must not be able to forge a line of its own.
        line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def handler(format: str, stream: TextIO | None = None) -> logging.Handler:  # noqa: A002 (the setting's name)
    """A handler that writes our form: "json", "text", or "auto" (text on a terminal)."""
    made = logging.StreamHandler(stream or sys.stderr)
    text = format == "text" or (format == "auto" and (stream or sys.stderr).isatty())
    made.setFormatter(_Text() if text else _Json(json_default=_readable, json_ensure_ascii=False))
    return made


def _readable(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)


class Logger:
    """One line per call, to stderr. Fields are keywords. A field you pass wins over what is bound."""

    def __init__(self, service: str, instance: str, *, level: str = "info", format: str = "auto") -> None:  # noqa: A002
        self._said: dict[str, Any] = {"service": service, "instance": instance}
        self._logger = logging.Logger(f"observatory.app.{service}", level=level.upper())
        self._logger.addHandler(handler(format))

    def _write(self, level: int, message: str, fields: Mapping[str, Any], *, trace: bool = False) -> None:
        if not self._logger.isEnabledFor(level):
            return
        said = {**self._said, **dimensions.current(), **tracing.ids()}
        for name, value in fields.items():
            said[f"field_{name}" if name in _RESERVED else name] = value
        self._logger.log(level, "%s", message, extra={"observatory": said}, exc_info=trace)

    def debug(self, message: str, **fields: Any) -> None:
        self._write(logging.DEBUG, message, fields)

    def info(self, message: str, **fields: Any) -> None:
        self._write(logging.INFO, message, fields)

    def warning(self, message: str, **fields: Any) -> None:
        self._write(logging.WARNING, message, fields)

    def error(self, message: str, **fields: Any) -> None:
        self._write(logging.ERROR, message, fields)

    def critical(self, message: str, **fields: Any) -> None:
        self._write(logging.CRITICAL, message, fields)

    def exception(self, message: str, **fields: Any) -> None:
        """An error with the traceback of the exception being handled."""
        self._write(logging.ERROR, message, fields, trace=True)

    def bind(self, **fields: Any) -> "Logger":
        """A logger whose lines carry these fields too."""
        bound = object.__new__(Logger)
        bound._said = {**self._said, **fields}
        bound._logger = self._logger
        return bound

    def rename(self, instance: str) -> None:
        """A forked child is another instance."""
        self._said["instance"] = instance

    def to(self, stream: TextIO, format: str = "json") -> None:  # noqa: A002
        """Write to another stream from now on."""
        for old in list(self._logger.handlers):
            self._logger.removeHandler(old)
        self._logger.addHandler(handler(format, stream))


def dumps(value: Any) -> str:
    """One line of JSON, for things printed to a machine."""
    return json.dumps(value, default=_readable, ensure_ascii=False, separators=(",", ":"))
