"""The command tree."""

import asyncio
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InvalidArgument, StoreMisconfigured
from ..features.presence import Member
from ..store.check import Finding, describe, findings
from ..version import __version__
from . import ask, breakers, cache, costs, limits, processes, streams
from .context import OUT, AsJson, Context, done, show_json, show_table

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
app.add_typer(limits.rate_limiter, name="rate-limiter")
app.add_typer(cache.cache, name="cache")
app.add_typer(breakers.breaker, name="breaker")
app.add_typer(costs.costs, name="costs")
app.add_typer(ask.metrics, name="metrics")
app.add_typer(streams.events, name="events")
app.add_typer(streams.dead_letters, name="dead-letters")
app.add_typer(ask.config, name="config")

Lifeline = Annotated[int | None, typer.Option(hidden=True)]


def _version(wanted: bool) -> None:
    if wanted:
        OUT.print(f"observatory {__version__}")
        raise typer.Exit


@app.callback()
def main(
    context: typer.Context,
    redis_url: Annotated[
        str | None,
        typer.Option(help="redis://, redis+sentinel://, redis+cluster:// (rediss… with TLS), unix:// or embedded://"),
    ] = None,
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
    host: Annotated[str | None, typer.Option(help="default: serve.host")] = None,
    port: Annotated[int | None, typer.Option(help="of the first service; the others follow; default: serve.port")] = None,
    services: Annotated[int, typer.Option(min=0)] = 1,
    workers: Annotated[int, typer.Option(min=0)] = 1,
    data_dir: Annotated[Path | None, typer.Option(help="where the embedded server keeps its state")] = None,
    allow_anonymous: Annotated[bool, typer.Option(help="listen on a public address without API keys")] = False,
) -> None:
    """Embedded Valkey, services and workers in the foreground, until Ctrl-C. For laptops."""
    done(
        processes.up(
            context.obj,
            services=services,
            workers=workers,
            host=host,
            port=port,
            data_dir=data_dir,
            anonymous=allow_anonymous,
        )
    )


@app.command()
def demo(
    context: typer.Context, seconds: Annotated[float, typer.Option(min=1, max=3600)] = 15, as_json: AsJson = False
) -> None:
    """A fleet on this machine, traffic of its own making, and the numbers."""
    from .demo import demo as run
    from .replay import show

    quiet = context.obj.json
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
    roles: Annotated[str | None, typer.Option(help="all, or some of events, alerts, audit; separated by commas")] = None,
    concurrency: Annotated[int | None, typer.Option(min=2, help="stream entries in hand at once; default 64")] = None,
    number: Annotated[int, typer.Option("--processes", min=1)] = 1,
    health_port: Annotated[int | None, typer.Option(help="/livez and /readyz on this port; 0: any free one")] = None,
    drain_timeout: Annotated[str | None, typer.Option(help="30s: how long it may finish what it holds")] = None,
    lifeline: Lifeline = None,
) -> None:
    """Works off the event streams, and leads roles of the fleet; any number, each event counted once.

    Exit codes: 0 drained, 1 the deadline was over or it was told twice, 2 configuration.
    """
    asked = {
        "worker_roles": roles,
        "worker_concurrency": concurrency,
        "worker_health_port": health_port,
        "worker_drain_timeout": drain_timeout,
    }
    options = {name: value for name, value in asked.items() if value is not None}
    if number > 1:
        done(processes.work_many(context.obj, options, number))
    else:
        raise typer.Exit(done(processes.work(context.obj, options, lifeline)))


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

    quiet = context.obj.json
    urls = service or []

    async def run() -> room.Report:
        if not math.isfinite(speed):
            raise InvalidArgument(f"--speed must be a finite number, got {speed}")
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
        async with context.obj.observatory("cli", log_level="critical") as obs:
            await obs.ready()
            return await room.replay(wanted, room.StoreEye(obs), skipped=trace.skipped, quiet=quiet)

    report = done(run())
    if quiet:
        show_json(report)
    else:
        room.show(report)
    raise typer.Exit(0 if report.holds else 1)


@app.command()
def doctor(
    context: typer.Context,
    strict: Annotated[bool, typer.Option(help="warnings fail too")] = False,
    as_json: AsJson = False,
) -> None:
    """Is the store fit to coordinate a fleet?"""
    asked = context.obj

    async def look() -> list[Finding]:
        try:
            async with asked.observatory("cli", log_level="critical") as obs:
                await obs.ready(timeout=2.0)
                where = Finding("redis", "ok", obs.store.address.shown)
                return [where, *await findings(obs.store, obs.settings.redis.allow_eviction)]
        except StoreMisconfigured as error:
            return [describe(error)]

    found = done(look())
    if asked.json:
        show_json(found)
    else:
        for finding in found:
            OUT.print(f"{finding.status:<8}{finding.name:<14}{finding.message}", markup=False)
            if finding.remedy:
                OUT.print(f"{'':<22}→ {finding.remedy}", markup=False)
    worst = {finding.status for finding in found}
    raise typer.Exit(1 if "bad" in worst or (strict and "warn" in worst) else 0)


@app.command()
def instances(context: typer.Context, as_json: AsJson = False) -> None:
    """Who is here: every live process of the namespace."""
    asked = context.obj
    found = asked.ask(lambda obs: obs.instances())
    if asked.json:
        show_json(found)
    else:
        columns = ["instance", "role", "service", "version", "last beat #", ""]
        rows = [[m.instance, m.says.role, m.says.service, m.says.version, f"{m.last_beat:.1f} s", _leads(m)] for m in found]
        show_table(columns, rows)


def _leads(member: Member) -> str:
    return f"leads: {', '.join(member.says.leads)}" if member.says.leads else ""
