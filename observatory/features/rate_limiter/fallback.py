"""Redis away: each limit by its own policy, each process with its share, and what was spent meanwhile merged back."""

import secrets
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ...clock import RoomClock
from ...errors import StoreUnavailable
from ...keys import Key
from ...logs import INTERNAL
from .desk import Part
from .limit import Policy
from .shape import Shape
from .wanted import Verdict, Wanted

MOST_BUCKETS = 10_000
"""Identities that one process limits while the store is away; further ones are refused."""
QUIET = 2.0
"""Seconds without a failure, after which all of a cluster is taken to be back."""
HEAD_START = 1.5
"""Seconds: what has grown since the store was last heard of is there at once, at most that of so long. Else a moment's stall
would be answered with refusals."""


class _Share:
    """One process's part of a limit: it starts with what grew since the store went, since what was left then is not known.

    Of every limit a bucket is made, also of windows and slots: the rate and the capacity over the instances.
    """

    __slots__ = ("_at", "_clock", "_free", "_rate", "capacity", "id", "part", "shape", "spent")

    def __init__(self, shape: Shape, part: Part, instances: int, heard_at: float, held: int, clock: RoomClock) -> None:
        self._clock = clock
        self.shape = shape
        self.part = part
        self.id = secrets.token_hex(8)
        self.capacity = shape.capacity / instances
        self._rate = 0.0 if shape.kind == "c" else shape.amount / instances / (shape.period_us / 1e6)
        # Slots do not grow back: what may be held at once is the share itself.
        self._free = float(max(int(self.capacity) - held, 0)) if shape.kind == "c" else 0.0
        self._at = max(heard_at, clock.monotonic() - HEAD_START)
        self.spent = 0

    def look(self) -> float:
        now = self._clock.monotonic()
        if self._rate:
            self._free = min(self._free + (now - self._at) * self._rate, self.capacity)
        self._at = now
        return self._free

    def wait(self, cost: int) -> float | None:
        """Seconds until the cost fits; None: never."""
        free = self.look()
        if cost <= free:
            return 0.0
        if cost > self.capacity:
            return None
        return (cost - free) / self._rate if self._rate else 1.0

    def take(self, cost: int) -> None:
        self._free -= cost
        self.spent += cost


class Owed(NamedTuple):
    """What was spent of a limit while the store was away."""

    part: Part
    id: str
    spent: int


