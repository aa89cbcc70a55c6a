"""One process of a storm over a near cache, by its public verbs alone: `python -m tests.features.stormy NUMBER OF BOUND`.

Each writes keys that are its own, with versions that only grow, and reads everybody's. A delete, a tag that is invalidated or a
cache that is cleared is a version too: what was before it is out of date then. Per round it hears when to begin, and prints
what was acknowledged when, and what was served last when; when it hears that all is quiet, what it still serves wrongly.
"""

import asyncio
import json
import random
import sys
from typing import Any

from observatory import Cache, Observatory
from observatory.clock import monotonic
from observatory.settings import Settings
from tests.features.nearby import Judge, blocked_now_and_then

KEYS = [f"k{number}" for number in range(4000)]
STORM = 1.0


class Part:
    """What one process does."""

    def __init__(self, number: int, of: int, caches: tuple[Cache[int], Cache[int]]) -> None:
        self.number = number
        self.storm, self.cleared = caches
        self.own = KEYS[number::of]
        self.all_tagged = [f"t{one}:{index}" for one in range(of) for index in range(20)]
        self.tagged = [key for key in self.all_tagged if key.startswith(f"t{number}:")]
        self.versions = dict.fromkeys((*self.own, *self.tagged, "c"), 0)
        self.chance = random.Random(number)
        self.judge = Judge()

    def next(self, key: str) -> int:
        self.versions[key] += 1
        return self.versions[key]

    async def writer(self, mine: list[str], until: float) -> None:
        while monotonic() < until:
            key, draw = self.chance.choice(mine), self.chance.random()
            version = self.next(key)
            if draw < 0.8:
                await self.storm.set(key, version)
            else:
                await self.storm.delete(key)
                self.judge.wrote(key, version)
                if draw < 0.9:
                    continue

                async def compute(key: str = key) -> int:
                    return self.next(key)

                version = await self.storm.get_or_compute(key, compute)
            self.judge.wrote(key, version)

    async def tagger(self, until: float) -> None:
        while monotonic() < until:
            for key in self.tagged:
                version = self.next(key)
                await self.storm.set(key, version, tags=[f"t{self.number}", "shared"])
                self.judge.wrote(key, version)
            await asyncio.sleep(self.chance.random() * 0.1)
            await self.storm.invalidate(f"t{self.number}")
            for key in self.tagged:
                self.judge.wrote(key, self.next(key))

    async def clearer(self, until: float) -> None:
        while monotonic() < until:
            version = self.next("c")
            await self.cleared.set("c", version)
            self.judge.wrote("c", version)
            await asyncio.sleep(self.chance.random() * 0.1)
            await self.cleared.clear()
            self.judge.wrote("c", self.next("c"))

    async def reader(self, until: float) -> None:
        while monotonic() < until:
            draw = self.chance.random()
            if draw < 0.1:
                cache, key = self.cleared, "c"
            elif draw < 0.3:
                cache, key = self.storm, self.chance.choice(self.all_tagged)
            else:
                cache, key = self.storm, KEYS[min(int(self.chance.paretovariate(0.4)) - 1, len(KEYS) - 1)]
            asked_at = monotonic()
            value = await cache.get(key)
            if value is not None:
                self.judge.saw(key, value, asked_at)
            if self.chance.random() < 0.2:
                await asyncio.sleep(0)

    async def wrong(self) -> list[str]:
        """Keys that are served otherwise than they stand in the store."""
        found = []
        for cache, keys in ((self.storm, [*KEYS, *self.all_tagged]), (self.cleared, ["c"])):
            room = cache._room
            for first in range(0, len(keys), 500):
                some = keys[first : first + 500]
                served = await cache.get_many(some)
                looks = await asyncio.gather(*(room.shelf.read(room.place(key)) for key in some))
                for key, look in zip(some, looks, strict=True):
                    entry = look.entry
                    have = None if entry is None else room.codec.decode(entry.payload, entry.flags)
                    if served.get(key) != have:
                        found.append(key)
        return found

    async def round(self, at: float) -> dict[str, Any]:
        await asyncio.sleep(at - monotonic())
        until = at + STORM
        self.judge = Judge()
        hits = (await self.storm.stats(fleet=False)).near_hits
        with blocked_now_and_then(self.chance):
            await asyncio.gather(
                *(self.writer(self.own[part::4], until) for part in range(4)),
                *(self.reader(until) for _ in range(12)),
                self.tagger(until),
                *([self.clearer(until)] if self.number == 0 else []),
            )
        stats = await self.storm.stats(fleet=False)
        return {
            "hits": stats.near_hits - hits,
            "errors": stats.errors,
            "acknowledged": self.judge.acknowledged,
            "served": [[key, version, when] for (key, version), when in self.judge.served.items()],
        }


async def main(number: int, of: int, bound: float) -> None:
    settings = Settings.load().replace(cache_near_bound=bound, redis_max_wait=5.0, log_level="error")
    async with Observatory("storm", settings=settings) as obs:
        part = Part(number, of, (obs.cache(int, name="storm"), obs.cache(int, name="cleared")))
        print("ready", flush=True)
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            if line == "quiet\n":
                await asyncio.sleep(bound)
                print(json.dumps(await part.wrong()), flush=True)
            else:
                print(json.dumps(await part.round(float(line))), flush=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
