"""Which unsampled traces are sent all the same: told by one process, heard by the others."""

from observatory.features.traces import MOST, Traces
from observatory.tracing.sampling import MAX_TRACES, Tail
from tests.conftest import Open


def tail() -> Tail:
    """Nothing is sent from it: what it keeps is what is looked at."""
    one = Tail(None, slow_after=60, expensive_usd=1)
    one.listen()
    return one


def ids(start: int, number: int) -> list[str]:
    return [f"{one:032x}" for one in range(start, start + number)]


async def test_all_that_is_told_is_heard_in_parts(opening_any: Open) -> None:
    """More than fits into an answer, by several tellers; nobody hears what is not there; the key is gone in the end."""
    obs = await opening_any()
    first, second, listener = tail(), tail(), tail()
    rooms = [Traces(lambda: obs.store, lambda one=one: one) for one in (first, second, listener)]  # type: ignore[misc]
    await rooms[2].exchange()
    assert not listener._kept, "nothing concerns it"
    first.untold(ids(1, MOST - 100))
    await rooms[0].exchange()
    assert not first.concerned
    second.untold(ids(10_000, 300))
    await rooms[1].exchange()
    assert len(second._kept) == MOST, "the answer is full"
    listener.untold(ids(50_000, 1))
    await rooms[2].exchange()
    assert len(listener._kept) == MOST
    listener.untold(ids(50_001, 1))
    await rooms[2].exchange()
    assert len(listener._kept) == min(MAX_TRACES, MOST + 202)
    assert {10_000 + 299, 50_000, 50_001} <= set(listener._kept)


async def test_a_server_whose_clock_is_behind_is_heard_all_the_same(opening: Open) -> None:
    """After a failover: what was heard up to then is of another clock."""
    obs = await opening()
    teller, listener = tail(), tail()
    rooms = [Traces(lambda: obs.store, lambda one=one: one) for one in (teller, listener)]  # type: ignore[misc]
    rooms[1]._since_us = 2**52
    teller.untold(ids(7, 1))
    await rooms[0].exchange()
    listener.untold(ids(8, 1))
    await rooms[1].exchange()
    assert 7 in listener._kept
