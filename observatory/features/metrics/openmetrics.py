"""Metrics as Prometheus reads them: OpenMetrics 1.0 for who asks for it, else its older text format (0.0.4).

A sample has the same name and labels in both, since one Prometheus may ask for either.
"""

import asyncio
import math
import re
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from ...names import Definition
from ...version import __version__
from . import series
from .blocks import Value
from .export import Family

Form = Literal["text", "openmetrics"]
MEDIA_TYPES: dict[Form, str] = {
    "text": "text/plain; version=0.0.4; charset=utf-8",
    "openmetrics": "application/openmetrics-text; version=1.0.0; charset=utf-8",
}
SLICE = 100
"""Series written at a time: then others have their turn."""
_FIRST, _LAST = -10 * 2, 9 * 2
"""Exported buckets: two per doubling from 2^-10 (1 ms) to 2^9 (512 s). Ours are finer and fall into them without error."""


def _bound(value: float) -> str:
    # As OpenMetrics writes numbers: 1.0, not 1.
    text = f"{value:.6g}"
    return text if "." in text or "e" in text else f"{text}.0"


_BOUNDS = [(f'le="{_bound(2.0 ** (half / 2))}"', half * 2 ** (series.SCALE - 1) - 1) for half in range(_FIRST, _LAST + 1)]
_WORDS = {
    "s": "seconds",
    "ms": "milliseconds",
    "us": "microseconds",
    "ns": "nanoseconds",
    "min": "minutes",
    "h": "hours",
    "d": "days",
    "By": "bytes",
    "KiBy": "kibibytes",
    "MiBy": "mebibytes",
    "1": "ratio",
    "%": "percent",
    "Cel": "celsius",
    "m": "meters",
    "J": "joules",
}
"""UCUM's codes, as OpenTelemetry has them, in the words that a Prometheus name ends with."""
_SUFFIXES = {"counter": ("", "_total", "_created"), "histogram": ("", "_bucket", "_sum", "_count", "_created")}
_ORDER = {"histogram": 0, "gauge": 1, "counter": 2}


def wanted(accept: str) -> Form:
    """What an Accept header asks for. A wildcard is content with text."""
    best = {"openmetrics": 0.0, "text": 0.0}
    for one in accept.split(","):
        media, *rest = (part.strip().lower() for part in one.split(";"))
        parameters = dict(part.partition("=")[::2] for part in rest)
        version = parameters.get("version", "").strip('"')
        form = ""
        if media == "application/openmetrics-text" and version in ("", "1.0.0", "0.0.1"):
            form = "openmetrics"
        elif media in ("text/plain", "text/*", "*/*") and version in ("", "0.0.4"):
            form = "text"
        if form:
            best[form] = max(best[form], _quality(parameters.get("q", "1")))
    return "openmetrics" if 0 < best["openmetrics"] >= best["text"] else "text"


def _quality(text: str) -> float:
    return float(text) if re.fullmatch(r"[01](\.\d{0,3})?", text) else 0.0


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(value)


def _nano(nano: int) -> str:
    """A sum of billionths, with every digit it has."""
    whole, rest = divmod(nano, 1_000_000_000)
    return f"{whole}.{rest:09d}".rstrip("0") if rest else str(whole)


class _Names(NamedTuple):
    """What a family is called: as a whole, its samples, and the type that may be said of it in OpenMetrics."""

    family: str
    sample: str
    kind: str


