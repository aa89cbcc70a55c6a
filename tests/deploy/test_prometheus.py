"""deploy/prometheus.yml itself and a fleet behind HAProxy: instances die, the store goes back, and no number is wrong."""

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
import yaml

from observatory import Metric, Observatory
from tests.deploy.front import Fleet
from tests.servers import ROOT, Server, die_with_parent, free_port, skip_or_fail, wait_until

ODD = ["a,b={c}", '"', "\\", "\n", "\\n", "é\u2028", "\x00", "\r", "\t", " ", '"} 5\n# EOF']


class Prometheus:
    """Debian's, with the file as it is but for the place of the front, and a shorter interval."""

    def __init__(self, executable: str, front: int, directory: Path) -> None:
        config = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
        config["global"]["scrape_interval"] = "500ms"
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{front}"]
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._url = f"http://127.0.0.1:{free_port()}"
        self._log = directory / "prometheus.log"
        self._client = httpx2.Client(base_url=self._url, trust_env=False, timeout=10)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(executable, f"--config.file={directory / 'prometheus.yml'}", f"--web.listen-address={self._url[7:]}"),
                    *(f"--storage.tsdb.path={directory / 'tsdb'}", "--log.level=warn"),
                ],
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )
        wait_until(self._is_ready, f"Prometheus is ready: {self._log}", 30)

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        try:
            return self._client.get("/-/ready").status_code == 200
        except httpx2.TransportError:
            return False

    def close(self) -> None:
        self._client.close()
        self._process.kill()
        self._process.wait()

    def ask(self, path: str, **parameters: Any) -> Any:
        answer = self._client.get(f"/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def values(self, query: str) -> list[float]:
        return [float(one["value"][1]) for one in self.ask("query", query=query)["result"]]

    def wait_for(self, query: str, value: float, timeout: float = 30) -> None:
        wait_until(lambda: self.values(query) == [value], f"{query} is {value}: {self.values(query)}", timeout)

    def targets(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("targets")["activeTargets"]
        return found


@pytest.fixture
def prometheus(fleet: Fleet, tmp_path: Path) -> Iterator[Prometheus]:
    found = shutil.which("prometheus")
    if found is None:
        skip_or_fail("no prometheus on the PATH")
    one = Prometheus(str(found), fleet.front.port, tmp_path)
    yield one
    one.close()


async def test_prometheus_has_the_ledgers_numbers(
    fleet: Fleet, prometheus: Prometheus, own_server: Server, namespace: str
) -> None:
    """Through the death of every instance and a store that goes back: equal to the ledger, monotonic, counted once."""
    latencies = [0.001 * 1.02**step for step in range(300)]
    async with Observatory("writer", redis_url=own_server.url, namespace=namespace) as obs:

        async def more(number: int) -> None:
            obs.metrics.increment_counter(Metric.TOTAL_COST_USD, Decimal("0.25"), {"provider": "p", "model": "m"})
            obs.metrics.increment_counter("test_total", number)
            await obs.flush()

        for number, value in enumerate(ODD):
            obs.metrics.increment_counter("test_odd_total", number + 1, {"x": value})
        for latency in latencies:
            obs.metrics.record_histogram(Metric.REQUEST_LATENCY, latency, {"provider": "p", "model": "m"})
        await more(10)
        await asyncio.to_thread(prometheus.wait_for, "test_total", 10)

        # Every instance dies once, and comes again.
        for instance in fleet.instances:
            await asyncio.to_thread(instance.close)
            await more(100)
            await asyncio.to_thread(instance.start)
            await asyncio.to_thread(instance.wait_ready)
        await asyncio.to_thread(prometheus.wait_for, "test_total", 310)

        # The store forgets what it had acknowledged, and Prometheus has seen.
        with redis.Redis.from_url(own_server.url) as admin:
            admin.save()
        await more(1000)
        await asyncio.to_thread(prometheus.wait_for, "test_total", 1310)
        await asyncio.sleep(2)
        own_server.stop()
        own_server.path.unlink(missing_ok=True)
        own_server.start()
        await asyncio.to_thread(wait_until, lambda: prometheus.targets()[0]["health"] == "down", "totals are held back")
        await more(1)
        await asyncio.to_thread(prometheus.wait_for, "test_total", 1311)

        await asyncio.to_thread(_equal_to_the_ledger, prometheus, latencies)
        for metric in (Metric.TOTAL_COST_USD, "test_total"):
            ledger = (await obs.metrics.query(metric)).value
            assert prometheus.values(str(metric)) == [ledger]
        p95 = (await obs.metrics.query(Metric.REQUEST_LATENCY, "p95")).value
        assert p95 is not None
        quantile = prometheus.values("histogram_quantile(0.95, observatory_request_latency_seconds_bucket)")
        # Two buckets per doubling.
        assert quantile == [pytest.approx(p95, rel=0.42)]


def _equal_to_the_ledger(prometheus: Prometheus, latencies: list[float]) -> None:
    assert prometheus.values("observatory_cost_usd_total") == [0.25 * 6]
    assert prometheus.values("observatory_request_latency_seconds_count") == [len(latencies)]
    assert prometheus.values("observatory_request_latency_seconds_sum") == [pytest.approx(sum(latencies), rel=1e-9)]
    # One target, one series: what three instances say is counted once.
    assert [target["labels"]["job"] for target in prometheus.targets()] == ["observatory"]
    assert prometheus.values("count(test_total)") == [1]
    # Never lower, not even for a moment, so that nothing was added twice.
    for metric in ("test_total", "observatory_cost_usd_total", "observatory_request_latency_seconds_count"):
        assert prometheus.values(f"resets({metric}[1h])") == [0]
    found = prometheus.ask("query", query="test_total[10m]")["result"][0]["values"]
    numbers = [float(value) for _, value in found]
    assert numbers == sorted(numbers)
    assert set(numbers) <= {10, 110, 210, 310, 1310, 1311}
    # As OpenMetrics, or there would be no unit.
    metadata = prometheus.ask("metadata", metric="observatory_request_latency_seconds")
    assert metadata == {
        "observatory_request_latency_seconds": [{"type": "histogram", "help": "Latency of LLM calls", "unit": "seconds"}]
    }
    odd = {one["metric"]["x"]: float(one["value"][1]) for one in prometheus.ask("query", query="test_odd_total")["result"]}
    assert odd == {value.replace("\0", "\ufffd"): number for number, value in enumerate(ODD, 1)}
