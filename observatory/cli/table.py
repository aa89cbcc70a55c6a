"""Values as tables."""

from typing import Any

import msgspec

from ..features.metrics import Result
from ..settings import TABLE, bounds, defaults, environment_name
from .context import OUT, show_table

_BARS = "▁▂▃▄▅▆▇█"


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
    """One row a series; points as a small chart."""
    names = sorted({name for one in found.series for name in one.labels})
    columns = [*names, f"{found.stat} #"]
    rows = []
    for one in found.series:
        said = [one.labels.get(name, "–") for name in names]
        if one.points:
            values = [point.value for point in one.points]
            most = max(values) or 1.0
            chart = "".join(_BARS[min(int(value / most * 7.999), 7)] for value in values[-80:])
            said.append(f"{chart} {_number(values[-1])}")
        else:
            said.append(_number(one.value))
        rows.append(said)
    show_table(columns, rows)
    if found.truncated:
        OUT.print("… and more; without --top you see all of them")
