"""Commands of the event streams: look at what comes and what waits; list, show, replay and drop dead letters."""

import asyncio
import contextlib
import sys
from typing import Annotated, Any

import typer

from ..client import Observatory
from ..errors import InvalidArgument
from ..features import survey
from ..features.dead_letters import MOST_PER_PAGE, DeadLetter, Moved
from ..features.metrics.matchers import matchers
from ..units import moment, seconds
from .context import OUT, AsJson, Yes, ask_first, fail, show_json, show_table
from .tail import Seen, tail

events = typer.Typer(no_args_is_help=True, help="Look at the event streams.")
dead_letters = typer.Typer(no_args_is_help=True, help="Events that could not be applied.")

Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="as list shows them")]
All = Annotated[bool, typer.Option("--all", help="every letter that is there now")]


@events.command()
def lag(context: typer.Context, as_json: AsJson = False) -> None:
    """What was accepted, applied, buried and dropped, what waits, and for how long; by partition."""
    found = context.obj.ask(lambda obs: survey.backlog(obs.store))
    names = ("accepted", "applied", "dead", "dropped", "waiting")
    sums = {name: sum(getattr(one, name) for one in found) for name in names}
    oldest = max((one.oldest_age for one in found), default=0.0)
    if context.obj.json:
        show_json({**sums, "oldest_age": oldest, "partitions": found})
        return
    rows = [[str(one.partition), *[f"{getattr(one, name):,}" for name in names], _age(one.oldest_age)] for one in found]
    rows.append(["all", *[f"{number:,}" for number in sums.values()], _age(oldest)])
    show_table(["partition", *[f"{name} #" for name in names], "oldest #"], rows)


def _age(age: float) -> str:
    return f"{age:,.1f} s" if age else "–"


@events.command("tail")
def tail_events(
    context: typer.Context,
    where: Annotated[
        str, typer.Option(help='PromQL matchers on type, id, dimensions and data: type="llm_call",model=~"gpt.*"')
    ] = "",
    most: Annotated[int | None, typer.Option("--count", min=1, help="stop after so many")] = None,
    within: Annotated[str | None, typer.Option("--for", help="stop after so long: 30s")] = None,
    as_json: AsJson = False,
) -> None:
    """Events as they are accepted, until Ctrl-C; with --json one document a line."""
    try:
        fits = matchers(where)
        patience = None if within is None else seconds(within, "--for")
    except InvalidArgument as error:
        fail(error)

    async def follow(obs: Observatory) -> None:
        shown = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                async with contextlib.aclosing(tail(obs.store)) as coming:
                    async for one in coming:
                        if fits(one.labels()):
                            _show(one, as_json=context.obj.json)
                            shown += 1
                        if shown == most:
                            return

    context.obj.ask(follow)


def _show(one: Seen, *, as_json: bool) -> None:
    if as_json:
        show_json(one)
    else:
        about = " ".join(f"{name}={value}" for name, value in one.dimensions.items())
        at = moment(one.at_us).strftime("%H:%M:%S.%f")[:-3] if one.at_us else "unreadable"
        OUT.print(f"{at}  {one.type or '?'}  {one.id}  {about}  {one.data}", markup=False)
    sys.stdout.flush()


@dead_letters.command("list")
def list_letters(
    context: typer.Context,
    page_size: Annotated[int, typer.Option(min=1, max=MOST_PER_PAGE)] = 100,
    cursor: Annotated[str | None, typer.Option(help="where the last page ended")] = None,
    as_json: AsJson = False,
) -> None:
    """One page of them, with the reason of each."""
    page = context.obj.ask(lambda obs: obs.dead_letters.list(page_size=page_size, cursor=cursor))
    if context.obj.json:
        show_json(page)
        return
    show_table(["id", "event", "type", "buried", "bytes #", "reason"], [_row(one) for one in page.letters])
    if page.cursor is not None:
        OUT.print(f"… and more: --cursor {page.cursor}", markup=False)


def _row(one: DeadLetter) -> list[str]:
    buried = moment(int(one.buried_at * 1e6)).strftime("%Y-%m-%d %H:%M:%S")
    return [one.id, one.event, one.event_type or "?", buried, f"{one.size:,}", one.reason]


@dead_letters.command()
def show(context: typer.Context, letter: Annotated[str, typer.Argument(metavar="ID")], as_json: AsJson = False) -> None:
    """One of them, and what it says as far as it can be read."""
    found = context.obj.ask(lambda obs: obs.dead_letters.show(letter))
    if context.obj.json:
        show_json(found)
        return
    for name in ("id", "event", "event_type", "buried_at", "size", "reason", "content"):
        OUT.print(f"{name:<12}{getattr(found, name)}", markup=False)


@dead_letters.command()
def replay(context: typer.Context, ids: Ids = None, everything: All = False, yes: Yes = False, as_json: AsJson = False) -> None:
    """Put them back on their streams, each once. Exit 1 when one was not there, or its stream is full."""
    _check(ids, everything)
    if everything:
        ask_first("Put every dead letter back on its stream?", "replay --all reads all of them again", yes=yes)
    _moved(context, _move(context, "replay", ids), "replayed")


@dead_letters.command()
def drop(context: typer.Context, ids: Ids = None, everything: All = False, yes: Yes = False, as_json: AsJson = False) -> None:
    """Throw them away for good, and count them as dropped. Exit 1 when one was not there."""
    _check(ids, everything)
    what = "every dead letter" if everything else f"{len(ids or [])} dead letters"
    ask_first(f"Throw {what} away for good?", "drop throws events away for good", yes=yes)
    _moved(context, _move(context, "drop", ids), "dropped")


def _check(ids: list[str] | None, everything: bool) -> None:
    if bool(ids) == everything:
        fail(InvalidArgument("say which: ids, or --all", remedy="observatory dead-letters list"))


def _move(context: typer.Context, verb: str, ids: list[str] | None) -> Moved:
    async def move(obs: Observatory) -> Any:
        room = obs.dead_letters
        if ids:
            return await (room.replay(*ids) if verb == "replay" else room.drop(*ids))
        return await (room.replay_all() if verb == "replay" else room.drop_all())

    found: Moved = context.obj.ask(move)
    return found


def _moved(context: typer.Context, found: Moved, word: str) -> None:
    if context.obj.json:
        show_json({word: found.done, "missing": found.missing, "left": found.left})
    else:
        OUT.print(f"{word} {found.done:,}")
        if found.missing:
            OUT.print(f"{found.missing:,} were not there")
        if found.left:
            OUT.print(f"{found.left:,} stay: the stream is full. Start more workers, then ask again")
    raise typer.Exit(1 if found.missing or found.left else 0)
