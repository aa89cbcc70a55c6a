"""One computation in the fleet, in processes of its own: at the same moments, and when the one who computes is killed."""

import time
from pathlib import Path

from observatory.features.cache import lease
from tests.features.caching import Processes
from tests.servers import Server, wait_until

PROGRAM = """
import asyncio, os, sys, time
from observatory import Observatory

LOG, PAUSE = sys.argv[1], float(sys.argv[2])
INTERVAL = 0.05

async def one(cache, key, at):
    async def compute():
        with open(LOG, "a") as log:
            log.write(f"{os.getpid()} {key}\\n")
        await asyncio.sleep(PAUSE)
        return f"{key} of {os.getpid()}, {time.monotonic()}"

    await asyncio.sleep(at - time.monotonic())
    found = set(await asyncio.gather(*(cache.get_or_compute(key, compute) for _ in range(20))))
    return f"{key}: {' or '.join(found)}"

async def main():
    async with Observatory("test") as obs:
        cache = obs.cache(str, name="fleet")
        print("ready", flush=True)
        at = float(sys.stdin.readline())
        tasks = [one(cache, key, at + number * INTERVAL) for number, key in enumerate(sys.argv[3:])]
        print(*await asyncio.gather(*tasks), sep="\\n", flush=True)

asyncio.run(main())
"""


class Fleet(Processes):
    """They ask for the same keys at the same moments, 20 tasks in each."""

    def __init__(self, url: str, namespace: str, log: Path, pause: float, *keys: str, size: int = 4) -> None:
        super().__init__(PROGRAM, pause, *keys, url=url, namespace=namespace, log=log, size=size)

    def begin(self) -> None:
        self.start(line=str(time.monotonic() + 0.1))

    def computed_by(self) -> list[int]:
        return [int(line.split()[0]) for line in self.log.read_text().splitlines()]

    def computed(self) -> list[str]:
        return [line.split()[1] for line in self.log.read_text().splitlines()]


def test_one_computation_for_four_processes_and_eighty_tasks(place: str, namespace: str, tmp_path: Path) -> None:
    """Of each of a hundred keys; all eighty get the same value (the peers compute up to 61 times, limiters.md R9)."""
    keys = [f"k{number}" for number in range(100)]
    fleet = Fleet(place, namespace, tmp_path / "log", 0.1, *keys)
    fleet.begin()
    outs = [member.communicate(timeout=60)[0] for member in fleet.members]
    assert sorted(fleet.computed()) == sorted(keys)
    assert len(set(fleet.computed_by())) > 1, "they were there at the same moment"
    assert outs == [outs[0]] * 4
    assert [line.split(" of ")[0] for line in outs[0].splitlines()] == [f"{key}: {key}" for key in keys]


def test_a_killed_holder_is_replaced_within_its_lease(server: Server, namespace: str, tmp_path: Path) -> None:
    """SIGKILL in the middle of the computation: one more is made, by one of the others."""
    fleet = Fleet(server.url, namespace, tmp_path / "log", 1.0, "k")
    fleet.begin()
    wait_until(fleet.computed_by, "somebody computes")
    killed = fleet.computed_by()[0]
    began = time.monotonic()
    for member in fleet.members:
        if member.pid == killed:
            member.kill()
    for member in fleet.members:
        out, _ = member.communicate(timeout=60)
        assert member.pid == killed or out.startswith("k: k of ")
    assert time.monotonic() - began < lease.LEASE + 1.0 + 2.0
    assert len(fleet.computed_by()) == 2
