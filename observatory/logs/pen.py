"""What writes a line: cleaned, not too often, never into the caller's way, to a stream and by OTLP."""

import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, TextIO, cast

from pythonjsonlogger.core import BaseJsonFormatter

from .. import dimensions, otlp, tracing
from ..redaction import Redactor
from .repeats import Repeats, Told

RESERVED = frozenset({"timestamp", "level", "message", "service", "instance", "exception", "repeated", "lost", "logger"})
"""Fields that are ours; one of yours of such a name is called field_…"""
FEW = 1024
"""Characters up to which what a line says is itself kept, to know it again."""


class _Json(BaseJsonFormatter):
    """What a line says, as JSON, cleaned."""

    def __init__(self, redactor: Redactor) -> None:
        super().__init__()
        self._redactor = redactor
        self.cleaned: dict[str, Any] = {}
        """What the last line said. Whoever formats has the lock."""

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        log_data.update(cast("Line", record).said)

    def jsonify_log_record(self, log_data: dict[str, Any]) -> str:
        line, self.cleaned = self._redactor.line(log_data)
        return line

    def formatException(self, ei: Any) -> str:  # noqa: N802 (the library's name)
        return ""  # it is among what the line says


class Line(logging.LogRecord):
    """A record that says what it says by name. Of a record it has what is asked of it here."""

    said: dict[str, Any]
    key: Hashable

    def __init__(self, name: str, level: int, raised: Any = None, created: float = 0.0) -> None:
        self.name = name
        self.levelno = level
        self.levelname = logging.getLevelName(level)
        self.msg, self.args = "", None
        self.exc_info, self.exc_text, self.stack_info = raised, None, None
        self.created = created or time.time()


def _text(said: Mapping[str, Any], who: str) -> str:
    """For a terminal. A newline or an escape in what was said must not be able to forge a line of its own."""
    moment = datetime.fromisoformat(said["timestamp"]).astimezone().strftime("%H:%M:%S")
    hidden = ("timestamp", "level", "message", "service", "instance", "exception", "logger")
    shown = " ".join(f"{name}={value}" for name, value in said.items() if name not in hidden)
    text = f"{moment} {said['level']:<7} {who}  {said['message']}"
    text = _printable(f"{text}  {shown}" if shown else text)
    return f"{text}\n{_printable(said['exception'], keep=chr(10))}" if "exception" in said else text


def _printable(text: str, keep: str = "") -> str:
    return "".join(letter if letter.isprintable() or letter in keep else repr(letter)[1:-1] for letter in text)


