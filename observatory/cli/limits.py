"""Commands of the limiter: ask, look, explain, list, reset. Exit 0 allowed, 1 refused, 2 usage, 3 store away."""

from typing import Annotated, Any

import typer

from .. import documents
from ..client import Observatory
from ..errors import InvalidArgument
from ..features.rate_limiter import Decision, Limit
from ..features.rate_limiter.shape import algorithm_of
from ..overview import Exhaustion, Explanation, explain, look, near_exhaustion
from ..units import parsed
from .context import ERR, OUT, AsJson, Context, Dimension, Yes, ask_first, dimensions_of, done, fail, show_json, show_table

rate_limiter = typer.Typer(no_args_is_help=True, help="Ask the shared limits.")

Limits = Annotated[
    str, typer.Argument(metavar="LIMIT[,LIMIT]...", help='one, several (all or nothing), or "*": all that match')
]
More = Annotated[list[str] | None, typer.Option("--limit", metavar="LIMIT", help="one more; again for more")]
Identity = Annotated[str | None, typer.Argument(help="whose bucket, by its name")]
Unit = Annotated[list[str] | None, typer.Option("--unit", help="a unit that the call brings besides requests")]


def _identity(name: str | None, dimensions: list[str] | None) -> str | dict[str, str] | None:
    if dimensions:
        if name is not None:
            fail(InvalidArgument("an identity is a name or dimensions, not both"))
        return dimensions_of(dimensions)
    return name


def _named(limits: str, more: list[str] | None) -> str | list[str]:
    """One is asked as one, so that its answer has no parts."""
    found = [name.strip() for name in ",".join([limits, *(more or [])]).split(",")]
    if "*" in found and len(found) > 1:
        fail(InvalidArgument('"*" means all that match: nothing can stand beside it'))
    return found[0] if len(found) == 1 else found


def _cost(costs: list[str] | None) -> Any:
    found: dict[str, Any] = {}
    for text in costs or []:
        unit, equals, number = text.partition("=")
        if not equals:
            if len(costs or []) > 1:
                raise InvalidArgument("--cost is one number, or one UNIT=NUMBER for each unit")
            return parsed(text, "--cost")
        if unit in found:
            raise InvalidArgument(f"--cost {unit:.40} is given twice")
        found[unit] = parsed(number, f"--cost {unit:.40}")
    return found or 1


def _said(one: Decision) -> str:
    if not one.limit or one.limit == "*":
        return "no limit applies"
    said = "allowed" if one.allowed else "refused"
    wait = "" if one.allowed else "; never" if one.retry_after is None else f"; retry in {documents.waiting(one.retry_after)}"
    watching = "; only watched, else refused" if one.shadow else ""
    left = f"{one.remaining} of {one.capacity} {one.unit} left"
    return f"{said}: {one.limit} {one.identity or '-'}: {left}{wait}{watching}"


def _decided(context: Context, decision: Decision) -> None:
    if context.json:
        show_json(decision)
    else:
        # The one that binds comes first: its wait is the call's.
        rest = [one for one in decision.parts if (one.limit, one.identity) != (decision.limit, decision.identity)]
        for one in [decision, *rest]:
            OUT.print(_said(one), markup=False)
    raise typer.Exit(0 if decision.allowed else 1)


@rate_limiter.command()
def check(
    context: typer.Context,
    limit: Limits,
    identity: Identity = None,
    dimension: Dimension = None,
    cost: Annotated[list[str] | None, typer.Option(help="1, or tokens=900; again for another unit")] = None,
    more: More = None,
    as_json: AsJson = False,
) -> None:
    """Take now, or be told when: of one limit, of several all or nothing. Exit 0 allowed, 1 refused."""
    who, named = _identity(identity, dimension), _named(limit, more)
    try:
        asked = _cost(cost)
    except InvalidArgument as error:
        fail(error)
    _decided(context.obj, context.obj.ask(lambda obs: obs.rate_limiter.check(named, who, asked)))


@rate_limiter.command()
def peek(
    context: typer.Context,
    limit: Limits,
    identity: Identity = None,
    dimension: Dimension = None,
    unit: Unit = None,
    more: More = None,
    as_json: AsJson = False,
) -> None:
    """Look without taking."""
    who, named = _identity(identity, dimension), _named(limit, more)
    _decided(context.obj, context.obj.ask(lambda obs: look(obs.rate_limiter, named, who, tuple(unit or ()))))


