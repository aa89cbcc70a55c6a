"""One computation of an entry in the fleet: here one task a key, however many wait for it; elsewhere whoever holds the lease.

What holds: while a local caller waits, its task goes on, whoever else is cancelled; with the last of them it is cancelled, and
the lease given back. A holder that dies is replaced when its lease ends. What was computed is stored only while the lease is
held: a set, a delete or an eviction meanwhile wins. A caller who came later than the computation began is not given a value
that was refused so: it asks again. With the store away each process computes for itself.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar, cast

from ...errors import CacheComputationFailed, CacheError, StoreError, StoreMisconfigured
from ...keys import Key
from ...store.store import Store
from .codec import MISSING, Codec
from .computing import Computing, computing
from .counts import Counts
from .flight import Flight, Landed, Terms
from .generations import UNTYPED, beside
from .shelf import Look, Place, Shelf

T = TypeVar("T")
_MOST_TRIES = 5
_LAST_WAIT = 1.0


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
        self._shelf = shelf
        self._codec = codec
        self._counts = counts
        self._name = name
        self.now_us = now_us
        self.computations: Computing[T] = Computing(
            *(store, shelf, codec, counts),
            name=name,
            now_us=now_us,
            jitter=jitter,
            look=self.look,
            leave=self._leave,
        )
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
            flight = self._under_way(place)
            if flight in computing.get():
                raise CacheError(f"cache {self._name}: the computation of {place.key!r:.80} waits for itself")
            if flight is not None and flight.alone and flight.computing and not look.away:
                flight = None  # what was deleted meanwhile, and is asked for since, would come back
            first = flight is None
            if flight is None:
                flight = self._begin(place, compute, terms, look, kept=False)
            late = flight.computing
            flight.late |= late
            landed = await self._wait(place, flight)
            if first and not landed.shared:
                return cast(T, landed.value)
            if landed.fenced or (landed.unproven and late):
                continue
            value = self._codec.decode(landed.payload, landed.flags)
            if value is not MISSING:
                self._counts.coalesced()
                return value
        raise CacheComputationFailed(f"cache {self._name}: {place.key!r:.80} changes faster than it can be computed")

    def _under_way(self, place: Place) -> Flight | None:
        """Of this loop: one that has ended took its tasks with it, and nobody would ever hear of them."""
        flight = self._flights.get(place.entry)
        if flight is None or flight.task.done() or flight.task.get_loop() is not asyncio.get_running_loop():
            return None
        return flight

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
            if self._under_way(place) is None:
                self._begin(place, compute, terms, look, kept=True)
        else:
            self._shelf.keep(place, look, value, self._codec.plain(entry.payload, entry.flags), now_us, terms.stale_ms)
        return value

    def _begin(self, place: Place, compute: Callable[[], Awaitable[T]], terms: Terms, look: Look, *, kept: bool) -> Flight:
        flight = self._flights[place.entry] = Flight(kept=kept)
        # Who has waited for the store in vain does not wait a second time.
        work = (
            self.computations.alone(flight, compute)
            if look.away
            else self.computations.fly(flight, place, compute, terms, look)
        )
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
            if not (flight.waiting or flight.kept or flight.task.done() or flight.task.get_loop().is_closed()):
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

    async def aclose(self) -> None:
        """Nobody computes any more; the leases are given back."""
        loop = asyncio.get_running_loop()
        tasks = [task for task in self._tasks if task.get_loop() is loop]
        for task in tasks:
            task.cancel()
        if tasks:  # one that will not be cancelled keeps nobody from closing
            await asyncio.wait(tasks, timeout=_LAST_WAIT)
        await self.computations.aclose()

    def forget(self) -> None:
        """A forked child: the tasks are the parent's."""
        self._flights, self._tasks = {}, set()
        self.computations.forget()
