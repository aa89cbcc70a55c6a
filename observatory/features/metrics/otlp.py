"""The fleet's totals by OTLP, sent by one process at a time: whoever holds the lease. Any process may."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

from ... import names
from ...background import Job
from ...clock import monotonic
from ...errors import StoreError, StoreUnavailable
from ...logs import INTERNAL
from ...store.store import Store
from .collector import THREAD, Collector, Destination, destination
from .export import Family
from .metrics import Metrics

NAME = "otlp"
"""Of the lease."""
STEP_EVERY = 1.0
LAST_WORDS = 2.0
"""Seconds for the last export, when the process closes."""
GRACE = 0.5
"""Seconds beyond the timeout that a thread may take to notice that its request was cut."""
POINTS = 1000
"""Data points in one request: collectors refuse requests of more than 4 MB."""
_TOO_LATE = "leadership might end before it is received"


class Held(Protocol):
    """The right to send, until a moment."""

    @property
    def ends_at(self) -> float: ...
    @property
    def is_live(self) -> bool: ...


class Electing(Protocol):
    """Gives it to one at a time."""

    async def acquire(self, name: str, lease: float) -> Held | None: ...
    async def release(self, name: str) -> None: ...


class OtlpExport:
    """Call `step` about once a second, in as many processes as you like: one of them sends.

    What holds: two never send at the same time, since the lease is asked for right before sending and lasts longer than a
    request may, which is cut then; what cannot be cut keeps the lease until it ends. All of them say the same start. A
    collector that is away costs a line in the log and a counter.
    """

    def __init__(self, store: Callable[[], Store], metrics: Metrics, leases: Electing) -> None:
        self._store = store
        self._metrics = metrics
        self._leases = leases
        self.sent = 0
        """Exports that were received."""
        self.forget()

    def forget(self) -> None:
        """A forked child holds nothing, and the thread did not come along."""
        self._to: Destination | None = None
        self._collector: Collector | None = None
        self._thread: threading.Thread | None = None
        self._lease: Held | None = None
        self._ask_at = self._due_at = 0.0
        self._lost = 0
        self._is_failing = self._is_stepping = False

    @property
    def jobs(self) -> tuple[Job, ...]:
        """For a process that exports beside its work; none where the environment names no collector."""
        self._to = destination()
        return () if self._to is None else (Job("otlp", STEP_EVERY, self.step),)

    @property
    def leads(self) -> bool:
        """Whether this process is the one that sends."""
        return self._lease is not None and self._lease.is_live

    async def step(self) -> None:
        """Stay or become the one who sends, and send when it is time. StoreUnavailable: unknown who is."""
        to = self._to = self._to or destination()
        # Two callers in one process are one.
        if to is None or self._is_stepping:
            return
        self._is_stepping = True
        try:
            if self._thread is None or not self._thread.is_alive():
                await self._step(to)
            elif self._lease is not None and monotonic() >= self._ask_at:
                # A request that was abandoned in its middle is still under way: nobody else may send meanwhile.
                await self._elect(to)
        finally:
            self._is_stepping = False

    async def _step(self, to: Destination) -> None:
        if monotonic() >= self._ask_at:
            await self._elect(to)
        if not self.leads:
            return
        await self._metrics.look()
        if monotonic() >= self._due_at:
            began_at = monotonic()
            if await self._export(to):
                self._due_at = began_at + to.interval

    async def _elect(self, to: Destination) -> None:
        # Two thirds of it are more than a request takes, so there is room for one whenever it was renewed a third ago.
        lease = 3 * to.timeout
        led = self.leads
        self._lease = await self._leases.acquire(NAME, lease)
        self._ask_at = monotonic() + lease / 3
        if self._lease is not None and not led:
            self._due_at = 0.0
            INTERNAL.info("this process sends the fleet's metrics by OTLP now (%s, every %g s)", to.protocol, to.interval)

    async def _export(self, to: Destination) -> bool:
        """Whether the next one is due an interval later; otherwise very soon."""
        try:
            families = await self._metrics.families()
        except StoreUnavailable:
            # Away, or gaps are being refilled: a lower sum would be taken for a restart.
            return False
        start_us, now_us = await self._moments()
        for portion in _portions(families):
            await self._elect(to)
            if self._lease is None:
                return False
            why = await self._send(to, self._lease, portion, start_us * 1000, now_us * 1000)
            if why == _TOO_LATE:
                return False
            if why is not None:
                self._metrics.increment_counter(names.EXPORTS_FAILED, 1, {"exporter": NAME})
                if not self._is_failing:
                    INTERNAL.error("metrics do not reach the OTLP collector, which is tried again: %s", why)
                self._is_failing = True
                return True
        if self._is_failing:
            self._is_failing = False
            INTERNAL.info("metrics reach the OTLP collector again")
        self.sent += 1
        return True

    async def _moments(self) -> tuple[int, int]:
        """When counting began, as the first of all leaders said it, and now."""
        store = self._store()
        bulk, key, now_us = store.bulk(), store.keys.metric_start(), store.server_us() or 0
        given_up = self._metrics.given_up
        if given_up > self._lost:
            # Sums are lower than they were and stay so: for who receives them, counting has begun anew.
            await bulk.command("SET", key, now_us)
            self._lost = given_up
        else:
            await bulk.command("SET", key, now_us, "NX")
        start_us = int(await bulk.command("GET", key) or now_us)
        return start_us, max(now_us, start_us)

    async def _send(self, to: Destination, lease: Held, families: list[Family], start_ns: int, now_ns: int) -> str | None:
        collector = self._collector = self._collector or Collector(to)
        namespace = self._store().keys.namespace
        loop = asyncio.get_running_loop()
        done: asyncio.Future[str | None] = loop.create_future()

        def answer(why: str | None) -> None:
            if not done.done():
                done.set_result(why)

        def run() -> None:
            # The last word is the lease's: this thread may have waited long for its turn.
            if monotonic() + to.timeout >= lease.ends_at:
                why: str | None = _TOO_LATE
            else:
                why = collector.send(families, start_ns, now_ns, namespace)
            with contextlib.suppress(RuntimeError):  # the loop has gone meanwhile
                loop.call_soon_threadsafe(answer, why)

        # A daemon, since a pool's thread would keep the process from ending while a collector is silent.
        self._thread = threading.Thread(target=run, daemon=True, name=THREAD)
        self._thread.start()
        try:
            async with asyncio.timeout(to.timeout + GRACE):
                return await done
        except TimeoutError:
            # What cannot be cut, such as looking for an address: `step` keeps the lease until it ends.
            return f"a request has not ended within {to.timeout + GRACE:g} s"
        except asyncio.CancelledError:
            collector.close()
            raise

    async def aclose(self) -> None:
        """Send what is new, and give the lease back, so that the next one need not wait for its end."""
        is_sending = self._thread is not None and self._thread.is_alive()
        if self._to is not None and self.leads and not is_sending:
            # A store that is away by now, or a collector, keeps nobody from closing.
            with contextlib.suppress(StoreError, TimeoutError):
                async with asyncio.timeout(LAST_WORDS):
                    if not self._is_failing:
                        await self._export(self._to)
                    await self._leases.release(NAME)
        # One that is still sending keeps the lease until it ends: its successor must not speak meanwhile.
        self._lease, self._ask_at = None, 0.0
        if self._collector is not None:
            self._collector.close()
            self._collector = None


def _portions(families: list[Family]) -> Iterator[list[Family]]:
    """In requests of at most POINTS series."""
    portion: list[Family] = []
    room = POINTS
    for family in families:
        table, gauges = list(family.table.items()), list(family.gauges.items())
        while table or gauges:
            taken, levels = dict(table[:room]), dict(gauges[:room])
            table, gauges = table[len(taken) :], gauges[len(levels) :]
            portion.append(family._replace(table=taken, gauges=levels))
            room -= max(len(taken), len(levels))
            if room <= 0:
                yield portion
                portion, room = [], POINTS
    if portion:
        yield portion
