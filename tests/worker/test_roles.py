"""Leader roles: one worker has each, another takes over from the dead, and who lost it stops."""

import asyncio
import json
import os
import signal
from typing import Any

import httpx2
import pytest

from observatory import Observatory
from observatory.cli.probes import answering
from observatory.clock import monotonic
from observatory.errors import ConfigurationError
from observatory.worker import Worker, chosen
from observatory.worker.leaders import Leaders
from observatory.worker.roles import Chore
from tests.conftest import Open
from tests.servers import Server, command, environment, free_port, process
from tests.worker.events import call, settled, until, working

WORK = ["-m", "observatory", "worker"]


class Counting:
    """A role that notes when it steps."""

    name = "counting"

    def __init__(self, every: float = 0.02, takes: float = 0.0) -> None:
        self.every = every
        self.takes = takes
        self.begun: list[int] = []
        self.ended = 0
        self.left = 0

    async def step(self, fence: int) -> None:
        self.begun.append(fence)
        await asyncio.sleep(self.takes)
        self.ended += 1

    def leave(self) -> None:
        self.left += 1


def test_roles_are_named() -> None:
    """all, one, several; a wrong one is told with the right ones."""
    assert chosen(["all"]) == ("events", "alerts", "audit", "compaction", "otlp")
    assert chosen(["audit,events"]) == ("events", "audit")
    assert chosen(["audit"]) == ("audit",)
    said = r"no role named 'audti'.*Did you mean \"audit\"\? Known: all, events, alerts, audit, compaction, otlp"
    with pytest.raises(ConfigurationError, match=said):
        chosen(["events", "audti"])
    with pytest.raises(ConfigurationError, match="none is given"):
        chosen([","])


async def test_one_has_it_and_another_takes_over(opening: Open) -> None:
    """Never two at once; given up in order, it is another's within a third of a lease; the fence grows."""
    roles = [Counting(), Counting()]
    sides = [Leaders(await opening(role="worker"), [role], 0.9) for role in roles]
    for side in sides:
        side.start()
    try:
        await until(lambda: any(role.ended > 5 for role in roles), "somebody leads")
        leader = 0 if roles[0].begun else 1
        assert not roles[1 - leader].begun
        assert [bool(side.leads) for side in sides] == [leader == 0, leader == 1]
        await sides[leader].stop()
        steps, began = len(roles[leader].begun), monotonic()
        await until(lambda: roles[1 - leader].begun, "the other leads", 2)
        assert monotonic() - began < 0.6
        assert len(roles[leader].begun) == steps
        assert roles[leader].left == 1
        assert roles[1 - leader].begun[0] > roles[leader].begun[-1]
    finally:
        for side in sides:
            await side.stop()


async def test_step_is_stopped_when_the_lease_is_lost(opening: Open) -> None:
    """Somebody else has it now: a step that is under way is cancelled, and none begins."""
    obs, role = await opening(role="worker"), Counting(takes=30.0)
    side = Leaders(obs, [role], 6.0)
    side.start()
    try:
        await until(lambda: role.begun, "it leads")
        usurper = await opening(role="worker")
        await obs.leases.release("role:counting")
        assert await usurper.leases.acquire("role:counting", 9.0) is not None
        await until(lambda: role.left, "it knows, long before the lease's end", 3)
        assert (role.ended, side.leads) == (0, ())
    finally:
        await side.stop()
    assert await usurper.leases.acquire("role:counting", 9.0) is not None, "what was not its own it did not give up"


async def test_step_is_stopped_when_the_lease_cannot_be_renewed(own_server: Server, namespace: str) -> None:
    """With the store away nobody knows who leads: at the end of the lease a leader stops by itself."""
    role = Counting(takes=30.0)
    async with Observatory("test", redis_url=own_server.url, namespace=namespace, role="worker") as obs:
        side = Leaders(obs, [role], 1.2)
        side.start()
        await until(lambda: role.begun, "it leads")
        own_server.signal(signal.SIGSTOP)
        began = monotonic()
        try:
            await until(lambda: role.left, "it stopped", 4)
            assert 0.7 < monotonic() - began < 2.5
        finally:
            own_server.signal(signal.SIGCONT)
        await until(lambda: len(role.begun) == 2, "and leads again when the store is back", 8)
        await side.stop()


