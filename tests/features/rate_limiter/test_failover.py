"""The fence: what a promoted or restarted server has forgotten is not admitted twice; what lost nothing refuses nobody."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from observatory import Limit, Observatory
from tests.conftest import Open
from tests.features.rate_limiter.scripts import START_US, Scripts, shape
from tests.servers import Server, find, wait_until

MINUTE = shape(100, 60)


@pytest.fixture(params=["valkey", "redis"])
def started(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., tuple[Server, Any]]]:
    """Servers of this test's own, and a client for each."""
    running: list[Server] = []

    def start(*options: str) -> tuple[Server, Any]:
        directory = tmp_path / str(len(running))
        directory.mkdir()
        one = Server(find(request.param), directory, *options)
        one.start()
        running.append(one)
        return one, redis.Redis.from_url(one.url)

    yield start
    for one in running:
        one.stop()


def pair(started: Callable[..., Any], tmp_path: Path) -> tuple[Any, Any, Any, Any]:
    """A primary and its replica, linked over a port."""
    from tests.servers import free_port

    port = free_port()
    first, primary = started("--port", str(port), "--bind", "127.0.0.1")
    second, replica = started("--port", str(free_port()), "--bind", "127.0.0.1")
    replica.replicaof("127.0.0.1", port)
    wait_until(lambda: replica.info("replication")["master_link_status"] == "up", "the replica is in step")
    return first, primary, second, replica


def admitted(scripts: Scripts, key: str, now_us: int, tries: int = 120) -> int:
    return sum(scripts.decide(now_us, "take", [(MINUTE, key, 1)])[0] for _ in range(tries))


def test_promotion_that_lost_everything_admits_nothing_twice(started: Any, tmp_path: Path) -> None:
    """Burst 100: replication is cut, 100 are admitted, the replica is promoted: in all 100, not 200."""
    _, primary, _, replica = pair(started, tmp_path)
    scripts = Scripts(primary, known=0)
    key = scripts.key()
    assert scripts.decide(START_US, "take", [(MINUTE, key, 0)])[0] == 1
    primary.execute_command("WAIT", 1, 1000)
    replica.replicaof("NO", "ONE")
    assert admitted(scripts, key, START_US) == 100
    scripts.client, scripts.known = replica, 1
    assert admitted(scripts, key, START_US + 1) == 0
    assert admitted(scripts, key, START_US + 30_000_001) == 50, "from there on at the rate"


def test_without_the_fence_it_would_be_two_hundred(started: Any, tmp_path: Path) -> None:
    """What the fence is for: the same story, state believed."""
    _, primary, _, replica = pair(started, tmp_path)
    scripts = Scripts(primary, known=2)
    key = scripts.key()
    replica.replicaof("NO", "ONE")
    first = admitted(scripts, key, START_US)
    scripts.client = replica
    assert first + admitted(scripts, key, START_US) == 200


def test_there_and_back_again_with_everything_lost(started: Any, tmp_path: Path) -> None:
    """A to B to A, all of B's writes lost: A finds itself promoted a second time."""
    _, primary, second, replica = pair(started, tmp_path)
    scripts = Scripts(primary, known=1)
    scripts.client.set(scripts.fence, "x,x,0")
    key = scripts.key()
    replica_port = replica.info("server")["tcp_port"]
    replica.replicaof("NO", "ONE")
    scripts.client = replica
    admitted(scripts, key, START_US)
    primary.replicaof("127.0.0.1", replica_port)
    second.stop()
    primary.replicaof("NO", "ONE")
    scripts.client = primary
    assert admitted(scripts, key, START_US + 1000) == 0


def test_restart_counts_as_forgetting(started: Any) -> None:
    """A server that comes back empty, or with an old snapshot, has been somewhere else."""
    server, client = started()
    scripts = Scripts(client, known=0)
    key = scripts.key()
    assert admitted(scripts, key, START_US) == 100
    server.stop()
    server.start()
    scripts.known = 1
    assert admitted(scripts, key, START_US + 1000) == 0
    assert admitted(scripts, key, START_US + 60_001_000) == 100


def test_fresh_store_admits(started: Any) -> None:
    """Nobody has ever seen it: there is nothing to have been lost."""
    _, client = started()
    assert admitted(Scripts(client, known=0), "{r}new", START_US) == 100


def test_healthy_primary_that_gains_and_loses_a_replica_refuses_nobody(started: Any, tmp_path: Path) -> None:
    """A new replication id in both cases, and nothing lost: attaching, and the backlog freed after the last one left."""
    from tests.servers import free_port

    port = free_port()
    _, primary = started("--port", str(port), "--bind", "127.0.0.1", "--repl-backlog-ttl", "1")
    scripts = Scripts(primary, known=0)
    key, cost = scripts.key(), 1
    history = primary.info("replication")["master_replid"]
    assert scripts.decide(START_US, "take", [(MINUTE, key, cost)])[0] == 1
    other, replica = started()
    replica.replicaof("127.0.0.1", port)
    wait_until(lambda: replica.info("replication")["master_link_status"] == "up", "the replica is in step")
    scripts.known = 1
    assert admitted(scripts, key, START_US, 10) == 10
    other.stop()
    wait_until(lambda: primary.info("replication")["repl_backlog_active"] == 0, "the backlog is freed")
    assert primary.info("replication")["master_replid"] != history
    assert admitted(scripts, key, START_US, 10) == 10


