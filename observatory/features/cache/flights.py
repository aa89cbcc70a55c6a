"""One computation of an entry in the fleet: here one task a key, however many wait for it; elsewhere whoever holds the lease.

What holds: while a local caller waits, its task goes on, whoever else is cancelled; with the last of them it is cancelled, and
the lease given back. A holder that dies is replaced when its lease ends. What was computed is stored only while the lease is
held: a set, a delete or an eviction meanwhile wins. A caller who came later than the computation began is not given a value
that was refused so: it asks again. With the store away each process computes for itself.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Generic, TypeVar, cast

from ...clock import monotonic
from ...errors import CacheComputationFailed, CacheError, NotOpen, StoreError, StoreMisconfigured
from ...keys import Key
from ...store.store import Store
from ...store.watch import Watch
from .codec import MISSING, Codec
from .counts import Counts
from .entry import BOUNDED, Entry, pack
from .flight import Flight, Landed, Terms, through
from .generations import UNTYPED, beside
from .lease import FAILED, LEASED, SPOILT, THERE, Lease, failure, held
from .shelf import Look, Place, Shelf

T = TypeVar("T")
_SLACK = 0.002
"""Seconds after its end at which a lease is asked for: a server may be behind with what nobody has asked it for."""
_MOST_TRIES = 5
_LAST_WAIT = 1.0

_computing: ContextVar[frozenset[object]] = ContextVar("observatory_cache_computing", default=frozenset())
"""What the task at hand computes: to wait for it would be to wait for itself."""


class Flights(Generic[T]):
    """The computations of one cache in one process."""

    def __init__(
        self,
        store: Callable[[], Store],
        shelf: Shelf,
        codec: Codec[T],
        counts: Counts,
        *,
        name: str,
        now_us: Callable[[], int],
        jitter: float,
    ) -> None:
        self._store = store
        self._shelf = shelf
        self._codec = codec
        self._counts = counts
        self._name = name
        self.now_us = now_us
        self._jitter = jitter
        self._flights: dict[Key, Flight] = {}
        self._tasks: set[asyncio.Task[Landed]] = set()

    async def fetch(self, place: Place, compute: Callable[[], Awaitable[T]], terms: Terms) -> T:
        """The entry, or what `compute` says it is."""
        for tried in range(1, _MOST_TRIES + 1):
            look = await self.look(place)
            value = self._served(place, look, compute, terms)
            if value is not MISSING:
                return value
            if tried == 1:
                self._counts.miss()
            flight = self._flights.get(place.entry)
            if flight in _computing.get():
                raise CacheError(f"cache {self._name}: the computation of {place.key!r:.80} waits for itself")
            first = flight is None or flight.task.done()
            if flight is None or first:
                flight = self._begin(place, compute, terms, look, kept=False)
            landed = await self._wait(place, flight)
            if first and not landed.shared:
                return cast(T, landed.value)
            if landed.fenced and tried < _MOST_TRIES:
                continue
            value = self._codec.decode(landed.payload, landed.flags)
            if value is not MISSING:
                self._counts.coalesced()
                return value
        raise CacheComputationFailed(f"cache {self._name}: {place.key!r:.80} changes faster than it can be computed")

    async def look(self, place: Place) -> Look:
        """As the shelf has it; a miss when the store does not answer, which is counted."""
        if not place.lease:
            return Look(None, b"", None, away=True)
        try:
            look = await self._shelf.read(place, to_keep=True)
            if look.entry is None and look.record is not None and UNTYPED in look.record.generations:
                look = await beside(self._shelf, self._codec, place, look)
        except StoreMisconfigured:
            raise
        except StoreError:
            self._counts.error()
            return Look(None, b"", None, away=True)
        if look.corrupt:
            self._counts.corrupt()
        return look

    def last(self, place: Place, look: Look, terms: Terms) -> T:
        """What was kept near before the store went away, where the cache's policy is to serve that."""
        value = self._shelf.last(place) if look.away and terms.last else cast(T, MISSING)
        if value is not MISSING:
            self._counts.hit("stale")
        return cast(T, value)

    def _served(self, place: Place, look: Look, compute: Callable[[], Awaitable[T]], terms: Terms) -> T:
        """The value where one may be served, and somebody sent for a new one where it is time."""
        entry = look.entry
        if entry is None:
            return self.last(place, look, terms)
        value = self._codec.decode(entry.payload, entry.flags)
        if value is MISSING:
            self._counts.corrupt()
            return value
        now_us = self.now_us()
        fresh = entry.is_fresh(now_us)
        self._counts.hit("shared" if fresh else "stale")
        if not fresh or now_us + entry.early_us() >= entry.fresh_until_us:
            if place.entry not in self._flights:
                self._begin(place, compute, terms, look, kept=True)
        else:
            self._shelf.keep(place, look, value, self._codec.plain(entry.payload, entry.flags), now_us, terms.stale_ms)
        return value

    def _begin(self, place: Place, compute: Callable[[], Awaitable[T]], terms: Terms, look: Look, *, kept: bool) -> Flight:
        flight = self._flights[place.entry] = Flight(kept=kept)
        # Who has waited for the store in vain does not wait a second time.
        work = self._alone(compute) if look.away else self._fly(flight, place, compute, terms, look)
        task = flight.task = asyncio.get_running_loop().create_task(work, name=f"observatory cache {self._name}")
        self._tasks.add(task)

        def landed(done: "asyncio.Task[Landed]") -> None:
            self._tasks.discard(done)
            self._leave(place, flight)
            if not done.cancelled():
                done.exception()  # heard: of a flight that nobody waits for, nobody else would

        task.add_done_callback(landed)
        return flight

    async def _wait(self, place: Place, flight: Flight) -> Landed:
        flight.waiting += 1
        try:
            await asyncio.wait({flight.task})
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.kept and not flight.task.done():
                self._leave(place, flight)
                flight.task.cancel()
        if flight.task.cancelled():
            raise CacheComputationFailed(f"cache {self._name}: the computation of {place.key!r:.80} was cancelled")
        return flight.task.result()

    def _leave(self, place: Place, flight: Flight) -> None:
        """Nobody joins it any more: what it brings is from before whatever they know."""
        if self._flights.get(place.entry) is flight:
            del self._flights[place.entry]

    def detach(self, place: Place) -> None:
        """Whoever asks from now on does not get what is computed now: the entry was written, deleted or given up."""
        self._flights.pop(place.entry, None)

    def detach_all(self) -> None:
        self._flights.clear()

    async def _fly(self, flight: Flight, place: Place, compute: Callable[[], Awaitable[T]], terms: Terms, look: Look) -> Landed:
        """The lease, which one usually gets at once; or to wait for what its holder brings."""
        _computing.set(_computing.get() | {flight})
        with self._shelf.watching(place) as watch:
            return await self._claimed(flight, place, compute, terms, look, watch)

    async def _claimed(
        self,
        flight: Flight,
        place: Place,
        compute: Callable[[], Awaitable[T]],
        terms: Terms,
        look: Look,
        watch: Watch,
    ) -> Landed:
        found = 0
        while True:
            try:
                lease = Lease(self._store(), place)
                claim = await lease.claim(look.head)
            except StoreMisconfigured:
                raise
            except StoreError:
                self._counts.error()
                return await self._alone(compute)
            if claim.state == LEASED:
                if claim.detail == SPOILT:
                    self._counts.corrupt()
                return await self._compute(flight, place, compute, terms, lease, look)
            if claim.state == FAILED:
                raise failure(self._name, claim.detail, claim.left)
            if claim.state == THERE:
                self._leave(place, flight)
                look = await self.look(place)
                if look.entry is not None and look.entry.is_fresh(self.now_us()):
                    return Landed(None, look.entry.payload, look.entry.flags, shared=True)
                found += 1
                if found == _MOST_TRIES:  # it is there for the script and not for us: the store fails by halves
                    return await self._alone(compute)
                continue
            # A renewal of the lease is heard of too, and costs a look: so often one would have to look in any case.
            await watch.heard(claim.left + _SLACK)
            # The versions that were read before all this are not those under which a value would be computed now.
            look = look._replace(record=None)

    async def _alone(self, compute: Callable[[], Awaitable[T]]) -> Landed:
        """Nobody can be asked and nothing kept."""
        value = await compute()
        payload, flags = self._codec.encode(value)
        self._counts.computed("ok")
        return Landed(value, payload, flags)

    async def _compute(
        self, flight: Flight, place: Place, compute: Callable[[], Awaitable[T]], terms: Terms, lease: Lease, look: Look
    ) -> Landed:
        """As the holder of the lease, which is renewed meanwhile and given back whatever happens."""
        keeping = asyncio.get_running_loop().create_task(lease.keep())
        try:
            versions = await self._versions(place, terms, look)
            began = monotonic()
            held.set(lease.token)
            value = await compute()
            cost_us = int((monotonic() - began) * 1e6)
            payload, flags = self._codec.encode(value, terms.compress_over)
        except asyncio.CancelledError:
            self._counts.computed("cancelled")
            await through(lease.release())
            raise
        except Exception as error:
            self._counts.computed("failed")
            await through(lease.release(error, terms.fail_for))
            raise
        finally:
            keeping.cancel()
        landed = Landed(value, payload, flags)
        if versions is None:
            await through(lease.release())
        else:
            record, tags = versions
            entry, life_ms = self.entry(payload, flags, terms, record.version, tags, cost_us)
            try:
                stored = await self._shelf.write(place, pack(entry), life_ms, record=record, token=lease.token)
            except (StoreError, NotOpen):  # unknown, or closed meanwhile; whoever computed it has it
                self._counts.error()
            else:
                if not stored or not await self._stands(place, flight, pack(entry)):
                    self._counts.computed("fenced")
                    return landed._replace(fenced=True)
        self._counts.computed("ok")
        return landed

    async def _stands(self, place: Place, flight: Flight, stored: bytes) -> bool:
        """Whether what was stored counts now. Asked for those who came later than the computation began: meanwhile somebody may
        have cleared the cache or invalidated a tag, and they may know."""
        self._leave(place, flight)
        if flight.waiting < 2:
            return True
        look = await self.look(place)
        return look.away or (look.entry is not None and stored.startswith(look.head))

    async def _versions(self, place: Place, terms: Terms, look: Look) -> Any:
        """Those under which the value will count: read before it is computed. None: they cannot be read."""
        try:
            life_ms = terms.ttl_ms + terms.stale_ms
            record = await self._shelf.versions.joined(place.record, look.record, life_ms)
            return record, await self._shelf.versions.of_tags(place.scope, terms.tags, life_ms)
        except StoreMisconfigured:
            raise
        except StoreError:
            self._counts.error()
            return None

    def entry(
        self,
        payload: bytes,
        flags: int,
        terms: Terms,
        version: bytes,
        tags: tuple[tuple[bytes, bytes], ...],
        cost_us: int = 0,
    ) -> tuple[Entry, int]:
        """What is written now, and its time to live in milliseconds: less a random part, so that entries made together do not
        end together."""
        ttl_ms = max(int(terms.ttl_ms * (1 - random.uniform(0, self._jitter))), 1)
        now_us = self.now_us()
        flags |= BOUNDED if terms.stale_ms else 0
        return Entry(now_us, now_us + ttl_ms * 1000, cost_us, version, tags, flags, payload), ttl_ms + terms.stale_ms

    async def aclose(self) -> None:
        """Nobody computes any more; the leases are given back."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:  # one that will not be cancelled keeps nobody from closing
            await asyncio.wait(tasks, timeout=_LAST_WAIT)

    def forget(self) -> None:
        """A forked child: the tasks are the parent's."""
        self._flights, self._tasks = {}, set()
