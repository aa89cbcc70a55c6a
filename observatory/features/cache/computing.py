"""How an entry is computed: by whoever holds its lease, or for this process alone where the store cannot be asked.

What is computed is stored under the lease, and under the versions that stood before it was begun; what a change meanwhile made
of that is told by `Landed`. Whatever happens to a claim or a write on its way, the lease is given back.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from inspect import isawaitable
from typing import Any, Generic, TypeVar

from ... import units
from ...clock import monotonic
from ...errors import InvalidArgument, NotOpen, StoreError, StoreMisconfigured
from ...store.store import Store
from ...store.watch import Watch
from .codec import Codec
from .counts import Counts
from .entry import BOUNDED, Entry, pack
from .flight import Flight, Landed, Terms, through
from .lease import FAILED, LEASED, SPOILT, THERE, Claim, Lease, failure, held
from .shelf import Look, Place, Shelf

T = TypeVar("T")
_SLACK = 0.002
"""Seconds after its end at which a lease is asked for: a server may be behind with what nobody has asked it for."""
_MOST_TRIES = 5
_LAST_WAIT = 1.0

computing: ContextVar[frozenset[object]] = ContextVar("observatory_cache_computing", default=frozenset())
"""What the task at hand computes: to wait for it would be to wait for itself."""


class Computing(Generic[T]):
    """The computations of one cache in one process. look: as `Flights.look`. leave: nobody joins this flight any more."""

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
        look: Callable[[Place], Awaitable[Look]],
        leave: Callable[[Place, Flight], None],
    ) -> None:
        self._store = store
        self._shelf = shelf
        self._codec = codec
        self._counts = counts
        self._name = name
        self._now_us = now_us
        self._jitter = jitter
        self._look = look
        self._leave = leave
        self._releases: set[asyncio.Task[None]] = set()

    async def fly(self, flight: Flight, place: Place, compute: Callable[[], Awaitable[T]], terms: Terms, look: Look) -> Landed:
        """The lease, which one usually gets at once; or to wait for what its holder brings."""
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
                lease, claim = await self._claim(place, look)
            except StoreMisconfigured:
                raise
            except StoreError:
                self._counts.error()
                return await self.alone(flight, compute)
            if claim.state == LEASED:
                if claim.detail == SPOILT:
                    self._counts.corrupt()
                return await self._compute(flight, place, compute, terms, lease, look)
            if claim.state == FAILED:
                raise failure(self._name, claim.detail, claim.left)
            if claim.state == THERE:
                self._leave(place, flight)
                look = await self._look(place)
                if look.entry is not None and look.entry.is_fresh(self._now_us()):
                    return Landed(None, look.entry.payload, look.entry.flags, shared=True)
                found += 1
                if found == _MOST_TRIES:  # it is there for the script and not for us: the store fails by halves
                    return await self.alone(flight, compute)
                continue
            # A renewal of the lease is heard of too, and costs a look: so often one would have to look in any case.
            await watch.heard(claim.left + _SLACK)
            # The versions that were read before all this are not those under which a value would be computed now.
            look = look._replace(record=None)

    async def _claim(self, place: Place, look: Look) -> tuple[Lease, Claim]:
        lease = Lease(self._store(), place)
        try:
            return lease, await lease.claim(look.head)
        except (StoreError, asyncio.CancelledError):
            self._give_back(lease)
            raise

    def _give_back(self, lease: Lease) -> None:
        """What the store may have granted, and nobody waits for: else everybody would, for as long as it lasts."""
        task = asyncio.get_running_loop().create_task(lease.give_back(), name=f"observatory cache {self._name} release")
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)

    async def _computed(self, flight: Flight, compute: Callable[[], Awaitable[T]], token: str) -> T:
        computing.set(computing.get() | {flight})
        held.set(token)
        flight.computing = True
        made = compute()
        if not isawaitable(made):
            raise InvalidArgument(f"compute must be an async function, got one that returns {units.shown(made, 60)}")
        return await made

    async def alone(self, flight: Flight, compute: Callable[[], Awaitable[T]]) -> Landed:
        """Nobody can be asked and nothing kept."""
        flight.alone = True
        value = await self._computed(flight, compute, "")
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
            flight.alone = versions is None
            began = monotonic()
            value = await self._computed(flight, compute, lease.token)
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
            if not keeping.get_loop().is_closed():  # a loop that ended with this on it
                keeping.cancel()
        landed = Landed(value, payload, flags)
        if versions is None:
            await through(lease.release())
        else:
            record, tags = versions
            entry, life_ms = self.entry(payload, flags, terms, record.version, tags, cost_us)
            try:
                stored = await self._shelf.write(place, pack(entry), life_ms, record=record, token=lease.token)
                if not stored or not await self._stands(place, flight, pack(entry)):
                    self._counts.computed("fenced")
                    return landed._replace(fenced=True)
            except (StoreError, NotOpen):  # unknown, or closed meanwhile; whoever computed it has it
                self._counts.error()
                landed = landed._replace(unproven=True)
            except asyncio.CancelledError:
                self._give_back(lease)
                raise
        self._counts.computed("ok")
        return landed

    async def _stands(self, place: Place, flight: Flight, stored: bytes) -> bool:
        """Whether what was stored counts now. Asked for those who came later than the computation began: meanwhile somebody may
        have cleared the cache or invalidated a tag, and they may know."""
        self._leave(place, flight)
        if not flight.late:
            return True
        look = await self._look(place)
        return look.away or (look.entry is not None and not look.beside and stored.startswith(look.head))

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
        now_us = self._now_us()
        flags |= BOUNDED if terms.stale_ms else 0
        return Entry(now_us, now_us + ttl_ms * 1000, cost_us, version, tags, flags, payload), ttl_ms + terms.stale_ms

    async def aclose(self) -> None:
        """What was given back is on its way."""
        loop = asyncio.get_running_loop()
        if releases := [task for task in self._releases if task.get_loop() is loop]:
            await asyncio.wait(releases, timeout=_LAST_WAIT)

    def forget(self) -> None:
        """A forked child: what was held is the parent's."""
        self._releases = set()
