"""The fleet's retry budget: a storm is not multiplied, over processes, deaths, lost replies and outages."""

import asyncio
import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from observatory import InvalidArgument, Metric, Observatory
from observatory.features.retry.budget import WINDOW, RetryBudget
from observatory.settings import Settings
from tests.conftest import Open
from tests.features.test_retry import Flaky
from tests.proxy import proxy
from tests.servers import ROOT, Server, environment, process

PROGRAM = """
import asyncio, sys
from observatory import Observatory

PLACE, CALLS = sys.argv[1], int(sys.argv[2])

async def call(first):
    reader, writer = await asyncio.open_unix_connection(PLACE)
    writer.write(b"1" if first else b"2")
    writer.write_eof()
    await reader.read()
    writer.close()
    raise ConnectionError("down")

async def main():
    async with Observatory("test") as obs:
        policy = obs.retry(name="provider", attempts=4, wait_initial=0.01, wait_jitter=0.02, wait_max=0.05)
        async def one():
            first = True
            try:
                async for attempt in policy:
                    with attempt:
                        was, first = first, False
                        await call(was)
            except ConnectionError:
                pass
        print("ready", flush=True)
        sys.stdin.readline()
        for _ in range(CALLS // 20):
            await asyncio.gather(*(one() for _ in range(20)))
            await asyncio.sleep(0.02)
        print("done", flush=True)
        sys.stdin.readline()

asyncio.run(main())
"""


class Down:
    """A provider that is down, and knows who came how often."""

    def __init__(self) -> None:
        self.calls = self.retries = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read() == b"1":
            self.calls += 1
        else:
            self.retries += 1
        writer.close()


def budget_of(obs: Observatory, share: float, reserve: int) -> RetryBudget:
    return RetryBudget(obs._lifetime.store, share=share, reserve=reserve, instances=obs._lifetime.most_live, clock=obs._clock)


async def take(budget: RetryBudget, times: int) -> int:
    """So many ask at one moment; how many may."""
    account = budget.account("p")
    account.denied_until = 0.0
    return sum(await asyncio.gather(*(budget.take(account) for _ in range(times))))


@pytest.mark.parametrize("died", [False, True], ids=["all live", "one is killed"])
async def test_storm_of_a_fleet_is_not_multiplied(server: Server, namespace: str, tmp_path: Path, died: bool, obs: Any) -> None:
    """Four processes, a provider that is down: at most a tenth more than the calls, and the reserve. Unbounded it would be
    four times as many."""
    down = Down()
    listener = await asyncio.start_unix_server(down.serve, str(tmp_path / "p"))
    env = {**environment(PYTHONPATH=str(ROOT)), "OBSERVATORY_REDIS_URL": server.url, "OBSERVATORY_NAMESPACE": namespace}
    with ExitStack() as stack:
        fleet = [stack.enter_context(process(["-c", PROGRAM, str(tmp_path / "p"), "400"], env)) for _ in range(4)]
        for one in fleet:
            assert one.stdout is not None
            assert one.stdin is not None
            assert (await asyncio.to_thread(one.stdout.readline)).strip() == "ready"
        for one in fleet:
            assert one.stdin is not None
            one.stdin.write("\n")
            one.stdin.flush()
        if died:
            while down.calls < 200:
                await asyncio.sleep(0.005)
            os.kill(fleet[0].pid, signal.SIGKILL)
            fleet = fleet[1:]
        began = time.monotonic()
        for one in fleet:
            assert one.stdout is not None
            assert (await asyncio.to_thread(one.stdout.readline)).strip() == "done"
        took = time.monotonic() - began
    listener.close()
    await listener.wait_closed()
    assert down.calls >= (1200 if died else 1600) * (1 - died * 0.1)
    windows = 1 + took // (WINDOW * 0.9)
    assert down.retries <= down.calls * 0.1 + 10 * windows
    assert down.retries >= 10, "the reserve at least"


async def test_share_and_reserve(opening: Open) -> None:
    """Of the fleet's calls, wherever they were made; what is spent is spent for all."""
    one, two = [budget_of(await opening(), 0.1, 5) for _ in range(2)]
    assert await take(one, 9) == 5
    assert await take(two, 9) == 0
    two.account("p").calls += 100
    await two.report()
    assert await take(one, 7) == 7
    assert await take(two, 9) == 3
    assert await take(one, 9) == 0
    other = one.account("q")
    assert await one.take(other), "names do not pay for each other"


async def test_refusal_is_remembered_for_a_moment(obs: Observatory) -> None:
    """A storm of refused retries asks seldom."""
    budget = budget_of(obs, 0.0, 0)
    account = budget.account("p")
    asked = 0
    for _ in range(2000):
        before = account.asking
        assert not await budget.take(account)
        asked += account.asking is not before
    assert asked < 50


async def test_nobody_pays_for_who_went_away(obs: Observatory) -> None:
    """Cancelled before the question was sent: nothing is spent."""
    budget = budget_of(obs, 0.0, 1)
    account = budget.account("p")
    asking = asyncio.create_task(budget.take(account))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert await take(budget, 1) == 1


async def test_lost_replies_cost_retries_and_never_give_more(opening: Open, server: Server, tmp_path: Path) -> None:
    """What was granted and never heard of is spent; meanwhile this process has its own share."""
    async with proxy(server.path, tmp_path / "between") as between:
        there = await opening(redis_url=between.url)
        budget, other = budget_of(there, 0.0, 10), budget_of(await opening(), 0.0, 10)
        assert await take(budget, 2) == 2
        between.swallow_replies = True
        assert await take(budget, 4) <= 5, "its part of the reserve"
        between.swallow_replies = False
        between.cut()
        await there.ready()
        assert await take(other, 20) == 4


async def test_without_the_store_each_has_a_share_of_its_own(opening: Open, own_server: Server) -> None:
    """A tenth of its own calls, and its part of the reserve; it neither waits nor fails."""
    clients = [await opening(own_server) for _ in range(2)]
    for obs in clients:
        while obs._lifetime.most_live() < 2:
            await asyncio.sleep(0.02)
    own_server.stop()
    for obs in clients:
        budget = budget_of(obs, 0.1, 10)
        budget.account("p").calls += 100
        assert await take(budget, 100) == 15
        assert await take(budget, 100) == 0


async def test_over_budget_is_told_and_counted(opening: Open) -> None:
    """The original error, with why; a policy without the budget goes on."""
    settings = Settings().replace(retry_budget=0, retry_budget_reserve=1)
    obs = await opening(settings=settings)
    policy = obs.retry(name="p", wait_initial=0.001, wait_jitter=0)
    flaky = Flaky(9)
    with pytest.raises(ConnectionError) as caught:
        await policy.execute(flaky)
    assert flaky.calls == 2
    assert "over the fleet's retry budget" in caught.value.__notes__[0]
    flaky = Flaky(9)
    with pytest.raises(ConnectionError):
        await policy(budget=False).execute(flaky)
    assert flaky.calls == 3
    await obs.flush()
    for outcome, times in (("retried", 3), ("over_budget", 1), ("gave_up", 1)):
        found = await obs.metrics.query(Metric.RETRY_ATTEMPTS, where={"name": "p", "outcome": outcome})
        assert found.value == times, outcome
    with pytest.raises(InvalidArgument):
        obs.retry(shared=None)  # type: ignore[call-overload]
