"""Callers that count: what was acknowledged, what is unknown, and what the store has in the end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha1
from pathlib import Path

from observatory.errors import StoreUnavailable
from observatory.store.address import address
from observatory.store.script import Script
from observatory.store.store import Store


def script(text: str) -> Script:
    sha = sha1(text.encode(), usedforsecurity=False).hexdigest()
    return Script("test", text, sha, ("counter",), (), frozenset())


ADD = script("local n = redis.call('INCR', KEYS[1]) redis.call('PEXPIRE', KEYS[1], 600000) return n")


def store_at(url: str, *, max_wait: float = 0.5, connect_timeout: float = 1.0, socket_timeout: float = 2.0) -> Store:
    where = address(url, environment="production", home=Path("/nowhere"))
    waits = {"max_wait": max_wait, "connect_timeout": connect_timeout, "socket_timeout": socket_timeout}
    return Store(where, "test", **waits)


class Load:
    """Adds one to counters, by a script, as fast as `callers` can; every failure but StoreUnavailable fails the test."""

    def __init__(self, store: Store, keys: list[str]) -> None:
        self._store = store
        self.keys = keys
        self.acknowledged = dict.fromkeys(keys, 0)
        self.unknown = dict.fromkeys(keys, 0)
        self.failing_since: float | None = None
        self.longest_away = 0.0

    @asynccontextmanager
    async def running(self, callers: int = 8) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._run(number)) for number in range(callers)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        faults = [error for error in ended if isinstance(error, Exception)]
        if faults:
            raise faults[0]

    async def _run(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        while True:
            key = self.keys[number % len(self.keys)]
            number += 1
            # Counted as unknown first: this task may be cancelled while it waits.
            self.unknown[key] += 1
            try:
                await self._store.run(ADD, [key], [])
            except StoreUnavailable:
                self.failing_since = self.failing_since or loop.time()
                await asyncio.sleep(0.01)
            else:
                self.unknown[key] -= 1
                self.acknowledged[key] += 1
                if self.failing_since is not None:
                    self.longest_away = max(self.longest_away, loop.time() - self.failing_since)
                    self.failing_since = None
                await asyncio.sleep(0.001)

    async def recovered(self, within: float) -> None:
        """Every key is counted again."""
        async with asyncio.timeout(within):
            for key in self.keys:
                while True:
                    before = self.acknowledged[key]
                    await asyncio.sleep(0.05)
                    if self.acknowledged[key] > before:
                        break

    async def check(self, lost: int = 0) -> int:
        """Nothing was executed twice; of what was acknowledged at most `lost` is gone, where replication was behind."""
        for key in self.keys:
            value = int(await self._store.command("GET", key) or 0)
            least, most = self.acknowledged[key] - lost, self.acknowledged[key] + self.unknown[key]
            assert least <= value <= most, f"{key}: {value} is not in {least}..{most}"
        return sum(self.acknowledged.values())
