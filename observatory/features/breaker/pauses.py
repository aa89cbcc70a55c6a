"""Pauses: a provider has told one process to come again later, and the whole fleet leaves it alone for so long.

Whose calls pause is said by provider, model and API key, or the dimension `key` by which that is known. The key itself is kept
nowhere: what leaves this room is a digest of all three, keyed with the namespace's salt.
"""

import asyncio
from collections.abc import Callable, Mapping
from itertools import product
from typing import Protocol

from ... import dimensions, replies, units
from ...clock import RoomClock, monotonic
from ...errors import CoolingDown, NotOpen, StoreError, StoreUnavailable
from ...keys import Keys
from ...logs import INTERNAL
from ...names import PAUSES
from ...store.store import Store
from ...types import Identity
from . import calls

MOST = 5000
"""Pauses of one namespace at a time; beyond, those that end soonest are forgotten."""
_MOST_DIGESTS = 4096
_LONGEST = 3600.0
"""Seconds: whoever asks for more is asked again after this."""
_SLACK = 0.1
"""A pause that would end so many seconds later than one that is known, or a tenth of it, is not told again."""
_SPREAD = 0.1
"""Those who wait go on within this fraction of the pause behind its end, at random, and within a second."""
_STATUSES = frozenset({429, 503, 529})


class Recording(Protocol):
    """What pauses need of the metrics."""

    def increment_counter(self, metric: str, value: int = 1, labels: Mapping[str, str] | None = None) -> None: ...


class Pauses:
    """What this process knows of the fleet's pauses: asking costs a dictionary look-up, and no trip."""

    def __init__(self, store: Callable[[], Store], metrics: Recording, begin: Callable[[], None], clock: RoomClock) -> None:
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._begin = begin
        self._ends: dict[str, float] = {}
        self._untold: dict[str, float] = {}
        """Those that the fleet has not heard of, since the store was away."""
        self._keys: Keys | None = None
        self._digests: dict[tuple[str, str, str], str] = {}
        """By whom they are of; never by a key itself."""
        self._changed_at = 0.0
        self._changed: asyncio.Event | None = None
        self.used = False

    def left(self, provider: str, model: str = "", key: str = "") -> float:
        """Seconds until they may be called again; 0: now."""
        if not self.used:
            self.used = True
            self._begin()
        if not self._ends:
            return 0.0
        return max(self._ends.get(self._whose(provider, model, key), 0.0) - self._clock.monotonic(), 0.0)

    async def wait(self, provider: str, model: str = "", key: str = "", *, timeout: float | None = None) -> float:
        """Until they may be called; the seconds that were waited. CoolingDown, at once, where that takes longer than `timeout`.

        A pause that is made longer meanwhile is waited for too; one that is ended early ends the wait.
        """
        patience, began = units.timeout(timeout), self._clock.monotonic()
        while (left := self.left(provider, model, key)) > 0:
            waited = self._clock.monotonic() - began
            if patience is not None and waited + left > patience:
                raise CoolingDown(
                    f"{provider} has asked for a pause of another {left:.1f} s",
                    retry_after=left,
                    context={"provider": provider, "model": model},
                )
            if self._changed is None:
                self._changed = asyncio.Event()
            await self._clock.wait(self._changed, left + self._clock.spread(min(left * _SPREAD, 1.0)))
        return self._clock.monotonic() - began

    async def sit_out(self, identity: Identity, patience: float | None) -> float | None:
        """Of who is to be called, by `provider`, `model` and `key` where they are known; what is left of the patience then."""
        known = identity if isinstance(identity, Mapping) else dimensions.current()
        provider = known.get("provider")
        if not provider:
            return patience
        models, keys = {"", known.get("model", "")}, {"", known.get("key", "")}
        for model, key in product(models, keys):
            waited = await self.wait(provider, model, key, timeout=patience)
            patience = None if patience is None else max(patience - waited, 0.0)
        return patience

    async def begin(self, provider: str, model: str = "", key: str = "", *, seconds: float) -> float:
        """Nobody of the fleet calls them for so long; the seconds that stand now. Of this process it holds in any case.

        StoreError: whether others were told is unknown.
        """
        wanted = min(units.seconds(seconds, "seconds"), _LONGEST)
        if wanted <= 0:
            return self.left(provider, model, key)
        self.used = True
        self._begin()
        whose = self._whose(provider, model, key)
        known = self._ends.get(whose, 0.0) - self._clock.monotonic()
        if wanted - known <= max(_SLACK, known * 0.1):
            return known
        self._ends[whose] = self._clock.monotonic() + wanted
        self._metrics.increment_counter(PAUSES, 1, {"provider": provider[:200]})
        INTERNAL.warning("%s %s asks for a pause of %.1f s", provider, model, wanted)
        self._untold[whose] = self._ends[whose]
        left = await calls.pause(self._store(), whose, int(wanted * 1e6), MOST, self._clock.now_us()) / 1e6
        self._changed_at = monotonic()
        self._untold.pop(whose, None)
        self._ends[whose] = max(self._ends.get(whose, 0.0), self._clock.monotonic() + left)
        return left

    async def end(self, provider: str, model: str = "", key: str = "") -> None:
        """They may be called again, everywhere."""
        whose = self._whose(provider, model, key)
        await calls.pause(self._store(), whose, 0, MOST, self._clock.now_us())
        self._changed_at = monotonic()
        self._untold.pop(whose, None)
        self._ends.pop(whose, None)
        self._wake()

    async def heed(self, provider: str, model: str = "", key: str = "", *, error: BaseException) -> float:
        """Begin the pause that an error asks for: HTTP 429, 503 or 529 that says when to come again. 0: it asks for none.

        Never raises for a store that is away: this process pauses all the same.
        """
        if replies.status(error) not in _STATUSES or not (asked := replies.wait(replies.headers(error))):
            return 0.0
        try:
            return await self.begin(provider, model, key, seconds=asked)
        except StoreError:
            return self.left(provider, model, key)

    def adopt(self, left_us: Mapping[str, int], asked_at: float) -> None:
        """What the fleet says; unless it was asked before something changed here. What it was not told of stays."""
        if asked_at < self._changed_at:
            return
        now = self._clock.monotonic()
        self._untold = {whose: end for whose, end in self._untold.items() if end > now}
        self._ends = {**self._untold, **{whose: now + left / 1e6 for whose, left in left_us.items()}}
        self._wake()

    def forget(self) -> None:
        """A forked child, or another loop: nobody waits here."""
        self._changed = None

    def afresh(self) -> None:
        """Another store, another clock: nobody pauses."""
        self._ends, self._untold = {}, {}
        self._changed_at, self.used = 0.0, False
        self._changed = None

    def _wake(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.set()

    def _whose(self, provider: str, model: str, key: str) -> str:
        """The digest; before the namespace is known, one that holds in this process only."""
        key = dimensions.key_of(key) if key else ""
        try:
            keys = self._store().keys
        except (StoreUnavailable, NotOpen):
            return f"?{hash((provider, model, key)):x}"
        if keys is not self._keys or len(self._digests) >= _MOST_DIGESTS:
            self._keys, self._digests = keys, {}
        found = self._digests.get((provider, model, key))
        if found is None:
            found = self._digests[provider, model, key] = keys.paused(provider, model, key)
        return found
