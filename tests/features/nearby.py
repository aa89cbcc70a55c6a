"""A client that reads through a near cache: what a cache does around it, in its shortest form, and a judge of what it served.

As a program (`python -m tests.features.nearby URL NUMBER OF SECONDS KEYS`) it is one process of a storm: it writes the keys
that are its own, reads all, and prints what it served, what was acknowledged, and what is stale when all is quiet.
"""

import asyncio
import json
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from observatory.clock import monotonic
from observatory.errors import StoreUnavailable
from observatory.features.cache.codec import MISSING
from observatory.features.cache.near import Near, Vicinity
from observatory.keys import Key
from observatory.store.store import Store
from observatory.store.tracker import Lease
from observatory.store.tracking import Tracking
from tests.store.load import store_at

PREFIX = "obs1:test:cache:"
BOUND = 1.0
FOR_EVER = float("inf")


def where(key: str) -> Key:
    """Spread over slots."""
    return Key(f"{PREFIX}{{c{key}}}:x:y:{key}")


class Client:
    """Texts, with a store of its own: another process's, as far as the server can tell."""

    def __init__(self, store: Store, bound: float = BOUND, **more: Any) -> None:
        self.store = store
        self.trackings: list[Tracking] = []

        def track(listener: Any) -> Tracking:
            self.trackings.append(store.track([PREFIX], listener, bound))
            return self.trackings[-1]

        self.vicinity = Vicinity(track, self.read, bound=bound)
        self.near: Near[str] = Near(self.vicinity, bytes.decode, **{"max_entries": 10_000, "max_bytes": 1 << 24, **more})

    async def read(self, key: Key) -> bytes | None:
        answer: bytes | None = await self.store.command("GET", key, link="values")
        return answer

    async def get(self, key: str) -> str | None:
        value: Any = self.near.lookup(key)
        if value is not MISSING:
            return str(value)
        token = self.near.expect(where(key))
        payload = await self.read(where(key))
        if payload is None:
            return None
        self.near.keep(token, (payload,), key, payload, payload.decode(), FOR_EVER)
        return payload.decode()

    async def set(self, key: str, value: str) -> None:
        self.near.written(where(key))
        try:
            await self.store.command("SET", where(key), value, "PX", 600_000, link="values")
        finally:
            self.near.written(where(key))

    async def warm(self, *keys: str, within: float = 5.0) -> None:
        """Every key is near when it returns."""
        async with asyncio.timeout(within):
            while True:
                with suppress(StoreUnavailable):
                    for key in keys:
                        await self.get(key)
                    if all(self.near.lookup(key) is not MISSING for key in keys):
                        return
                await asyncio.sleep(0.01)

    @property
    def tracker(self) -> Any:
        return next(iter(self.trackings[-1]._trackers.values()))


async def gone(client: Client, key: str, within: float) -> float:
    """Seconds for which the key was still served."""
    last = began = monotonic()
    async with asyncio.timeout(within):
        while True:
            asked_at = monotonic()
            if client.near.lookup(key) is MISSING:
                return last - began
            last = asked_at
            await asyncio.sleep(0.001)


class Held:
    """A primary that never changes."""

    closed = False

    def include(self, prefix: str) -> None: ...

    def __init__(self) -> None:
        self.one = Lease(FOR_EVER)

    def lease(self, key: str) -> Lease:
        return self.one


def alone(decode: Callable[[bytes], Any], **more: Any) -> Near[Any]:
    async def nothing(_: Key) -> bytes | None:
        return None

    return Near(Vicinity(lambda _: Held(), nothing, bound=1.0), decode, **{"max_entries": 100, "max_bytes": 1 << 20, **more})


@contextmanager
def closing(*clients: Client) -> Iterator[None]:
    try:
        yield
    finally:
        for client in clients:
            client.store.close()


class Judge:
    """What was acknowledged when, and what was served last when: is anything older than the bound?"""

    def __init__(self) -> None:
        self.acknowledged: dict[str, dict[int, float]] = {}
        self.served: dict[tuple[str, int], float] = {}

    def wrote(self, key: str, version: int) -> None:
        self.acknowledged.setdefault(key, {})[version] = monotonic()

    def saw(self, key: str, version: int, asked_at: float) -> None:
        """asked_at: when its caller asked; what comes later was due earlier."""
        self.served[key, version] = max(asked_at, self.served.get((key, version), 0.0))

    def oldest(self) -> float:
        """Seconds by which anything served was out of date at most: since the next version had been acknowledged."""
        worst = 0.0
        for (key, version), at in self.served.items():
            later = [when for other, when in self.acknowledged.get(key, {}).items() if other > version]
            worst = max(worst, at - min(later, default=at))
        return worst


@contextmanager
def blocked_now_and_then(chance: random.Random) -> Iterator[None]:
    """The loop stands still for up to 30 ms, every now and then."""
    loop = asyncio.get_running_loop()
    going = True

    def block() -> None:
        if going:
            until = monotonic() + chance.random() * 0.03
            while monotonic() < until:
                pass
            loop.call_later(0.3, block)

    loop.call_later(0.3, block)
    try:
        yield
    finally:
        going = False


async def storm(url: str, number: int, of: int, seconds: float, keys: int) -> dict[str, Any]:
    """One process's part."""
    store = store_at(url, max_wait=5.0)
    client = Client(store)
    judge = Judge()
    chance = random.Random(number)
    names = [f"k{index}" for index in range(keys)]
    own = names[number::of]
    until = monotonic() + seconds
    versions = dict.fromkeys(own, 0)

    async def writer(mine: list[str]) -> None:
        while monotonic() < until:
            key = chance.choice(mine)
            versions[key] += 1
            version = versions[key]
            await client.set(key, str(version))
            judge.wrote(key, version)

    async def reader() -> None:
        while monotonic() < until:
            key = names[min(int(chance.paretovariate(0.5)) - 1, keys - 1)] if chance.random() < 0.5 else chance.choice(names)
            asked_at = monotonic()
            value = await client.get(key)
            if value is not None:
                judge.saw(key, int(value), asked_at)
            if chance.random() < 0.2:
                await asyncio.sleep(0)

    with blocked_now_and_then(chance):
        await asyncio.gather(*(writer(own[part::4]) for part in range(4)), *(reader() for _ in range(16)))
    await asyncio.sleep(BOUND + 0.5)
    # Quiet, for all of them: what is still near must be what the store has.
    near = {key: value for key in names if (value := client.near.lookup(key)) is not MISSING}
    have = dict(zip(near, await asyncio.gather(*(client.read(where(key)) for key in near)), strict=True))
    stale = [key for key, value in near.items() if have[key] is None or str(value).encode() != have[key]]
    stats = client.near.stats
    store.close()
    return {
        "stale": stale,
        "near": len(near),
        "hits": stats.hits,
        "acknowledged": judge.acknowledged,
        "served": [[key, version, at] for (key, version), at in judge.served.items()],
    }


if __name__ == "__main__":
    done = asyncio.run(storm(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])))
    print(json.dumps(done))
