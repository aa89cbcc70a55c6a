"""`clear()` and `invalidate()` in one step: an entry says under which versions it was made, and counts while they stand.

Of each cache (and each tenant in it) there is one record, "<version> <fingerprint> <fingerprint> ...", and of each tag one
version. They are random and never come again; to invalidate is to delete one. Whoever writes next makes another, so an end of
theirs by eviction, flush or age costs misses and never revives what was invalidated. Nothing compares which one is newer: on a
cluster they are on other servers than the entries, and after a failover they may step back.

The record also names every generation of the class that has written under its version, so that a delete finds them all.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

from ...clock import monotonic
from ...errors import StoreError, StoreMisconfigured, StoreUnavailable
from ...keys import Key
from ...store.script import lua
from ...store.store import Store
from .near import Near

KEEP_FOR = 30 * 86_400_000
"""Milliseconds that a version lives at least, beyond any entry of the usual kind."""
_REFRESH_EVERY = 3600.0
"""Seconds after which a writer makes a version live longer again."""
_MOST_KNOWN = 10_000
_MOST_GENERATIONS = 64
"""That a record names, and a write and a delete go through. One more begins a new record, which costs misses."""


class Record(NamedTuple):
    """The version of a cache, and the generations that write under it."""

    version: bytes
    generations: tuple[str, ...]


class Values:
    """Runs scripts on the link of values: decisions never queue behind entries."""

    __slots__ = ("store",)

    def __init__(self, store: Store) -> None:
        self.store = store

    def run(self, script: Any, keys: list[str], arguments: list[Any]) -> Any:
        return self.store.run(script, keys, arguments, "values")


@lua("cache/join")
def _join(store: Values, *, record: Key, version: str, fingerprint: str, ttl_ms: int, most: int) -> Awaitable[bytes]: ...


def record_of(stored: bytes | None) -> Record | None:
    """As it was written; None when there is none, or it is not one of ours."""
    return None if stored is None else _parsed(stored)


@lru_cache(1024)
def _parsed(stored: bytes) -> Record | None:
    """Remembered: a cache has one, and every hit reads it."""
    try:
        version, *generations = stored.decode("ascii").split(" ")
        binary = bytes.fromhex(version)
    except ValueError:
        return None
    return Record(binary, tuple(generations)) if len(binary) == 8 else None


def digest_of(tag: str) -> bytes:
    return blake2b(tag.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class Versions:
    """The versions of one cache, for one process."""

    def __init__(self, store: Callable[[], Store], name: str, fingerprint: str, near: Near[Any] | None) -> None:
        self._store = store
        self._name = name
        self._fingerprint = fingerprint
        self._near = near
        self._kept: dict[Key, tuple[float, int, bytes]] = {}

    async def joined(self, record_key: Key, seen: Record | None, ttl_ms: int) -> Record:
        """The record, after this generation has put its name there. seen: as it was read a moment ago."""
        keep_ms = max(KEEP_FOR, 2 * ttl_ms)
        is_named = seen is not None and self._fingerprint in seen.generations and len(seen.generations) <= _MOST_GENERATIONS
        if seen is not None and is_named and not self._is_due(record_key, seen.version, keep_ms):
            return seen
        stored = await _join(
            Values(self._store()),
            record=record_key,
            version=secrets.token_hex(8),
            fingerprint=self._fingerprint,
            ttl_ms=keep_ms,
            most=_MOST_GENERATIONS,
        )
        record = record_of(stored)
        if record is None:  # somebody else's bytes: nothing counts under them
            await self.forget(record_key)
            return await self.joined(record_key, None, ttl_ms)
        self._keep(record_key, record.version, keep_ms)
        return record

    async def of_tags(self, scope: str, tags: Sequence[str], ttl_ms: int) -> tuple[tuple[bytes, bytes], ...]:
        """Each tag with its version, made where there is none. Asked before what they stand beside is computed."""
        if not tags:
            return ()
        return await self.of_digests(scope, [digest_of(tag) for tag in dict.fromkeys(tags)], ttl_ms)

    async def of_digests(self, scope: str, digests: Sequence[bytes], ttl_ms: int) -> tuple[tuple[bytes, bytes], ...]:
        """The same of tags of which only that is known."""
        keep_ms = max(KEEP_FOR, 2 * ttl_ms)
        return tuple(
            zip(digests, await asyncio.gather(*(self._of_tag(scope, digest, keep_ms) for digest in digests)), strict=True)
        )

    async def _of_tag(self, scope: str, digest: bytes, keep_ms: int) -> bytes:
        store = self._store()
        key = store.keys.cache_tag(self._name, digest.hex(), scope)
        made = secrets.token_bytes(8)
        try:
            found: bytes | None = await store.command("SET", key, made, "NX", "GET", "PX", keep_ms, link="values")
        except (StoreUnavailable, StoreMisconfigured):
            raise
        except StoreError:  # a key of another type stands there, which is no version: nothing counts under it
            await self.forget(key)
            found = await store.command("SET", key, made, "NX", "GET", "PX", keep_ms, link="values")
        if found is None:
            self._keep(key, made, keep_ms)
            return made
        if self._is_due(key, found, keep_ms):
            if await store.command("PTTL", key, link="values") < keep_ms * 3 / 4:  # what touches it ends what is kept near
                await store.command("PEXPIRE", key, keep_ms, link="values")
            self._keep(key, found, keep_ms)
        return found if len(found) == 8 else bytes(8)

    def keys_of(self, scope: str, tags: Sequence[tuple[bytes, bytes]]) -> list[Key]:
        """Where the versions of an entry's tags are."""
        keys = self._store().keys
        return [keys.cache_tag(self._name, digest.hex(), scope) for digest, _ in tags]

    async def stand(self, keys: Sequence[Key], tags: Sequence[tuple[bytes, bytes]]) -> bool:
        """Whether every tag has the version still that an entry was made under."""
        return await read_all(self._store(), keys) == [version for _, version in tags]

    async def forget(self, *keys: Key) -> None:
        """What was made under these versions counts no more, anywhere."""
        store = self._store()
        for key in keys:
            self._kept.pop(key, None)
        with touching(self._near, *keys):
            await asyncio.gather(*(store.command("DEL", key, link="values") for key in keys))

    async def invalidate(self, scope: str, tags: Sequence[str]) -> None:
        keys = self._store().keys
        await self.forget(*(keys.cache_tag(self._name, digest_of(tag).hex(), scope) for tag in dict.fromkeys(tags)))

    def _is_due(self, key: Key, version: bytes, keep_ms: int) -> bool:
        """Whether the key should be made to live longer by this process. Another version was made by somebody else, who may
        have needed it for less long."""
        kept_at, kept_ms, kept = self._kept.get(key, (0.0, 0, b""))
        return kept != version or monotonic() - kept_at > _REFRESH_EVERY or kept_ms < keep_ms

    def _keep(self, key: Key, version: bytes, keep_ms: int) -> None:
        if len(self._kept) >= _MOST_KNOWN:
            self._kept.clear()
        self._kept[key] = (monotonic(), keep_ms, version)


@contextmanager
def touching(near: Near[Any] | None, *keys: Key) -> Iterator[None]:
    """While we write or delete these: what is kept of them here goes before it is sent, and what is read meanwhile is not kept,
    whatever the answer."""
    if near is None:
        yield
        return
    for key in keys:
        near.written(key)
    try:
        yield
    finally:
        for key in keys:
            near.written(key)


def read_all(store: Store, keys: Sequence[Key]) -> Awaitable[list[bytes | None]]:
    """The strings at these keys, in one trip; on a cluster in as many at once as there are keys. A key of another type is none:
    MGET says so where GET would fail."""
    if store.is_cluster:
        return _of_several(store, keys)
    return store.link("values").call("MGET", *keys)  # no coroutine of our own: it is on the way of every hit


async def _of_several(store: Store, keys: Sequence[Key]) -> list[bytes | None]:
    each = await asyncio.gather(*(store.command("MGET", key, link="values") for key in keys))
    return [one for (one,) in each]
