"""The command tree."""

import asyncio
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from ..client import Observatory
from ..errors import InvalidArgument, StoreError
from ..features.rate_limiter import Decision
from ..store.check import Finding, describe, findings
from ..version import __version__
from . import processes, table
from .context import OUT, Context, done, fail, show_json, show_table

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
rate_limiter = typer.Typer(no_args_is_help=True, help="Ask the shared limits.")
metrics = typer.Typer(no_args_is_help=True, help="Ask what the fleet has recorded.")
events = typer.Typer(no_args_is_help=True, help="Look at the event streams.")
config = typer.Typer(no_args_is_help=True, help="Look at the settings.")
app.add_typer(rate_limiter, name="rate-limiter")
app.add_typer(metrics, name="metrics")
app.add_typer(events, name="events")
app.add_typer(config, name="config")

Dimension = Annotated[list[str] | None, typer.Option("-d", "--dimension", metavar="K=V", help="one dimension of the identity")]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON document on stdout")]
Lifeline = Annotated[int | None, typer.Option(hidden=True)]


def _version(wanted: bool) -> None:
    if wanted:
        OUT.print(f"observatory {__version__}")
        raise typer.Exit


@app.callback()
def main(
    context: typer.Context,
    redis_url: Annotated[str | None, typer.Option(help="redis://, rediss://, unix:// or embedded://")] = None,
    namespace: Annotated[str | None, typer.Option(help="part of every key")] = None,
    file: Annotated[str | None, typer.Option("--config", metavar="FILE", help="observatory.toml")] = None,
    as_json: AsJson = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    """A fleet of LLM applications acts as one. Exit codes: 0 yes, 1 no, 2 usage or configuration, 3 store away."""
    context.obj = Context(redis_url, namespace, file, as_json)


@app.command()
def up(
    context: typer.Context,
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(help="of the first service; the others follow")] = 8484,
    services: Annotated[int, typer.Option(min=0)] = 1,
    workers: Annotated[int, typer.Option(min=0)] = 1,
    data_dir: Annotated[Path | None, typer.Option(help="where the embedded server keeps its state")] = None,
) -> None:
    """Embedded Valkey, services and workers in the foreground, until Ctrl-C. For laptops."""
    done(processes.up(context.obj, services=services, workers=workers, host=host, port=port, data_dir=data_dir))


@app.command()
def demo(
    context: typer.Context, seconds: Annotated[float, typer.Option(min=1, max=3600)] = 15, as_json: AsJson = False
) -> None:
    """A fleet on this machine, traffic of its own making, and the numbers."""
    from .demo import demo as run
    from .replay import show

    quiet = as_json or context.obj.json
    report = done(run(context.obj, seconds, quiet=quiet))
    if quiet:
        show_json(report)
    else:
        show(report)
    raise typer.Exit(0 if report.holds else 1)


@app.command()
def serve(
    context: typer.Context,
    host: Annotated[str | None, typer.Option()] = None,
    port: Annotated[int | None, typer.Option()] = None,
    number: Annotated[int | None, typer.Option("--processes", min=1, help="processes that share the port")] = None,
    allow_anonymous: Annotated[bool, typer.Option(help="listen on a public address without API keys")] = False,
    fd: Annotated[int | None, typer.Option(hidden=True)] = None,
    lifeline: Lifeline = None,
) -> None:
    """One stateless HTTP instance; any number behind a load balancer."""
    asked = context.obj
    wanted = number or done(_settings(asked)).serve.processes
    if fd is None and wanted > 1:
        done(processes.serve_many(asked, host, port, wanted, anonymous=allow_anonymous))
    else:
        done(processes.serve(asked, host, port, fd, lifeline, anonymous=allow_anonymous))


async def _settings(context: Context) -> Any:
    return context.settings()


@app.command()
def worker(
    context: typer.Context,
    number: Annotated[int, typer.Option("--processes", min=1)] = 1,
    lifeline: Lifeline = None,
) -> None:
    """Works off the event streams; any number, each event counted once."""
    if number > 1:
        done(processes.work_many(context.obj, number))
    else:
        done(processes.work(context.obj, lifeline))


@app.command()
def replay(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="CSV or NDJSON with TIMESTAMP, ContextTokens, GeneratedTokens")],
    tokens_per_minute: Annotated[int, typer.Option(min=1, help="the shared limit")],
    number: Annotated[int, typer.Option("--processes", min=1, max=256)] = 4,
    speed: Annotated[float, typer.Option(min=0.001, help="60: an hour of the trace in a minute")] = 1.0,
    burst: Annotated[int | None, typer.Option(min=1, help="the bucket's capacity; default: one minute's tokens")] = None,
    service: Annotated[list[str] | None, typer.Option(help="ask through this instance; again for more")] = None,
    skip_bad: Annotated[bool, typer.Option(help="count and skip malformed lines")] = False,
    as_json: AsJson = False,
) -> None:
    """Spread a trace of LLM calls over many processes that share one limit, and compare the sums."""
    from . import replay as room
    from .trace import read

    quiet = as_json or context.obj.json
    urls = service or []

    async def run() -> room.Report:
        trace = await asyncio.to_thread(read, file, skip_bad=skip_bad)
        settings = context.obj.settings()
        wanted = room.plans(
            trace,
            number,
            [urls] * number,
            speed=speed,
            tokens_per_minute=tokens_per_minute,
            burst=burst or tokens_per_minute,
            redis_url=context.obj.redis_url,
            namespace=settings.namespace,
            config=context.obj.config,
        )
        if urls:
            from .http import ServiceClient

            async with ServiceClient(urls) as client:
                return await room.replay(wanted, room.ServiceEye(client), skipped=trace.skipped, quiet=quiet)
        async with context.obj.observatory("cli", log_level="error") as obs:
            await obs.ready()
            return await room.replay(wanted, room.StoreEye(obs), skipped=trace.skipped, quiet=quiet)

    report = done(run())
    if quiet:
        show_json(report)
    else:
        room.show(report)
    raise typer.Exit(0 if report.holds else 1)


