"""Values kept in this process: served without a word on the wire, and never later than the bound after they changed.

What holds: a value that `lookup` returns at t was the store's at some moment >= t - bound. A read that was on its way when its
key changed is not kept: its token, registered before it was sent, has died by then. The versions that an entry counts under are
read with it and rest on tokens of their own, which live on with it: when one changes, all that rests on it is a miss at once,
and nobody looks for it. When the store is away, notices are lost, or this loop was blocked, the lease under which a value was
read runs out within the bound, and everything is a miss.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, cast
from weakref import WeakValueDictionary

from ...clock import monotonic
from ...errors import ObservatoryError
from ...keys import Key
from ...store.tracker import Lease, Listener
from .codec import MISSING
from .sieve import Entry, Sieve
from .weight import cost, immutable

T = TypeVar("T")
CHECK_EVERY = 1000
"""One near hit of so many is compared with the store."""
_SLACK = 0.25
"""Seconds on top of the bound before an entry that differs counts as a mismatch: this loop may be behind."""


_abandoned: list[Any] = []
"""Tasks of a loop that is gone: their destructors would complain about it."""


class Leases(Protocol):
    """What is needed of the store's tracking."""

    def include(self, prefix: str) -> None:
        """Keys that begin so from now on, too. From any thread."""

    def lease(self, key: str) -> Lease | None:
        """Of the key's primary, now."""

    @property
    def closed(self) -> bool:
        """Its store is; there may be another."""


class Token:
    """One key, as whoever holds this has read it or is about to; shared by all of them. dead: it has changed since."""

    __slots__ = ("__weakref__", "dead", "lease", "strays", "where")

    def __init__(self, where: bytes, lease: Lease) -> None:
        self.where = where
        self.lease = lease
        self.strays = lease.strays
        self.dead = False


class _Kept(Entry):
    """A value and what it rests on. value is MISSING where every caller needs an object of its own: made of the payload."""

    __slots__ = ("beside", "ends", "home", "lease", "mark", "payload", "until", "value", "where")

    def __init__(self, key: Hashable, size: int, home: "Near[Any]", tokens: tuple[Token, ...], mark: int) -> None:
        super().__init__(key, size)
        self.home = home
        self.where, self.lease = tokens[0].where, tokens[0].lease
        self.beside = tokens[1:]
        self.mark = mark
        self.until = self.ends = 0.0
        self.value: Any = MISSING
        self.payload = b""


class Stats(NamedTuple):
    """Of one near cache, since it was made."""

    hits: int
    evictions: int
    entries: int
    bytes: int
    checks: int
    mismatches: int


class Vicinity(Listener):
    """All near caches of one store: who keeps which of its keys, and which reads are on their way.

    track: `lambda listener: store.track(prefixes, listener, bound)`; called when first needed, and when that store was closed.
    read: the payload of a key as the store has it now, for the self-check.
    """

    def __init__(
        self, track: Callable[[Listener], Leases], read: Callable[[Key], Awaitable[bytes | None]], *, bound: float
    ) -> None:
        self._track = track
        self.read = read
        self.bound = bound
        self._leases: Leases | None = None
        self._tracking = threading.Lock()
        """No prefix may fall between a tracking that begins and the one that it follows."""
        self._on_their_way: WeakValueDictionary[bytes, Token] = WeakValueDictionary()
        self.kept: dict[bytes, _Kept] = {}

    def expect(self, where: Key) -> Token | None:
        """Before a read of this key is sent. None: nothing that is read now may be kept."""
        if self._leases is None or self._leases.closed:
            with self._tracking:
                self._leases = self._track(self)
        lease = self._leases.lease(where)
        if lease is None or lease.until <= monotonic():
            return None
        shared = where.encode()
        token = self._on_their_way.get(shared)
        if token is None or token.lease is not lease or token.strays != lease.strays:
            if token is not None:
                # No notice finds it from here on: what rests on it must be read anew, what it brings must not be kept.
                token.dead = True
            token = self._on_their_way[shared] = Token(shared, lease)
        return token

    def holds(self, token: Token) -> bool:
        """Nothing has happened to the key since, and we would have heard of it."""
        if token.dead or token.strays != token.lease.strays or self._leases is None:
            return False
        return self._leases.lease(token.where.decode()) is token.lease

    def include(self, prefix: Callable[[], str]) -> None:
        """Keys that begin so are kept too, once the servers have been told. From any thread, and without a loop; `track` must
        know of it before."""
        with self._tracking:
            if self._leases is not None and not self._leases.closed:
                self._leases.include(prefix())

    def forget(self) -> None:
        """A forked child: whoever held the lock may not be in it."""
        self._tracking = threading.Lock()

    def written(self, where: Key) -> None:
        """We write, delete or touch it: to be called before it is sent, and again when it is answered, whatever the answer."""
        self._forget(where.encode())

    def changed(self, keys: list[bytes]) -> None:
        """The store says so."""
        for key in keys:
            self._forget(key)

    def _forget(self, shared: bytes) -> None:
        token = self._on_their_way.pop(shared, None)
        if token is not None:
            token.dead = True
        kept = self.kept.get(shared)
        if kept is not None:
            kept.home.drop(kept)


