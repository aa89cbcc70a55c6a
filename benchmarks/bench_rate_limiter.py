"""One rate-limit check on a shared store: ours, the peers, and the script sent by the bare driver.

python -m benchmarks.bench_rate_limiter [--rounds 5] [--seconds 0.6] [--quick] [--write]
"""

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from typing import Literal, NamedTuple

from limits import RateLimitItemPerMinute
from limits.aio.storage import RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter, SlidingWindowCounterRateLimiter
from redis.asyncio import BlockingConnectionPool, Redis
from throttled.asyncio import RedisStore, Throttled, per_duration

from observatory import Limit, Observatory, Settings
from observatory.features.rate_limiter.shape import shape_of
from observatory.keys import Keys
from observatory.store.script import load

from .harness import Benchmark, BrokenContender, Contender, Once, Server, Table, main

IDENTITIES = tuple(f"tenant-{number}" for number in range(1000))
MAX_CONNECTIONS = 32


class Quota(NamedTuple):
    """How much, in how many minutes; a bucket holds all of it."""

    amount: int
    minutes: int


NEVER_REFUSES = Quota(1_000_000, 1)
"""Per key. A turn asks each of the 1,000 keys a few hundred times at most, so that nothing is ever refused.

Filling such a bucket takes a minute: throttled-py's token bucket expires a key after floor(2 * burst / rate) seconds, so that a
limit which fills in less than half a second would delete its state at once, and be measured while it does not limit.
"""
SPENT = Quota(1, 60)
"""One, which is taken before the timing: from then on everything is refused."""

Take = Callable[[str], Awaitable[bool]]
"""Take one from this identity's bucket. True: it was allowed."""
Limiter = Callable[[Server, Quota], AbstractAsyncContextManager[Take]]
Pool = Literal["blocking", "default"]


def _blocking(server: Server) -> BlockingConnectionPool:
    return BlockingConnectionPool.from_url(server.tcp_url, max_connections=MAX_CONNECTIONS)


@asynccontextmanager
async def observatory(server: Server, quota: Quota) -> AsyncIterator[Take]:
    """Ours, through the front door, with the settings that everybody gets; its beats and flushes run meanwhile."""
    settings = Settings.load(environ={}, redis_url=server.tcp_url, namespace="bench", log_level="error")
    async with Observatory("bench", settings=settings) as obs:
        obs.rate_limiter.define(Limit("bench", quota.amount, per=timedelta(minutes=quota.minutes)))
        check = obs.rate_limiter.check

        async def take(identity: str) -> bool:
            return (await check("bench", identity)).allowed

        yield take


def evalsha(pool: Pool) -> Limiter:
    """The script that ours runs, with its keys and arguments made beforehand: what is left is the driver and the server."""

    @asynccontextmanager
    async def limiter(server: Server, quota: Quota) -> AsyncIterator[Take]:
        script = load("rate_limiter/decide")
        shape = shape_of(Limit("bench", quota.amount, per=timedelta(minutes=quota.minutes)))
        cost_us, cost_part = shape.time_of(1)
        spelling = Keys("bench", 4, b"benchmark")
        keys = {identity: spelling.bucket("bench", identity) for identity in (*IDENTITIES, *SCRATCH)}
        fence = spelling.fence()
        arguments = (0, 1, b"[" + shape.wire(0) + b"]", f'[["take","",0,1,{cost_us},{cost_part}]]')
        client = Redis.from_pool(_blocking(server)) if pool == "blocking" else Redis.from_url(server.tcp_url)
        async with client:
            sha = await client.script_load(script.text)

            async def take(identity: str) -> bool:
                return bool((await client.evalsha(sha, 2, fence, keys[identity], *arguments))[2][0])

            yield take

    return limiter


def limits(strategy: type[SlidingWindowCounterRateLimiter | FixedWindowRateLimiter], pool: Pool) -> Limiter:
    """limits has no token bucket. Its sliding window counter is the nearest: constant state, a refusal takes nothing."""

    @asynccontextmanager
    async def limiter(server: Server, quota: Quota) -> AsyncIterator[Take]:
        given = {"connection_pool": _blocking(server)} if pool == "blocking" else {}
        storage = RedisStorage(f"async+{server.tcp_url}", implementation="redispy", **given)
        hit = strategy(storage).hit
        item = RateLimitItemPerMinute(quota.amount, quota.minutes)

        async def take(identity: str) -> bool:
            return bool(await hit(item, identity))

        try:
            yield take
        finally:
            await storage.bridge.storage.aclose(close_connection_pool=True)

    return limiter


