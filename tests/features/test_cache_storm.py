"""Near caches of several processes in a storm of every verb: nothing served is older than the bound, nothing kept is wrong."""

import asyncio
import json
import sys
from typing import Any

import pytest

from observatory.clock import monotonic
from tests.features.nearby import Judge
from tests.servers import ROOT, Server, environment

PROCESSES, ROUNDS, BOUND = 4, 5, 0.5


async def line(member: asyncio.subprocess.Process) -> Any:
    assert member.stdout is not None
    said = (await member.stdout.readline()).decode().strip()
    return said if said == "ready" else json.loads(said)


async def ask(members: list[asyncio.subprocess.Process], what: object) -> list[Any]:
    """All of them at once."""
    for member in members:
        assert member.stdin is not None
        member.stdin.write(f"{what}\n".encode())
    return [await line(member) for member in members]


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
        assert [await line(member) for member in members] == ["ready"] * PROCESSES
        for _ in range(ROUNDS):
            said = await ask(members, monotonic() + 0.1)
            judge = Judge()
            for one in said:
                for key, versions in one["acknowledged"].items():
                    judge.acknowledged[key] = {int(version): when for version, when in versions.items()}
                for key, version, when in one["served"]:
                    judge.saw(key, version, when)
            assert await ask(members, "quiet") == [[]] * PROCESSES
            assert [one["errors"] for one in said] == [0] * PROCESSES
            assert all(one["hits"] > 20 for one in said), "what is near was used"
            assert len(judge.acknowledged) > 100
            print(f"\nserved up to {judge.oldest():.3f} s after it had changed; {[one['hits'] for one in said]} near hits")
            assert judge.oldest() <= BOUND
    finally:
        for member in members:
            member.kill()
            await member.wait()
