"""What a worker can do: take partitions of the event streams, and roles that one worker of the fleet has at a time.

A role is a name, how often its step is due, and the step; ROLES has one line for each. A step gets the fence of its lease: what
it writes to the store it writes with the fence, or in a way that does no harm when another has begun meanwhile.
"""

import difflib
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, Protocol

from ..client import Observatory
from ..duties import COMPACT_EVERY
from ..errors import ConfigurationError
from ..features.metrics.otlp import STEP_EVERY
from .audit import Audit
from .delivery import Delivery

EVENTS: Final = "events"
"""Taking partitions: any number of workers have this one at once."""
ALL: Final = "all"


class Role(Protocol):
    """What is done by one worker at a time."""

    @property
    def name(self) -> str: ...
    @property
    def every(self) -> float:
        """Seconds from the beginning of one step to that of the next."""

    async def step(self, fence: int) -> None:
        """Do it once. Cancelled when the lease is lost."""

    def leave(self) -> None:
        """The role is not ours any more. No I/O."""


class Chore:
    """A role that is one call and leaves nothing behind."""

    def __init__(self, name: str, every: float, run: Callable[[], Awaitable[object]]) -> None:
        self.name = name
        self.every = every
        self._run = run

    async def step(self, fence: int) -> None:
        await self._run()

    def leave(self) -> None:
        pass


ROLES: Final[dict[str, Callable[[Observatory], Role]]] = {
    Audit.name: Audit,
    Delivery.name: Delivery,
    "compaction": lambda obs: Chore("compaction", COMPACT_EVERY, obs.metrics.compact),
    "otlp": lambda obs: Chore("otlp", STEP_EVERY, obs.otlp.step),
}
"""The leader roles, by name."""


def chosen(roles: Iterable[str]) -> tuple[str, ...]:
    """The roles meant by a list of names. ConfigurationError names one that is none, and those there are."""
    known = (EVENTS, *sorted(ROLES))
    wanted = [name for text in roles for name in text.replace(",", " ").split()]
    for name in wanted:
        if name != ALL and name not in known:
            near = difflib.get_close_matches(name, known, 1)
            guess = f'Did you mean "{near[0]}"? ' if near else ""
            raise ConfigurationError(
                f"worker.roles: no role named {name!r:.60}", remedy=f"{guess}Known: {ALL}, {', '.join(known)}"
            )
    if not wanted:
        raise ConfigurationError("worker.roles: none is given", remedy=f"Known: {ALL}, {', '.join(known)}")
    return known if ALL in wanted else tuple(name for name in known if name in wanted)


def wanted(roles: Iterable[str], obs: Observatory) -> tuple[str, ...]:
    """The roles that a worker stands for. Without webhooks nobody carries alerts: one who has some must be able to lead.
    ConfigurationError where that was asked for by its name."""
    asked = tuple(roles)
    names = chosen(asked)
    if Delivery.name not in names or obs.settings.alerts.webhooks:
        return names
    if ALL not in [name for text in asked for name in text.replace(",", " ").split()]:
        raise ConfigurationError(
            f"worker.roles: {Delivery.name} has nobody to tell: no webhook is configured",
            remedy="Write [[alerts.webhooks]] with url and secret_file, or leave the role out",
        )
    return tuple(name for name in names if name != Delivery.name)


def presence_of(roles: Iterable[str]) -> str:
    """What such a worker is among the others. Partitions are divided among those that take them, so others are no peers."""
    return "worker" if EVENTS in roles else "leader"