def throttled(using: Literal["gcra", "token_bucket"], pool: Pool) -> Limiter:
    """gcra counts time in fractions of a second as ours does; token_bucket, its default, in whole seconds."""

    @asynccontextmanager
    async def limiter(server: Server, quota: Quota) -> AsyncIterator[Take]:
        options = {
            "CONNECTION_POOL_CLASS": "redis.asyncio.BlockingConnectionPool",
            "CONNECTION_POOL_KWARGS": {"max_connections": MAX_CONNECTIONS},
        }
        store = RedisStore(server=server.tcp_url, options=options if pool == "blocking" else {})
        allowance = per_duration(timedelta(minutes=quota.minutes), quota.amount, burst=quota.amount)
        limit = Throttled(using=using, quota=allowance, store=store).limit

        async def take(identity: str) -> bool:
            return not (await limit(identity)).limited

        try:
            yield take
        finally:
            await store._backend.get_client().aclose(close_connection_pool=True)

    return limiter


SCRATCH = ("scratch-a", "scratch-b")


def _verify(limiter: Limiter) -> Callable[[Server], Awaitable[None]]:
    async def verify(server: Server) -> None:
        async with limiter(server, Quota(5, 60)) as take:
            for identity in SCRATCH:
                answers = [await take(identity) for _ in range(8)]
                if answers != [True] * 5 + [False] * 3:
                    raise BrokenContender(f"of 8 checks against a burst of 5 it allowed {answers}")

    return verify


def allowing(name: str, limiter: Limiter) -> Contender:
    """Every check is allowed, or the contender is broken."""

    @asynccontextmanager
    async def setup(server: Server) -> AsyncIterator[Once]:
        async with limiter(server, NEVER_REFUSES) as take:
            yield lambda number: take(IDENTITIES[number % len(IDENTITIES)])

    return Contender(name, setup, _verify(limiter))


def refusing(name: str, limiter: Limiter) -> Contender:
    """Every check is refused, or the contender is broken."""

    @asynccontextmanager
    async def setup(server: Server) -> AsyncIterator[Once]:
        async with limiter(server, SPENT) as take:
            for identity in IDENTITIES:
                if not await take(identity):
                    raise BrokenContender("the first check of a bucket was refused")

            async def once(number: int) -> bool:
                return not await take(IDENTITIES[number % len(IDENTITIES)])

            yield once

    return Contender(name, setup, _verify(limiter))


_OURS = "Observatory"
_BARE = "redis-py EVALSHA"
_PEERS: tuple[tuple[str, Limiter], ...] = (
    (_OURS, observatory),
    (_BARE, evalsha("blocking")),
    ("limits, sliding window counter", limits(SlidingWindowCounterRateLimiter, "blocking")),
    ("limits, fixed window", limits(FixedWindowRateLimiter, "blocking")),
    ("throttled-py, gcra", throttled("gcra", "blocking")),
    ("throttled-py, token_bucket", throttled("token_bucket", "blocking")),
)
_DEFAULT_POOL: tuple[tuple[str, Limiter], ...] = (
    ("redis-py EVALSHA, default pool", evalsha("default")),
    ("limits, sliding window counter, default pool", limits(SlidingWindowCounterRateLimiter, "default")),
    ("throttled-py, token_bucket, default pool", throttled("token_bucket", "default")),
)

BENCHMARK = Benchmark(
    name="bench_rate_limiter",
    title="Rate limiter: one check",
    about=f"""\
One `check` of cost 1 on {len(IDENTITIES):,} distinct keys in turn, over TCP on loopback. What uses redis-py has its
`BlockingConnectionPool` of {MAX_CONNECTIONS} connections, unless it says *default pool*, which raises when more than 100 calls
are in flight. Ours has one connection. What each contender does, and why it was chosen: README.md.""",
    tables=(
        Table(
            title="Allowed",
            about=f"A limit of {NEVER_REFUSES.amount:,} per minute and key never refuses here, and every answer is looked at.",
            contenders=tuple(allowing(name, limiter) for name, limiter in (*_PEERS, *_DEFAULT_POOL)),
            reference=_BARE,
        ),
        Table(
            title="Refused",
            about="Every bucket is empty before the timing starts, so every check is refused, and every answer is looked at.",
            contenders=tuple(refusing(name, limiter) for name, limiter in _PEERS),
            reference=_BARE,
            in_flight=(64,),
        ),
    ),
    libraries=("observatory-fleet", "redis", "hiredis", "limits", "throttled-py"),
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