async def test_zombie_leader_is_harmless(opening: Open) -> None:
    """It slept through its lease, another leads, and it believes for a moment that it still does: the fleet's numbers are the
    other's, and the zombie stops within a third of a lease."""
    first, second = await opening(role="worker"), await opening(role="worker")
    zombie, heir = Worker(first, ["audit"]), Worker(second, ["audit"])
    zombie.leaders._lease = heir.leaders._lease = 0.9
    await first.events.accept([call() for _ in range(7)])
    zombie.leaders.start()
    await until(lambda: zombie.leaders.leads, "the first leads")
    await first.leases.release("role:audit")
    heir.leaders.start()
    await until(lambda: heir.leaders.leads, "the second leads")
    await zombie.leaders._roles[0].step(1)
    await until(lambda: not zombie.leaders.leads, "the zombie knows", 2)
    await heir.leaders._roles[0].step(2)
    await asyncio.gather(first.flush(), second.flush())
    drift = await first.metrics.query("observatory_conservation_drift", "sum", by="ledger")
    assert {one.labels["ledger"]: one.value for one in drift.series} == dict.fromkeys(
        ("events", "dead_letters", "reservations"), 0
    )
    for side in (zombie.leaders, heir.leaders):
        await side.stop()


async def test_chore_is_a_role_of_one_call(obs: Observatory) -> None:
    """What others add to the table in one line."""
    times = 0

    async def run() -> None:
        nonlocal times
        times += 1

    side = Leaders(obs, [Chore("tidying", 0.02, run)], 0.9)
    side.start()
    await until(lambda: times > 3 and side.leads == ("tidying",), "it is done again and again")
    await side.stop()
    assert side.leads == ()


async def test_failing_step_is_told_and_goes_on(obs: Observatory) -> None:
    """A bug of a role is no end of a worker."""

    class Failing(Counting):
        async def step(self, fence: int) -> None:
            await super().step(fence)
            raise ValueError("a bug")

    role = Failing()
    side = Leaders(obs, [role], 0.9)
    side.start()
    await until(lambda: len(role.begun) > 3, "it goes on")
    await side.stop()


async def leads(server: Server, namespace: str) -> dict[str, list[str]]:
    env = environment(OBSERVATORY_REDIS_URL=server.url, OBSERVATORY_NAMESPACE=namespace)
    said = await asyncio.to_thread(command, "instances", "--json", env=env)
    return {one["instance"]: one["says"]["leads"] for one in json.loads(said.stdout) if one["says"]["role"] != "cli"}


async def test_killed_leader_is_succeeded(opening: Open, server: Server, namespace: str) -> None:
    """SIGKILL of the process that leads: within a lease and its third the other one leads, and `instances` says so."""
    obs = await opening()
    env = environment(OBSERVATORY_REDIS_URL=server.url, OBSERVATORY_NAMESPACE=namespace, OBSERVATORY_WORKER_LEASE="1")
    with (
        process(WORK, {**env, "OBSERVATORY_INSTANCE": "one"}) as one,
        process(WORK, {**env, "OBSERVATORY_INSTANCE": "two"}) as two,
    ):
        processes = {"one": one, "two": two}
        for worker in processes.values():
            assert worker.stdout
            worker.stdout.readline()
        leader = ""
        async with asyncio.timeout(10):
            while not leader:
                found = await leads(server, namespace)
                leader = next((name for name, roles in found.items() if "audit" in roles), "")
        os.kill(processes[leader].pid, signal.SIGKILL)
        await obs.events.accept([call() for _ in range(300)])
        heir = "two" if leader == "one" else "one"
        async with asyncio.timeout(6):
            while (await leads(server, namespace)).get(heir, [])[:1] != ["audit"]:
                await asyncio.sleep(0.05)
        await settled(obs, 300)


async def health(url: str) -> tuple[int, Any]:
    async with httpx2.AsyncClient(trust_env=False) as client:
        answer = await client.get(url, timeout=1.0)
    return answer.status_code, answer.json()


