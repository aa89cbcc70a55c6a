"""Which limits there are: what code declares, what settings lay over it, and which of them a call meets."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from ...errors import ConfigurationError, InvalidArgument, ObservatoryError, UnknownLimit
from ...settings import LimitSettings
from ...types import Dimensions, Unit
from .limit import Limit, Policy, fields_of

DEFAULT = Limit("api", 1000, per=60, burst=100)
"""The one limit that is there out of the box."""
_MOST_INLINE = 1024


class Policies:
    """The limits of one process, by name."""

    def __init__(self, settings: Mapping[str, LimitSettings], layer: str = "") -> None:
        self._declared = {DEFAULT.name: DEFAULT}
        self.version = 0
        """Grows with every change: what was remembered under another one is not true any more."""
        self.use(settings, layer)

    def use(self, settings: Mapping[str, LimitSettings], layer: str = "", only: Iterable[Limit] | None = None) -> None:
        """Lay these settings over what code declares. layer: where they were read. ConfigurationError names it, the limit and
        the field. only: in place of whatever code has declared so far."""
        self._layer = f"{layer}: " if layer else ""
        if only is not None:
            self._declared = {limit.name: limit for limit in only}
        declared = dict(self._declared)
        for name, setting in settings.items():
            complete = setting.per is not None or setting.unit == "slots"
            if name not in declared and setting.amount is not None and complete:
                slots = setting.unit == "slots"
                declared[name] = Limit(name, 1, unit="slots") if slots else Limit(name, 1, per=1)
        self._policies = {name: self._layered(limit, settings) for name, limit in declared.items()}
        self._settings = settings
        self._inline: dict[int, tuple[Limit, Policy]] = {}
        self._changed()

    def _changed(self) -> None:
        self.version += 1
        self.any_match = any(policy.limit.match is not None for policy in self._policies.values())
        """Whether there is one that applies to calls on its own."""

    def define(self, *limits: Limit) -> None:
        """Defaults for these names. Again: takes effect on the next call."""
        for limit in limits:
            if not isinstance(limit, Limit):
                raise InvalidArgument(f"define takes limits, got {limit!r:.80}")
        layered = {limit.name: self._layered(limit, self._settings) for limit in limits}
        self._declared.update({limit.name: limit for limit in limits})
        self._policies.update(layered)
        self._inline.clear()
        self._changed()

    def _layered(self, limit: Limit, settings: Mapping[str, LimitSettings], *, inline: bool = False) -> Policy:
        setting = settings.get(limit.name)
        if setting is None:
            return Policy(limit, inline=inline)
        try:
            given = fields_of(setting)
            if "overrides" in given:
                given["overrides"] = {**limit.overrides, **given["overrides"]}
            return Policy(msgspec.structs.replace(limit, **given), inline=inline)
        except ObservatoryError as error:
            said = error.message.removeprefix(f"limit {limit.name}: ")
            raise ConfigurationError(f"{self._layer}limits.{limit.name}: {said}", remedy=error.remedy) from error

    @property
    def declared(self) -> tuple[Limit, ...]:
        """As code has them, and no setting."""
        return tuple(self._declared.values())

    def __iter__(self) -> Iterator[Limit]:
        return iter([policy.limit for policy in self._policies.values()])

    def get(self, name: str) -> Policy | None:
        return self._policies.get(name)

    def find(self, limit: str | Limit) -> Policy:
        """A limit by its name, or one that is brought along. UnknownLimit says what there is."""
        if isinstance(limit, str):
            found = self._policies.get(limit)
            if found is None:
                raise self._unknown(limit)
            return found
        if not isinstance(limit, Limit):
            raise InvalidArgument(f"limit must be a name or a Limit, got {limit!r:.80}")
        known = self._inline.get(id(limit))
        if known is not None and known[0] is limit:
            return known[1]
        policy = self._layered(limit, self._settings, inline=limit.name not in self._policies)
        named = self._policies.get(limit.name)
        if named is not None and named.shape != policy.shape:
            # One bucket under two shapes: whoever brings the other one would change it for everybody.
            raise InvalidArgument(f"limit {limit.name} is defined here already, with other numbers", remedy="Ask by its name")
        if len(self._inline) >= _MOST_INLINE:
            self._inline.clear()
        self._inline[id(limit)] = (limit, policy)
        return policy

    def several(self, limits: Iterable[Any]) -> list[Policy]:
        """Limits of one call; none twice."""
        found = [self.find(limit) for limit in limits]
        names = [policy.limit.name for policy in found]
        if not names:
            raise InvalidArgument("no limit was named", remedy='Name one, several, or "*"')
        if len(names) > 64:
            raise InvalidArgument(f"at most 64 limits in one call, got {len(names)}")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InvalidArgument(f"limit {twice} is named twice in one call", remedy="Name it once, with the whole cost")
        return found

    def match(self, given: Dimensions, wanted: Iterable[Unit]) -> list[Policy]:
        """Every limit whose `match` fits and whose unit the call brings."""
        brought = set(wanted)
        return [policy for policy in self._policies.values() if policy.limit.unit in brought and policy.limit.matches(given)]

    def idle(self) -> dict[str, str]:
        """By name what settings say of limits that there are not, each with a sentence that says so."""
        found = {}
        for name in self._settings:
            if name not in self._policies:
                close = difflib.get_close_matches(name, self._policies, n=1)
                found[name] = self._idle(name) + (f": did you mean {close[0]}?" if close else "")
        return found

    def _idle(self, name: str) -> str:
        return f"{self._layer}[limits.{name}] belongs to no limit that code defines, and has no amount and per of its own"

    def _unknown(self, name: str) -> ObservatoryError:
        close = difflib.get_close_matches(name[:64], self._policies, n=1)
        hint = f'Did you mean "{close[0]}"? ' if close else ""
        if name in self._settings:
            return UnknownLimit(
                self._idle(name),
                remedy=f"{hint}Write amount and per in that table, or define it with obs.rate_limiter.define(Limit(...))",
            )
        return UnknownLimit(
            f'no limit named "{name:.80}"; defined: {", ".join(sorted(self._policies))}',
            remedy=f"{hint}Define it with obs.rate_limiter.define(Limit(...)) or [limits.{name:.64}]",
        )
