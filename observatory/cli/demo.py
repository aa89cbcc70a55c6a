"""The main job in half a minute: a fleet on this machine, traffic of its own making, and the numbers."""

import tempfile
from pathlib import Path

from .context import OUT, Context
from .processes import running
from .replay import Report, StoreEye, plans, replay
from .trace import made_up

SERVICES, WORKERS, CLIENTS = 2, 2, 4
CALLS_PER_SECOND = 120
TOKENS_PER_MINUTE = 1_500_000
BURST = 100_000
SEED = 20_231_116


async def demo(context: Context, seconds: float, *, quiet: bool) -> Report:
    """2 services, 2 workers, 4 client processes (two with the library, two over HTTP), one limit, one set of numbers."""
    with tempfile.TemporaryDirectory(prefix="observatory-demo-") as directory:
        # A place of its own: a demo neither reads nor leaves anything in the user's data directory.
        async with running(
            context, services=SERVICES, workers=WORKERS, host="127.0.0.1", port=0, data_dir=Path(directory), log_level="warning"
        ) as (
            obs,
            fleet,
        ):
            urls = [service.url for service in fleet.services]
            if not quiet:
                OUT.print(f"store    {obs.store.address.shown}")
                OUT.print(f"fleet    {SERVICES} services ({', '.join(urls)}), {WORKERS} workers")
                OUT.print(f"clients  {CLIENTS} processes: 2 with the library, 2 over HTTP")
                OUT.print(f"limit    {TOKENS_PER_MINUTE:,} tokens per minute, burst {BURST:,}, shared by all of them")
            wanted = plans(
                made_up(seconds, CALLS_PER_SECOND, SEED),
                CLIENTS,
                [[], urls, [], urls],
                speed=1.0,
                tokens_per_minute=TOKENS_PER_MINUTE,
                burst=BURST,
                redis_url=obs.store.address.shown if obs.store.address.embedded else obs.settings.redis.url,
                namespace=obs.settings.namespace,
                config=context.config,
            )
            return await replay(wanted, StoreEye(obs), skipped=0, quiet=quiet)