class Pen(logging.Handler):
    """Writes lines: cleaned, the same ones not too often, to a stream and by OTLP where that is asked for.

    It never raises into whoever logs. What could not be written is counted, and told with the next line (`lost`).
    """

    def __init__(
        self,
        service: str,
        instance: str,
        *,
        format: str = "auto",  # noqa: A002 (the setting's name)
        redactor: Redactor | None = None,
        max_repeats: int = 0,
    ) -> None:
        super().__init__()
        self.service = service
        self.instance = instance
        self.repeats = Repeats(max_repeats)
        self._redactor = redactor or Redactor()
        self._json = _Json(self._redactor)
        self._stream: TextIO | None = None
        self._as_text = format == "text" or (format == "auto" and sys.stderr is not None and sys.stderr.isatty())
        self.lost = 0
        """Lines that could not be written since the last one that was."""
        self._out: otlp.LinesOut | None = None
        self._looked = False
        self.listener: Callable[[Mapping[str, Any]], object] | None = None
        """Told what each line says, also of those that are not written since they repeat others."""

    def to(self, stream: TextIO, format: str) -> None:  # noqa: A002
        """Write to another stream from now on."""
        self._stream = stream
        self._as_text = format == "text" or (format == "auto" and stream.isatty())

    # a line
    def emit(self, record: logging.LogRecord) -> None:
        """In whatever state the caller, the value or the stream is."""
        try:
            line = record if isinstance(record, Line) else self._foreign(record)
            if self.listener is not None:
                self.listener(self._cleaned(line))
            for told in self.repeats.heard(line.key, line, time.monotonic()):
                self._tell(told)
        except Exception as error:  # a line is never worth the caller's work
            self.excuse(record, error)

    def says(self, record: logging.LogRecord) -> Mapping[str, Any]:
        """What a line of ours would say, written by nobody."""
        with self.lock or contextlib.nullcontext():
            return self._cleaned(self._foreign(record))

    def _cleaned(self, line: Line) -> Mapping[str, Any]:
        self._json.format(line)
        return self._json.cleaned

    def settle(self, *, all: bool = False) -> int:  # noqa: A002 (the word for it)
        """Tell what was held back and is due. Returns how many lines were held back since it was last asked."""
        with self.lock or contextlib.nullcontext():
            try:
                for told in self.repeats.settle(float("inf") if all else time.monotonic()):
                    self._tell(told)
            except Exception:
                self.lost += 1
            held, self.repeats.held = self.repeats.held, 0
            return held

    def _tell(self, told: Told) -> None:
        record = told.record
        said = cast("Line", record).said
        if told.repeated > 0:
            said["repeated"] = told.repeated
        if self.lost:
            said["lost"] = self.lost
        line = self._json.format(record)
        said = self._json.cleaned
        self._write(_text(said, str(said.get("logger", self.service))) if self._as_text else line)
        if (out := self._out if self._looked else self._look()) is not None:
            out.emit(record, said)

    def _write(self, text: str) -> None:
        stream = self._stream or sys.stderr
        try:
            try:
                stream.write(f"{text}\n")
            except UnicodeError:  # a stream that does not speak UTF-8
                stream.write(f"{text.encode('ascii', 'backslashreplace').decode()}\n")
            stream.flush()
        except Exception:  # closed, full, gone
            self.lost += 1
        else:
            self.lost = 0

    def excuse(self, record: logging.LogRecord | None, error: Exception) -> None:
        """A line in place of one that could not be made."""
        with contextlib.suppress(Exception):
            line = Line("observatory", logging.ERROR if record is None else record.levelno)
            said = {**self.who(line), "message": f"a line could not be written: {type(error).__name__}"}
            self._write(json.dumps(said))
            return
        self.lost += 1

    def who(self, record: logging.LogRecord) -> dict[str, Any]:
        """How every line begins."""
        seconds, milliseconds = divmod(int(record.created * 1000), 1000)
        return {
            "timestamp": f"{_moment(seconds)}.{milliseconds:03}Z",
            "level": record.levelname.lower(),
            "message": "",
            "service": self.service,
            "instance": self.instance,
        }

    def _foreign(self, record: logging.LogRecord) -> Line:
        """One of ours that came by the standard library's way."""
        try:
            message = record.getMessage()
        except Exception:  # a template and its values that do not fit
            message = f"{record.msg} {record.args!r}"
        line = Line(record.name, record.levelno, record.exc_info, record.created)
        line.said = {**self.who(line), "message": message, **context(), "logger": record.name}
        line.key = (record.name, record.levelno, message if len(message) <= FEW else digest(message))
        if record.exc_info:
            line.key = (line.key, self.raised(line))
        return line

    def raised(self, line: Line) -> str:
        """The traceback becomes a field; what it ends with is returned."""
        shown = line.said["exception"] = self._redactor.traceback(
            logging.Formatter().formatException(line.exc_info or (None,) * 3)
        )
        return digest(shown[-FEW:])

    def same(self, fields: Mapping[str, Any]) -> tuple[Hashable, Mapping[str, Any]]:
        """By what fields are known again, and the fields as they are now: a line may be told when they have long changed."""
        size = 0
        for value in fields.values():
            kind = type(value)
            if kind is str:
                size += len(value)
            elif kind not in _SIMPLE:
                size = FEW + 1
        if size <= FEW:
            return (tuple(fields.items()), tuple(map(type, fields.values()))), fields
        line, cleaned = self._redactor.line(fields)
        return digest(line), cleaned

    # the way out by OTLP
    def _look(self) -> otlp.LinesOut | None:
        self._looked = True
        try:
            if otlp.endpoint("logs"):
                self._out = otlp.LinesOut(self.service, self.instance)
        except Exception as error:  # an exporter that is not installed, or does not like its address
            self._write(f"observatory: lines are not sent by OTLP: {self._redactor.text(str(error))}")
        return self._out

    def begin(self) -> None:
        """Opened: look again where lines are to go, and load what takes them there before the first one."""
        if self._out is None:
            self._look()

    async def aclose(self, timeout: float) -> None:
        """Tell what was held back; send what is buffered, within `timeout` seconds. Later lines go to the stream only."""
        self.settle(all=True)
        out, self._out, self._looked = self._out, None, True
        if out is not None:
            await otlp.close(out.provider, timeout)

    def close(self) -> None:
        """At the end of the process."""
        self.settle(all=True)
        super().close()

    def forget(self, instance: str) -> None:
        """A forked child is another instance, and what was held back is its parent's."""
        self.instance = instance
        self.repeats = Repeats(self.repeats.most)
        self._out, self._looked = None, False


_SIMPLE = frozenset({str, int, float, bool, type(None)})
_last: tuple[int, str] = (0, "")


def _moment(seconds: int) -> str:
    """To the second, which is the same for many lines."""
    global _last  # noqa: PLW0603
    last = _last
    if last[0] != seconds:
        _last = last = (seconds, datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S"))
    return last[1]


def digest(text: str) -> str:
    return blake2b(text.encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()


def context() -> dict[str, Any]:
    """What is known about the work at hand: dimensions, request, trace."""
    known: dict[str, Any] = dict(dimensions.current())
    if (request := dimensions.request_id.get()) is not None:
        known["request_id"] = request
    known.update(tracing.ids())
    if not RESERVED.isdisjoint(known):
        return {f"field_{name}" if name in RESERVED else name: value for name, value in known.items()}
    return known
