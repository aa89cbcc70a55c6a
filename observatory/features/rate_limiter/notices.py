"""What people should hear of, once in the fleet: a limit that is nearly used up, and a name that means two limits."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from hashlib import blake2b
from typing import Any, Protocol

import msgspec

from ...errors import ObservatoryError
from ...keys import Key
from ...logs import INTERNAL
from ...names import LIMIT_ALERTS, LIMIT_CONFLICTS, LIMIT_UTILIZATION
from ...store.store import Store
from ...types import Dimensions
from ...units import amount, moment, units
from .budgets import forecast, period_of, remember
from .decision import Decision
from .limit import Policy, dimensions_of
from .shape import Shape, algorithm_of
from .wanted import Wanted

_REMEMBERED = 10_000
_SHAPE_MS = 3_600_000
_TOLD_MS = 86_400_000
_USED_US = 10_000_000
_USED_STEP = 0.01
"""A limit that drains is more used with each call; it is told when it is so much more."""


_Told = tuple[str, str, float, int]
"""Limit, identity, fraction (0: it was charged at all), window."""


class Recording(Protocol):
    """What the limiter needs of the metrics."""

    def increment_counter(self, metric: str, value: int = 1, labels: Mapping[str, str] | None = None) -> None: ...
    def record_histogram(self, metric: str, value: float, labels: Mapping[str, str] | None = None) -> None: ...
    def set_gauge(self, metric: str, value: float, labels: Mapping[str, str] | None = None) -> None: ...


class Telling(Protocol):
    """What tells the fleet of something once (features/alerts)."""

    async def tell(
        self, claim: Key, claim_ms: int, kind: str, at_us: int, data: Mapping[str, Any], about: Dimensions
    ) -> bool: ...


class Notices:
    """Told by whoever sees it first; the others find it told. Beside the caller's way, never in it."""

    def __init__(self, store: Callable[[], Store], metrics: Recording, alerts: Telling) -> None:
        self._store = store
        self._metrics = metrics
        self._alerts = alerts
        self._told: set[_Told] = set()
        self._compared: dict[str, Shape] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._used: dict[str, tuple[float, int]] = {}
        """What was told last of each limit, the most used that was seen of it lately, and when."""

    def look(self, one: Wanted, decision: Decision, now_us: int) -> None:
        """After an answer of the store: is there something to tell?"""
        policy = one.policy
        if self._compared.get(policy.limit.name) != policy.shape:
            if len(self._compared) >= _REMEMBERED:
                self._compared.clear()
            self._compared[policy.limit.name] = policy.shape
            self._start(self._compare(policy))
        if not decision.capacity:
            return
        used = 1 - float(decision.remaining) / float(decision.capacity)
        told, told_us = self._used.get(policy.limit.name, (-1.0, 0))
        if used >= told + _USED_STEP or used >= 1 > told or not 0 <= now_us - told_us <= _USED_US:
            self._used[policy.limit.name] = (used, now_us)
            self._metrics.set_gauge(LIMIT_UTILIZATION, used, {"limit": policy.limit.name})
        if one.shape.unit == "usd" and used > 0:
            self._once((policy.limit.name, one.identity, 0.0, one.shape.window_of(now_us)), self._remember, one)
        if policy.limit.alert_at:
            window = one.shape.window_of(now_us)
            # What does not fit any more is refused before all is used: who is cut off is to hear of it.
            refused = one.shape.unit == "usd" and not decision.allowed and decision.retry_after is not None
            for fraction in policy.limit.alert_at:
                if used >= fraction or (refused and fraction <= 1):
                    self._once((policy.limit.name, one.identity, fraction, window), self._alert, one, decision, now_us)

    def _once(self, what: _Told, tell: Callable[..., Coroutine[Any, Any, None]], *about: Any) -> None:
        if what not in self._told:
            if len(self._told) >= _REMEMBERED:
                self._told.clear()
            self._told.add(what)
            self._start(self._surely(what, tell(what, *about)))

    async def _surely(self, what: _Told, work: Coroutine[Any, Any, None]) -> None:
        """What the store did not take is told with the next answer."""
        try:
            await work
        except ObservatoryError:
            self._told.discard(what)
            raise

    async def _remember(self, what: _Told, one: Wanted) -> None:
        await remember(self._store(), one.policy.limit, one.identity)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(self._quietly(work), name="observatory notice")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @staticmethod
    async def _quietly(work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except ObservatoryError as error:
            INTERNAL.debug("a notice was not told: %s", error)

    async def _alert(self, what: _Told, one: Wanted, decision: Decision, now_us: int) -> None:
        store, limit, (_, identity, fraction, window) = self._store(), one.policy.limit, what
        lasts_ms = max(one.shape.period_us, one.shape.full_us, 1_000_000) // 1000 + 60_000
        claim = store.keys.alert(limit.name, identity, fraction, window)
        about = dimensions_of(limit, identity)
        kind, said = _said(one, decision, fraction, now_us)
        told = {"limit": limit.name, "identity": identity, "dimensions": about, **said}
        if not await self._alerts.tell(claim, lasts_ms, kind, now_us, told, about):
            return
        self._metrics.increment_counter(LIMIT_ALERTS, 1, {"limit": limit.name, "fraction": f"{fraction:g}"})
        left = f"{decision.remaining} of {decision.capacity} {decision.unit} left"
        INTERNAL.warning("limit %s of %s: %.0f %% used, %s", limit.name, identity or "all", fraction * 100, left)

    async def _compare(self, policy: Policy) -> None:
        """Does another process of the fleet mean other numbers by this name? Each applies its own; one of them says so."""
        store, name, ours = self._store(), policy.limit.name, _spelled(policy)
        bulk, key = store.bulk(), store.keys.shape(name)
        theirs = await bulk.command("SET", key, ours, "GET", "PX", _SHAPE_MS)
        if theirs is None or theirs.decode() == ours:
            return
        both = "|".join(sorted((ours, theirs.decode())))
        pair = blake2b(both.encode(), digest_size=8).hexdigest()
        if await bulk.command("SET", f"{key}:{pair}", "1", "NX", "PX", _TOLD_MS) is not None:
            self._metrics.increment_counter(LIMIT_CONFLICTS, 1, {"limit": name})
            INTERNAL.warning("limit %s has two shapes in this fleet: %s here, %s elsewhere", name, ours, theirs.decode())

    def afresh(self) -> None:
        """Another store: nothing was told there. What is still being told is not of it."""
        for told in (self._told, self._compared, self._used):
            told.clear()
        for task in tuple(self._tasks):
            with suppress(RuntimeError):  # its loop has ended
                task.cancel()
        self._tasks.clear()

    async def aclose(self) -> None:
        """What is being told is told, or given up."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=0.5)
        for task in self._tasks:
            task.cancel()


def _said(one: Wanted, decision: Decision, fraction: float, now_us: int) -> tuple[str, dict[str, Any]]:
    """What is told, and its type. Money is Decimal; what is held counts as spent until it is settled."""
    spent, period = decision.capacity - decision.remaining, period_of(one.shape, now_us)
    ends_us = now_us + int(decision.reset_after * 1e6) if period is None else period.start_us + period.length_us
    resets_at = f"{moment(ends_us):%Y-%m-%dT%H:%M:%SZ}"
    if decision.unit != "usd":
        used = {"unit": decision.unit, "used": spent, "amount": decision.capacity}
        return "limit.threshold", {"threshold": fraction, **used, "resets_at": resets_at}
    going = None if period is None else amount(forecast(units(spent, "usd"), period, now_us), "usd")
    money = {"spent_usd": spent, "amount_usd": decision.capacity, "resets_at": resets_at, "forecast_usd": going}
    return "budget.threshold", {"threshold": fraction, **money}


def _spelled(policy: Policy) -> str:
    limit = policy.limit
    shape = msgspec.json.encode(
        {
            "amount": str(limit.amount),
            "per": str(limit.per),
            "burst": str(limit.burst or limit.amount),
            "unit": limit.unit,
            "algorithm": algorithm_of(limit),
            "by": limit.dimensions,
        }
    )
    return shape.decode()
