"""The same line again and again: some are written, the rest counted; nothing is lost between the two, nor memory spent."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observatory.logs.repeats import MAX_KNOWN, WINDOW, Repeats, Told


def record(name: object) -> logging.LogRecord:
    return logging.LogRecord(str(name), logging.INFO, "", 0, "", None, None)


@given(
    most=st.integers(1, 4),
    known=st.integers(1, 5),
    lines=st.lists(st.tuples(st.integers(0, 3), st.floats(0, 6, allow_nan=False)), max_size=200),
)
def test_every_line_is_written_or_told(most: int, known: int, lines: list[tuple[int, float]]) -> None:
    """Per key, written and repeated make all that were heard, and what is told is of its own key."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("observatory.logs.repeats.MAX_KNOWN", known)
        _balance(most, lines)


def _balance(most: int, lines: list[tuple[int, float]]) -> None:
    repeats, now, told, heard = Repeats(most), 0.0, list[tuple[float, Told]](), [0, 0, 0, 0]
    for key, pause in lines:
        now += pause
        heard[key] += 1
        told += [(now, one) for one in repeats.heard(key, record(key), now)]
    told += [(now, one) for one in repeats.settle(float("inf"))]
    for key in range(4):
        own = [one for _, one in told if one.record.name == str(key)]
        assert sum(1 + one.repeated for one in own) == heard[key]


def test_different_lines_are_all_written_and_memory_is_bounded() -> None:
    """A hundred thousand of them; whoever is forgotten is told first."""
    repeats, told = Repeats(2), 0
    for _ in range(5):
        told += sum(1 + one.repeated for one in repeats.heard("storm", record("storm"), 0.0))
    for number in range(100_000):
        told += sum(1 + one.repeated for one in repeats.heard(number, record(number), 0.0))
    assert len(repeats._known) <= MAX_KNOWN
    assert told == 100_005


def test_a_new_window_tells_with_its_first_line() -> None:
    """The line that comes after the window says how many were left out before it."""
    repeats = Repeats(1)
    assert [one.repeated for one in repeats.heard("a", record("a"), 0.0)] == [0]
    for _ in range(7):
        assert repeats.heard("a", record("a"), 1.0) == ()
    assert [one.repeated for one in repeats.heard("a", record("a"), WINDOW)] == [7]
    assert repeats.settle(2 * WINDOW) == ()
