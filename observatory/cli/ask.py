"""Commands that ask: one question, one answer, an exit code."""

from typing import Annotated, Any

import typer

from ..client import Observatory
from ..errors import InvalidArgument
from ..features import presence
from ..features.metrics import read
from ..logs import level_named
from ..settings import table as settings_table
from ..units import seconds
from . import table
from .checking import Checked, checked
from .context import OUT, AsJson, complain, done, show_json, show_table

metrics = typer.Typer(no_args_is_help=True, help="Ask what the fleet has recorded.")
config = typer.Typer(no_args_is_help=True, help="Look at the settings; set the log level of all.")


@metrics.command()
def query(
    context: typer.Context,
    metric: str,
    stat: Annotated[str, typer.Option(help="total rate count sum avg p50 … p99.9 min max last")] = "total",
    by: Annotated[str, typer.Option(help="labels, separated by commas")] = "",
    where: Annotated[str, typer.Option(help="PromQL matchers")] = "",
    since: str = "1h",
    until: str = "now",
    step: Annotated[str | None, typer.Option(help="60, 1m")] = None,
    top: Annotated[int | None, typer.Option(min=1)] = None,
    plot: Annotated[bool, typer.Option("--plot", help="a chart per series; needs --step")] = False,
    as_json: AsJson = False,
) -> None:
    """What the fleet has recorded."""

    async def question(obs: Observatory) -> Any:
        if plot and step is None:
            raise InvalidArgument("--plot needs points", remedy="Say how far apart they are: --step 1m")
        every = None if step is None else seconds(step, "step")
        return await obs.metrics.query(metric, stat, by=by, where=where, since=since, until=until, step=every, top=top)

    found = context.obj.ask(question)
    if context.obj.json:
        show_json(found)
    else:
        (table.plot if plot else table.result)(found)


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


@config.command("get")
def get_config(context: typer.Context, key: str, as_json: AsJson = False) -> None:
    """What all instances were told while they run. Only log.level can be."""
    _live(key)
    level = context.obj.ask(lambda obs: presence.told_log_level(obs.store))
    if context.obj.json:
        show_json({key: level})
    else:
        OUT.print(level or "nobody was told; each goes by its own settings", markup=False)


@config.command("set")
def set_config(context: typer.Context, key: str, value: str, as_json: AsJson = False) -> None:
    """Tell all instances while they run; they follow within about a second. Only log.level can be told."""
    _live(key)
    _tell(context, done(_level(value)))


@config.command("unset")
def unset_config(context: typer.Context, key: str, as_json: AsJson = False) -> None:
    """Each instance goes by its own settings again."""
    _live(key)
    _tell(context, None)


def _tell(context: typer.Context, level: str | None) -> None:
    async def tell(obs: Observatory) -> int:
        await presence.tell_log_level(obs.store, level)
        return sum(1 for one in await obs.instances() if one.says.role != "cli")

    told = context.obj.ask(tell)
    if context.obj.json:
        show_json({"log.level": level, "instances": told})
    else:
        OUT.print(f"log.level is {level or 'that of their settings'} for {told} instances, within about a second", markup=False)


async def _level(value: str) -> str:
    return level_named(value)


def _live(key: str) -> None:
    async def check() -> None:
        if key not in settings_table.TABLE:
            raise InvalidArgument(f"{key}: no such setting", remedy="`observatory config docs` lists them")
        if not settings_table.TABLE[key][0].live:
            raise InvalidArgument(
                f"{key} cannot be changed while processes run; only log.level can",
                remedy="Change the file or the environment, and restart",
            )

    done(check())


@config.command("check")
def check_config(
    context: typer.Context,
    file: Annotated[str | None, typer.Argument(help="default: what a process here would read")] = None,
    as_json: AsJson = False,
) -> None:
    """Would what a process reads here open? Connects to nothing. Exit 2 and every mistake when not."""

    async def look() -> Checked:
        return checked(file or context.obj.config, context.obj.redis_url, context.obj.namespace)

    found = done(look())
    if not context.obj.json:
        for line in found.warnings:
            OUT.print(f"warning: {line}", markup=False)
        for line in found.notes:
            OUT.print(f"note: {line}", markup=False)
    if found.mistakes:
        complain(*found.mistakes)
    settings = found.settings
    if context.obj.json:
        told = {"warnings": found.warnings, "notes": found.notes}
        show_json({"settings": settings.sources, "limits": sorted(settings.limits), **told})
    else:
        OUT.print(f"ok: {len(settings.sources)} settings, {len(settings.limits)} limits")
