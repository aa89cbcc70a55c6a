"""The role that counts again: how far the streams are behind, what is buried, and whether the ledgers tell the truth."""

from typing import Final

from .. import names
from ..client import Observatory
from ..clock import monotonic
from ..features import survey
from ..features.rate_limiter.ledger import reservations

EVENTS_LEDGER: Final = "events"
DEAD_LETTERS_LEDGER: Final = "dead_letters"
RESERVATIONS_LEDGER: Final = "reservations"
LONG_EVERY: Final = 60.0
"""Seconds between two counts of a stream that is longer than a page: they cost the server a millisecond for every page."""
STALE_AFTER: Final = 300.0
"""Seconds after which nobody knows any more what a partition was like."""


class Audit:
    """Publishes, as gauges of whoever leads it:

    observatory_stream_lag_seconds, observatory_dead_letters, observatory_reservations_open, and
    observatory_conservation_drift{ledger}:
    - `events`: accepted - applied - dead - dropped, less the events that lie on the streams;
    - `dead_letters`: what the ledger says is buried, less the letters that are there;
    - `reservations`: reserved - settled - cancelled - reaped, less the holds that are open.

    The first two are sums over observatory_audited_partitions, those that could be counted lately; of the others nobody knows.
    What was never counted is not published; what was, and is not known any more, is 0, as is the number of partitions then.
    """

    name: Final = "audit"
    every: Final = 5.0

    def __init__(self, obs: Observatory) -> None:
        self._obs = obs
        self._known: dict[int, tuple[survey.Drift, float]] = {}
        """And when it was counted."""
        self._said: set[str] = set()
        self._long_after: dict[int, float] = {}

    async def step(self, fence: int) -> None:
        store, metrics = self._obs.store, self._obs.metrics
        standing = await survey.backlog(store, readable=True)
        metrics.set_gauge(names.STREAM_LAG, max((one.oldest_age for one in standing), default=0.0))
        metrics.set_gauge(names.DEAD_LETTERS, sum(one.dead for one in standing))
        for one in standing:
            await self._count(one)
        now = monotonic()
        self._known = {partition: known for partition, known in self._known.items() if now - known[1] < STALE_AFTER}
        metrics.set_gauge(names.AUDITED_PARTITIONS, len(self._known))
        if self._known or EVENTS_LEDGER in self._said:
            self._publish(EVENTS_LEDGER, sum(drift.events for drift, _ in self._known.values()))
            self._publish(DEAD_LETTERS_LEDGER, sum(drift.dead for drift, _ in self._known.values()))
        held = await reservations(store)
        metrics.set_gauge(names.RESERVATIONS_OPEN, held.open)
        self._publish(RESERVATIONS_LEDGER, held.drift)

    async def _count(self, one: survey.Backlog) -> None:
        if one.entries > survey.PAGE:
            if monotonic() < self._long_after.get(one.partition, 0.0):
                return
            self._long_after[one.partition] = monotonic() + LONG_EVERY
        found = await survey.drift(self._obs.store, one.partition)
        if found is not None:
            self._known[one.partition] = (found, monotonic())

    def _publish(self, ledger: str, drift: int) -> None:
        self._said.add(ledger)
        self._obs.metrics.set_gauge(names.CONSERVATION_DRIFT, drift, {"ledger": ledger})

    def leave(self) -> None:
        """Whoever leads next says it; together we would say it twice."""
        self._known.clear()
        self._long_after.clear()
        for ledger in sorted(self._said):
            self._publish(ledger, 0)
        for gauge in (names.STREAM_LAG, names.DEAD_LETTERS, names.RESERVATIONS_OPEN, names.AUDITED_PARTITIONS):
            self._obs.metrics.set_gauge(gauge, 0.0)