def test_script_flush_changes_nothing(started: Any) -> None:
    """The scripts are loaded again; the history is the same."""
    _, client = started()
    scripts = Scripts(client, known=1)
    client.set(scripts.fence, "")
    client.delete(scripts.fence)
    scripts.known = 0
    key = scripts.key()
    admitted(scripts, key, START_US, 10)
    client.script_flush()
    scripts.known = 1
    assert admitted(scripts, key, START_US, 10) == 10


def test_flushed_store_is_a_loss_for_who_has_seen_it(started: Any) -> None:
    """FLUSHALL: callers that knew the store's record count everything as spent."""
    _, client = started()
    scripts = Scripts(client, known=0)
    admitted(scripts, "{r}x", START_US)
    client.flushall()
    scripts.known = 1
    assert admitted(scripts, "{r}x", START_US + 1) == 0


def test_kept_limits_are_believed(started: Any) -> None:
    """A month's budget is not lost for a month by a restart: it is kept, within the bound that the documentation states."""
    server, client = started("--appendonly", "yes")
    scripts = Scripts(client, known=0)
    key, budget = scripts.key(), shape(1000, "30d")
    assert scripts.decide(START_US, "take", [(budget, key, 400)])[0] == 1
    server.stop()
    server.start()
    scripts.known = 1
    _, (part,) = scripts.decide(START_US, "take", [(budget, key, 100)])
    assert budget.remaining(part.debt, part.part) == 500


def test_holds_of_before_are_not_given_back_and_slots_wait_for_their_holders(started: Any) -> None:
    """What the fence counts as spent is not refunded; unknown holders keep their slots until they had time to say so."""
    server, client = started("--appendonly", "yes")
    scripts = Scripts(client, known=0)
    key, gpus, slots = scripts.key(), scripts.key(), shape(3, unit="slots")
    scripts.decide(START_US, "hold", [(MINUTE, key, 60)], hold="h", lease_us=60_000_000)
    scripts.decide(START_US, "hold", [(slots, gpus, 1)], hold="g", lease_us=60_000_000)
    server.stop()
    server.start()
    scripts.known = 1
    later = START_US + 1_000_000
    assert scripts.decide(later, "take", [(MINUTE, key, 1)])[0] == 0
    assert scripts.settle(later, "settle", MINUTE, key, 0, hold="h")[0] == 1
    assert scripts.decide(later, "take", [(MINUTE, key, 1)])[0] == 0, "it was counted as spent already"
    refused, (part,) = scripts.decide(later, "hold", [(slots, gpus, 1)], hold="new", lease_us=60_000_000)
    assert (refused, part.wait_us) == (0, 60_000_000)
    assert scripts.settle(later, "renew", slots, gpus, 1, hold="lost", lease_us=60_000_000, held=1)[0] == 1
    after, (part,) = scripts.decide(later + 60_000_000, "hold", [(slots, gpus, 1)], hold="new", lease_us=60_000_000)
    assert (after, part.debt) == (1, 1), "both of before have run out by then"


def test_clock_that_steps_back_over_the_fence_locks_nobody(started: Any) -> None:
    """What was fenced in the future is fenced now: no wait longer than the full time."""
    server, client = started()
    scripts = Scripts(client, known=0)
    key = scripts.key()
    admitted(scripts, key, START_US, 1)
    server.stop()
    server.start()
    scripts.known = 1
    assert admitted(scripts, key, START_US, 1) == 0
    hour = 3_600_000_000
    assert admitted(scripts, key, START_US - hour, 1) == 0
    assert admitted(scripts, key, START_US - hour + 60_000_000) == 100


async def test_hidden_info_leaves_the_fence_off_and_doctor_says_so(opening: Open, own_server: Server) -> None:
    """Managed services refuse INFO: limits work, a restart is believed, and there is a finding."""
    admin = await opening(own_server)
    rights = ("on", ">pw", "~*", "resetchannels", "+@all", "-info")
    await admin.store.command("ACL", "SETUSER", "managed", *rights)
    url = own_server.url.replace("unix://", "unix://managed:pw@")
    obs = await opening(redis_url=url)
    assert await obs.rate_limiter.check(Limit("managed", 5, per="1m"))
    fence = next(finding for finding in (await obs.health()).checks if finding.name == "fence")
    assert (fence.status, "one burst at most" in fence.message) == ("unknown", True)


async def test_whole_client_over_a_restart(opening: Open, own_server: Server) -> None:
    """The library tells the script that it has seen the store; the embedded server, which loses nothing, is believed."""
    obs = await opening(own_server)
    limit = Limit("fence", 50, per="1m", on_store_down="closed")
    assert await obs.rate_limiter.check(limit, None, 10)
    own_server.signal(signal.SIGKILL)
    own_server.stop()
    own_server.start()
    await obs.ready()
    refused = await obs.rate_limiter.check(limit)
    assert not refused
    assert refused.retry_after is not None


async def test_embedded_server_keeps_what_it_acknowledged(namespace: str, tmp_path: Path) -> None:
    """It stops with its last user and starts with the next: no limit is spent by that."""
    limit = Limit("laptop", 3, per="1m")
    left = []
    for _ in range(2):
        async with Observatory("x", redis_url=f"embedded://{tmp_path}/data", namespace=namespace) as obs:
            left.append((await obs.rate_limiter.check(limit)).remaining)
    assert left == [2, 1]
