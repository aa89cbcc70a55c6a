"""A near hit: ours, what the peers keep in the process, a dict, and what choosing who stays costs alone.

python -m benchmarks.bench_cache_near [--rounds 7] [--seconds 0.2] [--quick] [--write]
"""

import asyncio
import importlib
import random
import sys
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from itertools import accumulate
from typing import Any

from observatory.clock import monotonic
from observatory.features.cache.codec import MISSING
from observatory.features.cache.near import Near, Vicinity
from observatory.features.cache.sieve import Entry, Sieve
from observatory.keys import Key
from observatory.settings import Settings
from observatory.store.address import address, home
from observatory.store.store import Store

from .contest import Server, reason
from .harness import Benchmark, Plan, Study, main, reached, spread
from .limiters import opened
from .loop import BrokenContender

KEYS = [f"answer:{number:04}" for number in range(1000)]
VALUE = "x" * 100
PREFIX = "obs1:bench:cache:"
OURS = "observatory, lookup"
OURS_AWAITED = "observatory, `cache.get`"
CASHEWS = "cashews, client_side"
Sync = Callable[[str], object]
Awaited = Callable[[str], Awaitable[object]]


def _shared(key: str) -> Key:
    return Key(f"{PREFIX}{{c{key}}}:x:y:{key}")


async def _ours(server: Server, stack: AsyncExitStack) -> Near[str]:
    where = address(server.tcp_url, environment="production", home=home(None))
    redis = Settings().redis
    store = Store(where, "bench", max_wait=2.0, connect_timeout=redis.connect_timeout, socket_timeout=redis.socket_timeout)
    stack.callback(store.close)

    async def read(key: Key) -> bytes | None:
        answer: bytes | None = await store.command("GET", key, link="values")
        return answer

    near: Near[str] = Near(
        Vicinity(lambda listener: store.track([PREFIX], listener, 1.0), read, bound=1.0),
        bytes.decode,
        max_entries=10_000,
        max_bytes=1 << 26,
    )
    async with asyncio.timeout(5):
        while not near.expect(_shared("k")):  # noqa: ASYNC110 (it comes when it is asked for)
            await asyncio.sleep(0.01)
    for key in KEYS:
        await store.command("SET", _shared(key), VALUE, "PX", 600_000, link="values")
    await asyncio.sleep(0.1)
    for key in KEYS:
        token = near.expect(_shared(key))
        payload = await read(_shared(key))
        assert payload is not None
        near.keep(token, (payload,), key, payload, payload.decode(), monotonic() + 600)
    return near


def _policies() -> dict[str, Sync]:
    """Only what decides who stays: no promise that anything is fresh."""
    kept: dict[str, Sync] = {"dict.get": dict.fromkeys(KEYS, VALUE).get}
    sieve: Sieve[Entry] = Sieve(10_000, 1 << 26, lambda _: None)
    for key in KEYS:
        sieve.put(Entry(key, 100))
    find = sieve.entries.get

    def used(key: str) -> object:
        entry = find(key)
        if entry is not None:
            entry.used = True
        return entry

    kept["SIEVE (ours), alone"] = used
    for name, module, kind in (
        ("cachetools LRU, alone", "cachetools", "LRUCache"),
        ("moka-py W-TinyLFU, alone", "moka_py", "Moka"),
        ("theine W-TinyLFU, alone", "theine", "Cache"),
    ):
        try:
            cache = getattr(importlib.import_module(module), kind)(10_000)
        except ImportError:
            continue
        for key in KEYS:
            if hasattr(cache, "set"):
                cache.set(key, VALUE)
            else:
                cache[key] = VALUE
        kept[name] = cache.get
    return kept


async def _peers(server: Server, stack: AsyncExitStack) -> dict[str, Awaited]:
    from aiocache import SimpleMemoryCache

    memory = SimpleMemoryCache()
    for key in KEYS:
        await memory.set(key, VALUE)
    peers: dict[str, Awaited] = {"aiocache SimpleMemoryCache": memory.get}
    try:
        cashews = importlib.import_module("cashews")
    except ImportError:
        return peers
    cache = cashews.Cache()
    cache.setup(server.tcp_url, client_side=True)
    stack.push_async_callback(cache.close)
    for key in KEYS:
        await cache.set(key, VALUE, expire=600)
        await cache.get(key)
    peers[CASHEWS] = cache.get
    return peers


