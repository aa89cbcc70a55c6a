"""Commands that ask: one question, one answer, an exit code."""

from typing import Annotated, Any

import msgspec
import typer

from ..client import Observatory
from ..errors import InvalidArgument
from ..features.metrics import read
from ..features.rate_limiter import Decision
from ..units import parsed, seconds
from . import table
from .context import OUT, AsJson, Context, done, fail, show_json, show_table

rate_limiter = typer.Typer(no_args_is_help=True, help="Ask the shared limits.")
metrics = typer.Typer(no_args_is_help=True, help="Ask what the fleet has recorded.")
events = typer.Typer(no_args_is_help=True, help="Look at the event streams.")
config = typer.Typer(no_args_is_help=True, help="Look at the settings.")

Dimension = Annotated[list[str] | None, typer.Option("-d", "--dimension", metavar="K=V", help="one dimension of the identity")]


def _identity(name: str | None, dimensions: list[str] | None) -> str | dict[str, str] | None:
    if dimensions:
        if name is not None:
            fail(InvalidArgument("an identity is a name or dimensions, not both"))
        pairs = [pair.partition("=") for pair in dimensions]
        if any(not equals for _, equals, _ in pairs):
            fail(InvalidArgument("-d wants K=V"))
        return {key: value for key, _, value in pairs}
    return name


def _cost(costs: list[str] | None) -> Any:
    found: dict[str, Any] = {}
    for text in costs or []:
        unit, equals, number = text.partition("=")
        if not equals:
            return parsed(text, "--cost")
        found[unit] = parsed(number, f"--cost {unit}")
    return found or 1


def _decided(context: Context, decision: Decision) -> None:
    if context.json:
        show_json(decision)
    else:
        said = "allowed" if decision.allowed else "refused"
        wait = (
            ""
            if decision.allowed
            else "; never"
            if decision.retry_after is None
            else f"; retry in {decision.retry_after:.3f} s"
        )
        left = f"{decision.remaining} of {decision.capacity} {decision.unit} left"
        OUT.print(f"{said}: {decision.limit} {decision.identity or '-'}: {left}{wait}", markup=False)
    raise typer.Exit(0 if decision.allowed else 1)


@rate_limiter.command()
def check(
    context: typer.Context,
    limit: str,
    identity: Annotated[str | None, typer.Argument()] = None,
    dimension: Dimension = None,
    cost: Annotated[list[str] | None, typer.Option(help="1, or tokens=900")] = None,
    as_json: AsJson = False,
) -> None:
    """Take now, or be told when. Exit 0 allowed, 1 refused."""
    who = _identity(identity, dimension)
    try:
        asked = _cost(cost)
    except InvalidArgument as error:
        fail(error)
    _decided(context.obj, context.obj.ask(lambda obs: obs.rate_limiter.check(limit, who, asked)))


@rate_limiter.command()
def peek(
    context: typer.Context,
    limit: str,
    identity: Annotated[str | None, typer.Argument()] = None,
    dimension: Dimension = None,
    as_json: AsJson = False,
) -> None:
    """Look without taking."""
    who = _identity(identity, dimension)
    _decided(context.obj, context.obj.ask(lambda obs: obs.rate_limiter.peek(limit, who)))


@rate_limiter.command("list")
def list_limits(context: typer.Context, as_json: AsJson = False) -> None:
    """The limits as the settings here have them."""
    found = context.obj.observatory("cli").rate_limiter.limits()
    if context.obj.json:
        show_json(found)
    else:
        rows = [[one.name, str(one.amount), str(one.per), str(one.burst or one.amount), one.unit] for one in found]
        show_table(["limit", "amount #", "per #", "burst #", "unit"], rows)


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


@events.command()
def lag(context: typer.Context, as_json: AsJson = False) -> None:
    """How many events were accepted, applied, buried, dropped, and are waiting."""
    found = context.obj.ask(lambda obs: obs.events.lag())
    if context.obj.json:
        show_json(found)
    else:
        show_table([f"{name} #" for name in found], [[f"{number:,}" for number in found.values()]])


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
