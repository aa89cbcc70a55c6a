"""What is not to be read in a log: fields by their name, secrets by their shape. And what makes any value fit to be written."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from datetime import date, datetime, time
from enum import Enum
from functools import lru_cache
from typing import Any, Final

import msgspec
import re2

from .errors import ConfigurationError

HIDDEN: Final = "[redacted]"
MAX_TEXT: Final = 16_384
"""Characters of one text; what is beyond is counted."""
MAX_DEPTH: Final = 8
MAX_VALUES: Final = 1000
"""Values in one line, inner ones included."""
_TAIL: Final = 1024
"""A text that is cut loses this much more: a secret that the cut has halved has no shape any more."""
_PLAIN: Final = 64
"""Fields up to which a line is written without counting."""

_HUSH = r"password|passwd|pwd|passphrase|secret|authorization|api[_-]?key|private[_-]?key|access[_-]?key|credentials?|cookie"
_NAMES = re.compile(f"{_HUSH}|tokens?$|[^a-z]jwt$", re.IGNORECASE)
_COUNTS = re.compile(r"tokens$", re.IGNORECASE)
"""In this trade, tokens are counted."""

# How a name is tied to its value: name=value, name: value, "name": "value", also escaped inside of another text.
_TIE = r"""\\{0,3}["']?\]? {0,3}[:=]{1,2} {0,3}\\{0,3}"""
_QUOTED = r"""b?"(?:[^"\\]|\\.)*"?|b?'(?:[^'\\]|\\.)*'?"""
_SHAPES = (
    # a kept beginning (groups 1 to 5), then what is hidden
    rf"((?i:cookie){_TIE})(?:{_QUOTED}|[^\r\n\"']+)",
    rf"((?i:authorization){_TIE})(?:{_QUOTED}|(?:[A-Za-z]+ +)?[^\s&\"'<>]+)",
    rf"((?i:{_HUSH}){_TIE})(?:{_QUOTED}|[^\s&\"'<>]+)",
    rf"((?i:token){_TIE}b?[\"']?)[\w.~+/=%-]{{8,}}",
    r"((?i:bearer)(?: +|%20))[\w.~+/=-]{6,}",
    # a password in a URL, which may have an @ of its own
    r"(://[^\s:/@\"'<>]*:)[^\s\"'<>]*@",
    # keys that say whose they are
    r"\b(?:sk|rk|pk|gsk|xai|r8|sess)[-_][A-Za-z0-9_-]{16,}",
    r"\bobs_[A-Za-z0-9]+_[A-Za-z0-9_-]+",
    r"\b(?:gh[pousr]_|github_pat_|glpat-|hf_|npm_|pypi-|dop_v1_|xox[abeoprs]-|whsec_|lsv2_)[A-Za-z0-9_-]{10,}",
    r"\b(?:AKIA|ASIA)[A-Z0-9]{16}",
    r"\bAIza[A-Za-z0-9_-]{30,}",
    r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?",
    r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----[^-]*(?:-----END [A-Z0-9 ]*PRIVATE KEY-----)?",
)
_KEPT = 6
"""Groups that begin a match and stay."""

# What each of the shapes has at least, in the JSON of a line too. Nearly every line is done with after one look for these.
_HINT = (
    rf"(?i:(?:{_HUSH}|token){_TIE})|(?i:bearer)(?: |%20)|://[^\s\"]*:.*@|(?:sk|rk|pk|gsk|xai|r8|sess)[-_][\w-]{{8}}|obs_"
    r"|gh[pousr]_|github_pat_|glpat-|hf_|npm_|pypi-|dop_v1_|xox|whsec_|lsv2_|AKIA|ASIA|AIza|eyJ|-----BEGIN"
)


def _set(patterns: Iterable[str]) -> Any:
    made = re2.Set.SearchSet()
    for pattern in patterns:
        made.Add(pattern)
    made.Compile()
    return made


_hints = _set([_HINT])
_built_in = re2.compile("|".join(_SHAPES))


def compiled(patterns: Iterable[str]) -> tuple[Any, ...]:
    """Patterns of a user's; ConfigurationError names the one that RE2 does not understand."""
    options = re2.Options()
    options.log_errors = False
    made = []
    for pattern in patterns:
        try:
            made.append(re2.compile(pattern, options))
        except re2.error as error:
            why = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else str(error)
            raise ConfigurationError(
                f"log.redact_patterns: {pattern!r:.80} is not a pattern: {why}", remedy="Write it in RE2 syntax (no lookaround)"
            ) from None
        if made[-1].search("") is not None:
            raise ConfigurationError(
                f"log.redact_patterns: {pattern!r:.80} matches nothing at all, and so everywhere",
                remedy="Write a pattern that needs at least one character",
            )
    return tuple(made)


def _replaced(match: Any) -> str:
    kept = next((found for found in match.groups()[:_KEPT] if found is not None), "")
    return f"{kept}{HIDDEN}@" if kept.startswith("://") else f"{kept}{HIDDEN}"


class Redactor:
    """Hides what looks like a secret, and makes any value plain: JSON's kinds, bounded in depth, number and length.

    names: further names of fields, also where they are a part of one (`email` hides `user_email` and `userEmail`).
    patterns: further shapes, RE2.
    """

    def __init__(self, names: Iterable[str] = (), patterns: Iterable[str] = ()) -> None:
        self._patterns = compiled(patterns)
        words = [re.escape(_parts(name)) for name in names]
        self._more = re.compile(f"(?:^|_)(?:{'|'.join(words)})s?(?:_|$)") if words else None
        self.hides = lru_cache(4096)(self._hides)
        """Whether a field of this name is hidden."""

    def _hides(self, name: str) -> bool:
        if _NAMES.search(name) and not _COUNTS.search(name):
            return True
        return self._more is not None and self._more.search(_parts(name)) is not None

    def text(self, text: str) -> str:
        """Without what has the shape of a secret; at most MAX_TEXT characters."""
        whole = len(text)
        if cut := whole > 2 * MAX_TEXT + _TAIL:
            text = text[: 2 * MAX_TEXT + _TAIL]
        text = _speakable(text)
        text = _built_in.sub(_replaced, text)
        for pattern in self._patterns:
            text = pattern.sub(lambda _: HIDDEN, text)
        if cut:
            text = text[:-_TAIL]
        return text if len(text) <= MAX_TEXT and not cut else f"{text[: MAX_TEXT - 32]}… ({whole:,} characters)"

    def traceback(self, text: str) -> str:
        """The same for a traceback, of which beginning and end say most."""
        if len(text) <= MAX_TEXT:
            return self.text(text)
        half = MAX_TEXT // 2
        # Each half is cut by more than it shows, since a secret at the cut has no shape any more.
        first, last = self.text(text[: half + _TAIL]), self.text(text[-half - _TAIL :])
        return f"{first[: half - 64]}\n… ({len(text):,} characters) …\n{last[-half + 64 :]}"

    def deep(self, plain: Any) -> Any:
        """The same for every text in a plain value, names included."""
        if isinstance(plain, str):
            return self.text(plain)
        if isinstance(plain, dict):
            return {self.text(name): self.deep(value) for name, value in plain.items()}
        return [self.deep(value) for value in plain] if isinstance(plain, list) else plain

    def line(self, said: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """One line of JSON and the fields in it, with nothing in them that should not be read. Never raises."""
        plain = self._plain(said)
        try:
            encoded = _encoder.encode(plain)
            if not self._patterns and not _hints.Match(encoded):
                return encoded.decode(), plain
        except (UnicodeError, msgspec.MsgspecError, OverflowError, ValueError, TypeError):
            pass  # half a surrogate pair
        clean: dict[str, Any] = self.deep(plain)
        return _encoder.encode(clean).decode(), clean

    def _plain(self, said: Mapping[str, Any]) -> dict[str, Any]:
        hides = self.hides
        plain: dict[str, Any] = {}
        walk = None if len(said) <= _PLAIN else _Walk(self)
        for name, value in said.items():
            kind = type(value)
            if walk is None and (
                (kind is str and len(value) <= 1024)
                or (kind is int and -(2**63) <= value < 2**63)
                or (kind is float and value - value == 0)
                or value is None
                or kind is bool
            ):
                plain[name] = HIDDEN if hides(name) and kind is not bool and value is not None else value
                continue
            walk = walk or _Walk(self)
            if not walk.enough():
                plain["…"] = f"{len(said) - len(plain):,} more"
                break
            plain[name] = walk.field(name, value, 1)
        return plain


_encoder = msgspec.json.Encoder()


class _Walk:
    """One line's way through a value that may be deep, wide, long, or hold itself."""

    __slots__ = ("_hides", "_left", "_letters", "_text")

    def __init__(self, redactor: Redactor) -> None:
        self._hides = redactor.hides
        self._text = redactor.text
        self._left = MAX_VALUES
        self._letters = 4 * MAX_TEXT

    def enough(self) -> bool:
        return self._left > 0 and self._letters > 0

    def field(self, name: str, value: Any, depth: int) -> Any:
        if value is None or value is True or value is False:
            return value
        return HIDDEN if self._hides(name) else self.value(value, depth)

    def value(self, value: Any, depth: int) -> Any:
        self._left -= 1
        try:
            return self._value(value, depth)
        except Exception as error:  # whatever a value of somebody's does when it is asked
            return f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"

    def _value(self, value: Any, depth: int) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self._said(str.__str__(value))
        if isinstance(value, int):
            return int(value) if -(2**63) <= value < 2**63 else self._number(value)
        if isinstance(value, float):
            return float(value) if value - value == 0 else str(float(value))
        if isinstance(value, Mapping):
            return self._fields(value.items(), len(value), depth)
        if isinstance(value, list | tuple | AbstractSet):
            return self._items(value, depth)
        if isinstance(value, type):
            return self._said(value.__qualname__)
        if isinstance(value, msgspec.Struct):
            return self._fields(((name, getattr(value, name, None)) for name in value.__struct_fields__), 0, depth)
        if dataclasses.is_dataclass(value):
            names = [field.name for field in dataclasses.fields(value) if field.repr]
            return self._fields(((name, getattr(value, name, None)) for name in names), 0, depth)
        return self._said(_shown(value))

    def _number(self, value: int) -> str:
        return str(int(value)) if value.bit_length() < 4096 else f"<whole number of {value.bit_length():,} bits>"

    def _said(self, text: str) -> str:
        if len(text) <= 1024:
            self._letters -= len(text)
            return text
        text = self._text(text)[: max(self._letters, 0)]
        self._letters -= len(text)
        return text

    def _fields(self, items: Iterable[tuple[Any, Any]], size: int, depth: int) -> Any:
        if depth >= MAX_DEPTH:
            return "{…}"
        found: dict[str, Any] = {}
        for name, value in items:
            if not self.enough():
                found["…"] = f"{size - len(found):,} more" if size else "more"
                break
            said = name if type(name) is str else str(self.value(name, MAX_DEPTH))
            said = said if len(said) <= 256 else self._said(said)[:256]
            found[said] = self.field(said, value, depth + 1)
        return found

    def _items(self, items: Iterable[Any], depth: int) -> Any:
        if depth >= MAX_DEPTH:
            return "[…]"
        found = []
        for value in items:
            if not self.enough():
                found.append("…")
                break
            found.append(self.value(value, depth + 1))
        return found


def _shown(value: Any) -> str:
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value[: 4 * MAX_TEXT]).decode("utf-8", "backslashreplace")
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    if isinstance(value, Enum):
        return str(value.value)
    return str(value)


def _speakable(text: str) -> str:
    """Half of a surrogate pair has no form in UTF-8."""
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode()


def _parts(name: str) -> str:
    """userEmail, user-email and User.Email are user_email."""
    return re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()).strip("_")
