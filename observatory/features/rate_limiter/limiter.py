"""Who asks the script."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import msgspec

from ... import dimensions, units
from ...errors import ConfigurationError, InvalidArgument, ObservatoryError, UnknownLimit
from ...keys import Key
from ...names import Metric
from ...settings import LimitSettings
from ...store.script import lua
from ...store.store import Store
from ...types import Amount, Clock, Identity, Unit
from .decision import Decision
from .limit import Limit, Shape, bucket_of

Cost = Amount | Mapping[Unit, Amount]
"""One amount, or one per unit: {"tokens": 900}."""

DEFAULT = Limit("api", 1000, per=60, burst=100)
"""The one limit that is there out of the box."""


@lua("rate_limiter/check")
def _check(
    store: Store,
    *,
    bucket: Key,
    now_us: int,
    capacity_us: int,
    capacity_part: int,
    cost_us: int,
    cost_part: int,
    denominator: int,
) -> Awaitable[list[int]]: ...


class Recording(Protocol):
    """What the limiter needs of the metrics."""

    def increment_counter(self, metric: str, value: int = 1, labels: Mapping[str, str] | None = None) -> None: ...


class RateLimiter:
    """identity=None takes the bound dimensions. A refusal is a value; an outage is StoreUnavailable, never a refusal."""

    def __init__(
        self, store: Callable[[], Store], clock: Clock, metrics: Recording, settings: Mapping[str, LimitSettings]
    ) -> None:
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._declared = {DEFAULT.name: DEFAULT}
        self.use(settings)

    def use(self, settings: Mapping[str, LimitSettings]) -> None:
        """Lay these settings over what code declares. ConfigurationError names the limit and the field."""
        self._settings = settings
        self._inline: dict[Limit, tuple[Limit, Shape]] = {}
        declared = dict(self._declared)
        for name, setting in settings.items():
            if name not in declared and setting.amount is not None and setting.per is not None:
                declared[name] = Limit(name, amount=1, per=1)
        self._limits = {name: self._layered(limit) for name, limit in declared.items()}

    def define(self, *limits: Limit) -> None:
        """Defaults for these names; a setting of the same name wins, field by field. Again: takes effect on the next call."""
        for limit in limits:
            if not isinstance(limit, Limit):
                raise InvalidArgument(f"define takes limits, got {limit!r:.80}")
            self._limits[limit.name] = self._layered(limit)
            self._declared[limit.name] = limit

    def _layered(self, limit: Limit) -> tuple[Limit, Shape]:
        setting = self._settings.get(limit.name)
        if setting is None:
            return limit, Shape.of(limit)
        given = {field: value for field, value in msgspec.structs.asdict(setting).items() if value is not None}
        try:
            layered = msgspec.structs.replace(limit, **given)
        except ObservatoryError as error:
            raise ConfigurationError(f"limits.{limit.name}: {error.message}", remedy=error.remedy) from error
        return layered, Shape.of(layered)

    def limits(self) -> tuple[Limit, ...]:
        """As they stand now, every layer applied."""
        return tuple(limit for limit, _ in self._limits.values())

    def _find(self, limit: str | Limit) -> tuple[Limit, Shape]:
        if isinstance(limit, Limit):
            found = self._inline.get(limit)
            if found is None:
                found = self._layered(limit)
                known = self._limits.get(limit.name)
                if known is not None and known[1] != found[1]:
                    # One bucket under two shapes: whoever brings the other one would change it for everybody.
                    raise InvalidArgument(
                        f"limit {limit.name} is defined here already, with other numbers", remedy="Ask by its name"
                    )
                if len(self._inline) >= 1024:
                    self._inline.clear()
                self._inline[limit] = found
            return found
        found = self._limits.get(limit) if isinstance(limit, str) else None
        if found is None:
            raise self._unknown(limit)
        return found

    def _unknown(self, name: object) -> ObservatoryError:
        import difflib

        if not isinstance(name, str):
            return InvalidArgument(f"limit must be a name or a Limit, got {name!r:.80}")
        defined = ", ".join(sorted(self._limits))
        close = difflib.get_close_matches(name, self._limits, n=1)
        hint = f'Did you mean "{close[0]}"? ' if close else ""
        return UnknownLimit(
            f'no limit named "{name:.80}"; defined: {defined}',
            remedy=f"{hint}Define it with obs.rate_limiter.define(Limit(...)) or [limits.{name:.64}]",
        )

    async def check(self, limit: str | Limit, identity: Identity | None = None, cost: Cost = 1) -> Decision:
        """Take now or be told when. Never waits, never raises for a refusal. cost 0 looks.

        InvalidArgument or UnknownLimit: nothing was asked. StoreUnavailable, or cancelled: whether the cost was taken is
        unknown; it is not given back (the safe side).
        """
        found, shape = self._find(limit)
        bucket = bucket_of(found, dimensions.current() if identity is None else identity)
        asked = self._cost(found, cost)
        cost_us, cost_part = shape.time_of(asked)
        # A cost that never fits is still asked, clamped, so that the answer says what remains; the script refuses it.
        if asked > shape.capacity:
            cost_us, cost_part = shape.capacity_us + 1, shape.capacity_part
        store = self._store()
        allowed, debt_us, debt_part, wait_us = await _check(
            store,
            bucket=store.keys.bucket(found.name, bucket),
            now_us=self._clock.now_us(),
            capacity_us=shape.capacity_us,
            capacity_part=shape.capacity_part,
            cost_us=cost_us,
            cost_part=cost_part,
            denominator=shape.denominator,
        )
        if not allowed:
            self._metrics.increment_counter(Metric.RATE_LIMIT_REJECTIONS, 1, {"limit": found.name, "shadow": "false"})
        return Decision(
            allowed=bool(allowed),
            limit=found.name,
            identity=bucket,
            unit=shape.unit,
            cost=units.amount(asked, shape.unit),
            remaining=units.amount(shape.remaining(debt_us, debt_part), shape.unit),
            capacity=units.amount(shape.capacity, shape.unit),
            retry_after=None if asked > shape.capacity else wait_us / 1e6,
            reset_after=(debt_us + (debt_part > 0)) / 1e6,
            quota=units.amount(shape.amount, shape.unit),
            window=shape.period_us / 1e6,
        )

    async def peek(self, limit: str | Limit, identity: Identity | None = None) -> Decision:
        """check with cost 0, by its name."""
        return await self.check(limit, identity, 0)

    @staticmethod
    def _cost(limit: Limit, cost: Cost) -> int:
        if isinstance(cost, Mapping):
            if limit.unit not in cost and limit.unit != "requests":
                raise InvalidArgument(
                    f"limit {limit.name} counts {limit.unit}, and the cost brings {', '.join(cost) or 'nothing'}"
                )
            cost = cost.get(limit.unit, 1)
        return units.units(cost, limit.unit, "cost")
