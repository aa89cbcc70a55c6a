"""Near values: never older than the bound, whatever happens to the server, the connection or the loop."""

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from observatory.clock import monotonic
from observatory.features.cache.codec import MISSING
from observatory.features.cache.near import Near, Vicinity
from observatory.keys import Key
from observatory.store.tracker import Lease
from tests.features.nearby import BOUND, FOR_EVER, Client, Judge, gone, where
from tests.proxy import proxy
from tests.servers import ROOT, Server, environment
from tests.store.load import store_at

Near_ = Callable[..., Client]


@pytest.fixture
async def near() -> AsyncIterator[Near_]:
    """Clients, closed at the end."""
    clients: list[Client] = []

    def open_(url: str, bound: float = BOUND, **more: Any) -> Client:
        clients.append(Client(store_at(url), bound, **more))
        return clients[-1]

    yield open_
    for client in clients:
        client.store.close()


async def test_hit_asks_nobody_and_a_write_is_heard_of(near: Near_, any_server: Server) -> None:
    """Near until another process writes; then a miss, in milliseconds and not in bounds."""
    one, other = near(any_server.url, 30.0), near(any_server.url)
    await other.set("k", "1")
    await one.warm("k")
    calls = len(one.store.link("values")._waiting)
    assert await one.get("k") == "1"
    assert len(one.store.link("values")._waiting) == calls, "nothing was sent"
    await other.set("k", "2")
    assert await gone(one, "k", 2.0) < 1
    assert await one.get("k") == "2"


async def test_own_write_is_read_at_once(near: Near_, server: Server) -> None:
    """Nobody reads around what he has just written, also when the notice never comes."""
    one = near(server.url, 30.0)
    one.vicinity.changed = lambda keys: None  # type: ignore[method-assign]
    await one.set("mine", "0")
    await one.warm("mine")
    for number in range(200):
        reading = [asyncio.ensure_future(one.get("mine")) for _ in range(3)]
        await one.set("mine", str(number))
        assert await one.get("mine") == str(number)
        await asyncio.gather(*reading)


async def test_read_that_was_overtaken_is_not_kept(near: Near_, server: Server) -> None:
    """The answer of a read that comes behind the notice of a write is handed over, and forgotten."""
    one, other = near(server.url, 30.0), near(server.url)
    await other.set("k", "old")
    await one.warm("k")
    one.near.forget()
    token = one.near.expect(where("k"))
    payload = await one.read(where("k"))
    await other.set("k", "new")
    await asyncio.sleep(0.1)
    assert payload is not None
    assert not one.near.keep(token, (payload,), "k", payload, "old", FOR_EVER)
    assert one.near.lookup("k") is MISSING


async def test_storm_of_processes_leaves_nothing_stale(own_server: Server) -> None:
    """4 processes write and read 4,000 keys: nothing served is older than the bound, nothing kept is wrong when it is quiet."""
    processes = 4
    running = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.features.nearby", own_server.url, str(number), str(processes), "4", "4000"),
            env=environment(PYTHONPATH=str(ROOT)),
            stdout=asyncio.subprocess.PIPE,
        )
        for number in range(processes)
    ]
    said = [json.loads((await one.communicate())[0]) for one in running]
    judge = Judge()
    for one in said:
        for key, versions in one["acknowledged"].items():
            judge.acknowledged[key] = {int(version): at for version, at in versions.items()}
        for key, version, at in one["served"]:
            judge.saw(key, version, at)
    assert [one["stale"] for one in said] == [[]] * processes
    assert all(one["near"] > 100 and one["hits"] > 1000 for one in said), "they kept something, and it was used"
    assert judge.oldest() <= BOUND


@pytest.mark.parametrize("how", ["FLUSHALL", "kill"])
async def test_lost_notices_end_the_lease(near: Near_, own_server: Server, how: str) -> None:
    """Everything flushed, or the tracking connection killed: all that was kept goes, and the next is heard of again."""
    one, other = near(own_server.url, 30.0), near(own_server.url)
    await other.set("k", "1")
    await one.warm("k")
    if how == "FLUSHALL":
        await other.store.command("FLUSHALL")
    else:
        # All of its connections: the notice of the write that follows has nowhere to go.
        await other.store.command("CLIENT", "KILL", "SKIPME", "yes", "TYPE", "normal")
        await other.store.command("SET", where("k"), "2", "PX", 60_000)
    assert await gone(one, "k", 2.0) < 1
    await other.set("k", "3")
    await one.warm("k")
    await other.set("k", "4")
    await gone(one, "k", 2.0)
    assert one.trackings[-1].generations >= 1