class Fallback:
    """Decides while the store cannot. instances: the most that were seen in the last minute; 0: not known."""

    def __init__(self, instances: Callable[[], int], heard_at: Callable[[], float], clock: RoomClock) -> None:
        self._clock = clock
        self._instances = instances
        self._heard_at = heard_at
        self._shares: dict[Key, _Share] = {}
        self._held: dict[Key, int] = {}
        """Slots that this process holds at the store: they are of its share too."""
        self._told: set[str] = set()
        self._since = self._failed_at = 0.0
        self._decided = 0

    @property
    def is_active(self) -> bool:
        return self._since > 0

    def decide(self, wanted: Sequence[Wanted], error: StoreUnavailable, *, take: bool) -> list[Verdict]:
        """A verdict for each, all or nothing. Raises the error, with the limit's name and what decides, when a limit is
        `closed`, or no share of it is known."""
        self._failed_at = self._clock.monotonic()
        self._since = self._since or self._failed_at
        waits: list[float | None] = []
        shares: list[_Share | None] = []
        for one in wanted:
            share = self._share(one, error)
            shares.append(share)
            waits.append(0.0 if share is None else share.wait(one.asked))
        allowed = all(wait == 0.0 or one.shape.shadow for wait, one in zip(waits, wanted, strict=True))
        verdicts = []
        for one, share, wait in zip(wanted, shares, waits, strict=True):
            fits = wait == 0.0
            if share is not None and allowed and fits and take:
                share.take(one.asked)
            left = one.shape.capacity if share is None else int(share.look())
            verdicts.append(Verdict(fits, left, wait, 0.0, plain=False))
        self._decided += 1
        return verdicts

    def hold_slots(self, wanted: Sequence[Wanted], sign: int) -> None:
        """Slots were taken at the store (1), or given back to it (-1)."""
        for one in wanted:
            if one.shape.kind == "c":
                held = self._held.pop(one.key, 0) + sign * one.asked
                if held > 0:
                    self._held[one.key] = held

    def give_back(self, key: Key, units: int) -> None:
        """A hold that was taken here is settled here: `units` more are free, or (negative) fewer."""
        share = self._shares.get(key)
        if share is not None:
            share.take(-units)
            share.spent = max(share.spent, 0)

    def _share(self, one: Wanted, error: StoreUnavailable) -> _Share | None:
        limit = one.policy.limit
        if limit.on_store_down == "open":
            self._tell(one.policy, "open")
            return None
        share = self._shares.get(one.part.key)
        if share is None or share.shape != one.shape:
            instances = self._instances()
            whole = one.shape.capacity // instances if instances else 0
            if limit.on_store_down == "closed" or whole < 1 or len(self._shares) >= MOST_BUCKETS:
                self._tell(one.policy, "closed")
                raise _closed(one, error, instances) from error
            self._tell(one.policy, f"local, 1 of {instances} shares")
            share = self._shares[one.part.key] = _Share(
                *(one.shape, one.part, instances, self._heard_at()), self._held.get(one.part.key, 0), self._clock
            )
        return share

    def _tell(self, policy: Policy, how: str) -> None:
        if policy.limit.name not in self._told:
            self._told.add(policy.limit.name)
            INTERNAL.error("store away: limit %s is %s", policy.limit.name, how)

    def back(self, keys: Sequence[Key] | None) -> list[Owed]:
        """The store answers again: what has to be told to it. keys: of a cluster it may be only their part that is back; all
        of it is when nothing has failed for a while."""
        whole = keys is None or self._clock.monotonic() - self._failed_at > QUIET
        answered = {key: one for key, one in self._shares.items() if whole or key in (keys or ())}
        self._shares = {key: one for key, one in self._shares.items() if key not in answered}
        owed = [
            Owed(share.part._replace(cost=cost, part=part), share.id, share.spent)
            for share in answered.values()
            if share.spent and share.shape.kind != "c"
            for cost, part in [share.shape.time_of(share.spent)]
        ]
        if not whole:
            return owed
        if self._told:
            seconds = self._clock.monotonic() - self._since
            INTERNAL.info("store back after %.1f s: %d local decisions merged", seconds, self._decided)
        self._told.clear()
        self._since, self._decided = 0.0, 0
        return owed

    def forget(self) -> None:
        """Another store: what this one is owed is nobody's."""
        self._shares, self._held = {}, {}
        self._told.clear()
        self._since = self._failed_at = 0.0
        self._decided = 0


def _closed(one: Wanted, error: StoreUnavailable, instances: int) -> StoreUnavailable:
    """The outage as this limit has it: which one, and the setting that decides."""
    limit = one.policy.limit
    if limit.on_store_down == "closed":
        remedy = 'Its on_store_down="closed" says so; "local" goes on with a share in each process, "open" lets all pass'
    else:
        why = (
            "how many instances share it is not known yet"
            if not instances
            else f"a share of 1 / {instances} is less than one of its {one.shape.capacity} {one.shape.unit}"
            if one.shape.capacity < instances
            else f"this process limits {MOST_BUCKETS:,} identities by itself already"
        )
        remedy = f'Its on_store_down="local" has nothing to give: {why}; "open" lets all pass'
    context = {**error.context, "limit": limit.name}
    return StoreUnavailable(
        f"limit {limit.name}: {error.message}", remedy=remedy, retry_after=error.retry_after, context=context
    )
