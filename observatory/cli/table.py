"""Values as tables."""

import math
from datetime import timedelta
from typing import Any

import msgspec

from ..features.metrics import Result, Series
from ..settings import TABLE, bounds, defaults, environment_name
from .context import OUT, show_table

_BARS = "▁▂▃▄▅▆▇█"
PLOT_HEIGHT = 8
MAX_WIDTH = 160


class SettingRow(msgspec.Struct, frozen=True):
    key: str
    environment: str
    kind: str
    default: Any
    unit: str
    bounds: str
    meaning: str


def settings() -> list[SettingRow]:
    """Every setting, as the table in settings.py has it."""
    known = defaults()
    return [
        SettingRow(key, environment_name(key), row.kind, known[key], row.unit, bounds(row), row.meaning)
        for key, (row, _) in TABLE.items()
    ]


def markdown(rows: list[SettingRow]) -> str:
    """The reference in docs/settings.md."""
    lines = ["| key | environment | default | unit | range | meaning |", "|---|---|---|---|---|---|"]
    for row in rows:
        default = "–" if row.default is None or row.default == () else f"`{row.default}`"
        lines.append(f"| `{row.key}` | `{row.environment}` | {default} | {row.unit} | {row.bounds} | {row.meaning} |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    if value is None:
        return "no data"
    return f"{value:,.0f}" if value == int(value) else f"{value:,.6g}"


def result(found: Result) -> None:
    """One row a series; points as a small chart, a step without data as a gap."""
    names = sorted({name for one in found.series for name in one.labels})
    columns = [*names, f"{found.stat} #"]
    rows = []
    for one in found.series:
        said = [one.labels.get(name, "–") for name in names]
        if one.points:
            said.append(f"{_chart(_spaced(found, one)[-80:], 1)[0]} {_number(one.points[-1].value)}")
        else:
            said.append(_number(one.value))
        rows.append(said)
    show_table(columns, rows)
    _say_truncated(found)


def plot(found: Result) -> None:
    """A chart a series, with its highest and lowest value and the time it spans."""
    for one in found.series:
        values = _spaced(found, one)[-MAX_WIDTH:]
        known = [value for value in values if value is not None]
        labels = ", ".join(f"{name}={value}" for name, value in one.labels.items())
        OUT.print(f"{found.metric} {found.stat} {labels}".rstrip(), markup=False)
        if not known:
            OUT.print("no data")
            continue
        scale = (_number(max(*known, 0.0)), _number(min(*known, 0.0)))
        width = max(map(len, scale))
        lines = _chart(values, PLOT_HEIGHT)
        for number, line in enumerate(lines):
            mark = scale[0] if number == 0 else scale[1] if number == len(lines) - 1 else ""
            OUT.print(f"{mark:>{width}} ┤{line}", markup=False, highlight=False)
        until, step = found.until.strftime("%m-%d %H:%M:%S"), found.step or 0.0
        since = (found.since + timedelta(seconds=step * (len(_spaced(found, one)) - len(values)))).strftime("%m-%d %H:%M:%S")
        OUT.print(
            f"{'':>{width}} └{since}{until:>{max(len(values) - len(since), len(until) + 1)}}", markup=False, highlight=False
        )
    _say_truncated(found)


def _say_truncated(found: Result) -> None:
    if found.truncated:
        OUT.print("… and more; without --top you see all of them")


def _spaced(found: Result, one: Series) -> list[float | None]:
    """A value for every step, None where there is no data."""
    step = found.step or 1.0
    values: list[float | None] = [None] * math.ceil((found.until - found.since).total_seconds() / step)
    for point in one.points:
        values[int((point.at - found.since).total_seconds() / step)] = point.value
    return values


def _chart(values: list[float | None], height: int) -> list[str]:
    """Lines from the top; the lowest line ends at 0, or at the lowest value below it."""
    known = [value for value in values if value is not None]
    low, high = min(*known, 0.0), max(*known, 0.0)
    eighths = [
        None if value is None else round((value - low) / ((high - low) or 1.0) * (height * 8 - 1)) + 1 for value in values
    ]
    lines = []
    for row in reversed(range(height)):
        filled = [0 if eighth is None else min(max(eighth - row * 8, 0), 8) for eighth in eighths]
        lines.append("".join(" " if not part else _BARS[part - 1] for part in filled))
    return lines
