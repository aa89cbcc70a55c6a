"""Which near entries stay: against a plain model, and through scans."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observatory.features.cache.sieve import Entry, Sieve


class Model:
    """The same in words: a list, newest first, and a hand that is a key."""

    def __init__(self, max_entries: int, max_bytes: int) -> None:
        self.max_entries, self.max_bytes = max_entries, max_bytes
        self.row: list[list[int]] = []  # key, size, used
        self.hand: int | None = None
        self.gone: list[int] = []

    def find(self, key: int) -> list[int] | None:
        return next((one for one in self.row if one[0] == key), None)

    def use(self, key: int) -> bool:
        one = self.find(key)
        if one is not None:
            one[2] = 1
        return one is not None

    def remove(self, key: int) -> None:
        one = self.find(key)
        if one is not None:
            at = self.row.index(one)
            if self.hand == key:
                self.hand = self.row[at - 1][0] if at else None
            del self.row[at]
            self.gone.append(key)

    def put(self, key: int, size: int) -> None:
        used = int(self.find(key) is not None)
        self.remove(key)
        if size > self.max_bytes:
            return
        while len(self.row) >= self.max_entries or sum(one[1] for one in self.row) + size > self.max_bytes:
            keys = [one[0] for one in self.row]
            at = keys.index(self.hand) if self.hand is not None else len(self.row) - 1
            while self.row[at][2]:
                self.row[at][2] = 0
                at = at - 1 if at else len(self.row) - 1
            self.hand = self.row[at][0]
            self.remove(self.hand)
        self.row.insert(0, [key, size, used])


steps = st.lists(st.tuples(st.sampled_from(("put", "use", "remove")), st.integers(0, 9), st.integers(0, 12)), max_size=80)


@given(steps, st.integers(1, 6), st.integers(1, 30))
def test_it_is_what_the_words_say(todo: list[tuple[str, int, int]], max_entries: int, max_bytes: int) -> None:
    """Every step leaves the same row, the same bytes, and tells of the same that left; both bounds always hold."""
    gone: list[object] = []
    sieve: Sieve[Entry] = Sieve(max_entries, max_bytes, lambda entry: gone.append(entry.key))
    model = Model(max_entries, max_bytes)
    for step, key, size in todo:
        if step == "put":
            sieve.put(Entry(key, size))
            model.put(key, size)
        elif step == "remove":
            if (entry := sieve.entries.get(key)) is not None:
                sieve.remove(entry)
            model.remove(key)
        else:
            entry = sieve.entries.get(key)
            if entry is not None:
                entry.used = True
            assert model.use(key) == (entry is not None)
        assert {key: entry.size for key, entry in sieve.entries.items()} == {one[0]: one[1] for one in model.row}
        assert sieve.bytes == sum(one[1] for one in model.row) <= max_bytes
        assert len(sieve.entries) <= max_entries
        assert gone == model.gone


def test_what_left_is_not_removed_again() -> None:
    """An entry that was replaced does not take its successor along."""
    sieve: Sieve[Entry] = Sieve(2, 100, lambda _: None)
    first, second = Entry("k", 1), Entry("k", 1)
    sieve.put(first)
    sieve.put(second)
    sieve.remove(first)
    assert sieve.entries == {"k": second}
    assert sieve.bytes == 1
    sieve.clear()
    assert not sieve.entries
    assert sieve.bytes == 0


@pytest.mark.parametrize("seed", range(3))
def test_scan_does_not_wash_out_what_is_used(seed: int) -> None:
    """800 used entries of 1,000, and 5,000 others once in between: nearly all hits stay (plain LRU: 80 %)."""
    chance = random.Random(seed)
    sieve: Sieve[Entry] = Sieve(1000, 1 << 30, lambda _: None)

    def read(key: str) -> bool:
        entry = sieve.entries.get(key)
        if entry is None:
            sieve.put(Entry(key, 1))
            return False
        entry.used = True
        return True

    hits = 0
    for turn in range(20):
        hits += sum(read(f"used-{chance.randrange(800)}") for _ in range(4000))
        for number in range(5000):
            read(f"once-{turn}-{number}")
    assert hits / 80_000 > 0.97
