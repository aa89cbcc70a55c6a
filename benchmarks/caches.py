"""The contenders for a shared entry: ours, the peers, and the bare driver. Each is proved to give back what was kept."""

import importlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Literal, NamedTuple

import aiocache
import msgspec
from redis.asyncio import BlockingConnectionPool, Redis

from .contest import Contender, Server
from .limiters import MAX_CONNECTIONS, opened
from .loop import BrokenContender, Once

KEYS = tuple(f"answer:{number:04}" for number in range(1000))
TTL = 600
TAGS = ("model", "prompt")

OURS = "Observatory"
COMPUTING = "Observatory, get_or_compute"
AIOCACHE = "aiocache RedisCache"
UNTIMED = "aiocache RedisCache, timeout=0"
CASHEWS = "cashews"
BARE = "redis-py"
BARE_DEFAULT = "redis-py, default pool"
DEFAULT_POOL = "aiocache RedisCache, default pool"


class Answer(msgspec.Struct, frozen=True):
    """What is kept: 150 bytes or so, a text and a few facts."""

    id: int
    text: str
    scores: tuple[float, ...]


ANSWER = Answer(7, "x" * 100, (0.25, 0.5, 0.75))
AS_DICT = {"id": 7, "text": "x" * 100, "scores": [0.25, 0.5, 0.75]}
"""The same, for who knows no types."""


class Verbs(NamedTuple):
    """get answers None for a miss; set takes tags where the cache has any."""

    get: Callable[[str], Awaitable[Any]]
    set: Callable[[str, Sequence[str]], Awaitable[object]]
    value: Any


Cache = Callable[[Server], AbstractAsyncContextManager[Verbs]]


def observatory(*, computing: bool = False) -> Cache:
    """Ours, through the front door; nothing is kept near."""

    @asynccontextmanager
    async def cache(server: Server) -> AsyncIterator[Verbs]:
        async with opened(server.tcp_url) as obs:
            answers = obs.cache(Answer, name="answers", ttl=TTL, near=False)

            async def compute() -> Answer:
                raise BrokenContender("a hit was none")

            async def fetch(key: str) -> Answer:
                return await answers.get_or_compute(key, compute)

            async def keep(key: str, tags: Sequence[str]) -> object:
                return await answers.set(key, ANSWER, tags=tags)

            yield Verbs(fetch if computing else answers.get, keep, ANSWER)

    return cache


def _blocking(server: Server) -> BlockingConnectionPool:
    return BlockingConnectionPool.from_url(server.tcp_url, max_connections=MAX_CONNECTIONS)


def of_aiocache(pool: Literal["blocking", "default"] = "blocking", **given: Any) -> Cache:
    """With its JsonSerializer, which is its default (its MsgPackSerializer needs a library that it does not bring)."""

    @asynccontextmanager
    async def cache(server: Server) -> AsyncIterator[Verbs]:
        options = dict(given, endpoint=server.host, port=server.port, namespace="answers")
        if pool == "blocking":
            options |= {"connection_pool_class": BlockingConnectionPool, "pool_max_size": MAX_CONNECTIONS}
        async with aiocache.RedisCache(**options) as answers:

            async def keep(key: str, _: Sequence[str]) -> object:
                return await answers.set(key, AS_DICT, ttl=TTL)

            yield Verbs(answers.get, keep, AS_DICT)

    return cache


def of_cashews() -> Cache:
    """Without client_side; it pickles."""

    @asynccontextmanager
    async def cache(server: Server) -> AsyncIterator[Verbs]:
        cashews = importlib.import_module("cashews")
        answers = cashews.Cache()
        answers.setup(server.tcp_url, max_connections=MAX_CONNECTIONS)
        for tag in TAGS:
            answers.register_tag(tag, "{key}")

        async def keep(key: str, tags: Sequence[str]) -> object:
            return await answers.set(key, AS_DICT, expire=TTL, tags=tags)

        try:
            yield Verbs(answers.get, keep, AS_DICT)
        finally:
            await answers.close()

    return cache


def bare(pool: Literal["blocking", "default"]) -> Cache:
    """GET and SET of bytes that are made already: the driver alone, without a cache around it."""

    @asynccontextmanager
    async def cache(server: Server) -> AsyncIterator[Verbs]:
        payload = msgspec.msgpack.encode(ANSWER)
        client = Redis.from_pool(_blocking(server)) if pool == "blocking" else Redis.from_url(server.tcp_url)
        async with client:

            async def keep(key: str, _: Sequence[str]) -> object:
                return await client.set(key, payload, px=TTL * 1000)

            yield Verbs(client.get, keep, payload)

    return cache


def reading(name: str, cache: Cache, tags: Sequence[str] = ()) -> Contender:
    """A hit."""

    @asynccontextmanager
    async def setup(server: Server) -> AsyncIterator[Once]:
        async with cache(server) as (get, keep, value):
            for key in KEYS:
                await keep(key, tags)

            async def once(number: int) -> bool:
                return bool(await get(KEYS[number * 7919 % len(KEYS)]) == value)

            yield once

    return Contender(name, setup, _verified(cache, tags))


def writing(name: str, cache: Cache, tags: Sequence[str] = ()) -> Contender:
    """A set."""

    @asynccontextmanager
    async def setup(server: Server) -> AsyncIterator[Once]:
        async with cache(server) as (_, keep, _):

            async def once(number: int) -> bool:
                return bool(await keep(KEYS[number * 7919 % len(KEYS)], tags))

            yield once

    return Contender(name, setup, _verified(cache, tags))


def _verified(cache: Cache, tags: Sequence[str]) -> Callable[[Server], Awaitable[None]]:
    """What was set is what comes back, it stands in the store, and it ends."""

    async def verify(server: Server) -> None:
        async with cache(server) as (get, keep, value):
            await keep("scratch", tags)
            if await get("scratch") != value:
                raise BrokenContender("what was set did not come back")
            if not any(0 < server.admin.pttl(key) <= TTL * 1000 for key in server.admin.scan_iter(match="*scratch*")):
                raise BrokenContender("nothing stands in the store that ends")

    return verify
