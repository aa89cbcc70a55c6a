"""What a series is called, and what its fields in a hash are.

A series is its labels, sorted, in Prometheus' own spelling: model="gpt-4o",provider="openai". A field is `<part>|<series>`:
w and n, the whole part and the billionths of a counter; c, s, t, the count, and the sum's whole part and billionths of a
histogram; z and b<index>, its zero bucket and its base-2 exponential buckets (OpenTelemetry, scale 5); k, w and n, the samples
of a gauge, one a window and process, and their sum's whole part and billionths.
"""

import math
import re
from collections.abc import Mapping

from ... import names
from ...errors import InvalidArgument

SCALE = 5
"""Of OpenTelemetry's exponential histograms. Relative error of a quantile: (base - 1) / (base + 1) <= 1.1 %."""
PER_DOUBLING = 32
"""Buckets per doubling: 2^SCALE."""
BASE = math.exp2(1 / PER_DOUBLING)
BUCKETS = range(-1075 * PER_DOUBLING, 1024 * PER_DOUBLING)
"""Every index that a double above 0 can have."""
_PAIR = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"(?:,|$)')
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
_SPELLED = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="(?:[^"\\\n]|\\[\\"n])*"(?:,|$)')
"""As `text` spells it, and nothing else."""
_UNESCAPE = re.compile(r"\\(.)")
MAX_LABELS = 32
MAX_VALUE = 1024


def text(labels: Mapping[str, str]) -> str:
    """The series of these labels, in whatever order they come. InvalidArgument names a label that is not acceptable."""
    if len(labels) > MAX_LABELS:
        raise InvalidArgument(f"at most {MAX_LABELS} labels, got {len(labels)}")
    parts = []
    for name in sorted(labels):
        value = labels[name]
        names.label_name(name)
        if not isinstance(value, str):
            raise InvalidArgument(f"label {name} must be a string, got {value!r:.80}")
        if len(value) > MAX_VALUE:
            raise InvalidArgument(f"label {name} must be at most {MAX_VALUE} characters, got {len(value)}")
        value.encode()  # a lone surrogate is a ValueError, before it can reach the wire
        parts.append(f'{name}="{value.translate(_ESCAPES)}"')
    return ",".join(parts)


def is_text(series: str) -> bool:
    """Whether `text` could have made it; else whoever reads an exposition with it in would fail."""
    at, last = 0, ""
    for found in _SPELLED.finditer(series):
        if found.start() != at or found[1] <= last:
            return False
        at, last = found.end(), found[1]
    return at == len(series) and not series.endswith(",")


def labels(series: str) -> dict[str, str]:
    """The other way."""
    return {
        found[1]: _UNESCAPE.sub(lambda match: "\n" if match[1] == "n" else match[1], found[2])
        for found in _PAIR.finditer(series)
    }


def bucket(value: float) -> int:
    """The index of the bucket (base^i, base^(i+1)] that holds a value above 0; exact at powers of two."""
    fraction, exponent = math.frexp(value)
    if fraction == 0.5:
        return (exponent - 1) * PER_DOUBLING - 1
    return math.ceil(math.log2(fraction) * PER_DOUBLING) + exponent * PER_DOUBLING - 1


def upper(index: int) -> float:
    """The upper bound of a bucket."""
    return math.exp2((index + 1) / PER_DOUBLING)


def middle(index: int) -> float:
    """The value that is off by the same fraction from both ends of the bucket."""
    return 2 * upper(index) / (1 + BASE)
