"""The whole of the cache against a dictionary with time: three processes of two releases, two tenants, near values and none,
random steps, real servers."""

import asyncio
import random
import time
from contextlib import AsyncExitStack
from itertools import product
from typing import Any, NamedTuple

import pytest

from observatory import Cache, Observatory
from observatory.settings import Settings
from tests.features.test_cache_tags import fleet

__all__ = ["fleet"]

KEYS = "abcd"
TAGS = "xyz"
SHORT, LONG = 0.06, 60.0
TENANTS = ("a", "b")
BOUND = 0.5
EXACT = 0.005
"""Seconds: the server counts in milliseconds, and we ask it from a distance."""


class Kept(NamedTuple):
    """A value, the tags it has, and between which moments it may end."""

    value: int
    tags: frozenset[str]
    surely_until: float
    gone_after: float


class Was(NamedTuple):
    """What a key had until somebody changed it."""

    kept: Kept | None
    until: float
    changed_by: int


class Model:
    """A dictionary with time, as one generation of one tenant has it. What may have ended, or not, is asked of nobody: then
    either answer is right."""

    def __init__(self) -> None:
        self.entries: dict[str, Kept] = {}
        self.past: dict[str, list[Was]] = {}

    def put(self, who: int, key: str, value: int, ttl: float, tags: Any, began: float, jitter: float = 0.1) -> None:
        until = began + ttl * (1 - jitter) - EXACT
        self.replace(who, key, Kept(value, frozenset(tags), until, time.monotonic() + ttl + EXACT))

    def replace(self, who: int, key: str, kept: Kept | None) -> None:
        self.past.setdefault(key, []).append(Was(self.entries.pop(key, None), time.monotonic(), who))
        if kept is not None:
            self.entries[key] = kept

    def may_be(self, key: str, began: float) -> set[int | None]:
        """What a read that began then and ends now may say."""
        return self._says(self.entries.get(key), began)

    def may_lie(self, key: str, began: float) -> bool:
        """Whether bytes may stand in the store that count no more."""
        return any(was.kept is not None and began <= was.kept.gone_after for was in self.past.get(key, []))

    @staticmethod
    def _says(kept: Kept | None, began: float) -> set[int | None]:
        if kept is None or began > kept.gone_after:
            return {None}
        return {kept.value} if time.monotonic() < kept.surely_until else {kept.value, None}

    def may_be_near(self, who: int, key: str, began: float) -> set[int | None]:
        """The same of who keeps values near: also what was so within the bound, but for what he has changed himself."""
        found = self.may_be(key, began)
        for was in reversed(self.past.get(key, [])):
            if was.until < began - BOUND or was.changed_by == who:
                break
            found |= self._says(was.kept, began)
        return found


