"""What the fleet did: record calls here, ask for everybody's numbers."""

import asyncio

from observatory import Metric, Observatory, Usage

obs = Observatory("record-calls")


async def main() -> None:
    async with obs:
        with obs.bound(team="search"):
            for latency in (0.2, 0.4, 1.3):
                usage = Usage(input_tokens=800, output_tokens=100)
                obs.record_request("openai", "gpt-4o-mini", latency=latency, tokens=usage, cost_usd=0.0002)
        await obs.flush()
        calls = await obs.metrics.query(Metric.REQUESTS_TOTAL, by="model")
        p95 = await obs.metrics.query(Metric.REQUEST_LATENCY, "p95")
        cost = await obs.metrics.query(Metric.TOTAL_COST_USD)
        print({one.labels["model"]: one.value for one in calls.series}, f"p95 {p95.value:.2f} s, {cost.value} USD")


asyncio.run(main())
