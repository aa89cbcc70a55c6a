"""What a JSON document too long to be kept says of itself, found as it passes.

A quote inside of a JSON string always has a backslash before it. So a name between two bare quotes, followed by a colon, is a
name, and nothing that somebody wrote in a prompt or an answer can look like one. How deep it lies is not known: what lies
deeper is told from the answer's own by what it looks like, and by its place.
"""

import re
from typing import Any, Final

import msgspec

_KEEP: Final = 2048
"""Bytes of a value that is waited for; a usage is a few hundred."""
_TAIL: Final = 64
"""Bytes behind which a name may be cut."""
_NAME = re.compile(
    rb'"(usage|finish_reason|stop_reason|model|id|status|service_tier|type|incomplete_details|error)"\s{0,8}:\s{0,8}(?=["{n])'
)
_STRING = re.compile(rb'"((?:[^"\\]|\\.){0,512})"', re.DOTALL)
_FIRST: Final = frozenset({"model", "id", "status", "type"})
MAX_ENDS: Final = 128


class Skim:
    """Feed it all of a document, in order; then ask."""

    __slots__ = ("_before", "_rest", "details", "ends", "error", "found", "usage")

    def __init__(self) -> None:
        self._rest = b""
        self._before = 0
        self.usage: dict[str, Any] | None = None
        self.found: dict[str, str] = {}
        self.ends: list[str] = []
        """Why each answer ended."""
        self.error: dict[str, Any] | None = None
        self.details: dict[str, Any] | None = None
        """Why a response is incomplete."""

    def feed(self, data: bytes) -> None:
        data = self._rest + data
        position, keep = 0, None
        for match in _NAME.finditer(data):
            start = match.start()
            before = data[start - 1] if start else self._before
            if before == 0x5C or start < position:
                continue
            value, end = self._value(data, match.end())
            if end is None and len(data) - start < _KEEP:
                keep = start
                break
            position = end or match.end()
            if end is not None:
                self._take(match[1].decode(), value)
        if keep is None:
            keep = max(position, len(data) - _TAIL)
        if keep:
            self._before = data[keep - 1]
        self._rest = bytes(data[keep:])

    @staticmethod
    def _value(data: bytes, start: int) -> tuple[Any, int | None]:
        """What stands there, and where it ends; None: not yet, or never."""
        if data[start] == 0x22:
            match = _STRING.match(data, start)
            return (None, None) if match is None else (match[1].decode("utf-8", "replace"), match.end())
        if data[start] != 0x7B:
            return None, start + 1
        end = _closed(data, start)
        if end is None:
            return None, None
        try:
            return msgspec.json.decode(data[start:end]), start + 1
        except (msgspec.DecodeError, RecursionError):
            return None, start + 1

    def _take(self, name: str, value: Any) -> None:
        if name == "usage":
            if isinstance(value, dict) and any(type(value.get(one)) is int for one in ("prompt_tokens", "input_tokens")):
                self.usage = value
        elif name in ("finish_reason", "stop_reason"):
            if isinstance(value, str) and len(self.ends) < MAX_ENDS:
                self.ends.append(value)
        elif name == "error":
            if isinstance(value, dict) and isinstance(value.get("message"), str):
                self.error = value
        elif name == "incomplete_details":
            if isinstance(value, dict) and isinstance(value.get("reason"), str):
                self.details = value
        elif isinstance(value, str) and not (name in _FIRST and name in self.found):
            self.found[name] = value


def _closed(data: bytes, start: int) -> int | None:
    """Behind the brace that closes the one at `start`, within the bytes that are waited for."""
    depth, quoted, position = 0, False, start
    until = min(len(data), start + _KEEP)
    while position < until:
        byte = data[position]
        if quoted:
            if byte == 0x5C:
                position += 1
            elif byte == 0x22:
                quoted = False
        elif byte == 0x22:
            quoted = True
        elif byte == 0x7B:
            depth += 1
        elif byte == 0x7D:
            depth -= 1
            if not depth:
                return position + 1
        position += 1
    return None
