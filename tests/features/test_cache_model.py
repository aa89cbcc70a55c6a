"""The whole of the cache against a dictionary with time: two processes, random steps, real servers."""

import asyncio
import random
import time
from typing import Any, NamedTuple

import pytest

from observatory import Cache, Observatory
from tests.features.test_cache_tags import fleet

__all__ = ["fleet"]

KEYS = "abcd"
TAGS = "xyz"
SHORT, LONG = 0.06, 60.0
EXACT = 0.005
"""Seconds: the server counts in milliseconds, and we ask it from a distance."""


class Kept(NamedTuple):
    """A value, the tags it has, and between which moments it may end."""

    value: int
    tags: frozenset[str]
    surely_until: float
    gone_after: float


class Model:
    """A dictionary with time. What may have ended, or not, is asked of nobody: then either answer is right."""

    def __init__(self) -> None:
        self.entries: dict[str, Kept] = {}

    def put(self, key: str, value: int, ttl: float, tags: Any, began: float, jitter: float = 0.1) -> None:
        until = began + ttl * (1 - jitter) - EXACT
        self.entries[key] = Kept(value, frozenset(tags), until, time.monotonic() + ttl + EXACT)

    def may_be(self, key: str, began: float) -> set[int | None]:
        """What a read that began then and ends now may say."""
        kept = self.entries.get(key)
        if kept is None or began > kept.gone_after:
            return {None}
        return {kept.value} if time.monotonic() < kept.surely_until else {kept.value, None}

    def drop(self, *keys: str) -> None:
        for key in keys:
            self.entries.pop(key, None)


class Walk:
    """Random steps of two processes, one after the other."""

    def __init__(self, caches: list[Cache[int]], seed: int) -> None:
        self.caches = caches
        self.random = random.Random(seed)
        self.model = Model()

    async def step(self) -> None:
        draw = self.random
        cache, key = draw.choice(self.caches), draw.choice(KEYS)
        verb = draw.choice(["set"] * 4 + ["get"] * 4 + VERBS)
        ttl = draw.choice([SHORT, LONG])
        tags = draw.sample(TAGS, draw.randint(0, 2))
        await getattr(self, verb)(cache, key, draw.randint(-99, 99), ttl, tags, time.monotonic())

    async def set(self, cache: Cache[int], key: str, value: int, ttl: float, tags: list[str], began: float) -> None:
        await cache.set(key, value, ttl, tags=tags)
        self.model.put(key, value, ttl, tags, began)

    async def set_many(self, cache: Cache[int], key: str, value: int, ttl: float, tags: list[str], began: float) -> None:
        await cache.set_many({key: value, "d": value}, ttl, tags=tags)
        for one in (key, "d"):
            self.model.put(one, value, ttl, tags, began)

    async def get(self, cache: Cache[int], key: str, value: int, ttl: float, tags: list[str], began: float) -> None:
        assert await cache.get(key) in self.model.may_be(key, began)

    async def get_many(self, cache: Cache[int], key: str, value: int, ttl: float, tags: list[str], began: float) -> None:
        found = await cache.get_many(KEYS)
        for one in KEYS:
            assert found.get(one) in self.model.may_be(one, began)

    async def exists(self, cache: Cache[int], key: str, value: int, ttl: float, tags: list[str], began: float) -> None:
        there = await cache.exists(key)
        assert there in {one is not None for one in self.model.may_be(key, began)}

    async def add(self, cache: Cache[int], key: str, value: int, ttl: float, tags: list[str], began: float) -> None:
        try:
            await cache.add(key, value, ttl, tags=tags)
        except ValueError:
            assert self.model.may_be(key, began) != {None}
        else:
            assert None in self.model.may_be(key, began)
            self.model.put(key, value, ttl, tags, began)

    async def delete(self, cache: Cache[int], key: str, value: int, ttl: float, tags: list[str], began: float) -> None:
        deleted = await cache.delete(key)
        assert deleted in {int(one is not None) for one in self.model.may_be(key, began)}
        self.model.drop(key)

    async def expire(self, cache: Cache[int], key: str, value: int, ttl: float, tags: list[str], began: float) -> None:
        changed = await cache.expire(key, ttl)
        may_be = self.model.may_be(key, began)
        assert changed in {one is not None for one in may_be}
        if changed:
            kept = self.model.entries[key]
            self.model.put(key, kept.value, ttl, kept.tags, began, jitter=0)
        else:
            self.model.drop(key)

    async def increment(self, cache: Cache[int], key: str, value: int, ttl: float, tags: list[str], began: float) -> None:
        number = await cache.increment(key, value)
        may_be = self.model.may_be(key, began)
        assert number in {(one or 0) + value for one in may_be}
        if len(may_be) == 2:  # which of both it was decides how long it lives: not asked further
            await cache.delete(key)
            self.model.drop(key)
        elif may_be == {None}:
            self.model.put(key, number, LONG, (), began)
        else:
            self.model.entries[key] = self.model.entries[key]._replace(value=number)

    async def invalidate(self, cache: Cache[int], key: str, value: int, ttl: float, tags: list[str], began: float) -> None:
        await cache.invalidate(*tags)
        self.model.drop(*[one for one, kept in self.model.entries.items() if kept.tags & set(tags)])

    async def clear(self, cache: Cache[int], key: str, value: int, ttl: float, tags: list[str], began: float) -> None:
        await cache.clear()
        self.model.drop(*KEYS)

    async def get_or_compute(self, cache: Cache[int], key: str, value: int, ttl: float, tags: list[str], began: float) -> None:
        computed: list[float] = []

        async def compute() -> int:
            computed.append(time.monotonic())
            return value

        found = await cache.get_or_compute(key, compute, ttl, tags=tags)
        may_be = self.model.may_be(key, began)
        if computed:
            assert None in may_be
            assert found == value
            self.model.put(key, value, ttl, tags, computed[0])
        else:
            assert found in may_be

    async def wait(self, *_: Any) -> None:
        await asyncio.sleep(SHORT * self.random.random() * 2)


VERBS = ["set_many", "get_many", "exists", "add", "delete", "expire", "increment", "invalidate", "clear"]
VERBS += ["get_or_compute", "wait"] * 2


@pytest.mark.parametrize("seed", range(4))
async def test_a_cache_is_a_dictionary_with_time(fleet: tuple[Observatory, Observatory], seed: int) -> None:
    """Whoever asks, whatever was done before."""
    walk = Walk([obs.cache(int, name="model", ttl=LONG, near=False) for obs in fleet], seed)
    for _ in range(250):
        await walk.step()
