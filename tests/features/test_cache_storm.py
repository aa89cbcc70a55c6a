"""Near caches of several processes in a storm of every verb: nothing served is older than the bound, nothing kept is wrong."""

import asyncio
import json
import sys

import pytest

from observatory.clock import monotonic
from tests.features.nearby import Judge
from tests.servers import ROOT, Server, environment

PROCESSES, ROUNDS, BOUND = 4, 5, 0.5


@pytest.mark.timeout(120)
async def test_nothing_is_stale_in_a_storm_or_after_it(own_server: Server, namespace: str) -> None:
    """get against set, delete, get_or_compute, tags and clear, of 4,000 keys: five storms, each with a quiet after it."""
    env = environment(PYTHONPATH=str(ROOT), OBSERVATORY_REDIS_URL=own_server.url, OBSERVATORY_NAMESPACE=namespace)
    members = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.features.stormy", str(number), str(PROCESSES), str(BOUND)),
            env=env,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 26,
        )
        for number in range(PROCESSES)
    ]
    try:
        for member in members:
            assert member.stdout is not None
            assert await member.stdout.readline() == b"ready\n"
        for _ in range(ROUNDS):
            at = monotonic() + 0.1
            said = []
            for member in members:
                assert member.stdin is not None
                member.stdin.write(f"{at}\n".encode())
            for member in members:
                assert member.stdout is not None
                said.append(json.loads(await member.stdout.readline()))
            judge = Judge()
            for one in said:
                for key, versions in one["acknowledged"].items():
                    judge.acknowledged[key] = {int(version): when for version, when in versions.items()}
                for key, version, when in one["served"]:
                    judge.saw(key, version, when)
            assert [one["wrong"] for one in said] == [[]] * PROCESSES
            assert [one["errors"] for one in said] == [0] * PROCESSES
            assert all(one["hits"] > 1000 for one in said), "what is near was used"
            assert len(judge.acknowledged) > 500
            print(f"\nserved up to {judge.oldest():.3f} s after it had changed; {[one['hits'] for one in said]} near hits")
            assert judge.oldest() <= BOUND
    finally:
        for member in members:
            member.kill()
            await member.wait()