class Walk:
    """Random steps of several processes, one after the other: of two releases, for two tenants."""

    def __init__(self, members: list[tuple[Observatory, Any]], seed: int, *, near: bool) -> None:
        self.near = near
        self.members = members
        self.caches = [obs.cache(kind, name="model", ttl=LONG, by="tenant", near=near, stale_for=0) for obs, kind in members]
        self.random = random.Random(seed)
        self.models = {(tenant, kind): Model() for tenant in TENANTS for _, kind in members}
        self.who = 0
        self.tenant = ""

    @property
    def model(self) -> Model:
        """Of who is at it."""
        return self.models[self.tenant, self.members[self.who][1]]

    @property
    def others(self) -> list[Model]:
        """Of the other releases."""
        return [model for (tenant, _), model in self.models.items() if tenant == self.tenant and model is not self.model]

    async def step(self) -> None:
        draw = self.random
        self.who, self.tenant, key = draw.randrange(len(self.caches)), draw.choice(TENANTS), draw.choice(KEYS)
        verb = draw.choice(["set"] * 4 + ["get"] * (40 if self.near else 4) + VERBS)
        ttl = draw.choice([SHORT, LONG])
        tags = draw.sample(TAGS, draw.randint(0, 2))
        with self.members[self.who][0].bound(tenant=self.tenant):
            await getattr(self, verb)(self.caches[self.who], key, draw.randint(-99, 99), ttl, tags, time.monotonic())

    def put(self, key: str, value: int, ttl: float, tags: Any, began: float, jitter: float = 0.1, *, mine: bool = True) -> None:
        """mine: an owner's write, which ends what other releases have."""
        self.model.put(self.who, key, value, ttl, tags, began, jitter)
        for other in self.others if mine else ():
            other.replace(self.who, key, None)

    def drop(self, *keys: str) -> None:
        for model in (self.model, *self.others):
            for key in keys:
                model.replace(self.who, key, None)

    def near_or(self, key: str, began: float) -> set[int | None]:
        return self.model.may_be_near(self.who, key, began) if self.near else self.model.may_be(key, began)

    async def set(self, cache: Cache[int], key: str, value: int, ttl: float, tags: list[str], began: float) -> None:
        await cache.set(key, value, ttl, tags=tags)
        self.put(key, value, ttl, tags, began)

    async def set_many(self, cache: Cache[int], key: str, value: int, ttl: float, tags: list[str], began: float) -> None:
        await cache.set_many({key: value, "d": value}, ttl, tags=tags)
        for one in (key, "d"):
            self.put(one, value, ttl, tags, began)

    async def get(self, cache: Cache[int], key: str, value: int, ttl: float, tags: list[str], began: float) -> None:
        found = await cache.get(key)
        assert found in self.near_or(key, began)

    async def get_many(self, cache: Cache[int], key: str, value: int, ttl: float, tags: list[str], began: float) -> None:
        found = await cache.get_many(list(KEYS))
        for one in KEYS:
            assert found.get(one) in self.near_or(one, began)

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
            self.put(key, value, ttl, tags, began)

    async def delete(self, cache: Cache[int], key: str, value: int, ttl: float, tags: list[str], began: float) -> None:
        deleted = await cache.delete(key)
        there = [{one is not None for one in model.may_be(key, began)} for model in (self.model, *self.others)]
        # What another release had is counted though a tag has ended it.
        there.append({False, *(other.may_lie(key, began) for other in self.others)})
        assert deleted in {int(any(one)) for one in product(*there)}
        self.drop(key)

    async def expire(self, cache: Cache[int], key: str, value: int, ttl: float, tags: list[str], began: float) -> None:
        changed = await cache.expire(key, ttl)
        may_be = self.model.may_be(key, began)
        assert changed in {one is not None for one in may_be}
        if changed:
            kept = self.model.entries[key]
            self.put(key, kept.value, ttl, kept.tags, began, jitter=0)
        elif may_be != {None}:
            self.model.replace(self.who, key, None)

    async def increment(self, cache: Cache[int], key: str, value: int, ttl: float, tags: list[str], began: float) -> None:
        number = await cache.increment(key, value)
        may_be = self.model.may_be(key, began)
        assert number in {(one or 0) + value for one in may_be}
        if len(may_be) == 2:  # which of both it was decides how long it lives: not asked further
            await cache.delete(key)
            self.drop(key)
        elif may_be == {None}:
            self.put(key, number, LONG, (), began)
        else:
            self.model.replace(self.who, key, self.model.entries[key]._replace(value=number))
            for other in self.others:
                other.replace(self.who, key, None)

    async def invalidate(self, cache: Cache[int], key: str, value: int, ttl: float, tags: list[str], began: float) -> None:
        await cache.invalidate(*tags or ["nobody's"])
        for model in (self.model, *self.others):
            for one in [one for one, kept in model.entries.items() if kept.tags & set(tags)]:
                model.replace(self.who, one, None)

    async def clear(self, cache: Cache[int], key: str, value: int, ttl: float, tags: list[str], began: float) -> None:
        await cache.clear()
        self.drop(*KEYS)

    async def get_or_compute(self, cache: Cache[int], key: str, value: int, ttl: float, tags: list[str], began: float) -> None:
        computed: list[float] = []

        async def compute() -> int:
            computed.append(time.monotonic())
            return value

        found = await cache.get_or_compute(key, compute, ttl, tags=tags)
        if computed:
            assert None in self.model.may_be(key, began)
            assert found == value
            self.put(key, value, ttl, tags, computed[0], mine=False)
        else:
            assert found in self.near_or(key, began)

    async def wait(self, *_: Any) -> None:
        await asyncio.sleep(SHORT * self.random.random() * 2)


VERBS = ["set_many", "get_many", "exists", "add", "delete", "expire", "increment", "invalidate", "clear"]
VERBS += ["get_or_compute", "wait"] * 2


@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize("seed", range(2))
async def test_a_cache_is_a_dictionary_with_time(fleet: tuple[Observatory, Observatory], seed: int, near: bool) -> None:
    """Whoever asks, whatever was done before. What is near was so within the bound; one's own changes are there at once."""
    redis, namespace = fleet[0].settings.redis, fleet[0].settings.namespace
    settings = Settings().replace(cache_near_bound=BOUND)
    async with AsyncExitStack() as stack:
        members = []
        for kind in (int, int, int | None):
            obs = Observatory("test", redis_url=redis.url, namespace=namespace, settings=settings)
            members.append((await stack.enter_async_context(obs), kind))
        walk = Walk(members, seed, near=near)
        for _ in range(500 if near else 250):
            await walk.step()
        if near:
            hits = sum([(await cache.stats(fleet=False)).near_hits for cache in walk.caches])
            print(f"\n{hits} near hits")
            assert hits > 5
