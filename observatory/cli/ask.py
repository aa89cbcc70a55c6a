"""Commands that ask: one question, one answer, an exit code."""

from typing import Annotated, Any

import msgspec
import typer

from ..client import Observatory
from ..errors import InvalidArgument
from ..features.metrics import read
from ..units import seconds
from . import table
from .context import OUT, AsJson, done, show_json, show_table

metrics = typer.Typer(no_args_is_help=True, help="Ask what the fleet has recorded.")
config = typer.Typer(no_args_is_help=True, help="Look at the settings.")


@metrics.command()
def query(
    context: typer.Context,
    metric: str,
    stat: Annotated[str, typer.Option(help="total rate count sum avg p50 … p99.9 min max")] = "total",
    by: Annotated[str, typer.Option(help="labels, separated by commas")] = "",
    where: Annotated[str, typer.Option(help="PromQL matchers")] = "",
    since: str = "1h",
    until: str = "now",
    step: Annotated[str | None, typer.Option(help="60, 1m")] = None,
    top: Annotated[int | None, typer.Option(min=1)] = None,
    as_json: AsJson = False,
) -> None:
    """What the fleet has recorded."""

    async def question(obs: Observatory) -> Any:
        every = None if step is None else seconds(step, "step")
        return await obs.metrics.query(metric, stat, by=by, where=where, since=since, until=until, step=every, top=top)

    found = context.obj.ask(question)
    if context.obj.json:
        show_json(found)
    else:
        table.result(found)


@metrics.command("list")
def list_metrics(context: typer.Context, as_json: AsJson = False) -> None:
    """Every metric that was ever recorded in the namespace, and the gauges of the live processes."""
    found = context.obj.ask(lambda obs: read.known(obs.store))
    if context.obj.json:
        show_json(found)
    else:
        show_table(["metric", "kind", "unit", ""], [[m, d.kind, d.unit, d.description] for m, d in sorted(found.items())])


@config.command()
def docs(context: typer.Context, as_json: AsJson = False) -> None:
    """The table of all settings."""
    rows = table.settings()
    if context.obj.json:
        show_json(rows)
    else:
        OUT.print(table.markdown(rows), markup=False)


@config.command("check")
def check_config(
    context: typer.Context,
    file: Annotated[str | None, typer.Argument(help="default: what a process here would read")] = None,
    as_json: AsJson = False,
) -> None:
    """Is it readable, and does it say what it means? Exit 2 when not."""

    async def look() -> Any:
        settings = msgspec.structs.replace(context.obj, config=file or context.obj.config).settings()
        if settings.warnings:
            raise InvalidArgument("; ".join(settings.warnings))
        Observatory("check", settings=settings).rate_limiter.limits()
        return settings

    settings = done(look())
    if context.obj.json:
        show_json({"settings": settings.sources, "limits": sorted(settings.limits)})
    else:
        OUT.print(f"ok: {len(settings.sources)} settings, {len(settings.limits)} limits")