async def test_worker_that_gets_nowhere_is_not_alive(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """No progress while events wait: 503, with the reason; with nothing waiting it is fine; and fine again once it gets on."""
    monkeypatch.setenv("OBSERVATORY_WORKER_HEALTH_PORT", "0")
    monkeypatch.setattr("observatory.worker.worker.STALLED_AFTER", 1.0)
    obs = await opening(role="worker")
    worker, stop = Worker(obs), asyncio.Event()
    async with answering(obs, worker, stop) as (host, port), working(worker):
        await asyncio.sleep(1.5)
        live = f"http://{host}:{port}/livez"
        assert (await health(live))[0] == 200, "idle is no fault"
        for partition in range(4):
            await obs.store.command("SET", obs.store.keys.metric_names(partition), "no hash", "PX", 60_000)
        await obs.events.accept([call() for _ in range(40)])
        await asyncio.sleep(1.5)
        status, said = await health(live)
        assert (status, said["status"]) == (503, "stuck")
        assert "WRONGTYPE" in said["checks"][0]["message"]
        assert "wait on partitions" in said["checks"][0]["message"]
        for partition in range(4):
            await obs.store.command("DEL", obs.store.keys.metric_names(partition))
        await settled(obs, 40)
        assert (await health(live))[0] == 200
        assert (await health(f"http://{host}:{port}/readyz"))[0] == 200
        stop.set()
        assert (await health(f"http://{host}:{port}/readyz"))[1]["status"] == "draining"
        assert (await health(f"http://{host}:{port}/x"))[0] == 404


async def test_store_that_is_away_is_no_fault_of_a_worker(
    own_server: Server, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long: a restart would not bring it back."""
    monkeypatch.setattr("observatory.worker.worker.STALLED_AFTER", 0.5)
    async with Observatory("test", redis_url=own_server.url, namespace=namespace, role="worker") as obs:
        worker = Worker(obs)
        async with working(worker):
            await until(worker.partitions.held, "it has partitions")
            await obs.events.accept([call() for _ in range(10)])
            own_server.stop()
            await asyncio.sleep(1.2)
            assert await worker.stuck() is None
            own_server.start()
            await until(lambda: not worker.streams.silent(0.5), "it goes on", 10)


async def test_probes_of_a_process(own_server: Server, namespace: str) -> None:
    """A store that is away makes it unready, not dead; a loop that is blocked does not answer."""
    env = environment(OBSERVATORY_REDIS_URL=own_server.url, OBSERVATORY_NAMESPACE=namespace)
    port = free_port()
    with process([*WORK, "--health-port", str(port)], env) as worker:
        assert worker.stdout
        worker.stdout.readline()
        assert (await health(f"http://127.0.0.1:{port}/readyz"))[0] == 200
        own_server.stop()
        assert (await health(f"http://127.0.0.1:{port}/readyz"))[1]["status"] == "unavailable"
        assert (await health(f"http://127.0.0.1:{port}/livez"))[0] == 200
        own_server.start()
        os.kill(worker.pid, signal.SIGSTOP)
        with pytest.raises(httpx2.TimeoutException):
            await health(f"http://127.0.0.1:{port}/livez")
        os.kill(worker.pid, signal.SIGCONT)
        assert (await health(f"http://127.0.0.1:{port}/livez"))[0] == 200


async def test_wrong_roles_and_ports_are_told_at_the_door(server: Server, namespace: str) -> None:
    """By option and by setting; exit 2."""
    env = environment(OBSERVATORY_REDIS_URL=server.url, OBSERVATORY_NAMESPACE=namespace)
    for arguments, more, said in (
        (["--roles", "event"], {}, 'Did you mean "events"?'),
        ([], {"OBSERVATORY_WORKER_ROLES": "leader"}, "Known: all, events, alerts, audit"),
        (["--processes", "2", "--roles", "x"], {}, "Known:"),
        (["--drain-timeout", "soon"], {}, "drain_timeout"),
        (["--health-port", "99999"], {}, "health_port"),
    ):
        done = await asyncio.to_thread(command, "worker", *arguments, env={**env, **more})
        assert done.returncode == 2, done.stderr
        assert said in done.stderr
