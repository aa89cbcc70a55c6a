"""Where entries lie: every read of a shared entry goes through `Shelf.read`, every write and delete of ours through `write` and
`remove`. What is kept near hangs on these three."""

from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any, NamedTuple

from ...clock import monotonic
from ...keys import Key, Keys
from ...store.script import lua
from ...store.store import Store
from ...store.watch import Watch
from .codec import MISSING
from .entry import HEAD_SIZE, Entry, unpack
from .near import Near, Token
from .versions import Record, Values, Versions, read_all, record_of, touching


@lua("cache/store")
def _store(
    store: Values,
    *,
    entry: Key,
    lease: Key,
    others: Sequence[Key],
    payload: bytes,
    ttl_ms: int,
    token: str,
    expected: str | bytes,
) -> Awaitable[list[int]]: ...


@lua("cache/drop")
def _drop(store: Values, *, keys: Sequence[Key]) -> Awaitable[list[int]]: ...


class Place(NamedTuple):
    """Where one key of a cache is. scope: whose it is, encoded; empty where a cache is everybody's."""

    key: str
    scope: str
    entry: Key
    lease: Key
    record: Key


def near_key(key: str, scope: str) -> Hashable:
    """By what a value is found near: nothing has to be spelled for it."""
    return (scope, key) if scope else key


class Basis(NamedTuple):
    """What a read rests on, for who keeps it: a token of each key, and the bytes that it had."""

    tokens: tuple[Token, ...]
    stored: tuple[bytes, ...]


class Look(NamedTuple):
    """What a read found. entry: None for a miss of any kind; head: how the bytes begin that are there all the same; away: the
    store did not answer; basis: None where nothing may be kept; beside: the entry is of the untyped generation, the
    head of this one."""

    entry: Entry | None
    head: bytes
    record: Record | None
    corrupt: bool = False
    away: bool = False
    basis: Basis | None = None
    beside: bool = False


_MOST_KNOWN = 10_000
_SHORT = 256
ANY = "*"
ABSENT = b""


class Shelf:
    """The entries of one cache and generation. Every method: StoreUnavailable within redis.max_wait, and unknown then.

    near: what is kept of them in this process; None: nothing is.
    """

    def __init__(self, store: Callable[[], Store], name: str, fingerprint: str, near: Near[Any] | None) -> None:
        self._opened = store
        self._name = name
        self._fingerprint = fingerprint
        self._near = near
        self._places: dict[tuple[str, str], Place] = {}
        self._spelled_by: Keys | None = None
        self.versions = Versions(store, name, fingerprint, near)

    def place(self, key: str, scope: str) -> Place:
        """Where a key of a scope is. Spelling it takes longer than a hit may, so the short ones are remembered."""
        keys: Keys = self._opened().keys
        if keys is not self._spelled_by or len(self._places) >= _MOST_KNOWN:
            self._spelled_by, self._places = keys, {}
        place = self._places.get((key, scope))
        if place is None:
            entry = keys.entry(self._name, self._fingerprint, key, scope)
            place = Place(key, scope, entry, keys.computing(entry), keys.cache_record(self._name, scope))
            if len(key) <= _SHORT:
                self._places[key, scope] = place
        return place

    async def read(self, place: Place, *, to_keep: bool = False) -> Look:
        """The entry, if all the versions that it was made under stand. One trip, two when it has tags."""
        near = self._near if to_keep else None
        tokens = () if near is None else near.expect(place.entry, place.record)
        stored, kept = await read_all(self._opened(), (place.entry, place.record))
        record = record_of(kept)
        if stored is None:
            return Look(None, b"", record)
        head = stored[:HEAD_SIZE]
        entry = unpack(stored)
        if entry is None:
            return Look(None, head, record, corrupt=True)
        if record is None or entry.version != record.version:
            return Look(None, head, record)
        if entry.tags:
            keys = self.versions.keys_of(place.scope, entry.tags)
            if near is not None and tokens:
                beside = near.expect(*keys)
                tokens = tokens + beside if beside else ()
            if not await self.versions.stand(keys, entry.tags):
                return Look(None, head, record)
        basis = Basis(tokens, (stored, kept or b"", *(version for _, version in entry.tags))) if tokens else None
        return Look(entry, head, record, basis=basis)

    def keep(self, place: Place, look: Look, value: Any, payload: bytes, now_us: int, stale_ms: int) -> None:
        """A value that was just read stays near, if nothing has happened to it since. Dear ones leave early, by as much as they
        are made anew early: from then on their readers ask here, and one of them does it. payload: not compressed."""
        entry, basis = look.entry, look.basis
        if self._near is None or entry is None or basis is None:
            return
        fresh = (entry.fresh_until_us - now_us) / 1e6
        now = monotonic()
        until, ends = now + fresh - entry.early_us() / 1e6, now + fresh + stale_ms / 1000
        if until > now:
            self._near.keep(basis.tokens, basis.stored, near_key(place.key, place.scope), payload, value, until, ends)

    def last(self, place: Place) -> Any:
        """What was kept near last, promised or not; MISSING when nothing was."""
        return MISSING if self._near is None else self._near.last(near_key(place.key, place.scope))

    async def record(self, place: Place, life_ms: int) -> Record:
        """Under which version to write now what lives so long."""
        (kept,) = await read_all(self._opened(), (place.record,))
        return await self.versions.joined(place.record, record_of(kept), life_ms)

    async def outlive(self, place: Place, record: Record, entry: Entry, life_ms: int) -> bool:
        """The versions of an entry are to live longer than it, which now lives so long. False: one of them stands no more."""
        joined = await self.versions.joined(place.record, record, life_ms)
        tags = await self.versions.of_digests(place.scope, [digest for digest, _ in entry.tags], life_ms)
        return joined.version == entry.version and tags == entry.tags

    async def forget(self, scope: str) -> None:
        """Every entry of this scope counts no more."""
        await self.versions.forget(self._opened().keys.cache_record(self._name, scope))

    async def write(
        self,
        place: Place,
        payload: bytes,
        ttl_ms: int,
        *,
        record: Record,
        token: str = "",
        expected: str | bytes = ANY,
    ) -> bool:
        """False: the lease was lost, or the entry was another one. A write without token is the owner's: it ends what others
        compute, and what other generations of the class have; a computed one replaces its own generation alone."""
        others = () if token else self._others(place, record)
        with touching(self._near, place.entry):
            (written,) = await _store(
                Values(self._opened()),
                entry=place.entry,
                lease=place.lease,
                others=others,
                payload=payload,
                ttl_ms=ttl_ms,
                token=token,
                expected=expected,
            )
        return bool(written)

    async def remove(self, place: Place, record: Record | None) -> int:
        """Delete every generation, and end whatever computes them. record: read after the delete was asked for."""
        with touching(self._near, place.entry):
            (dropped,) = await _drop(Values(self._opened()), keys=(place.entry, place.lease, *self._others(place, record)))
        return dropped

    def _others(self, place: Place, record: Record | None) -> tuple[Key, ...]:
        keys = self._opened().keys
        found: list[Key] = []
        for fingerprint in () if record is None else record.generations:
            if fingerprint != self._fingerprint:
                entry = keys.of_generation(place.entry, fingerprint)
                found += (entry, keys.computing(entry))
        return tuple(found)

    def watching(self, place: Place) -> Watch:
        """To wait until the entry or its lease may have changed."""
        return self._opened().watching(place.entry, place.lease)
