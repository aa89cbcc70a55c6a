"""Calls of language models: one id counts once, whoever records it and when."""

import sys
import threading
from decimal import Decimal
from typing import Any

import pytest

from observatory import Counter, Histogram, Metric, Observatory
from observatory.features.metrics.recorder import Recorder
from observatory.llm import CallData
from observatory.llm.call import MAX_METERS, Meters


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
            meters.measure(CallData("p", f"m{number}", cost_usd=Decimal("0.1")), {"team": "a", "user": "b"})
            assert len(meters._meters) <= MAX_METERS
    added = {group.metric: dict(group.additions) for group in recorder.freeze()}
    assert len(added[Metric.REQUESTS_TOTAL]) == MAX_METERS + 5
    assert set(added[Metric.REQUESTS_TOTAL].values()) == {2}
    assert set(added[Metric.TOTAL_COST_USD].values()) == {200_000_000}
    assert 'w|model="m7",provider="p",status="success",team="a"' in added[Metric.REQUESTS_TOTAL]


class Into:
    """A recorder alone, as calls write to it."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def counter(self, name: str) -> Counter:
        return Counter(self._recorder, name)

    def histogram(self, name: str) -> Histogram:
        return Histogram(self._recorder, name)


@pytest.mark.parametrize("wrong", [-1, 1.5, True, 2**90])
def test_wrong_billionths_are_refused(wrong: Any) -> None:
    """And counted; the caller goes on."""
    recorder = Recorder()
    cost = Into(recorder).counter(Metric.TOTAL_COST_USD)
    cost.add_nano(5)
    cost.add_nano(6)
    cost.add_nano(wrong)
    added = {group.metric: group.additions for group in recorder.freeze()}
    assert added[Metric.TOTAL_COST_USD] == [("n|", 11)]
    assert "observatory_values_refused_total" in added
