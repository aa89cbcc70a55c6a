"""A batch on its way to metrics/flush, and what workers hand to events/apply."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from ...keys import WINDOW_US, Key, Keys
from ...names import Definition
from ...units import NANO
from .waiting import Group

GAUGE_KEEP_MS = 10_000
"""How long a gauge stands whose process was killed. Longer where flushes are rarer: see `gauge_keep_ms`."""
MAX_FIELDS = 400
"""Additions per script call, so that no flush holds the server for long."""


class Batch(msgspec.Struct, frozen=True):
    """What one script call adds. Frozen when it is made; sent as it is, however often."""

    window_us: int
    groups: tuple[Group, ...]
    gauges: tuple[tuple[str, float], ...] | None
    """Field and value of every gauge of the process; None leaves them as they are."""

    def targets(self, keys: Keys, partition: int) -> list[Key]:
        return targets(keys, partition, ((self.window_us, group) for group in self.groups))

    def deltas(self) -> list[str | int | float]:
        flat: list[str | int | float] = [item for pair in self.gauges or () for item in pair]
        flat.extend(deltas((self.window_us, group) for group in self.groups))
        return flat


def targets(keys: Keys, partition: int, groups: Iterable[tuple[int, Group]]) -> list[Key]:
    """The three keys of every group: lifetime totals, the window, and the list of the metric's open windows."""
    found: list[Key] = []
    for window_us, group in groups:
        found.append(keys.metric_total(partition, group.metric))
        found.append(keys.metric_window(partition, window_us // WINDOW_US, group.metric))
        found.append(keys.listed_windows(partition, group.metric))
    return found


def deltas(groups: Iterable[tuple[int, Group]]) -> Iterator[str | int]:
    """The groups as lua/metrics/_add.lua reads them, in the order of `targets`."""
    for window_us, group in groups:
        additions = group.additions
        if group.definition.kind == "gauge":
            additions = [*additions, *_values(additions)]
        yield group.metric
        yield msgspec.json.encode(group.definition).decode()
        yield window_us // WINDOW_US
        yield len(additions)
        for field, number in additions:
            yield field
            yield number


def _values(additions: list[tuple[str, int]]) -> Iterator[tuple[str, Any]]:
    """The values of gauges, of which the store keeps the lowest and the highest; of several samples in one, their mean."""
    sums: dict[str, list[int]] = {}
    for field, number in additions:
        part, _, text = field.partition("|")
        sums.setdefault(text, [0, 0, 0])["kwn".index(part)] += number
    for text, (samples, whole, nano) in sums.items():
        if samples:
            yield f"v|{text}", repr((whole + nano / NANO) / samples)


def gauge_keep_ms(flush_every: float) -> int:
    """A process must miss three of its own renewals before its gauges go."""
    return max(GAUGE_KEEP_MS, int(3000 * flush_every))


def window_of(moment_us: int) -> int:
    """The start of the window that a moment falls into."""
    return moment_us - moment_us % WINDOW_US


def descriptions(definitions: Mapping[str, Definition]) -> Iterator[tuple[Group, ...]]:
    """What metrics are, in portions, without any addition."""
    groups = [Group(metric, definition, []) for metric, definition in definitions.items()]
    for begins in range(0, len(groups), MAX_FIELDS):
        yield tuple(groups[begins : begins + MAX_FIELDS])


def pieces(groups: list[Group]) -> Iterator[tuple[Group, ...]]:
    """The groups in portions of at most MAX_FIELDS additions. The three of a gauge's sample stay together: of one value."""
    portion: list[Group] = []
    room = MAX_FIELDS
    for group in groups:
        together = 3 if group.definition.kind == "gauge" else 1
        rest = group.additions
        while rest:
            fits = room - room % together
            taken, rest = rest[:fits], rest[fits:]
            if taken:
                portion.append(group._replace(additions=taken))
                room -= len(taken)
            if rest or room == 0:
                yield tuple(portion)
                portion, room = [], MAX_FIELDS
    if portion:
        yield tuple(portion)
