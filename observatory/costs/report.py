"""Reports: values, and how they look as a table and as CSV."""

import csv
import io
from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal

import msgspec

from ..names import OVERFLOW

FOLDED = "(folded)"
"""Where the table says whose it was: nobody knows, there were too many series (metrics.max_series)."""


class CostRow(msgspec.Struct, frozen=True):
    """What one group has used. Latencies are seconds, of calls that were made, within 1.1 %; None: not asked for, or none."""

    group: Mapping[str, str]
    """A label that the calls did not carry is left out."""
    calls: int
    """That were made: what was refused before is none."""
    input_tokens: int
    output_tokens: int
    cost_usd: Decimal
    """Of the calls that have a price; exact to the billionth."""
    unpriced_calls: int
    estimated_calls: int = 0
    """Of which we counted the tokens, since the provider did not say them."""
    latency_p50: float | None = None
    latency_p95: float | None = None


class CostReport(msgspec.Struct, frozen=True):
    """The dearest group first. Totals are over all rows."""

    since: datetime
    until: datetime
    """What it covers: for `since=` and `until=` whole windows around what was asked."""
    by: tuple[str, ...]
    rows: tuple[CostRow, ...]
    total_usd: Decimal
    calls: int
    input_tokens: int
    output_tokens: int
    unpriced_calls: int
    estimated_calls: int = 0
    folded_calls: int = 0
    """Calls of series that were too many, of which nobody knows whose they were: without `where` they are a row of their own,
    with it they are in no row."""
    currency: str = "USD"

    @property
    def has_latency(self) -> bool:
        return any(row.latency_p50 is not None for row in self.rows)

    def table(self) -> str:
        """For people; without colours, the totals last."""
        heads = [*(name.upper() for name in self.by), "CALLS", "IN TOKENS", "OUT TOKENS", "USD"]
        heads += ["P50", "P95"] if self.has_latency else []
        lines = [[*_words(self.by, row), *self._numbers(row)] for row in self.rows]
        total = f"{self.calls:,}", _short(self.input_tokens), _short(self.output_tokens), f"{self.total_usd:,f}"
        lines.append(["total", *[""] * (len(self.by) - 1), *total] if self.by else [*total])
        lines = [[*line, *[""] * (len(heads) - len(line))] for line in lines]
        widths = [max(len(line[at]) for line in (heads, *lines)) for at in range(len(heads))]
        text = "\n".join(_line(line, widths, len(self.by)) for line in (heads, *lines))
        return "\n".join([text, *self._notes()])

    def _numbers(self, row: CostRow) -> list[str]:
        found = [f"{row.calls:,}", _short(row.input_tokens), _short(row.output_tokens), f"{row.cost_usd:,f}"]
        if self.has_latency:
            found += ["–" if one is None else f"{one:.2f} s" for one in (row.latency_p50, row.latency_p95)]
        return found

    def _notes(self) -> Iterable[str]:
        if self.unpriced_calls:
            said = "call has no price and is" if self.unpriced_calls == 1 else "calls have no price and are"
            yield f"{self.unpriced_calls:,} {said} not in it: observatory costs prices --missing"
        if self.folded_calls:
            said = "call is" if self.folded_calls == 1 else "calls are"
            yield f"{self.folded_calls:,} {said} of series that were too many (metrics.max_series): nobody knows whose"

    def csv(self) -> str:
        """A line a row, with a head and without totals; money in dollars, all of its digits."""
        out = io.StringIO()
        lines = csv.writer(out, lineterminator="\n")
        fields = ["calls", "input_tokens", "output_tokens", "cost_usd", "unpriced_calls", "estimated_calls"]
        fields += ["latency_p50", "latency_p95"] if self.has_latency else []
        lines.writerow([*self.by, *fields])
        for row in self.rows:
            said = [row.group.get(name, FOLDED if OVERFLOW in row.group else "") for name in self.by]
            numbers = [getattr(row, field) for field in fields]
            told = ["" if one is None else f"{one:f}" if isinstance(one, Decimal) else one for one in numbers]
            lines.writerow([*map(_harmless, said), *told])
        return out.getvalue()


def _harmless(text: str) -> str:
    """A tenant may call itself =HYPERLINK(…), and a spreadsheet would believe it."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _words(by: tuple[str, ...], row: CostRow) -> list[str]:
    if OVERFLOW in row.group:
        return [FOLDED, *[""] * (len(by) - 1)] if by else []
    return ["".join(sign if sign.isprintable() else "?" for sign in row.group.get(name, "–")) for name in by]


def _short(number: int) -> str:
    return f"{number / 1e6:,.1f} M" if number >= 1_000_000 else f"{number:,}"


def _line(cells: list[str], widths: list[int], words: int) -> str:
    told = [
        cell.ljust(width) if at < words else cell.rjust(width)
        for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(told).rstrip()
