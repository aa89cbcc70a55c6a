"""An hour of a production service, through events: what the fleet answers is what NumPy computes over the file."""

import csv
from datetime import datetime
from decimal import Decimal

import numpy as np
import pytest

from observatory import Metric, Observatory
from observatory.envelope import Envelope, encoded, packed
from observatory.llm import CallData, Usage
from observatory.llm.call import LLM_CALL
from observatory.worker import Worker
from tests.conftest import Open
from tests.servers import ROOT
from tests.worker.events import settled, working

AZURE = ROOT.parent / "shared" / "data" / "azure_llm_2023_conv.csv"
BOUND = 0.011
"""Of a quantile's relative error."""


class Trace:
    """The file's columns, its moments moved to the hour before now."""

    def __init__(self, now: float) -> None:
        with AZURE.open() as file:
            rows = list(csv.DictReader(file))
        moments = np.array([datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in rows])
        self.at = moments - moments[-1] + now - 5
        self.input = np.array([int(row["ContextTokens"]) for row in rows])
        self.output = np.array([int(row["GeneratedTokens"]) for row in rows])
        # The trace has no latencies and no prices: a second for 50 tokens, and the dollars of a model that was sold then.
        self.latency = 0.2 + self.output / 50
        self.cost = [
            Decimal(int(i)) * 3 / 10**6 + Decimal(int(o)) * 4 / 10**6 for i, o in zip(self.input, self.output, strict=True)
        ]

    def events(self) -> list[tuple[str, bytes]]:
        return [
            (
                f"call-{number}",
                encoded(
                    Envelope(
                        LLM_CALL,
                        int(self.at[number] * 1e6),
                        packed(
                            CallData(
                                *("azure", "conv"),
                                latency=float(self.latency[number]),
                                usage=Usage(int(self.input[number]), int(self.output[number])),
                                cost_usd=self.cost[number],
                            )
                        ),
                    )
                ),
            )
            for number in range(len(self.at))
        ]


@pytest.mark.skipif(not AZURE.exists(), reason="the Azure trace is not beside this checkout")
async def test_an_hour_of_azure(opening: Open) -> None:
    """Handed in twice, worked off by two workers, rolled up: totals, sums, rates and percentiles, whole and in steps."""
    obs = await opening()
    trace = Trace((obs.store.server_us() or 0) / 1e6)
    events = trace.events()
    async with working(Worker(await opening(role="worker")), Worker(await opening(role="worker"))):
        for begins in range(0, len(events), 5000):
            await obs.events.accept(events[begins : begins + 5000])
            await obs.events.accept(events[begins : begins + 500])
        done = await settled(obs, len(events), within=60)
    assert (done["accepted"], done["applied"], done["dead"], done["dropped"]) == (len(events), len(events), 0, 0)
    for _ in range(2):
        await _compare(obs, trace)
        await obs.metrics.compact()


async def _compare(obs: Observatory, trace: Trace) -> None:
    async def ask(metric: str, stat: str = "total", **where: str) -> float | None:
        return (await obs.metrics.query(metric, stat, where=where, since="2h")).value

    assert await ask(Metric.REQUESTS_TOTAL) == len(trace.at) == 19_366
    assert await ask(Metric.TOKENS_PROCESSED, type="input") == trace.input.sum()
    assert await ask(Metric.TOKENS_PROCESSED, type="output") == trace.output.sum()
    assert await ask(Metric.TOTAL_COST_USD) == float(sum(trace.cost))
    assert await ask(Metric.REQUEST_LATENCY, "sum") == pytest.approx(trace.latency.sum(), rel=1e-12)
    for stat in ("p1", "p50", "p90", "p95", "p99", "p99.9", "p100"):
        found = await ask(Metric.REQUEST_LATENCY, stat)
        exact = np.percentile(trace.latency, float(stat[1:]), method="inverted_cdf")
        assert found == pytest.approx(exact, rel=BOUND), stat
    step = 600
    for metric, stat, expected in (
        (Metric.REQUESTS_TOTAL, "total", len),
        (Metric.REQUEST_LATENCY, "p95", lambda chosen: np.percentile(chosen, 95, method="inverted_cdf")),
        (Metric.REQUEST_LATENCY, "avg", np.mean),
    ):
        points = (await obs.metrics.query(metric, stat, since="70m", step=step)).series[0].points
        assert len(points) >= 6
        for point in points:
            at = point.at.timestamp()
            chosen = trace.latency[(trace.at >= at) & (trace.at < at + step)]
            assert point.value == pytest.approx(expected(chosen), rel=BOUND if stat == "p95" else 1e-12), (metric, point.at)