def _called(families: Iterable[Family]) -> Iterator[tuple[Family, _Names]]:
    """Names that do not clash: in OpenMetrics a counter's family goes without `_total`, and might meet another's."""
    taken: set[str] = set()
    for family in sorted(families, key=lambda family: (_ORDER[family.definition.kind], family.name)):
        name, kind = family.name, family.definition.kind
        counted = name if name.endswith("_total") else f"{name}_total"
        choices = [_Names(name, name, kind), _Names(f"{name}_{kind}", f"{name}_{kind}", kind)]
        if kind == "counter":
            choices = [_Names(base, counted, kind)] if (base := counted.removesuffix("_total")) else []
            choices += [_Names(one, one, "unknown") for one in (counted, name, f"{name}_counter")]
        for names in choices:
            claimed = {names.family + suffix for suffix in _SUFFIXES.get(names.kind, ("",))}
            if not claimed & taken:
                taken |= claimed
                yield family, names
                break


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _labels(text: str, is_histogram: bool) -> str:
    """The labels of a series; those whose names mean something to Prometheus are renamed, as it does itself."""
    # A NUL ends the text for Prometheus' reader, whatever stands around it.
    text = text.replace("\0", "\ufffd")
    if not ("__" in text or (is_histogram and "le=" in text)):
        return text
    labels = series.labels(text)
    for name in list(labels):
        if name.startswith("__") or (is_histogram and name == "le"):
            free = f"exported_{name}"
            while free in labels:
                free = f"exported_{free}"
            labels[free] = labels.pop(name)
    return ",".join(f'{name}="{_escaped(labels[name])}"' for name in sorted(labels))


def _labelled(sample: str, labels: str, extra: str = "") -> str:
    inner = f"{labels},{extra}" if labels and extra else labels or extra
    return f"{sample}{{{inner}}}" if inner else sample


def _header(names: _Names, definition: Definition, form: Form) -> str:
    about = (definition.description or names.sample).replace("\0", "\ufffd").replace("\\", "\\\\").replace("\n", "\\n")
    if form == "text":
        return f"# HELP {names.sample} {about}\n# TYPE {names.sample} {definition.kind}\n"
    about = about.replace('"', '\\"')
    unit = _WORDS.get(definition.unit, definition.unit.strip("{}").lower())
    said = f"# HELP {names.family} {about}\n# TYPE {names.family} {names.kind}\n"
    # A unit may be said only where the name ends with it.
    if re.fullmatch(r"[a-z0-9_]+", unit) and names.family.endswith(f"_{unit}"):
        said += f"# UNIT {names.family} {unit}\n"
    return said


def _counted(sample: str, labels: str, value: Value) -> Iterator[str]:
    passed, left = value.zero, sorted(value.buckets.items(), reverse=True)
    for bound, last in _BOUNDS:
        while left and left[-1][0] <= last:
            passed += left.pop()[1]
        yield f"{_labelled(f'{sample}_bucket', labels, bound)} {passed}\n"
    infinite = 'le="+Inf"'
    yield f"{_labelled(f'{sample}_bucket', labels, infinite)} {value.count}\n"
    yield f"{_labelled(f'{sample}_sum', labels)} {_nano(value.nano)}\n"
    yield f"{_labelled(f'{sample}_count', labels)} {value.count}\n"


def _samples(family: Family, names: _Names) -> Iterator[str]:
    """One text per series."""
    is_histogram = family.definition.kind == "histogram"
    for text in sorted(family.table):
        labels, value = _labels(text, is_histogram), family.table[text]
        if is_histogram:
            yield "".join(_counted(names.sample, labels, value))
        else:
            yield f"{_labelled(names.sample, labels)} {_nano(value.nano)}\n"
    for text in sorted(family.gauges):
        yield f"{_labelled(names.sample, _labels(text, False))} {_number(family.gauges[text])}\n"


def build_info(form: Form) -> str:
    """Which release this process is."""
    kind, family = ("info", "observatory_build") if form == "openmetrics" else ("gauge", "observatory_build_info")
    about = f"# HELP {family} Which release this process is\n# TYPE {family} {kind}\n"
    return f'{about}observatory_build_info{{version="{__version__}"}} 1\n'


async def exposition(families: Iterable[Family], form: Form, preface: str = "") -> str:
    """All of them, in one of the two forms."""
    written = [preface]
    for family, names in _called(families):
        written.append(_header(names, family.definition, form))
        for number, sample in enumerate(_samples(family, names)):
            written.append(sample)
            if number % SLICE == SLICE - 1:
                await asyncio.sleep(0)
    if form == "openmetrics":
        written.append("# EOF\n")
    return "".join(written)
