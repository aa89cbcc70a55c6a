"""What stays when not everything can: SIEVE, bounded by entries and by bytes, so that a scan does not wash out what is used.

New entries stand at the front. A hand walks from the back to the front: what was used since it last came by stays where it is,
the first that was not goes. (Zhang et al., NSDI 2024.) A hit only sets a mark.

Ours and not a library's, by measurement (`benchmarks/bench_cache_near.py` prints the costs): theine's hit alone costs what a
whole near hit may; moka-py keeps less of a used set through scans than plain LRU does; cachetools and pylru know no scans.
"""

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar


class Entry:
    """What is kept, and its place in the row. Whoever finds it useful sets `used`."""

    __slots__ = ("_newer", "_older", "key", "size", "used")

    def __init__(self, key: Hashable, size: int) -> None:
        self.key = key
        self.size = size
        self.used = False
        self._newer: Entry | None = None
        self._older: Entry | None = None


E = TypeVar("E", bound=Entry)


class Sieve(Generic[E]):
    """Entries by their keys; never more than max_entries, nor more than max_bytes of sizes. left: told of each that goes.

    `entries` is read directly on the way of a hit: `entry = sieve.entries.get(key)`, then `entry.used = True`.
    """

    def __init__(self, max_entries: int, max_bytes: int, left: Callable[[E], None]) -> None:
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.entries: dict[Hashable, E] = {}
        self.bytes = 0
        self.evicted = 0
        self._left = left
        self._front: Entry | None = None
        self._back: Entry | None = None
        self._hand: Entry | None = None

    def put(self, entry: E) -> bool:
        """In the place of what has its key. False: larger than everything may be, so nothing has that key now."""
        before = self.entries.get(entry.key)
        if before is not None:
            self.remove(before)
            entry.used = True  # it was worth reading again
        if entry.size > self.max_bytes or self.max_entries < 1:
            return False
        while len(self.entries) >= self.max_entries or self.bytes + entry.size > self.max_bytes:
            self._evict()
        self.entries[entry.key] = entry
        self.bytes += entry.size
        entry._older, self._front = self._front, entry  # noqa: SLF001 (the row is this class's)
        if entry._older is None:  # noqa: SLF001
            self._back = entry
        else:
            entry._older._newer = entry  # noqa: SLF001
        return True

    def remove(self, entry: E) -> None:
        """Nothing happens when it is not (or no longer) the entry of its key."""
        if self.entries.get(entry.key) is not entry:
            return
        del self.entries[entry.key]
        self.bytes -= entry.size
        newer, older = entry._newer, entry._older  # noqa: SLF001
        if self._hand is entry:
            self._hand = newer
        if newer is None:
            self._front = older
        else:
            newer._older = older  # noqa: SLF001
        if older is None:
            self._back = newer
        else:
            older._newer = newer  # noqa: SLF001
        entry._newer = entry._older = None  # noqa: SLF001
        self._left(entry)

    def clear(self) -> None:
        """Everything goes."""
        for entry in list(self.entries.values()):
            self.remove(entry)

    def _evict(self) -> None:
        hand = self._hand or self._back
        while hand is not None and hand.used:
            hand.used = False
            hand = hand._newer or self._back  # noqa: SLF001
        if hand is not None:
            self._hand = hand
            self.evicted += 1
            self.remove(self.entries[hand.key])
