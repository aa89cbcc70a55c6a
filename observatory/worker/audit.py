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


class Audit:
    """Publishes, as gauges of whoever leads it:

    observatory_stream_lag_seconds, observatory_dead_letters, observatory_reservations_open, and
    observatory_conservation_drift{ledger}:
    - `events`: accepted - applied - dead - dropped, less the events that lie on the streams;
    - `dead_letters`: what the ledger says is buried, less the letters that are there;
    - `reservations`: reserved - settled - cancelled - reaped, less the holds that are open.

    A partition longer than a page that is worked off while it is counted says nothing this time: what it said last stands.
    """

    name: Final = "audit"
    every: Final = 5.0

    def __init__(self, obs: Observatory) -> None:
        self._obs = obs
        self._known: dict[int, survey.Drift] = {}
        self._long_after: dict[int, float] = {}

    async def step(self, fence: int) -> None:
        store, metrics = self._obs.store, self._obs.metrics
        standing = await survey.backlog(store)
        metrics.set_gauge(names.STREAM_LAG, max((one.oldest_age for one in standing), default=0.0))
        metrics.set_gauge(names.DEAD_LETTERS, sum(one.dead for one in standing))
        for one in standing:
            is_long = one.entries > survey.PAGE
            if is_long and monotonic() < self._long_after.get(one.partition, 0.0):
                continue
            if is_long:
                self._long_after[one.partition] = monotonic() + LONG_EVERY
            found = await survey.drift(store, one.partition)
            if found is not None:
                self._known[one.partition] = found
        held = await reservations(store)
        metrics.set_gauge(names.RESERVATIONS_OPEN, held.open)
        self._publish(held.drift)

    def _publish(self, reservations_drift: int = 0) -> None:
        for ledger, drift in (
            (RESERVATIONS_LEDGER, reservations_drift),
            (EVENTS_LEDGER, sum(one.events for one in self._known.values())),
            (DEAD_LETTERS_LEDGER, sum(one.dead for one in self._known.values())),
        ):
            self._obs.metrics.set_gauge(names.CONSERVATION_DRIFT, drift, {"ledger": ledger})

    def leave(self) -> None:
        """Whoever leads next says it; together we would say it twice."""
        self._known.clear()
        self._long_after.clear()
        self._publish()
        for gauge in (names.STREAM_LAG, names.DEAD_LETTERS, names.RESERVATIONS_OPEN):
            self._obs.metrics.set_gauge(gauge, 0.0)
