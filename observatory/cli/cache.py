"""Commands of the shared cache: look at an entry, write, delete; invalidate tags, clear; how caches serve. Exit 1: a miss."""

import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import msgspec
import typer

from ..client import Observatory
from ..errors import InvalidArgument
from ..features.cache import CacheReport, Found, UntypedCache, report
from .context import OUT, AsJson, Dimension, Yes, ask_first, dimensions_of, fail, show_json, show_table

T = TypeVar("T")

cache = typer.Typer(no_args_is_help=True, help="Look into the shared cache, and write to it.")

Name = Annotated[str, typer.Argument(help="of the cache")]
ToKey = Annotated[str, typer.Argument(metavar="KEY")]


def _ask(context: typer.Context, name: str, given: list[str] | None, verb: Callable[[UntypedCache], Awaitable[T]]) -> T:
    whose = dimensions_of(given)

    async def question(obs: Observatory) -> T:
        with obs.untyped_caches.of(name, whose) as found:
            return await verb(found)

    answer: T = context.obj.ask(question)
    return answer


@cache.command()
def get(context: typer.Context, name: Name, key: ToKey, dimension: Dimension = None, as_json: AsJson = False) -> None:
    """The entry as JSON, of whatever type it is. Exit 1 when there is none."""

    async def find(one: UntypedCache) -> tuple[Found, bytes]:
        found = await one.find(key)
        return found, found.json()

    found, text = _ask(context, name, dimension, find)
    if context.obj.json:
        text = msgspec.json.encode({"value": msgspec.Raw(text), "age": found.age, "ttl": found.ttl})
    sys.stdout.write(text.decode() + "\n")


@cache.command("set")
def set_entry(
    context: typer.Context,
    name: Name,
    key: ToKey,
    value: Annotated[str | None, typer.Argument(help="JSON; left out: what stands on stdin")] = None,
    ttl: Annotated[str | None, typer.Option(help="60, 5m, 1h; default: the setting cache.ttl")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="a tag; again for more")] = None,
    dimension: Dimension = None,
    as_json: AsJson = False,
) -> None:
    """Write it for readers of every type; who reads with a type that it does not fit has a miss."""
    text = sys.stdin.buffer.read() if value is None else value.encode("utf-8", "surrogateescape")
    try:
        content = msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        fail(InvalidArgument(f"the value is not JSON: {error}", remedy="""A text stands in quotes: '"text"'"""))
    given: dict[str, Any] = {} if ttl is None else {"ttl": ttl}
    _ask(context, name, dimension, lambda one: one.set(key, content, tags=tag or (), **given))
    _told(context, f"set: {name} {key}", set=key)


@cache.command()
def delete(context: typer.Context, name: Name, key: ToKey, dimension: Dimension = None, as_json: AsJson = False) -> None:
    """Remove the entry of every type. Exit 1 when there was none."""
    deleted = _ask(context, name, dimension, lambda one: one.delete(key))
    _told(context, f"deleted {deleted}", deleted=bool(deleted))
    raise typer.Exit(0 if deleted else 1)


@cache.command()
def invalidate(
    context: typer.Context,
    name: Name,
    tags: Annotated[list[str], typer.Argument(metavar="TAG...")],
    dimension: Dimension = None,
    as_json: AsJson = False,
) -> None:
    """All that was written with any of these tags counts no more."""
    _ask(context, name, dimension, lambda one: one.invalidate(*tags))
    _told(context, f"invalidated: {' '.join(tags)}", invalidated=tags)


@cache.command()
def clear(context: typer.Context, name: Name, dimension: Dimension = None, yes: Yes = False, as_json: AsJson = False) -> None:
    """Everything in the cache counts no more; with -d, what is of those dimensions."""
    whose = "".join(f" of {key}={value}" for key, value in dimensions_of(dimension).items())
    ask_first(f"Clear the cache {name}{whose}?", "clear takes every entry at once", yes=yes)
    _ask(context, name, dimension, lambda one: one.clear())
    _told(context, f"cleared: {name}{whose}", cleared=name)


@cache.command()
def stats(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="one; left out: every cache that was asked in the last hour")] = None,
    as_json: AsJson = False,
) -> None:
    """How the fleet's caches have served in the last hour."""

    async def one_of(one: UntypedCache) -> CacheReport:
        return report(one.name, await one.stats())

    several: list[CacheReport] | None = None if name else context.obj.ask(lambda obs: obs.untyped_caches.reports())
    found = [_ask(context, name, None, one_of)] if name else several or []
    if context.obj.json:
        show_json(found[0] if name else found)
        return
    numbers = ("hits", "misses", "near_hits", "stale", "coalesced", "computed", "errors", "corrupt")
    rows = [[one.cache, f"{one.hit_rate:.1%}", *(f"{getattr(one, field):,}" for field in numbers)] for one in found]
    show_table(["cache", "hit rate #", *(f"{field.replace('_', ' ')} #" for field in numbers)], rows)


def _told(context: typer.Context, line: str, **document: Any) -> None:
    if context.obj.json:
        show_json(document)
    else:
        OUT.print(line, markup=False)