async def test_reads_under_way_when_the_lease_ends_are_not_kept(near: Near_, own_server: Server) -> None:
    """The token was of the lease before."""
    one = near(own_server.url, 30.0)
    await one.set("k", "1")
    await one.warm("k")
    one.near.forget()
    token = one.near.expect(where("k"))
    await one.store.command("FLUSHALL")
    await asyncio.sleep(0.1)
    assert not one.near.keep(token, (b"1",), "k", b"1", "1", FOR_EVER)
    assert one.near.expect(where("k")) != token


async def test_server_that_stands_still_serves_nothing_stale(near: Near_, own_server: Server) -> None:
    """SIGSTOP: near values end within the bound, and it goes on when the server does."""
    one = near(own_server.url, 0.4)
    await one.set("k", "1")
    await one.warm("k")
    own_server.signal(signal.SIGSTOP)
    try:
        assert await gone(one, "k", 2.0) <= 0.45
    finally:
        own_server.signal(signal.SIGCONT)
    await one.warm("k")


async def test_answer_that_is_late_is_worth_less(near: Near_, own_server: Server) -> None:
    """What is promised counts from the asking: the server stood still between hearing the question and answering it."""
    one = near(own_server.url, 0.4)
    await one.set("k", "1")
    await one.warm("k")
    before = one.tracker.lease.until
    own_server.signal(signal.SIGSTOP)
    await asyncio.sleep(0.7)
    lease, known = one.tracker.lease, one.tracker.lease.until
    assert known <= before + 0.4
    went_on = monotonic()
    own_server.signal(signal.SIGCONT)
    async with asyncio.timeout(5):
        while lease.until == known:
            await asyncio.sleep(0)
    assert lease is one.tracker.lease
    assert lease.until < went_on


async def test_half_open_socket_serves_nothing_stale(near: Near_, server: Server, tmp_path: Path) -> None:
    """The way back is lost, and writes go on elsewhere: no value older than the bound, and a new connection then."""
    async with proxy(server.path, tmp_path / "p") as between:
        one, other = near(between.url, 0.4), near(server.url)
        await other.set("half", "1")
        await one.warm("half")
        between.swallow_replies = True
        await other.set("half", "2")
        assert await gone(one, "half", 2.0) <= 0.4
        between.swallow_replies = False
        await one.warm("half")
        assert one.near.lookup("half") == "2"


async def test_deaf_server_serves_nothing_stale(near: Near_, server: Server, tmp_path: Path) -> None:
    """Nothing that we send arrives: notices may still come, and are not enough."""
    async with proxy(server.path, tmp_path / "p") as between:
        one = near(between.url, 0.4)
        await one.set("deaf", "1")
        await one.warm("deaf")
        between.deaf = True
        assert await gone(one, "deaf", 2.0) <= 0.4
        between.deaf = False


async def test_blocked_loop_serves_nothing_stale(near: Near_, server: Server) -> None:
    """Whatever waits in the socket while the loop stands still: what is older than the bound is a miss, in the same tick."""
    one = near(server.url, 0.4)
    await one.set("blocked", "1")
    await one.warm("blocked")
    time.sleep(0.5)  # noqa: ASYNC251 (that is the point)
    assert one.near.lookup("blocked") is MISSING
    await one.warm("blocked")


