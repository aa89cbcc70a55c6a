"""What has been added up: the numbers of one series, tables of them, and tables as they lie in the store.

A block holds a table of one window of a minute, an hour or a day (or the six of 10 s of one minute), for one metric: msgpack,
deflated where that helps. What is later or elsewhere can be added to it; the order of adding makes no difference.
"""

import math
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from ...keys import WINDOW_US
from ...names import Kind
from ...units import NANO
from . import series, spoilt

D = TypeVar("D")

HOUR_US: Final = 3_600_000_000
DAY_US: Final = 24 * HOUR_US


class Level(NamedTuple):
    """One resolution: the length of its windows, and of what one hash holds; how long a hash is kept after its end."""

    name: str
    window_us: int
    hash_us: int
    keep_us: int


FINE = Level("10s", WINDOW_US, HOUR_US, 2 * HOUR_US)
MINUTE = Level("1m", 60_000_000, HOUR_US, 25 * HOUR_US)
HOUR = Level("1h", HOUR_US, DAY_US, 90 * DAY_US)
DAY = Level("1d", DAY_US, 366 * DAY_US, 730 * DAY_US)
LEVELS: Final = (FINE, MINUTE, HOUR, DAY)
FINE_PER_MINUTE: Final = MINUTE.window_us // FINE.window_us
_SMALL = 128
"""Bytes that are not worth deflating."""


class Value:
    """One series of a counter or histogram, added up."""

    __slots__ = ("buckets", "count", "nano", "zero")

    def __init__(self) -> None:
        self.nano = 0
        self.count = 0
        self.zero = 0
        self.buckets: dict[int, int] = {}

    def add(self, part: str, number: int) -> None:
        """One field of a hash. ValueError: it is none."""
        match part[:1]:
            case "w" | "s":
                self.nano += number * NANO
            case "n" | "t":
                self.nano += number
            case "z":
                self.zero += number
                self.count += number
            case "b":
                index = int(part[1:])
                if index not in series.BUCKETS:
                    raise ValueError(part)
                self.buckets[index] = self.buckets.get(index, 0) + number
                self.count += number
            case "c":
                pass  # the buckets say it
            case _:
                raise ValueError(part)

    def merge(self, other: "Value") -> None:
        self.nano += other.nano
        self.count += other.count
        self.zero += other.zero
        buckets = self.buckets
        for index, count in other.buckets.items():
            buckets[index] = buckets.get(index, 0) + count

    def row(self) -> list[Any]:
        """As it lies in a block."""
        whole, nano = divmod(self.nano, NANO)
        if not self.count:
            return [whole, nano]
        return [whole, nano, self.zero, *(number for pair in sorted(self.buckets.items()) for number in pair)]

    def take(self, row: list[Any]) -> None:
        """Add what a row says. ValueError: it is none, and nothing is added."""
        size = len(row)
        odd = size != 2 and (size < 3 or size % 2 == 0)
        if odd or (size > 3 and (row[3] not in series.BUCKETS or row[-2] not in series.BUCKETS)):
            raise ValueError(row)
        self.nano += row[0] * NANO + row[1]
        if size > 2:
            self.zero += row[2]
            self.count += row[2]
            buckets = self.buckets
            for at in range(3, size, 2):
                index, count = row[at], row[at + 1]
                buckets[index] = buckets.get(index, 0) + count
                self.count += count


class Sampled:
    """One series of a gauge: one sample per process and window, added up over processes and windows."""

    __slots__ = ("high", "last", "last_at", "low", "nano", "samples")

    def __init__(self) -> None:
        self.nano = 0
        """The sum of all samples, in billionths."""
        self.samples = 0
        self.low = math.inf
        self.high = -math.inf
        self.last = 0
        """The sum of the samples of the last window."""
        self.last_at = 0

    def add(self, part: str, number: float) -> None:
        """One field of a window's hash. ValueError: it is none."""
        match part[:1]:
            case "w":
                self.nano += int(number) * NANO
            case "n":
                self.nano += int(number)
            case "k":
                self.samples += int(number)
            case "l":
                self.low = number
            case "h":
                self.high = number
            case _:
                raise ValueError(part)

    def stands_at(self, window: int) -> None:
        """All of its fields have been added: they are of this one window."""
        self.last, self.last_at = self.nano, window

    def merge(self, other: "Sampled") -> None:
        self.nano += other.nano
        self.samples += other.samples
        self.low = min(self.low, other.low)
        self.high = max(self.high, other.high)
        if other.last_at == self.last_at:
            self.last += other.last
        elif other.last_at > self.last_at:
            self.last, self.last_at = other.last, other.last_at

    def row(self) -> list[Any]:
        """As it lies in a block."""
        whole, last = divmod(self.nano, NANO), divmod(self.last, NANO)
        return [*whole, self.samples, self.low, self.high, *last, self.last_at]

    def take(self, row: list[Any]) -> None:
        """Add what a row says. ValueError: it is none, and nothing is added."""
        if len(row) != 8 or row[2] < 1:
            raise ValueError(row)
        other = Sampled()
        other.nano, other.samples, other.low, other.high = row[0] * NANO + row[1], *row[2:5]
        other.last, other.last_at = row[5] * NANO + row[6], row[7]
        self.merge(other)


