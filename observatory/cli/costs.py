"""Commands of costs: reports, budgets, prices, what another model would have cost."""

import sys
from typing import Annotated, Any

import typer

from ..costs import Budget, WhatIf
from .context import OUT, AsJson, show_json, show_table

costs = typer.Typer(help="What calls have cost, and how far budgets are spent.")

By = Annotated[str, typer.Option(help="provider, model, and labels of metrics.dimensions; separated by commas")]
Where = Annotated[str, typer.Option(help='PromQL matchers: team="search",model=~"gpt-.*"')]
Since = Annotated[str | None, typer.Option(help="RFC 3339, a date, or an age; default 7d")]
Until = Annotated[str | None, typer.Option(help="likewise; default now")]
Period = Annotated[
    str | None, typer.Option(help="today yesterday this-week last-week this-month last-month 2026-W47 2026-11 2026-11-16")
]
Timezone = Annotated[str, typer.Option(help="of the period: Europe/Berlin")]
Latency = Annotated[bool, typer.Option("--latency", help="p50 and p95 of each row")]
Csv = Annotated[bool, typer.Option("--csv", help="a line a row, all digits of the dollars")]


def _asked(
    context: typer.Context,
    by: str,
    where: str,
    since: str | None,
    until: str | None,
    period: str | None,
    timezone: str,
    *,
    latency: bool,
    as_csv: bool,
) -> None:
    found = context.obj.ask(
        lambda obs: obs.costs.report(
            by=by, where=where, since=since, until=until, period=period, timezone=timezone, latency=latency
        )
    )
    if context.obj.json:
        show_json(found)
    elif as_csv:
        sys.stdout.write(found.csv())
    else:
        # As it is: a console would make pictures of a model's name.
        sys.stdout.write(f"{found.since:%Y-%m-%d %H:%M} to {found.until:%Y-%m-%d %H:%M} UTC\n{found.table()}\n")


@costs.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    by: By = "provider,model",
    where: Where = "",
    since: Since = None,
    until: Until = None,
    period: Period = None,
    timezone: Timezone = "UTC",
    latency: Latency = False,
    as_csv: Csv = False,
    as_json: AsJson = False,
) -> None:
    """Calls, tokens and dollars of a time: the same as `costs report`."""
    if context.invoked_subcommand is None:
        _asked(context, by, where, since, until, period, timezone, latency=latency, as_csv=as_csv)


@costs.command()
def report(
    context: typer.Context,
    by: By = "provider,model",
    where: Where = "",
    since: Since = None,
    until: Until = None,
    period: Period = None,
    timezone: Timezone = "UTC",
    latency: Latency = False,
    as_csv: Csv = False,
    as_json: AsJson = False,
) -> None:
    """Calls, tokens and dollars of a time, the dearest first."""
    _asked(context, by, where, since, until, period, timezone, latency=latency, as_csv=as_csv)


@costs.command()
def budgets(context: typer.Context, as_json: AsJson = False) -> None:
    """Every limit that counts usd, for everybody who is charged in it now."""
    found = context.obj.ask(lambda obs: obs.costs.budgets())
    if context.obj.json:
        show_json(found)
    else:
        columns = ["limit", "identity", "spent #", "reserved #", "of #", "used #", "resets", "forecast #", ""]
        show_table(columns, [_budget(one) for one in found])


def _budget(one: Budget) -> list[str]:
    money = [_dollars(nano) for nano in (one.spent_usd, one.reserved_usd, one.amount_usd)]
    going = _dollars(one.forecast_usd)
    return [
        one.limit,
        one.identity or "-",
        *money,
        f"{one.used:.0%}",
        f"{one.resets_at:%Y-%m-%d %H:%M}Z",
        going,
        "← over" if one.over else "",
    ]


def _calls(number: int) -> str:
    return f"{number:,} call{'' if number == 1 else 's'}"


def _dollars(amount: Any) -> str:
    return "–" if amount is None else f"{amount:,f}"


@costs.command()
def prices(
    context: typer.Context,
    missing: Annotated[bool, typer.Option("--missing", help="only models whose calls had no price")] = False,
    since: Annotated[str, typer.Option(help="called since then")] = "30d",
    as_json: AsJson = False,
) -> None:
    """The models called lately, and their prices as the settings here and the catalogue have them. Exit 1: one is missing."""
    found = [one for one in context.obj.ask(lambda obs: obs.costs.prices(since=since)) if one.unpriced_calls or not missing]
    if context.obj.json:
        show_json(found)
    else:
        columns = ["provider", "model", "calls #", "without price #", "in, usd per M #", "out #"]
        rows = [
            [
                *(one.provider, one.model, f"{one.calls:,}", f"{one.unpriced_calls:,}"),
                *(_dollars(one.input_usd), _dollars(one.output_usd)),
            ]
            for one in found
        ]
        show_table(columns, rows)
    raise typer.Exit(1 if missing and found else 0)


@costs.command("what-if")
def what_if(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="PROVIDER/MODEL that would have been called")],
    instead_of: Annotated[str, typer.Option(help="MODEL, or PROVIDER/MODEL, that was")],
    since: Since = None,
    until: Until = None,
    period: Period = None,
    as_json: AsJson = False,
) -> None:
    """What one model's calls would have cost at another's price. Exit 1: it has none."""
    found: WhatIf = context.obj.ask(
        lambda obs: obs.costs.what_if(model=model, instead_of=instead_of, since=since, until=until, period=period)
    )
    if context.obj.json:
        show_json(found)
    else:
        OUT.print(f"{found.since:%Y-%m-%d %H:%M} to {found.until:%Y-%m-%d %H:%M} UTC", markup=False)
        used = f"{_calls(found.calls)}, {found.input_tokens:,} tokens in, {found.output_tokens:,} out"
        priceless = f", {_calls(found.unpriced_calls)} without a price" if found.unpriced_calls else ""
        OUT.print(f"{instead_of}: {used}: {_dollars(found.cost_usd)} USD{priceless}", markup=False)
        told = "no price is known" if found.what_if_usd is None else f"{_dollars(found.what_if_usd)} USD"
        OUT.print(f"{model}: {told}", markup=False)
        for note in found.unknown:
            OUT.print(f"not known: {note}", markup=False)
    raise typer.Exit(1 if found.what_if_usd is None else 0)
