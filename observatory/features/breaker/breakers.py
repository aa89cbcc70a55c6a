"""The breakers of one process, and the two jobs beside them: counts go out, changes come in.

What is counted leaves every quarter of a second while there is something, a failure after at most 20 ms. Changes are announced
by the server (store/watch.py), and looked for every second in any case.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol
from weakref import WeakValueDictionary

import msgspec

from ... import names
from ...background import Job
from ...clock import RoomClock, monotonic
from ...errors import StoreError
from ...names import BREAKER_OPEN, BREAKER_REFUSALS
from ...settings import BreakerSettings
from ...store.store import Store
from . import calls
from .breaker import Breaker
from .machine import State, View
from .pauses import Pauses
from .terms import Terms, decided

REPORT_EVERY = 0.25
_SOON = 0.02
"""Seconds between two reports of failures at least."""
_PAUSE = 0.25
_MOST_LISTED = 1000
MOST = 500
"""That a process remembers, beside those that its program holds: a model's name is anybody's to invent."""
_LOOKED_THROUGH = 8
"""For one that may be forgotten, when a new one comes."""


class Recording(Protocol):
    """What breakers need of the metrics."""

    def increment_counter(self, metric: str, value: int = 1, labels: Mapping[str, str] | None = None) -> None: ...
    def set_gauge(self, metric: str, value: float, labels: Mapping[str, str] | None = None) -> None: ...


class BreakerReport(msgspec.Struct, frozen=True):
    """A breaker of the fleet. left: seconds until a probe is let through. calls, failures: in the window."""

    name: str
    state: State
    forced: str
    """"open" or "closed" where somebody holds it by hand; then why."""
    reason: str
    left: float
    calls: int
    failures: int
    probing: bool
    used: bool = True
    """False: nobody of the fleet has used or held it in the last week."""


class Breakers:
    """Made when first asked for; one of each name. Beyond MOST those are forgotten that nobody has used for longest: never one
    that is open, has something to tell, or is somebody's still."""

    def __init__(
        self,
        store: Callable[[], Store],
        metrics: Recording,
        settings: Mapping[str, BreakerSettings],
        clock: RoomClock,
        layer: str = "",
    ) -> None:
        self._store = store
        self.clock = clock
        self._metrics = metrics
        self._settings, self._layer = settings, layer
        self._breakers: WeakValueDictionary[str, Breaker] = WeakValueDictionary()
        self._lately: dict[str, Breaker] = {}
        """What keeps them: who was used last is last."""
        self._used: asyncio.Event | None = None
        self._urgent: asyncio.Event | None = None
        self._anew: asyncio.Event | None = None
        self._seen = ""
        self.pauses = Pauses(store, metrics, self._begin, clock)
        self._use_all()

    # which there are
    def breaker(self, name: str) -> Breaker:
        """The one of this name. InvalidArgument: not a name."""
        found = self._lately.pop(name, None) or self._breakers.get(name)
        if found is None:
            found = Breaker(names.breaker_name(name), self._terms(name), self)
            self._breakers[name] = found
            self._seen = ""  # of this one nothing is known
            self._begin()
        self._lately[name] = found
        if len(self._lately) > MOST:
            self._forget_some()
        return found

    def _forget_some(self) -> None:
        for name in tuple(itertools.islice(self._lately, _LOOKED_THROUGH)):
            one = self._lately.pop(name)
            if not one.idle:  # not now: it takes its turn once more
                self._lately[name] = one
            elif len(self._lately) <= MOST:
                return

    def use(self, settings: Mapping[str, BreakerSettings], layer: str = "") -> None:
        """layer: where they were read. ConfigurationError names it, the breaker and the field."""
        self._settings, self._layer = settings, layer
        self._use_all()

    def _use_all(self) -> None:
        for name in self._settings:
            self._terms(name)
        for name, breaker in list(self._breakers.items()):
            breaker.use(self._terms(name))

    def _terms(self, name: str) -> Terms:
        """Of its name; else of what stands before the slash, or the colon: of `openai/gpt-4o`, those of `openai`."""
        known = (name, name.partition("/")[0], name.partition("/")[0].partition(":")[0])
        said = next((self._settings[one] for one in known if one in self._settings), BreakerSettings())
        return Terms.of(name, said, f"{self._layer}: " if self._layer else "")

    async def list(self) -> tuple[BreakerReport, ...]:
        """Every breaker that the fleet has used in the last week, by name."""
        store = self._store()
        known = await store.command("ZRANGE", store.keys.breakers_known(), 0, _MOST_LISTED - 1, "REV")
        found = sorted(name.decode() for name in known)
        views = (await calls.look(store, found, now_us=self.clock.now_us())).views
        return tuple(_report(name, view) for name, view in zip(found, views, strict=True))

    async def show(self, name: str) -> BreakerReport:
        """One of them as the fleet has it; closed and without calls where nobody has used it."""
        store = self._store()
        views = (await calls.look(store, [names.breaker_name(name)], now_us=self.clock.now_us())).views
        used = await store.command("ZSCORE", store.keys.breakers_known(), name) is not None
        return msgspec.structs.replace(_report(name, views[0]), used=used)

    async def hold(self, name: str, state: str, *, reason: str | None = None) -> BreakerReport:
        """As `obs.breaker(name).force`, of a breaker that this process need not use; how it stands then."""
        names.breaker_name(name)
        return _report(name, await self.force(name, *decided(state, reason)))

    # what a breaker asks
    async def probe(self, name: str, token: str, lease_us: int) -> tuple[bool, View]:
        return await calls.probe(self._store(), name, token, lease_us, self.clock.now_us())

    async def force(self, name: str, to: str, reason: str) -> View:
        return await calls.force(self._store(), name, to, reason, self.clock.now_us())

    def soon(self, breaker: Breaker, /) -> None:
        """It has something to tell that should not wait for the next round."""
        self._lately.setdefault(breaker.name, breaker)  # also where it was forgotten, and its caller leaves now
        if self._urgent is not None:
            self._urgent.set()

    def refused(self, name: str) -> None:
        self._metrics.increment_counter(BREAKER_REFUSALS, 1, {"name": name})

    def shows(self, name: str, is_open: bool) -> None:
        self._metrics.set_gauge(BREAKER_OPEN, float(is_open), {"name": name})

    # beside it all
    @property
    def jobs(self) -> tuple[Job, ...]:
        """Both rest until a breaker or a pause is asked for. Of one opening, which may be on another loop than the last one."""
        self._used = self._urgent = self._anew = None
        self._seen = ""
        self.pauses.forget()
        return (Job("breaker reports", _SOON, self._send), Job("breaker changes", _SOON, self._hear))

    def _begin(self) -> None:
        """Somebody uses them now: it is time to look, though nothing was announced."""
        for event in (self._used, self._anew):
            if event is not None:
                event.set()

    async def _in_use(self) -> None:
        if self._used is None:
            self._used, self._urgent, self._anew = asyncio.Event(), asyncio.Event(), asyncio.Event()
        if self._breakers or self.pauses.used:
            self._used.set()
        await self._used.wait()

    async def _send(self) -> None:
        await self._in_use()
        urgent = self._urgent
        if urgent is None:
            return
        if not urgent.is_set():
            waiting = asyncio.ensure_future(urgent.wait())
            try:
                await asyncio.wait({waiting}, timeout=REPORT_EVERY)
            finally:  # also when this job ends: nobody else would
                waiting.cancel()
        urgent.clear()
        with contextlib.suppress(StoreError):  # others say so: each breaker has gone on by itself
            await self.flush()

    async def flush(self) -> None:
        """What was counted is told. StoreError: each goes on by itself; what was counted is not told again."""
        told = [self._tell(breaker, batches) for breaker in list(self._breakers.values()) if (batches := breaker.take())]
        if not told:
            return
        failed = [error for error in await asyncio.gather(*told, return_exceptions=True) if error is not None]
        if failed:
            raise failed[0]

    async def _tell(self, breaker: Breaker, batches: Sequence[calls.Batch]) -> None:
        for number, batch in enumerate(batches):
            asked_at = monotonic()
            try:
                view = await calls.report(self._store(), breaker.name, breaker.terms, batch, self.clock.now_us())
            except StoreError:
                for untold in batches[number:]:
                    breaker.alone(untold)
                raise
            breaker.adopt(view, asked_at)

    async def _hear(self) -> None:
        """Until the store fails; then again, from the start."""
        await self._in_use()
        try:
            store = self._store()
            with store.watching(store.keys.breakers_version()) as watch:
                while True:
                    await self.look()
                    hearing = asyncio.ensure_future(watch.heard(1.0))
                    others = {asyncio.ensure_future(self._anew.wait())} if self._anew is not None else set()
                    try:
                        await asyncio.wait({hearing, *others}, return_when=asyncio.FIRST_COMPLETED)
                        if not hearing.done():
                            # A watch is one task's at a time: this wait ends, and the next one registers again.
                            hearing.cancel()
                            await asyncio.wait({hearing})
                    finally:
                        for one in (hearing, *others):
                            one.cancel()
        except StoreError:
            self._seen = ""
            await asyncio.sleep(_PAUSE)

    async def look(self) -> None:
        """How the fleet stands now."""
        if self._anew is not None:
            self._anew.clear()
        found = list(self._breakers)
        asked_at = monotonic()
        seen, self._seen = self._seen, "?"
        said = await calls.look(self._store(), found, seen, self.clock.now_us())
        if self._seen == "?":  # nobody came new meanwhile
            self._seen = said.version
        if said.pauses is None:
            return
        self.pauses.adopt(said.pauses, asked_at)
        for name, view in zip(found, said.views, strict=True):
            if (breaker := self._breakers.get(name)) is not None:
                breaker.adopt(view, asked_at)

    def forget(self) -> None:
        """A forked child knows what its parent knew, and has counted nothing."""
        self._used = self._urgent = self._anew = None
        self._seen = ""
        self.pauses.forget()
        for breaker in list(self._breakers.values()):
            breaker.forget()

    def afresh(self) -> None:
        """Another store, another clock: nothing is known of any."""
        self.forget()
        self.pauses.afresh()
        for breaker in list(self._breakers.values()):
            breaker.afresh()


def _report(name: str, view: View) -> BreakerReport:
    held, _, rest = view.forced.partition(" ")
    return BreakerReport(
        name,
        view.state,
        held,
        rest.partition(" ")[2],
        view.left_us / 1e6 if not held else 0.0,
        view.calls,
        view.failures,
        view.probing_us > 0,
    )
