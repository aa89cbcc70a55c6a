"""Who waits for a computation elsewhere: served when it ends, told and not asking; whatever becomes of the notices."""

import asyncio
import time
from pathlib import Path

import pytest
import redis

from observatory import CacheComputationFailed
from observatory.features.cache import lease
from observatory.store import watch
from tests.conftest import Open
from tests.features.caching import Processes, counting
from tests.servers import Server, wait_until

PROGRAM = """
import asyncio, sys, time
from observatory import Observatory

LOG, PAUSE, TASKS, LONELY = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]

async def compute():
    with open(LOG, "a") as log:
        log.write("begins\\n")
    await asyncio.sleep(PAUSE)
    with open(LOG, "a") as log:
        log.write(f"{time.monotonic()}\\n")
    return "value"

async def main():
    async with Observatory("test") as obs:
        cache = obs.cache(str, name="fleet")
        print("ready", flush=True)
        sys.stdin.readline()
        if LONELY:
            from observatory.store import watch
            watch.LOOK_AFTER = float(LONELY)
        assert set(await asyncio.gather(*(cache.get_or_compute("k", compute) for _ in range(TASKS)))) == {"value"}
        print(time.monotonic(), flush=True)

asyncio.run(main())
"""


class Fleet(Processes):
    """They ask for one key when they are told to. look_after: seconds without a notice, where it is not the usual."""

    def __init__(
        self, url: str, namespace: str, log: Path, pause: float, tasks: int, *, size: int, look_after: str = ""
    ) -> None:
        super().__init__(PROGRAM, pause, tasks, look_after, url=url, namespace=namespace, log=log, size=size)

    def served_at(self) -> list[float]:
        """On this machine's clock: when the last task of each had its value."""
        return [float(member.communicate(timeout=60)[0]) for member in self.members]

    def ended_at(self) -> float:
        """When the only computation did."""
        begins, ended = self.log.read_text().split()
        assert begins == "begins"
        return float(ended)

    def begun(self) -> bool:
        return "begins" in self.log.read_text()


def test_all_are_served_when_a_long_computation_ends(place: str, namespace: str, tmp_path: Path) -> None:
    """Four processes, and longer than a lease: nobody looks by himself before one would end, so everybody was told."""
    fleet = Fleet(place, namespace, tmp_path / "log", lease.LEASE + 0.1, 25, size=4, look_after="60")
    fleet.start()
    served = fleet.served_at()
    late = max(served) - fleet.ended_at()
    print(f"\nthe last was served {late * 1000:.1f} ms after the computation had ended")
    assert late < lease.LEASE / 2, "not when the renewed lease would have ended"


def commands(server: Server) -> dict[str, int]:
    """How often each was called."""
    with redis.Redis.from_url(server.url) as client:
        said = client.info("commandstats")
    return {name.removeprefix("cmdstat_"): int(stats["calls"]) for name, stats in said.items()}


def test_who_waits_does_not_ask(own_server: Server, namespace: str, tmp_path: Path) -> None:
    """A follower of a computation of two seconds, in a process of its own: a few looks, most of them for renewals."""
    fleet = Fleet(own_server.url, namespace, tmp_path / "log", 2.0, 50, size=2)
    fleet.start(0)
    wait_until(fleet.begun, "one computes")
    before = commands(own_server)
    fleet.start(1)
    fleet.served_at()
    after = commands(own_server)
    asked = {name: after[name] - before.get(name, 0) for name in ("exists", "pttl")}
    print(f"\n{asked}")
    # `pttl` is what the script calls that says WAIT (and somebody else, once or twice): asking now and then made eighty of it.
    assert 1 <= asked["exists"] <= 6
    assert asked["pttl"] < 30


async def test_one_who_gets_the_lease_at_once_registers_nothing(opening: Open) -> None:
    """The usual case: no other connection, no other command."""
    obs = await opening()
    assert await obs.cache(str).get_or_compute("k", counting("v")) == "v"
    store = obs.cache(str)._room.store()
    assert store._watches is not None
    assert not store._watches.notices


@pytest.mark.parametrize("how", ["failure", "release", "delete"])
async def test_every_end_is_told(opening_any: Open, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only a value: the holder's failure, its leaving, and a delete that ended its lease."""
    monkeypatch.setattr(watch, "LOOK_AFTER", 60.0)
    monkeypatch.setattr(lease, "LEASE", 60.0)
    first, second = await opening_any(), await opening_any()
    going = asyncio.Event()

    async def compute() -> str:
        await going.wait()
        raise LookupError("no such user")

    leader = asyncio.create_task(first.cache(str).get_or_compute("k", compute))
    while not await first.cache(str)._room.store().command("EXISTS", first.cache(str)._room.place("k").lease):
        await asyncio.sleep(0.005)
    follower = asyncio.create_task(second.cache(str).get_or_compute("k", counting("mine")))
    store = second.cache(str)._room.store()
    while not (store._watches and any(one.made for n in store._watches.notices.values() for one in n.registered.values())):
        await asyncio.sleep(0.005)
    async with asyncio.timeout(5):
        if how == "failure":
            going.set()
            with pytest.raises(CacheComputationFailed, match="no such user"):
                await follower
        elif how == "release":
            leader.cancel()
            assert await follower == "mine"
        else:
            await first.cache(str).delete("k")
            assert await follower == "mine"
    leader.cancel()
    await asyncio.gather(leader, return_exceptions=True)
    assert not [one.registered for one in store._watches.notices.values() if one.registered]


async def test_without_notices_they_are_served_all_the_same(opening: Open, own_server: Server) -> None:
    """The server refuses to announce: followers look now and then, as seldom as the wait is long."""
    with redis.Redis.from_url(own_server.url) as client:
        client.execute_command("ACL", "SETUSER", "default", "-client|tracking")
    first, second = await opening(own_server), await opening(own_server)
    calls: list[int] = []
    began = time.monotonic()
    work = [one.cache(str).get_or_compute("k", counting("v", 0.5, calls)) for one in (first, second)]
    assert await asyncio.gather(*work) == ["v", "v"]
    assert len(calls) == 1
    assert time.monotonic() - began < lease.LEASE