class Near(Generic[T]):
    """The near values of one cache, by the callers' keys. decode: an object of a payload, for values that may be changed.

    Used on the loop that owns the store. mismatched: told of each value that the self-check found served beyond the bound.
    """

    def __init__(
        self,
        vicinity: Vicinity,
        decode: Callable[[bytes], T],
        *,
        max_entries: int,
        max_bytes: int,
        mismatched: Callable[[], None] = lambda: None,
        check_every: int = CHECK_EVERY,
    ) -> None:
        self._vicinity = vicinity
        self._decode = decode
        self._mismatched = mismatched
        self._check_every = check_every
        self._until_check = check_every
        self._sieve: Sieve[_Kept] = Sieve(max_entries, max_bytes, self._left)
        self._find = self._sieve.entries.get
        self._checking: set[asyncio.Task[None]] = set()
        self._hits = self._checks = self._mismatches = 0

    def lookup(self, key: Hashable) -> T:
        """The value, or MISSING. Costs no I/O and does not wait."""
        kept = self._find(key)
        if kept is None:
            return cast(T, MISSING)
        now = monotonic()
        if now >= kept.lease.until or now >= kept.until:
            return cast(T, MISSING)
        for token in kept.beside:
            if token.dead or now >= token.lease.until:
                return cast(T, MISSING)
        kept.used = True
        self._hits += 1
        self._until_check -= 1
        if not self._until_check:
            self._check(kept)
        value = kept.value
        return self._decode(kept.payload) if value is MISSING else value

    def last(self, key: Hashable) -> T:
        """What was kept last, also when nobody promises any more that it is the store's: for while the store is away. But
        nothing of before a gap in the notices that the store survived: it may have been deleted in it."""
        kept = self._find(key)
        if kept is None or monotonic() >= kept.ends or kept.lease.succeeded:
            return cast(T, MISSING)
        if any(token.dead or token.lease.succeeded for token in kept.beside):
            return cast(T, MISSING)
        return self._decode(kept.payload) if kept.value is MISSING else cast(T, kept.value)

    def expect(self, *where: Key) -> tuple[Token, ...]:
        """Before a shared read of these keys is sent, the entry's first; empty: what it brings may not be kept."""
        found = []
        for key in where:
            token = self._vicinity.expect(key)
            if token is None:
                return ()
            found.append(token)
        return tuple(found)

    def keep(
        self,
        tokens: tuple[Token, ...],
        stored: Sequence[bytes],
        key: Hashable,
        payload: bytes,
        value: T,
        until: float,
        ends: float | None = None,
    ) -> bool:
        """What the read found, if it may be kept. stored: the bytes of each key of `expect`. until, ends: on `clock.monotonic`,
        until when it may be served, and (default: as long) until when `last` may, with the store away."""
        if not tokens or not all(map(self._vicinity.holds, tokens)):
            return False
        where, shared = tokens[0].where, immutable(value)
        size = cost(key, where, payload, value if shared else None, len(tokens) - 1)
        kept = _Kept(key, size, self, tokens, hash(tuple(stored)))
        kept.until, kept.ends = until, until if ends is None else ends
        if shared:
            kept.value = value
        else:
            kept.payload = payload
        if not self._sieve.put(kept):
            return False
        other = self._vicinity.kept.get(where)
        self._vicinity.kept[where] = kept
        if other is not None:
            # Another cache of the same name, or the same key in another spelling: one of them hears of changes.
            other.home.drop(other)
        return True

    def written(self, where: Key) -> None:
        """Before an own write, delete or other touch of the key is sent, and when it is answered, also by an error."""
        self._vicinity.written(where)

    def drop(self, kept: _Kept) -> None:
        """It changed."""
        self._sieve.remove(kept)

    def clear(self) -> None:
        """Nothing is kept."""
        self._sieve.clear()

    def forget(self) -> None:
        """A forked child: it keeps nothing, and has served nothing yet."""
        self._sieve.clear()
        self._sieve.evicted = self._hits = self._checks = self._mismatches = 0
        self._checking.clear()

    def _left(self, kept: _Kept) -> None:
        if self._vicinity.kept.get(kept.where) is kept:
            del self._vicinity.kept[kept.where]

    @property
    def stats(self) -> Stats:
        sieve = self._sieve
        return Stats(self._hits, sieve.evicted, len(sieve.entries), sieve.bytes, self._checks, self._mismatches)

    # the self-check
    def _check(self, kept: _Kept) -> None:
        self._until_check = self._check_every
        loop = asyncio.get_running_loop()
        if self._checking and next(iter(self._checking)).get_loop() is not loop:
            _abandoned.extend(self._checking)  # that loop ended without ending them
            self._checking.clear()
        if len(self._checking) < 8:
            task = loop.create_task(self._compare(kept), name="observatory near check")
            self._checking.add(task)
            task.add_done_callback(self._checking.discard)

    async def _compare(self, kept: _Kept) -> None:
        """A value that the store has replaced may be served for the bound. One that still can be after that is a fault."""
        try:
            where = (kept.where, *(token.where for token in kept.beside))
            stored = [await self._vicinity.read(Key(key.decode())) for key in where]
        except ObservatoryError:
            return
        self._checks += 1
        if hash(tuple(stored)) == kept.mark:
            return
        await asyncio.sleep(self._vicinity.bound + _SLACK)
        now = monotonic()
        promised = now < kept.lease.until and all(not token.dead and now < token.lease.until for token in kept.beside)
        if self._find(kept.key) is kept and promised and now < kept.until:
            self._mismatches += 1
            self._sieve.remove(kept)
            self._mismatched()