async def test_suspended_machine_serves_nothing_stale(near: Near_, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock goes on while it sleeps."""
    one = near(server.url, 30.0)
    await one.set("slept", "1")
    await one.warm("slept")
    monkeypatch.setattr("observatory.features.cache.near.monotonic", lambda: monotonic() + 3600)
    assert one.near.lookup("slept") is MISSING


async def test_near_ends_with_the_store(near: Near_, server: Server) -> None:
    """Closed: nothing is served, and no task is left."""
    one = near(server.url)
    await one.set("k", "1")
    await one.warm("k")
    one.store.close()
    assert one.near.lookup("k") is MISSING
    assert not one.near.expect(where("k"))
    await asyncio.sleep(0.05)
    assert not [task for task in asyncio.all_tasks() if "tracker" in task.get_name()]


async def test_server_that_refuses_is_told_of_once(near: Near_, own_server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """No right to track: every read goes to the store, and one line says so."""
    one = near(own_server.url)
    await one.store.command("ACL", "SETUSER", "default", "-client|tracking")
    for _ in range(5):
        await one.set("k", "1")
        assert await one.get("k") == "1"
        await asyncio.sleep(0.02)
    assert one.near.stats.hits == 0
    assert sum("near caches are off" in record.message for record in caplog.records) == 1


async def test_entry_ends_at_its_own_end(near: Near_, server: Server) -> None:
    """Before the store says so."""
    one = near(server.url, 30.0)
    await one.set("k", "1")
    await one.warm("k")
    token = one.near.expect(where("k"))
    assert one.near.keep(token, (b"1",), "k", b"1", "1", monotonic() + 0.05)
    assert one.near.lookup("k") == "1"
    await asyncio.sleep(0.06)
    assert one.near.lookup("k") is MISSING


async def test_self_check_finds_what_is_served_beyond_the_bound(near: Near_, server: Server) -> None:
    """And says nothing about what is right, or was replaced in time."""
    found: list[int] = []
    one = near(server.url, 0.3, check_every=1, mismatched=lambda: found.append(1))
    other = near(server.url)
    await other.set("k", "1")
    await one.warm("k")
    await other.set("k", "2")
    await one.warm("k")
    await asyncio.sleep(1)
    assert one.near.stats.checks
    assert not found
    one.vicinity.changed = lambda keys: None  # type: ignore[method-assign]
    await other.set("k", "3")
    assert one.near.lookup("k") == "2"
    await asyncio.sleep(0.8)
    assert found
    assert one.near.stats.mismatches == len(found)
    assert await one.get("k") == "3"


class Held:
    """A primary that never changes."""

    closed = False

    def include(self, prefix: str) -> None: ...

    def __init__(self) -> None:
        self.one = Lease(FOR_EVER)

    def lease(self, key: str) -> Lease:
        return self.one


def alone(decode: Callable[[bytes], Any], **more: Any) -> Near[Any]:
    async def nothing(_: Key) -> bytes | None:
        return None

    return Near(Vicinity(lambda _: Held(), nothing, bound=1.0), decode, **{"max_entries": 100, "max_bytes": 1 << 20, **more})


def keep(near: Near[Any], key: str, payload: bytes, value: Any) -> bool:
    return near.keep(near.expect(where(key)), (payload,), key, payload, value, FOR_EVER)


def test_what_can_change_is_made_anew_for_every_caller() -> None:
    """Nobody finds what another has done to his."""
    near = alone(msgspec.msgpack.decode)
    keep(near, "k", msgspec.msgpack.encode([1]), [1])
    near.lookup("k").append(2)
    assert near.lookup("k") == [1]


def test_both_bounds_hold() -> None:
    """By entries, by bytes, and for one that is larger than all may be."""
    near = alone(bytes.decode)
    for number in range(1000):
        keep(near, f"k{number}", b"x" * (number % 50) * 1000, "y")
        assert near.stats.entries <= 100
        assert near.stats.bytes <= 1 << 20
        assert len(near._vicinity.kept) == near.stats.entries
    assert near.stats.evictions > 800
    assert not keep(near, "big", b"x" * (1 << 20), "big")
    assert near.lookup("big") is MISSING


def test_self_check_goes_on_after_a_loop_that_is_gone() -> None:
    """What it was comparing then is nobody's; it compares again."""
    reads: list[Key] = []

    async def read(key: Key) -> bytes | None:
        reads.append(key)
        await asyncio.sleep(3600 if asyncio.get_running_loop() is first else 0)
        return b"1"

    near: Near[Any] = Near(
        Vicinity(lambda _: Held(), read, bound=1.0), bytes.decode, max_entries=10, max_bytes=1 << 20, check_every=1
    )

    async def use() -> None:
        keep(near, "k", b"1", "1")
        for _ in range(20):
            near.lookup("k")
            await asyncio.sleep(0)

    first = asyncio.new_event_loop()
    first.run_until_complete(use())
    first.close()
    assert len(reads) == 8
    asyncio.run(use())
    assert len(reads) > 8
    assert near.stats.checks > 0


def test_what_rests_on_a_token_that_was_replaced_is_a_miss() -> None:
    """A read was answered elsewhere, the next one takes another token of the version: no notice would find the first."""
    near = alone(bytes.decode)
    held, vicinity = Held(), near._vicinity
    vicinity._leases = held
    assert near.keep(near.expect(where("k"), where("version")), (b"1", b"v"), "k", b"1", "1", FOR_EVER)
    under_way = near.expect(where("other"), where("version"))
    held.one.strays += 1
    assert near.lookup("k") == "1", "nothing has happened to it"
    tokens = near.expect(where("new"), where("version"))
    assert not near.keep(under_way, (b"2", b"v"), "other", b"2", "2", FOR_EVER)
    assert near.keep(tokens, (b"3", b"v"), "new", b"3", "3", FOR_EVER)
    vicinity.changed([where("version").encode()])
    assert [near.lookup(key) for key in ("k", "other", "new")] == [MISSING] * 3
    assert near.last("k") is MISSING
