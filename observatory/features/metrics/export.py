"""The fleet's totals as Prometheus reads them (text format 0.0.4). No instance label: every instance says the same."""

import math
from collections.abc import Iterator

from ...names import OURS, Definition
from ...store.store import Store
from . import read, series
from .blocks import Table

_FIRST, _LAST = -10 * 2, 9 * 2
"""Exported buckets: two per doubling from 2^-10 (1 ms) to 2^9 (512 s). Ours are finer and fall into them without error."""
_BOUNDS = [(2.0 ** (half / 2), half * 2 ** (series.SCALE - 1) - 1) for half in range(_FIRST, _LAST + 1)]


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(value)


def _nano(nano: int) -> str:
    """A sum of billionths, with every digit it has."""
    whole, rest = divmod(nano, 1_000_000_000)
    return f"{whole}.{rest:09d}".rstrip("0") if rest else str(whole)


def _header(metric: str, definition: Definition) -> str:
    description = (definition.description or metric).replace("\\", "\\\\").replace("\n", "\\n")
    return f"# HELP {metric} {description}\n# TYPE {metric} {definition.kind}\n"


def _labelled(metric: str, text: str, extra: str = "") -> str:
    inner = ",".join(filter(None, (text, extra)))
    return f"{metric}{{{inner}}}" if inner else metric


def _lines(metric: str, definition: Definition, table: Table) -> Iterator[str]:
    for text in sorted(table):
        value = table[text]
        if definition.kind == "counter":
            yield f"{_labelled(metric, text)} {_nano(value.nano)}\n"
            continue
        passed, left = value.zero, sorted(value.buckets.items(), reverse=True)
        for bound, last in _BOUNDS:
            while left and left[-1][0] <= last:
                passed += left.pop()[1]
            yield f"{_labelled(f'{metric}_bucket', text, f'le={chr(34)}{bound:.6g}{chr(34)}')} {passed}\n"
        yield f"{_labelled(f'{metric}_bucket', text, 'le=' + chr(34) + '+Inf' + chr(34))} {value.count}\n"
        yield f"{_labelled(f'{metric}_sum', text)} {_nano(value.nano)}\n"
        yield f"{_labelled(f'{metric}_count', text)} {value.count}\n"


async def prometheus(store: Store) -> str:
    """Every metric of the namespace; gauges are the sum over live processes."""
    known = await read.definitions(store)
    gauges = await read.gauges(store)
    counted = sorted(metric for metric, definition in known.items() if definition.kind != "gauge")
    tables = await read.totals(store, counted)
    out = []
    for metric in counted:
        if tables[metric]:
            out.append(_header(metric, known[metric]))
            out.extend(_lines(metric, known[metric], tables[metric]))
    for metric in sorted(gauges):
        out.append(_header(metric, OURS.get(metric, Definition("gauge"))))
        out.extend(f"{_labelled(metric, text)} {_number(sum(values))}\n" for text, values in sorted(gauges[metric].items()))
    return "".join(out)