Row = Value | Sampled
R = TypeVar("R", Value, Sampled)
Table = dict[str, Value]
"""The series of a counter or histogram, by their text."""
Samples = dict[str, Sampled]
"""The series of a gauge, by their text."""
Rows = dict[str, list[Any]]
"""A table, as it lies in a block."""

_ROWS = msgspec.msgpack.Decoder(dict[str, list[int | float]])
_FINE = msgspec.msgpack.Decoder(dict[int, dict[str, list[int | float]]])
_ANY = msgspec.msgpack.Decoder()
_EMPTY: Final = b"\x80"


def fields(found: Iterable[tuple[bytes, bytes]]) -> Table:
    """The fields of a hash as a table; what is no field of ours is left out."""
    return _table(found, Value, lambda _, number: _integer(number))


def samples(found: Iterable[tuple[bytes, bytes]], window: int) -> Samples:
    """The fields of a gauge's open window."""
    table = _table(found, Sampled, lambda part, number: finite(float(number)) if part in ("l", "h") else _integer(number))
    for value in table.values():
        value.stands_at(window)
    return {text: value for text, value in table.items() if value.samples}


def _table(found: Iterable[tuple[bytes, bytes]], make: type[R], number: Callable[[str, bytes], Any]) -> dict[str, R]:
    """The fields of a hash. number: of a part and what stands there, what is added; ValueError: it is none."""
    table: dict[str, R] = {}
    for field, said in found:
        part, bar, text = field.decode(errors="replace").partition("|")
        if bar:
            try:
                value = table.get(text)
                if value is None:
                    value = make()
                    _of_ours(text)
                value.add(part, number(part, said))
                table[text] = value
            except ValueError:
                spoilt.tell(f"a field {field!r:.80} with {said!r:.40}")
    return table


def _of_ours(text: str) -> None:
    if not series.is_text(text):
        raise ValueError(text)


def _integer(number: bytes) -> int:
    """As the store's own counting makes them: 64 bits."""
    if len(number) > 20:
        raise ValueError(number)
    return int(number)


def finite(number: float) -> float:
    """ValueError: it is not."""
    if not math.isfinite(number):
        raise ValueError(number)
    return number


def rows(table: Mapping[str, Row]) -> Rows:
    """A table, as it lies in a block."""
    return {text: value.row() for text, value in table.items()}


def encoded(content: Rows | Mapping[int, Rows]) -> bytes:
    """A block's bytes; none for an empty one."""
    if not content:
        return b""
    packed = msgspec.msgpack.encode(content)
    deflated = zlib.compress(packed, 1) if len(packed) > _SMALL else packed
    return b"z" + deflated if len(deflated) < len(packed) else b"m" + packed


def decoded(block: bytes | None) -> Rows:
    """A block of one window; nothing where there is none, or where somebody else has spoilt it."""
    return _decoded(block, _ROWS, _salvaged)


def decoded_fine(block: bytes | None) -> dict[int, Rows]:
    """A block of the 10 s windows of one minute, by their place in it."""
    return _decoded(block, _FINE, _salvaged_fine)


def _decoded(block: bytes | None, decoder: msgspec.msgpack.Decoder[D], salvaged: Callable[[Any], D]) -> D:
    try:
        packed = _inflated(block) if block else _EMPTY
        try:
            return decoder.decode(packed)
        except msgspec.ValidationError:
            return salvaged(_ANY.decode(packed))
    except (msgspec.MsgspecError, zlib.error):
        spoilt.tell("a block in the store is not one of ours")
        return decoder.decode(_EMPTY)


def _salvaged_fine(found: Any) -> dict[int, Rows]:
    parts = found.items() if isinstance(found, dict) else ()
    return {at: _salvaged(part) for at, part in parts if type(at) is int}


def _salvaged(found: Any) -> Rows:
    """Those rows of a block that are rows."""
    spoilt.tell("a block in the store has rows that are not ours")
    return {
        text: row
        for text, row in (found.items() if isinstance(found, dict) else ())
        if isinstance(text, str) and isinstance(row, list) and all(type(number) in (int, float) for number in row)
    }


def _inflated(block: bytes) -> bytes:
    return zlib.decompress(block[1:]) if block[:1] == b"z" else block[1:]


def into(table: dict[str, Any], found: Rows, kind: Kind) -> None:
    """Add a block's rows to a table."""
    make = Sampled if kind == "gauge" else Value
    for text, row in found.items():
        value = table.get(text)
        if value is None:
            value = make()
        try:
            value.take(row)
        except ValueError:
            spoilt.tell(f"a row of the series {text!r:.80}")
        else:
            table[text] = value


def add(table: dict[str, Any], found: Mapping[str, Any]) -> None:
    """Add a table to another."""
    for text, value in found.items():
        known = table.get(text)
        if known is None:
            known = table[text] = type(value)()
        known.merge(value)