@rate_limiter.command()
def reset(
    context: typer.Context,
    limit: str,
    identity: Identity = None,
    dimension: Dimension = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Forget what an identity has taken, and what it holds."""
    who = _identity(identity, dimension)
    whose = " ".join(f"{name}={value}" for name, value in who.items()) if isinstance(who, dict) else who
    ask_first(f"Forget what {whose or 'all'} took of {limit}?", "reset forgets what was taken and held", yes=yes)

    async def forget(obs: Observatory) -> None:
        await obs.rate_limiter.reset(limit, who)

    context.obj.ask(forget)
    if context.obj.json:
        show_json({"reset": limit, "identity": who})
    else:
        OUT.print(f"reset: {limit} {whose or '-'}", markup=False)


@rate_limiter.command("list")
def list_limits(
    context: typer.Context,
    near: Annotated[
        float | None,
        typer.Option("--near-exhaustion", metavar="SHARE", help="0.8: the buckets of which at least so much is used"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The limits as the settings here have them; or who in the fleet is nearly through."""
    if near is not None:
        _show_near(context.obj, context.obj.ask(lambda obs: near_exhaustion(obs.store, obs.rate_limiter.limits(), near)))
        return
    found = done(_limits(context.obj))
    if context.obj.json:
        show_json(found)
        return
    columns = ["limit", "amount #", "per #", "burst #", "unit", "by", "match", "algorithm", "store down", ""]
    show_table(columns, [_row(one) for one in found])


def _row(one: Limit) -> list[str]:
    match = "–" if one.match is None else one.match if isinstance(one.match, str) else _pairs(one.match)
    notes = [
        *(["shadow"] if one.shadow else []),
        *(["strict"] if one.durability == "strict" else []),
        *([f"{len(one.overrides)} overrides"] if one.overrides else []),
    ]
    numbers = [str(one.amount), "–" if one.per is None else str(one.per), str(one.burst or one.amount)]
    return [
        one.name,
        *numbers,
        one.unit,
        ",".join(one.dimensions) or "–",
        match,
        algorithm_of(one),
        one.on_store_down,
        ", ".join(notes),
    ]


def _pairs(given: Any) -> str:
    return " ".join(f"{name}={value}" for name, value in given.items())


async def _limits(context: Context) -> tuple[Limit, ...]:
    limits: tuple[Limit, ...] = context.observatory("cli").rate_limiter.limits()
    return limits


def _show_near(context: Context, found: Exhaustion) -> None:
    if context.json:
        show_json(found)
        return
    rows = [
        [
            one.limit,
            one.identity or "-",
            f"{one.share:.0%}",
            str(one.used),
            str(one.capacity),
            one.unit,
            f"{one.reset_after:.1f} s",
        ]
        for one in found.buckets
    ]
    show_table(["limit", "identity", "used #", "units #", "of #", "unit", "free again in #"], rows)
    for name, number in found.unknown.items():
        ERR.print(f"{number} buckets of {name}, which is not known here: --config FILE with its numbers", markup=False)


@rate_limiter.command("explain")
def explained(context: typer.Context, dimension: Dimension = None, unit: Unit = None, as_json: AsJson = False) -> None:
    """Which limits a call of these dimensions meets on its own, which it does not, and why."""
    who = _identity(None, dimension)

    async def ask() -> tuple[Explanation, ...]:
        return explain(await _limits(context.obj), who if isinstance(who, dict) else {}, unit or ())

    found = done(ask())
    if context.obj.json:
        show_json(found)
    else:
        show_table(["limit", "applies", "identity", "why", ""], [_why(one) for one in found])


def _why(one: Explanation) -> list[str]:
    notes = [
        *([f"by name: {', '.join(one.unknown)} must be known"] if one.unknown else []),
        *(["only watches"] if one.shadow else []),
    ]
    if one.override is not None:
        told = {name: getattr(one.override, name) for name in one.override.__struct_fields__}
        notes.append("override: " + _pairs({name: value for name, value in told.items() if value not in (None, False)}))
    return [one.limit, "yes" if one.applies else "no", one.identity or "one for all", one.why, "; ".join(notes)]
