"""The unflushed additions of one process: a table per metric, a series per set of labels.

Recording appends to a series' `pending`, without a lock: an append is one step for every other thread, with the interpreter's
lock and without it (a free-threaded build has one in every list), and who takes from the list takes only what it has read. So
nothing is lost between them. Everything else here is changed by whoever holds the recorder's lock.
"""

import math
from collections import Counter
from collections.abc import Iterator
from itertools import repeat
from operator import mul
from typing import Any

from ...names import Definition, Kind
from ...units import MAX_EXACT, NANO, nano, shown
from .series import PER_DOUBLING, bucket

Spelled = tuple[tuple[str, str], ...]
"""Labels as a caller happens to write them: two orders are two spellings of one series."""
Pair = tuple[str, int]

FOLD_AT = 256
"""Recordings that a series may have pending. They are folded together: that is cheaper by the piece, and a few kilobytes."""
LARGEST = MAX_EXACT * NANO
SMALL = 2**30 - 1
"""Whole numbers up to here are one digit to the interpreter, which compares them in one step; larger ones go the long way."""
ROUGH_BELOW = 1e6
"""Below, a double's billionths are what rounding a product gives. Above, they are looked at more closely (units.nano)."""
_WHOLE = 2.0**52
"""Added to a smaller double, and taken away again, it leaves that double's nearest whole number, halves to even, as round()."""


def counted(value: Any) -> int:
    """What is added to a counter or a histogram, in billionths. Raises what a caller has to hear who gives no such value."""
    whole = value * NANO if type(value) is int else nano(value)
    if not 0 <= whole <= LARGEST:
        raise ValueError(f"{shown(value, 40)} is negative or too large")
    return whole


def finite(value: Any) -> float:
    """Where a gauge stands."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a finite number")
    return number


class Series:
    """One series of any kind."""

    __slots__ = ("pending", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.pending: list[Any] = []

    def _drained(self) -> list[Any]:
        pending = self.pending
        number = len(pending)
        taken = pending[:number]
        del pending[:number]
        return taken

    @property
    def size(self) -> int:
        """About how many additions it makes."""
        return 1

    def fold(self) -> None:
        """What is pending becomes part of the sums."""

    def put(self, value: Any, nano: int) -> None:
        """One value more, which has been checked."""
        raise NotImplementedError

    def take(self) -> Iterator[Pair]:
        """What was added since the last time, as fields and numbers (see series.py)."""
        yield from ()

    def clear(self) -> None:
        """As new. The list of what is pending stays the same one: bound handles hold the series, not a copy of it."""
        self.pending.clear()


class CounterSeries(Series):
    """Pending: whole numbers from 0 to SMALL, and doubles from 0, below ROUGH_BELOW."""

    __slots__ = ("nano",)

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.nano = 0

    def fold(self) -> None:
        taken = self._drained()
        total = sum(taken)
        if type(total) is not int:
            self.nano += sum([value * NANO if type(value) is int else round(value * 1e9) for value in taken])
        else:
            self.nano += total * NANO

    def put(self, value: Any, nano: int) -> None:
        self.nano += nano

    def take(self) -> Iterator[Pair]:
        whole, rest = divmod(self.nano, NANO)
        self.nano = 0
        if whole:
            yield f"w|{self.text}", whole
        if rest:
            yield f"n|{self.text}", rest

    def clear(self) -> None:
        super().clear()
        self.nano = 0


class HistogramSeries(Series):
    """Pending: numbers of at least a billionth, below ROUGH_BELOW."""

    __slots__ = ("buckets", "count", "nano", "zero")

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._empty()

    def _empty(self) -> None:
        self.nano = self.count = self.zero = 0
        self.buckets: Counter[int] = Counter()
        """By the number of the upper bound, which is the index and one."""

    @property
    def size(self) -> int:
        self.fold()
        return 2 + len(self.buckets)

    def fold(self) -> None:
        taken = self._drained()
        self.count += len(taken)
        total = sum([value * 1e9 + _WHOLE - _WHOLE for value in taken])
        # Doubles add whole numbers exactly up to 2^53.
        self.nano += int(total) if total < 2 * _WHOLE else sum([round(value * 1e9) for value in taken])
        bounds = list(map(mul, map(math.log2, taken), repeat(float(PER_DOUBLING))))
        if any(map(float.is_integer, bounds)):
            # On a bound, or so close to it that the logarithm does not tell: the slower way is exact.
            self.buckets.update([bucket(value) + 1 for value in taken])
        else:
            self.buckets.update(map(math.ceil, bounds))

    def put(self, value: Any, nano: int) -> None:
        self.count += 1
        self.nano += nano
        if nano == 0:
            self.zero += 1
        else:
            self.buckets[bucket(float(value)) + 1] += 1

    def take(self) -> Iterator[Pair]:
        if not self.count:
            return
        yield f"c|{self.text}", self.count
        if self.zero:
            yield f"z|{self.text}", self.zero
        for bound, count in self.buckets.items():
            yield f"b{bound - 1}|{self.text}", count
        whole, rest = divmod(self.nano, NANO)
        if whole:
            yield f"s|{self.text}", whole
        if rest:
            yield f"t|{self.text}", rest
        self._empty()

    def clear(self) -> None:
        super().clear()
        self._empty()


class GaugeSeries(Series):
    """Stands where it was last set. Nothing is ever pending: setting is one step."""

    __slots__ = ("value",)

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.value: float | None = None

    def put(self, value: Any, nano: int) -> None:
        self.value = value

    def sample(self) -> Iterator[Pair]:
        """Where it stands, once, as additions: how many samples, and the sum's whole part and billionths.

        What is larger than 2^52 has no billionths that mean anything, and none that the store could add up: it has no history.
        """
        if self.value is not None and abs(self.value) <= MAX_EXACT:
            whole, rest = divmod(nano(self.value), NANO)
            yield f"k|{self.text}", 1
            yield f"w|{self.text}", whole
            yield f"n|{self.text}", rest

    def clear(self) -> None:
        self.value = None


_OF_A_KIND: dict[Kind, type[Series]] = {"counter": CounterSeries, "gauge": GaugeSeries, "histogram": HistogramSeries}


class Table:
    """All series of one metric, found by their labels as the caller spells them."""

    __slots__ = ("definition", "known", "name", "series")

    def __init__(self, name: str, definition: Definition) -> None:
        self.name = name
        self.definition = definition
        self.series: dict[str, Any] = {}
        self.known: dict[Spelled, Any] = {}

    def begin(self, text: str) -> Any:
        """One series more."""
        found = self.series[text] = _OF_A_KIND[self.definition.kind](text)
        return found

    def take(self) -> list[Pair]:
        """What was added since the last time."""
        every = tuple(self.series.values())
        for found in every:
            if found.pending:
                found.fold()
        return [pair for found in every for pair in found.take()]

    def sample(self) -> list[Pair]:
        """Where every series of a gauge stands."""
        return [pair for found in self.series.values() for pair in found.sample()]
