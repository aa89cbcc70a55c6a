"""When a breaker opens, and for how long: its settings in whole numbers, as the script takes them."""

from collections.abc import Callable
from typing import Any, NamedTuple

from ... import units
from ...errors import ConfigurationError, InvalidArgument
from ...settings import BreakerSettings

JITTER = 0.2
"""An opening lasts up to this fraction longer, at random: what opened together is not tried together."""
_LEAST_US = 1000
_MOST_US = 86_400_000_000
_MOST_CALLS = 10**9


class Terms(NamedTuple):
    """failure_ppm: of a million calls. slow_after: seconds, or None."""

    failure_ppm: int
    min_calls: int
    consecutive: int
    window_us: int
    open_us: int
    slow_after: float | None

    @classmethod
    def of(cls, name: str, settings: BreakerSettings, layer: str = "") -> "Terms":
        """layer: what stands before the name where something is wrong. ConfigurationError names the breaker and the field."""
        where = f"{layer}breakers.{name}"
        rate = settings.failure_rate
        if not 0 < rate <= 1:
            raise _wrong(where, "failure_rate", rate, "a fraction above 0, at most 1")
        return cls(
            failure_ppm=max(round(rate * 1_000_000), 1),
            min_calls=_count(where, "min_calls", settings.min_calls, 1),
            consecutive=_count(where, "consecutive", settings.consecutive, 0),
            window_us=_time(where, "window", settings.window),
            open_us=_time(where, "open_for", settings.open_for),
            slow_after=None if settings.slow_after is None else _time(where, "slow_after", settings.slow_after) / 1e6,
        )

    def opening_us(self, spread: Callable[[float], float]) -> int:
        """How long it is open if it opens now. spread: a random part of as many seconds."""
        return self.open_us + int(spread(JITTER) * self.open_us)


def decided(state: object, reason: object) -> tuple[str, str]:
    """What somebody has decided, checked. InvalidArgument says what is wrong. To let go needs no reason: none is kept."""
    if not isinstance(state, str) or state not in ("closed", "open", "auto"):
        raise InvalidArgument(f"a breaker is forced closed, open or auto, got {state!r:.40}")
    if reason is None and state == "auto":
        return state, ""
    if not isinstance(reason, str) or not reason.strip() or not reason.isprintable():
        raise InvalidArgument("reason must say why, in one line", remedy='reason="provider announced an outage"')
    return state, " ".join(reason.split())[:500]


def _wrong(where: str, field: str, value: object, wanted: str) -> ConfigurationError:
    return ConfigurationError(f"{where}.{field}={units.shown(value, 40)}: must be {wanted}")


def _count(where: str, field: str, value: int, least: int) -> int:
    if not least <= value <= _MOST_CALLS:
        raise _wrong(where, field, value, f"a whole number from {least} to {_MOST_CALLS}")
    return value


def _time(where: str, field: str, value: Any) -> int:
    try:
        found = units.microseconds(value, field)
    except InvalidArgument as error:
        raise ConfigurationError(f"{where}.{error.message}", remedy=error.remedy) from error
    if not _LEAST_US <= found <= _MOST_US:
        raise _wrong(where, field, value, "1 ms to 1 day")
    return found