async def _verbs(server: Server, stack: AsyncExitStack) -> dict[str, Awaited]:
    """Ours, through the front door: with every check of an argument, and every hit counted."""
    obs = await stack.enter_async_context(opened(server.tcp_url))
    cache = obs.cache(str, name="near", ttl=600, max_entries=10_000)

    async def compute() -> str:
        raise BrokenContender("a hit was none")

    async def fetch(key: str) -> object:
        return await cache.get_or_compute(key, compute)

    @cache.cached
    async def decorated(key: str) -> str:
        return VALUE

    for key in KEYS:
        await cache.set(key, VALUE)
    async with asyncio.timeout(5):
        while True:
            for key in KEYS:
                await cache.get(key)
                await decorated(key)
            before = (await cache.stats(fleet=False)).near_hits
            for key in KEYS:
                await cache.get(key)
                await decorated(key)
            if (await cache.stats(fleet=False)).near_hits == before + 2 * len(KEYS):
                break
    return {OURS_AWAITED: cache.get, "observatory, `get_or_compute`": fetch, "observatory, `@cache.cached`": decorated}


async def _hits(server: Server, plan: Plan) -> list[str]:
    async with AsyncExitStack() as stack:
        near = await _ours(server, stack)
        awaited: dict[str, Awaited] = {**await _verbs(server, stack), **await _peers(server, stack)}
        plain: dict[str, Sync] = {OURS: near.lookup, **_policies()}
        found: dict[str, list[float]] = {name: [] for name in (*plain, *awaited)}
        faults: dict[str, str] = {}
        for _ in range(plan.rounds):
            for name in random.sample(list(found), len(found)):
                try:
                    found[name].append(await _microseconds(plain.get(name), awaited.get(name), plan.turn))
                except Exception as error:
                    faults[name] = reason(error)
                await asyncio.sleep(0.05)  # the tracker's turn
    lines = ["| contender | µs per hit | times `cache.get` |", "|---|---:|---:|"]
    ours = found[OURS_AWAITED]
    for name, values in found.items():
        if name in faults:
            lines.append(f"| {name} | – | – |")
            continue
        ratio = [theirs / own for theirs, own in zip(values, ours, strict=True)]
        lines.append(f"| {name} | {spread(values, '.3f')} | {spread(ratio, '.2f')} |")
    lines += ["", *(f"- {name}: {fault}" for name, fault in faults.items())]
    lines += ["", reached("µs per near hit, `await cache.get(key)`", ours, 1.5, at_most=True, form=".3f")]
    if CASHEWS in found and CASHEWS not in faults:
        ratios = [theirs / own for theirs, own in zip(found[CASHEWS], ours, strict=True)]
        lines += ["", reached(f"times as fast as {CASHEWS}", ratios, 3)]
    return lines


async def _microseconds(plain: Sync | None, awaited: Awaited | None, seconds: float) -> float:
    """Of CPU, per hit, the `for` around it taken off."""
    hits, took = 0, 0.0
    found: object = None
    while took < seconds:
        began = time.thread_time()
        if plain is not None:
            for key in KEYS:
                found = plain(key)
        elif awaited is not None:
            for key in KEYS:
                found = await awaited(key)
        took += time.thread_time() - began
        hits += len(KEYS)
        if found is None or found is MISSING:
            raise BrokenContender("a hit was none")
        await asyncio.sleep(0)
    began = time.thread_time()
    for _ in KEYS:
        pass
    return (took / hits - (time.thread_time() - began) / len(KEYS)) * 1e6


