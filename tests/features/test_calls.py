"""Calls of language models: one id counts once, whoever records it and when."""

import sys
import threading
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from observatory import Counter, Histogram, Metric, Observatory
from observatory.features.metrics.recorder import Recorder
from observatory.llm import CallData
from observatory.llm.call import MAX_METERS, Meters, StoredCall
from observatory.llm.call import nano as billionths


async def test_one_id_from_two_threads_counts_once(obs: Observatory) -> None:
    """At the very same moment: one of them writes, the other is told the id."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    together = threading.Barrier(4)
    told: list[str] = []

    def work() -> None:
        for number in range(300):
            together.wait()
            told.append(obs.record_request("p", "m", latency=0.1, tokens=3, id=f"call-{number}"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(usual)
    await obs.flush()
    assert len(told) == 1200
    assert (await obs.metrics.query(Metric.REQUESTS_TOTAL)).value == 300
    assert (await obs.events.lag())["accepted"] == 300


def test_meters_are_bounded_and_what_they_forget_is_found_again() -> None:
    """Models that strangers make up do not pile up; the numbers go on in the same series."""
    recorder = Recorder(max_series=10_000)
    meters = Meters(Into(recorder), ("team",))
    for _ in range(2):
        for number in range(MAX_METERS + 5):
            meters.measure(CallData("p", f"m{number}", cost_usd=Decimal("0.1")), {"team": "a", "user": "b"}, 100_000_000)
            assert len(meters._meters) <= MAX_METERS
    added = sums(recorder)
    assert len(added[Metric.REQUESTS_TOTAL]) == MAX_METERS + 5
    assert set(added[Metric.REQUESTS_TOTAL].values()) == {2}
    assert set(added[Metric.TOTAL_COST_USD].values()) == {200_000_000}
    assert 'w|model="m7",provider="p",status="success",team="a"' in added[Metric.REQUESTS_TOTAL]


def sums(recorder: Recorder) -> dict[str, dict[str, int]]:
    """By metric and field, over however many windows it took."""
    found: dict[str, dict[str, int]] = {}
    for group in recorder.freeze():
        into = found.setdefault(group.metric, {})
        for field, number in group.additions:
            into[field] = into.get(field, 0) + number
    return found


class Into:
    """A recorder alone, as calls write to it."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def counter(self, name: str) -> Counter:
        return Counter(self._recorder, name)

    def histogram(self, name: str) -> Histogram:
        return Histogram(self._recorder, name)


@given(nano=st.one_of(st.integers(0, 2**52), st.integers(10**15 - 10**6, 10**15 + 10**6)))
def test_money_is_counted_to_the_nano_dollar(nano: int) -> None:
    """Whatever the amount."""
    recorder = Recorder()
    meters = Meters(Into(recorder), ())
    call = CallData("p", "m", cost_usd=Decimal(nano).scaleb(-9))
    for _ in range(4):
        meters.measure(call, {}, billionths(call.cost_usd))
    added = sums(recorder).get(Metric.TOTAL_COST_USD, {})
    labels = 'model="m",provider="p"'
    assert added.get(f"w|{labels}", 0) * 10**9 + added.get(f"n|{labels}", 0) == 4 * nano


WRONG: dict[str, list[Any]] = {
    "provider": ["", "x" * 257, None, 5],
    "model": ["", "x" * 257, None],
    "latency": [-1.0, float("nan"), float("inf"), 1e12, "1"],
    "time_to_first_token": [-0.1, float("nan"), [1]],
    "usage": [{"input_tokens": -1}, {"output_tokens": 2**53}, {"reasoning_output_tokens": 1.5}, "many"],
    "status": ["lost", None],
    "error": [5],
}


@pytest.mark.parametrize("field", WRONG)
def test_what_lies_on_a_stream_has_the_bounds_of_what_is_recorded(field: str) -> None:
    """A worker checks while it decodes; what it takes is what the library would have taken."""
    sound = {"provider": "p", "model": "m", "latency": 1.0, "usage": {"input_tokens": 5}, "cost_usd": "0.1"}
    for checked in (CallData, StoredCall):
        msgspec.msgpack.decode(msgspec.msgpack.encode(sound), type=checked)
        for value in WRONG[field]:
            with pytest.raises((msgspec.MsgspecError, ValueError)):
                msgspec.msgpack.decode(msgspec.msgpack.encode({**sound, field: value}), type=checked)
