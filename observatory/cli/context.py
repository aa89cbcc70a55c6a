"""What every command shares: where the store is, how to print, what an error's exit code is.

Exit codes: 0 yes or done, 1 no (refused, findings, a check that failed), 2 usage or configuration, 3 store or service away.
"""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..client import Observatory
from ..errors import ConfigurationError, InvalidArgument, ObservatoryError, StoreError, StoreUnavailable
from ..logs import dumps
from ..settings import Settings

T = TypeVar("T")

# Cut to a width only where there is one: what is piped is searched and copied.
OUT = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 10_000)
ERR = Console(stderr=True, highlight=False, soft_wrap=True)


class Context(msgspec.Struct):
    """The global options."""

    redis_url: str | None = None
    namespace: str | None = None
    config: str | None = None
    json: bool = False

    def settings(self, **more: Any) -> Settings:
        return Settings.load(self.config, redis_url=self.redis_url, namespace=self.namespace, **more)

    def environment(self) -> dict[str, str]:
        """The same options for a child process: by environment, since a command line can be read by everybody."""
        given = {
            "OBSERVATORY_REDIS_URL": self.redis_url,
            "OBSERVATORY_NAMESPACE": self.namespace,
            "OBSERVATORY_CONFIG": self.config,
        }
        return {name: value for name, value in given.items() if value is not None}

    def observatory(self, role: str, **more: Any) -> Observatory:
        """A client that is not open yet, and says little."""
        return Observatory("observatory", settings=self.settings(**more), role=role)

    def ask(self, question: Callable[[Observatory], Awaitable[T]]) -> T:
        """Open, ask, close. A store that is away is an error here: nobody waits at a prompt."""

        async def run() -> T:
            # What our own lines would say, the one line of the error says.
            async with self.observatory("cli", log_level="critical") as obs:
                if not obs.store.joined:
                    raise StoreUnavailable(f"the store cannot be reached: {obs.store.address.shown}")
                return await question(obs)

        return done(run())


def _wanted(context: typer.Context, wanted: bool) -> bool:
    """Behind a command it means what it means before it."""
    if wanted and isinstance(context.obj, Context):
        context.obj.json = True
    return wanted


AsJson = Annotated[bool, typer.Option("--json", help="one JSON document on stdout", callback=_wanted)]


Dimension = Annotated[list[str] | None, typer.Option("-d", "--dimension", metavar="K=V", help="a dimension; again for more")]
Yes = Annotated[bool, typer.Option("--yes", help="do not ask")]


def dimensions_of(given: list[str] | None) -> dict[str, str]:
    """Of the options -d K=V."""
    pairs = [pair.partition("=") for pair in given or []]
    if any(not equals for _, equals, _ in pairs):
        fail(InvalidArgument("-d wants K=V"))
    found = {key: value for key, _, value in pairs}
    if len(found) < len(pairs):
        fail(InvalidArgument("a dimension is given twice"))
    return found


def ask_first(question: str, what: str, *, yes: bool) -> None:
    """On a terminal; elsewhere --yes must have been said."""
    if yes:
        return
    if not sys.stdin.isatty():
        fail(InvalidArgument(what, remedy="Say --yes"))
    if not typer.confirm(question, err=True):
        raise typer.Exit(1)


def done(work: Coroutine[Any, Any, T]) -> T:
    """Run it; an error of ours becomes one line and an exit code."""
    # SIGTERM as Ctrl-C: what was begun is taken back. Commands that run until they are stopped listen for themselves.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return asyncio.run(work)
    except ObservatoryError as error:
        fail(error)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def fail(error: ObservatoryError) -> NoReturn:
    code = 3 if isinstance(error, StoreError) else 2 if isinstance(error, ConfigurationError | InvalidArgument) else 1
    _complain(error)
    raise typer.Exit(code)


def complain(*errors: ObservatoryError | str) -> NoReturn:
    """A line for each mistake of the configuration."""
    for error in errors:
        _complain(error)
    raise typer.Exit(2)


def _complain(error: ObservatoryError | str) -> None:
    ERR.print(f"observatory: {error}", style="bold" if ERR.is_terminal else None, markup=False)


def show_json(value: Any) -> None:
    """One document on stdout."""
    sys.stdout.write(dumps(msgspec.to_builtins(value)) + "\n")


def show_table(columns: list[str], rows: list[list[str]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="")
    for column in columns:
        right = column.endswith("#")
        table.add_column(column.removesuffix("#").strip().upper(), no_wrap=bool(column), justify="right" if right else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    OUT.print(table)
