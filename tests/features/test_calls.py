"""Calls of language models: one id counts once, whoever records it and when."""

import sys
import threading

from observatory import Metric, Observatory


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
