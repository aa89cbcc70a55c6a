"""Traces of LLM calls: read from CSV or NDJSON, or made up. Every call has a time, input tokens and output tokens."""

import csv
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from ..errors import InvalidArgument

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_MOST_TOKENS = 10**9


class TracedCall(msgspec.Struct, frozen=True, array_like=True):
    """at: seconds after the trace's first call."""

    at: float
    input_tokens: int
    output_tokens: int


class Trace(msgspec.Struct, frozen=True):
    """The calls in the order of their time, and how many lines were skipped as malformed."""

    calls: tuple[TracedCall, ...]
    skipped: int = 0

    @property
    def tokens(self) -> int:
        return sum(call.input_tokens + call.output_tokens for call in self.calls)


def _moment(text: Any) -> float:
    """Seconds since the epoch. ValueError."""
    if isinstance(text, int | float) and not isinstance(text, bool):
        return float(text)
    # Azure's traces have seven digits of a second; Python reads six.
    head, dot, digits = str(text).strip().partition(".")
    moment = datetime.fromisoformat(f"{head}{dot}{digits[:6]}" if dot and digits.isdigit() else str(text).strip())
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _tokens(value: Any) -> int:
    tokens = int(value) if isinstance(value, str) else value
    if isinstance(tokens, bool) or not isinstance(tokens, int) or not 0 <= tokens <= _MOST_TOKENS:
        raise ValueError(f"{value!r:.40} is not a number of tokens")
    return tokens


def _row(row: list[str]) -> tuple[float, int, int]:
    if len(row) != len(COLUMNS):
        raise ValueError(f"{len(row)} fields instead of {len(COLUMNS)}")
    return _moment(row[0]), _tokens(row[1]), _tokens(row[2])


def _object(line: str) -> tuple[float, int, int]:
    item = msgspec.json.decode(line)
    if not isinstance(item, dict):
        raise ValueError("not an object")
    missing = [name for name in COLUMNS if name not in item]
    if missing:
        raise ValueError(f"{missing[0]} is missing")
    return _moment(item[COLUMNS[0]]), _tokens(item[COLUMNS[1]]), _tokens(item[COLUMNS[2]])


def _numbered(path: Path) -> Iterator[tuple[int, Callable[[], tuple[float, int, int]]]]:
    """Each line's number and how to read it."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix.lower() in (".ndjson", ".jsonl"):
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, lambda line=line: _object(line)  # type: ignore[misc]
            return
        rows = csv.reader(file)
        header = next(rows, [])
        if tuple(name.strip() for name in header) != COLUMNS:
            raise InvalidArgument(f"{path}: line 1: the columns must be {','.join(COLUMNS)}, got {','.join(header)[:80]!r}")
        for row in rows:
            if row:
                yield rows.line_num, lambda row=row: _row(row)  # type: ignore[misc]


def read(path: Path, *, skip_bad: bool = False) -> Trace:
    """InvalidArgument names the file, the line and what is wrong with it; skip_bad counts such lines instead."""
    found: list[tuple[float, int, int]] = []
    skipped = 0
    try:
        for number, parse in _numbered(path):
            try:
                found.append(parse())
            except (ValueError, OverflowError, msgspec.DecodeError) as error:
                if not skip_bad:
                    raise InvalidArgument(
                        f"{path}: line {number}: {error}", remedy="Mend it, or pass --skip-bad to count and skip such lines"
                    ) from None
                skipped += 1
    except OSError as error:
        raise InvalidArgument(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidArgument(f"{path}: is not text in UTF-8 ({error})") from error
    if not found:
        raise InvalidArgument(f"{path}: has no calls")
    found.sort(key=lambda call: call[0])
    return Trace(tuple(TracedCall(at - found[0][0], taken, given) for at, taken, given in found), skipped)


def made_up(seconds: float, calls_per_second: float, seed: int) -> Trace:
    """Traffic like a conversation service's: Poisson arrivals, long-tailed prompts, shorter answers. Same seed, same trace."""
    dice = random.Random(seed)
    at, calls = 0.0, []
    while (at := at + dice.expovariate(calls_per_second)) < seconds:
        prompt = min(int(dice.lognormvariate(6.3, 1.1)) + 1, 16_000)
        answer = min(int(dice.lognormvariate(4.9, 0.8)) + 1, 4_000)
        calls.append(TracedCall(at, prompt, answer))
    first = calls[0].at if calls else 0.0
    return Trace(tuple(TracedCall(call.at - first, call.input_tokens, call.output_tokens) for call in calls))