def _ratio(get: Callable[[str], object], put: Callable[[str], object], *, scans: bool) -> float:
    """Hits of a skewed use of 20,000 keys, with 1,000 kept; between 10,000 uses, 5,000 others are read once."""
    chance = random.Random(1)
    names = [f"used-{number}" for number in range(20_000)]
    weights = list(accumulate(1 / (number + 1) for number in range(20_000)))
    hits = uses = 0
    for turn in range(10):
        for key in chance.choices(names, cum_weights=weights, k=10_000):
            uses += 1
            if get(key) is None:
                put(key)
            else:
                hits += 1
        for number in range(5_000 if scans else 0):
            if get(f"once-{turn}-{number}") is None:
                put(f"once-{turn}-{number}")
    return hits / uses


def _contestants() -> dict[str, tuple[Callable[[str], object], Callable[[str], object]]]:
    sieve: Sieve[Entry] = Sieve(1000, 1 << 30, lambda _: None)

    def used(key: str) -> object:
        entry = sieve.entries.get(key)
        if entry is not None:
            entry.used = True
        return entry

    found: dict[str, Any] = {"SIEVE (ours)": (used, lambda key: sieve.put(Entry(key, 1)))}
    for name, module, kind in (
        ("cachetools LRU", "cachetools", "LRUCache"),
        ("moka-py", "moka_py", "Moka"),
        ("theine", "theine", "Cache"),
    ):
        try:
            cache: Any = getattr(importlib.import_module(module), kind)(1000)
        except ImportError:
            continue

        def put(key: str, cache: Any = cache) -> None:
            if hasattr(cache, "set"):
                cache.set(key, 1)
            else:
                cache[key] = 1

        found[name] = (cache.get, put)
    return found


def _theine(get: Callable[[str], Any]) -> Callable[[str], object]:
    """Its `get` answers a pair: the value, and whether there was one."""

    def found(key: str) -> object:
        answer = get(key)
        return None if isinstance(answer, tuple) and not answer[1] else answer

    return found


async def _scans(_: Server, __: Plan) -> list[str]:
    lines = ["| policy | hits, skewed use | hits, with scans in between |", "|---|---:|---:|"]
    for name in _contestants():
        ratios = []
        for scans in (False, True):
            get, put = _contestants()[name]
            ratios.append(_ratio(_theine(get) if name == "theine" else get, put, scans=scans))
        lines.append(f"| {name} | {ratios[0]:.1%} | {ratios[1]:.1%} |")
    return lines


async def _memory(server: Server, plan: Plan) -> list[str]:
    sizes: Sequence[int] = (100, 1_000, 10_000)
    lines = ["| payload, bytes | bytes per entry | counted against max_bytes |", "|---:|---:|---:|"]
    async with AsyncExitStack() as stack:
        near = await _ours(server, stack)
        for size in sizes:
            near.forget()
            tracemalloc.start()
            number = 1000 if plan.quick else 10_000
            for index in range(number):
                payload = b"%0*d" % (size, index)
                token = near.expect(_shared(f"{size}:{index}"))
                near.keep(token, (payload,), f"{size}:{index}", payload, payload.decode(), monotonic() + 600)
                if index % 500 == 0:
                    await asyncio.sleep(0)
            used, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            kept = near.stats.entries
            lines.append(f"| {size:,} | {used / kept:,.0f} | {near.stats.bytes / kept:,.0f} |")
    return lines


BENCHMARK = Benchmark(
    name="bench_cache_near",
    title="Cache: one near hit",
    about=f"""\
{len(KEYS):,} texts of {len(VALUE)} characters, all of them kept in the process; one caller, nothing on the wire. *lookup*: what
`cache.get` asks, without the coroutine and its checks; *alone*: what decides who stays, which is a part of a hit and promises
nothing. cashews' client side hears of no change with this redis-py, and aiocache's memory of none at all: their hits are
counted all the same. What is not installed is left out.""",
    parts=(
        Study(title="A hit", about="Microseconds of CPU of the thread that asks; nobody waits for anything.", answer=_hits),
        Study(title="Who stays", about="1,000 places, 20,000 keys, the n-th used 1/n as often as the first.", answer=_scans),
        Study(title="Memory", about="Of a text that is kept as an object, with all that belongs to it.", answer=_memory),
    ),
    libraries=("redis", "aiocache", "msgspec"),
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
