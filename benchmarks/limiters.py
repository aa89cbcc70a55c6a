"""The contenders of every check: ours, the peers, and the script sent by the bare driver. Each is proved to limit."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from typing import Literal, NamedTuple

from limits import RateLimitItemPerMinute
from limits.aio.storage import RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter, SlidingWindowCounterRateLimiter
from pyrate_limiter import Limiter as PyrateLimiter
from pyrate_limiter import Rate, RedisBucket, SingleBucketFactory
from redis.asyncio import BlockingConnectionPool, Redis
from throttled.asyncio import RedisStore, Throttled, per_duration

from observatory import Limit, Observatory, Settings
from observatory.features.rate_limiter.shape import shape_of
from observatory.keys import Keys
from observatory.store.script import load

from .contest import Contender, Server
from .loop import BrokenContender, Once

HOT = ("hot",)
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
async def opened(url: str) -> AsyncIterator[Observatory]:
    """Ours, with the settings that everybody gets; its beats and flushes run meanwhile."""
    settings = Settings.load(environ={}, redis_url=url, namespace="bench", log_level="error")
    async with Observatory("bench", settings=settings) as obs:
        yield obs


def observatory(*, leases: bool = False) -> Limiter:
    """Ours, through the front door."""

    @asynccontextmanager
    async def limiter(server: Server, quota: Quota) -> AsyncIterator[Take]:
        async with opened(server.tcp_url) as obs:
            obs.rate_limiter.define(Limit("bench", quota.amount, per=timedelta(minutes=quota.minutes), leases=leases))
            check = obs.rate_limiter.check

            async def take(identity: str) -> bool:
                return (await check("bench", identity)).allowed

            yield take

    return limiter


def evalsha(pool: Pool) -> Limiter:
    """The script that ours runs, with its keys and arguments made beforehand: what is left is the driver and the server."""

    @asynccontextmanager
    async def limiter(server: Server, quota: Quota) -> AsyncIterator[Take]:
        script = load("rate_limiter/decide")
        shape = shape_of(Limit("bench", quota.amount, per=timedelta(minutes=quota.minutes)))
        cost_us, cost_part = shape.time_of(1)
        spelling = Keys("bench", 4, b"benchmark")
        keys = {identity: spelling.bucket("bench", identity) for identity in (*IDENTITIES, *SCRATCH, *HOT)}
        fence = spelling.fence()
        arguments = (b"[" + shape.wire(0) + b"]", f'[["take","",0,1,{cost_us},{cost_part}]]')
        client = Redis.from_pool(_blocking(server)) if pool == "blocking" else Redis.from_url(server.tcp_url)
        async with client:
            sha = await client.script_load(script.text)
            # As ours does: the fence of a store that was never seen is made, and only then known.
            await client.evalsha(sha, 2, fence, keys[SCRATCH[0]], 0, 0, arguments[0], '[["look","",0,1,0,0]]')

            async def take(identity: str) -> bool:
                return bool((await client.evalsha(sha, 2, fence, keys[identity], 0, 1, *arguments))[2] == 1)

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


def pyrate(pool: Pool) -> Limiter:
    """Its asyncio limiter on its Redis bucket, a log of what was taken. It holds a lock while it asks, so each key has its own.

    What is older than the period is not deleted meanwhile: no turn is so long, and it saves it the work.
    """

    @asynccontextmanager
    async def limiter(server: Server, quota: Quota) -> AsyncIterator[Take]:
        rates = [Rate(quota.amount, quota.minutes * 60_000)]
        client = Redis.from_pool(_blocking(server)) if pool == "blocking" else Redis.from_url(server.tcp_url)
        async with client:
            first = await RedisBucket.init(rates, client, "bench")
            known: dict[str, PyrateLimiter] = {}

            async def take(identity: str) -> bool:
                found = known.get(identity)
                if found is None:
                    bucket = RedisBucket(rates, client, f"bench:{identity}", first.script_hash)
                    found = known[identity] = PyrateLimiter(SingleBucketFactory(bucket, schedule_leak=False))
                return await found.try_acquire_async(identity, blocking=False)

            yield take

    return limiter


SCRATCH = ("scratch-a", "scratch-b")


def _verify(limiter: Limiter, at_least: int) -> Callable[[Server], Awaitable[None]]:
    async def verify(server: Server) -> None:
        async with limiter(server, Quota(5, 60)) as take:
            for identity in SCRATCH:
                answers = [await take(identity) for _ in range(8)]
                allowed = sum(answers)
                if not at_least <= allowed <= 5 or answers != [True] * allowed + [False] * (8 - allowed):
                    raise BrokenContender(f"of 8 checks against a burst of 5 it allowed {answers}")

    return verify


def allowing(name: str, limiter: Limiter, identities: Sequence[str] = IDENTITIES, *, at_least: int = 5) -> Contender:
    """Every check is allowed, or the contender is broken. at_least: of a burst of five, how many it must allow."""

    @asynccontextmanager
    async def setup(server: Server) -> AsyncIterator[Once]:
        async with limiter(server, NEVER_REFUSES) as take:
            yield lambda number: take(identities[number % len(identities)])

    return Contender(name, setup, _verify(limiter, at_least))


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

    return Contender(name, setup, _verify(limiter, 5))


OURS = "Observatory"
LEASED = "Observatory, leases"
BARE = "redis-py EVALSHA"
BARE_DEFAULT = "redis-py EVALSHA, default pool"
PEERS: tuple[tuple[str, Limiter], ...] = (
    (OURS, observatory()),
    (BARE, evalsha("blocking")),
    ("limits, sliding window counter", limits(SlidingWindowCounterRateLimiter, "blocking")),
    ("limits, fixed window", limits(FixedWindowRateLimiter, "blocking")),
    ("throttled-py, gcra", throttled("gcra", "blocking")),
    ("throttled-py, token_bucket", throttled("token_bucket", "blocking")),
    ("pyrate-limiter", pyrate("blocking")),
)
DEFAULT_POOL: tuple[tuple[str, Limiter], ...] = (
    (BARE_DEFAULT, evalsha("default")),
    ("limits, sliding window counter, default pool", limits(SlidingWindowCounterRateLimiter, "default")),
    ("limits, fixed window, default pool", limits(FixedWindowRateLimiter, "default")),
    ("throttled-py, token_bucket, default pool", throttled("token_bucket", "default")),
    ("pyrate-limiter, default pool", pyrate("default")),
)
