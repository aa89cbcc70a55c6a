"""Waiting for keys: woken by what the server says, whatever changed; never for ever, whatever became of the connection."""

import asyncio
import random
import secrets
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from observatory.errors import StoreUnavailable
from observatory.store import notices, watch
from observatory.store.store import Store
from observatory.store.watch import Watch
from tests.proxy import proxy
from tests.servers import Server, environment, process
from tests.store.conftest import Open
from tests.store.load import store_at

LONG = 60.0


@pytest.fixture
def key() -> str:
    return f"watched:{secrets.token_hex(6)}"


@pytest.fixture
def told_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks without being told: what is noticed was announced."""
    monkeypatch.setattr(watch, "LOOK_AFTER", LONG)


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No registration outlives those who wait."""
    made: list[notices.Notices] = []
    begin = notices.Notices.__init__

    def noted(self: notices.Notices, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(notices.Notices, "__init__", noted)
    yield
    assert not [one.registered for one in made if one.registered]


async def put(store: Store, key: str, value: str = "v") -> None:
    await store.command("SET", key, value, "PX", 60_000)


async def read(store: Store, key: str, looks: list[int] | None = None) -> bytes:
    """As soon as it is there, through whatever happens."""
    with store.watching(key) as change:
        while True:
            if looks is not None:
                looks.append(1)
            with suppress(StoreUnavailable):
                if (found := await store.command("GET", key)) is not None:
                    assert isinstance(found, bytes)
                    return found
            await change.heard(LONG)


async def until(fact: Callable[[], object], within: float = 10.0) -> None:
    async with asyncio.timeout(within):
        while not fact():
            await asyncio.sleep(0.002)


async def registered(change: Watch) -> None:
    """Whatever follows is announced."""
    async with asyncio.timeout(10):
        while not change._registered:
            await change.heard(LONG)


def connections(store: Store) -> list[notices.Notices]:
    assert store._watches is not None
    return [one for one in store._watches.notices.values() if one._wire is not None]


def waiting(store: Store) -> int:
    """Keys of which the next change will be announced."""
    return sum(one.made for primary in connections(store) for one in primary.registered.values())


async def tracking(store: Store) -> list[str]:
    """The ids of connections to which the server announces something."""
    listed = (await store.command("CLIENT", "LIST")).decode().splitlines()
    clients = [dict(field.split("=", 1) for field in line.split() if "=" in field) for line in listed]
    return [client["id"] for client in clients if "t" in client["flags"]]


@pytest.mark.usefixtures("told_only")
@pytest.mark.parametrize("how", ["created", "overwritten", "appended", "deleted", "expired", "renewed", "by a script"])
async def test_every_change_wakes(any_server: Server, at: Open, key: str, how: str) -> None:
    """Of either key, also of one that was not there; and nothing wakes without one."""
    store, other = at(any_server.url), at(any_server.url)
    if how in ("overwritten", "deleted", "renewed"):
        await put(other, key)
    elif how == "expired":
        await other.command("SET", key, "v", "PX", 300)
    with store.watching(f"{key}:beside", key) as change:
        async with asyncio.timeout(5):
            await change.heard(LONG)
        hearing = asyncio.create_task(change.heard(LONG))
        for _ in range(3):
            await other.ping()
        assert not hearing.done() or how == "expired"
        match how:
            case "created" | "overwritten":
                await put(other, key, "w")
            case "appended":
                await other.command("XADD", key, "*", "chunk", "w")
                await other.command("PEXPIRE", key, 60_000)
            case "deleted":
                await other.command("DEL", key)
            case "renewed":
                await other.command("PEXPIRE", key, 30_000)
            case "by a script":
                await other.command("EVAL", "redis.call('SET', KEYS[1], 'v', 'PX', 60000)", 1, key)
            case _:
                pass
        async with asyncio.timeout(5):
            await hearing
        # A notice is for once: asked for again, then waited for again.
        await registered(change)
        hearing = asyncio.create_task(change.heard(LONG))
        for _ in range(3):
            await other.ping()
        assert not hearing.done()
        await put(other, key, "again")
        async with asyncio.timeout(5):
            await hearing


@pytest.mark.usefixtures("told_only")
async def test_nothing_is_missed_between_look_and_wait(any_server: Server, at: Open) -> None:
    """Written at any moment around the look and the registration, and again while somebody reads."""
    store, other = at(any_server.url, max_wait=5.0), at(any_server.url, max_wait=5.0)
    chance = random.Random(1)

    async def write(key: str) -> None:
        await asyncio.sleep(chance.random() * 0.004)
        await put(other, key, "1")
        await asyncio.sleep(chance.random() * 0.002)
        await put(other, key, "2")

    async def second(key: str) -> None:
        with store.watching(key) as change:
            while await store.command("GET", key) != b"2":
                await change.heard(LONG)

    async with asyncio.timeout(30):
        for _ in range(30):
            keys = [f"race:{secrets.token_hex(6)}" for _ in range(20)]
            await asyncio.gather(*(does(key) for key in keys for does in (write, second, second)))


@pytest.mark.usefixtures("told_only")
async def test_waiters_of_a_key_share_a_registration(server: Server, at: Open, key: str) -> None:
    """Also with those that came later; and who is cancelled, while registering or waiting, costs the others nothing."""
    store, other = at(server.url), at(server.url)
    reading = [asyncio.create_task(read(store, key)) for _ in range(5)]
    while store._watches is None or not any(one.registered for one in store._watches.notices.values()):
        await asyncio.sleep(0)
    reading.pop(0).cancel()
    await until(lambda: waiting(store))
    before = await other.command("INFO", "commandstats")
    reading += [asyncio.create_task(read(store, key)) for _ in range(5)]
    await asyncio.sleep(0.05)
    reading.pop(0).cancel()
    reading.pop().cancel()
    assert waiting(store) == 1
    after = await other.command("INFO", "commandstats")
    counted = [said.decode().partition("cmdstat_exists:calls=")[2].partition(",")[0] for said in (before, after)]
    assert counted[0] == counted[1], "they joined what was registered"
    await put(other, key)
    async with asyncio.timeout(5):
        assert await asyncio.gather(*reading) == [b"v"] * 7


@pytest.mark.usefixtures("told_only")
async def test_a_thousand_keys_on_one_connection(any_server: Server, at: Open, key: str) -> None:
    """Each is announced to who waits for it, and wakes nobody else."""
    store, other = at(any_server.url, max_wait=10.0), at(any_server.url, max_wait=10.0)
    looks: dict[int, list[int]] = {number: [] for number in range(1000)}
    reading = [asyncio.create_task(read(store, f"{key}:{number}", looks[number])) for number in looks]
    await until(lambda: store._watches is not None and waiting(store) == 1000)
    assert len(connections(store)) == 1
    async with asyncio.timeout(20):
        await asyncio.gather(*(put(other, f"{key}:{number}", str(number)) for number in looks))
        assert await asyncio.gather(*reading) == [str(number).encode() for number in looks]
    assert {len(one) for one in looks.values()} <= {2, 3}, "before, after registering, when told"


@pytest.mark.usefixtures("told_only")
@pytest.mark.parametrize("how", ["FLUSHALL", "kill", "restart"])
async def test_lost_notices_wake_everybody(own_server: Server, at: Open, key: str, how: str) -> None:
    """And the next change is announced again."""
    store, other = at(own_server.url), at(own_server.url)
    with store.watching(key) as change:
        await registered(change)
        hearing = asyncio.create_task(change.heard(LONG))
        reading = asyncio.create_task(read(store, f"{key}:other"))
        await until(lambda: waiting(store) == 2)
        match how:
            case "FLUSHALL":
                await other.command("FLUSHALL")
            case "kill":
                (victim,) = await tracking(other)
                await other.command("CLIENT", "KILL", "ID", victim)
            case _:
                own_server.stop()
        async with asyncio.timeout(5):
            await hearing
        if how == "restart":
            own_server.start()
        await registered(change)
        await until(lambda: waiting(store) == 2)
        hearing = asyncio.create_task(change.heard(LONG))
        while True:
            with suppress(StoreUnavailable):
                await put(other, key)
                await put(other, f"{key}:other")
                break
            await asyncio.sleep(0.05)
        async with asyncio.timeout(5):
            await hearing
            assert await reading == b"v"


async def test_who_never_hears_looks_all_the_same(own_server: Server, at: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that stands still: every wait ends, and a connection without answers is given up."""
    store, other = at(own_server.url), at(own_server.url)
    loop = asyncio.get_running_loop()
    with store.watching("still") as change:
        await registered(change)
        own_server.signal(signal.SIGSTOP)
        try:
            for _ in range(3):
                began = loop.time()
                await change.heard(LONG)
                assert loop.time() - began < watch.LOOK_AFTER + 2
            async with asyncio.timeout(10):
                while connections(store):
                    await change.heard(0.1)
        finally:
            own_server.signal(signal.SIGCONT)
        monkeypatch.setattr(watch, "LOOK_AFTER", LONG)
        await registered(change)
        hearing = asyncio.create_task(change.heard(LONG))
        await until(lambda: waiting(store))
        await put(other, "still")
        async with asyncio.timeout(5):
            await hearing


async def test_half_open_socket_is_noticed(server: Server, at: Open, key: str, tmp_path: Path) -> None:
    """The notice never comes: looked for after a second all the same, and another connection is made."""
    async with proxy(server.path, tmp_path / "p") as between:
        store, other = at(between.url), at(server.url)
        with store.watching(key) as change:
            await registered(change)
            wire = connections(store)[0]._wire
            between.swallow_replies = True
            await put(other, key)
            async with asyncio.timeout(10):
                while connections(store) and connections(store)[0]._wire is wire:
                    await change.heard(LONG)
            between.swallow_replies = False
            await registered(change)


@pytest.mark.parametrize("refused", ["-client|tracking", "-exists"])
async def test_without_the_right_to_it_who_waits_looks(
    own_server: Server, at: Open, key: str, caplog: pytest.LogCaptureFixture, refused: str
) -> None:
    """One line says so; the looks become seldom."""
    store, other = at(own_server.url), at(own_server.url)
    await other.command("ACL", "SETUSER", "default", refused)
    looks: list[int] = []
    reading = [asyncio.create_task(read(store, key, looks)) for _ in range(2)]
    await asyncio.sleep(1.0)
    assert 10 < len(looks) < 300
    await put(other, key)
    async with asyncio.timeout(5):
        assert await asyncio.gather(*reading) == [b"v"] * 2
    assert sum("changes are not announced" in record.message for record in caplog.records) == 1


@pytest.mark.usefixtures("told_only")
async def test_close_wakes_everybody(server: Server, key: str) -> None:
    """And waiting goes on as a pause, without an error, without a task."""
    store = store_at(server.url)
    with store.watching(key) as change, store.watching(f"{key}:2") as never:
        await registered(change)
        hearing = asyncio.create_task(change.heard(LONG))
        await asyncio.sleep(0)
        store.close()
        async with asyncio.timeout(5):
            await hearing
            await change.heard(LONG)
            await never.heard(LONG)
            with store.watching(key) as late:
                await late.heard(LONG)
    await asyncio.sleep(0.01)
    assert not [task for task in asyncio.all_tasks() if "watch" in task.get_name()]


async def test_idle_connection_is_closed(server: Server, at: Open, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And made again for the next; while somebody waits it stays."""
    monkeypatch.setattr(notices, "_IDLE", 0.05)
    store, other = at(server.url), at(server.url)
    with store.watching(key) as change:
        await registered(change)
        with store.watching(f"{key}:2") as second:
            await registered(second)
        await asyncio.sleep(0.2)
        assert connections(store)
    await until(lambda: not connections(store))
    reading = asyncio.create_task(read(store, key))
    await until(lambda: connections(store) and waiting(store))
    await put(other, key)
    assert await reading == b"v"


FORKING = """
import asyncio, gc, os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork with threads; that is what is tested here
from observatory.store import watch
from tests.store.load import store_at

watch.LOOK_AFTER = 60.0

async def read(store, key):
    with store.watching(key) as change:
        while (found := await store.command("GET", key)) is None:
            await change.heard(60)
        return found

async def waiting(store, key):
    task = asyncio.ensure_future(read(store, key))
    while not any(one.made for notices in (store._watches.notices.values() if store._watches else ())
                  for one in notices.registered.values()):
        await asyncio.sleep(0.005)
    return task

async def served(key):
    store, other = store_at(sys.argv[1]), store_at(sys.argv[1])
    task = await waiting(store, key)
    await other.command("SET", key, "v", "PX", 60000)
    assert await asyncio.wait_for(task, 5) == b"v"
    store.close(), other.close()

async def parent():
    store, other = store_at(sys.argv[1]), store_at(sys.argv[1])
    task = await waiting(store, sys.argv[2])
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            store.abandon(), other.abandon()
            gc.collect()
            asyncio.events._set_running_loop(None)
            asyncio.set_event_loop(None)
            asyncio.run(served(sys.argv[2] + ":child"))
            code = 0
        finally:
            os._exit(code)
    _, status = await asyncio.to_thread(os.waitpid, pid, 0)
    assert status == 0, status
    assert not task.done()
    await other.command("SET", sys.argv[2], "v", "PX", 60000)
    assert await asyncio.wait_for(task, 5) == b"v"
    store.close(), other.close()

asyncio.run(parent())
"""


def test_forked_child_leaves_it_alone(server: Server, key: str) -> None:
    """It waits on a connection of its own, and the parent is told of what it waits for."""
    from tests.servers import ROOT

    with process(["-c", FORKING, server.url, key], environment(PYTHONPATH=str(ROOT))) as one:
        out, said = one.communicate(timeout=60)
    assert one.returncode == 0, out + said
    assert not said
