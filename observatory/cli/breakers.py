"""Commands of the breakers: which there are, how one stands (exit 1: calls do not pass), and to hold one by hand."""

from typing import Annotated

import typer

from ..features.breaker import BreakerReport
from .context import OUT, AsJson, show_json, show_table

breaker = typer.Typer(no_args_is_help=True, help="Circuit breakers that the fleet shares.")

Name = Annotated[str, typer.Argument(help="of the breaker")]


@breaker.command("list")
def list_breakers(context: typer.Context, as_json: AsJson = False) -> None:
    """Every breaker that was used in the last week."""
    found = context.obj.ask(lambda obs: obs.breakers.list())
    if context.obj.json:
        show_json(found)
    else:
        rows = [[one.name, one.state, f"{one.failures} of {one.calls}", _left(one), _held(one)] for one in found]
        show_table(["breaker", "state", "failed #", "tried in #", ""], rows)


@breaker.command()
def show(context: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """How one stands. Exit 1 while it is open or half open."""
    found: BreakerReport = context.obj.ask(lambda obs: obs.breakers.show(name))
    _say(context, found)
    raise typer.Exit(0 if found.state == "closed" else 1)


@breaker.command()
def force(
    context: typer.Context,
    name: Name,
    state: Annotated[str, typer.Argument(help="open, closed, or auto: let go")],
    reason: Annotated[str | None, typer.Option(help="why; told to whoever is refused; auto needs none")] = None,
    as_json: AsJson = False,
) -> None:
    """Hold it open or closed for the whole fleet, until it is let go."""
    _say(context, context.obj.ask(lambda obs: obs.breakers.hold(name, state, reason=reason)))


def _say(context: typer.Context, one: BreakerReport) -> None:
    if context.obj.json:
        show_json(one)
    else:
        if not one.used:
            OUT.print(f"{one.name}: {one.state}, nobody has used it in the last week", markup=False)
            return
        told = [one.state, f"{one.failures} of {one.calls} calls failed", _left(one), _held(one)]
        OUT.print(f"{one.name}: {', '.join(filter(None, told))}", markup=False)


def _left(one: BreakerReport) -> str:
    if one.probing:
        return "one call tries"
    return f"tried in {one.left:.1f} s" if one.left else ""


def _held(one: BreakerReport) -> str:
    return f"held {one.forced}: {one.reason}" if one.forced else ""