@app.command()
def doctor(context: typer.Context, strict: Annotated[bool, typer.Option(help="warnings fail too")] = False) -> None:
    """Is the store fit to coordinate a fleet?"""
    asked = context.obj

    async def look() -> list[Finding]:
        async with asked.observatory("cli", log_level="critical") as obs:
            try:
                await obs.ready(timeout=2.0)
            except StoreError as error:
                return [describe(error)]
            where = Finding("redis", "ok", obs.store.address.shown)
            return [where, *await findings(obs.store, obs.settings.redis.allow_eviction)]

    found = done(look())
    if asked.json:
        show_json(found)
    else:
        for finding in found:
            OUT.print(f"{finding.status:<8}{finding.name:<14}{finding.message}", markup=False)
            if finding.remedy:
                OUT.print(f"{'':<22}→ {finding.remedy}", markup=False)
    worst = {finding.status for finding in found}
    if found[0].name == "store":
        raise typer.Exit(3)
    raise typer.Exit(1 if "bad" in worst or (strict and "warn" in worst) else 0)


@app.command()
def instances(context: typer.Context) -> None:
    """Who is here: every live process of the namespace."""
    asked = context.obj
    found = asked.ask(lambda obs: obs.instances())
    if asked.json:
        show_json(found)
    else:
        columns = ["instance", "role", "service", "version", "last beat #"]
        show_table(columns, [[m.instance, m.says.role, m.says.service, m.says.version, f"{m.last_beat:.1f} s"] for m in found])


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
    from ..units import parsed

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
    context: typer.Context, limit: str, identity: Annotated[str | None, typer.Argument()] = None, dimension: Dimension = None
) -> None:
    """Look without taking."""
    who = _identity(identity, dimension)
    _decided(context.obj, context.obj.ask(lambda obs: obs.rate_limiter.peek(limit, who)))


@rate_limiter.command("list")
def list_limits(context: typer.Context) -> None:
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
    stat: Annotated[str, typer.Option(help="total rate count sum avg p50 … p99.9 last min max")] = "total",
    by: Annotated[str, typer.Option(help="labels, separated by commas")] = "",
    where: Annotated[str, typer.Option(help="PromQL matchers")] = "",
    since: str = "1h",
    until: str = "now",
    step: Annotated[str | None, typer.Option(help="60, 1m")] = None,
    top: Annotated[int | None, typer.Option(min=1)] = None,
) -> None:
    """What the fleet has recorded."""
    from ..units import seconds

    async def question(obs: Observatory) -> Any:
        every = None if step is None else seconds(step, "step")
        labels = tuple(filter(None, by.split(",")))
        return await obs.metrics.query(metric, stat, by=labels, where=where, since=since, until=until, step=every, top=top)

    found = context.obj.ask(question)
    if context.obj.json:
        show_json(found)
    else:
        table.result(found)


@metrics.command("list")
def list_metrics(context: typer.Context) -> None:
    """Every metric that was ever recorded in the namespace."""
    from ..features.metrics import read

    found = context.obj.ask(lambda obs: read.definitions(obs.store))
    if context.obj.json:
        show_json(found)
    else:
        show_table(["metric", "kind", "unit", ""], [[m, d.kind, d.unit, d.description] for m, d in sorted(found.items())])


@events.command()
def lag(context: typer.Context) -> None:
    """How many events were accepted, applied, buried, dropped, and are waiting."""
    found = context.obj.ask(lambda obs: obs.events.lag())
    if context.obj.json:
        show_json(found)
    else:
        show_table([f"{name} #" for name in found], [[f"{number:,}" for number in found.values()]])


@config.command()
def docs(context: typer.Context) -> None:
    """The table of all settings."""
    rows = table.settings()
    if context.obj.json:
        show_json(rows)
    else:
        OUT.print(table.markdown(rows), markup=False)


@config.command("check")
def check_config(
    context: typer.Context, file: Annotated[str | None, typer.Argument(help="default: what a process here would read")] = None
) -> None:
    """Is it readable, and does it say what it means? Exit 2 when not."""

    async def look() -> Any:
        settings = msgspec.structs.replace(context.obj, config=file or context.obj.config).settings()
        if settings.warnings:
            raise InvalidArgument("; ".join(settings.warnings))
        Observatory("check", settings=settings).rate_limiter.limits()
        return settings

    settings = done(look())
    OUT.print(f"ok: {len(settings.sources)} settings, {len(settings.limits)} limits")


if __name__ == "__main__":
    app()
