"""A batch on its way to metrics/flush, and what workers hand to events/apply."""

from collections.abc import Iterable, Iterator

import msgspec

from ...keys import WINDOW_US, Key, Keys
from .waiting import Group

KEEP_WINDOWS_MS = 25 * 3600 * 1000
"""How long a 10 s window is kept: a day, and an hour for whoever asks late."""
GAUGE_KEEP_MS = 30_000
MAX_FIELDS = 2000
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
        flat.extend(deltas(self.groups))
        return flat


def targets(keys: Keys, partition: int, groups: Iterable[tuple[int, Group]]) -> list[Key]:
    """The two hashes of every group: lifetime totals, and the window."""
    found: list[Key] = []
    for window_us, group in groups:
        found += keys.metric_total(partition, group.metric), keys.metric_window(partition, window_us, group.metric)
    return found


def deltas(groups: Iterable[Group]) -> Iterator[str | int]:
    """metric, definition, how many pairs, pairs: in the order of `targets`."""
    for group in groups:
        yield group.metric
        yield msgspec.json.encode(group.definition).decode()
        yield len(group.additions)
        for field, number in group.additions:
            yield field
            yield number


def window_of(moment_us: int) -> int:
    """The start of the window that a moment falls into."""
    return moment_us - moment_us % WINDOW_US


def pieces(groups: list[Group]) -> Iterator[tuple[Group, ...]]:
    """The groups in portions of at most MAX_FIELDS additions."""
    portion: list[Group] = []
    room = MAX_FIELDS
    for group in groups:
        rest = group.additions
        while rest:
            taken, rest = rest[:room], rest[room:]
            portion.append(group._replace(additions=taken))
            room -= len(taken)
            if room == 0:
                yield tuple(portion)
                portion, room = [], MAX_FIELDS
    if portion:
        yield tuple(portion)
