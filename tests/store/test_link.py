"""The link: many calls on one connection, each answered once, by its own reply or by an error."""

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from observatory.errors import StoreError, StoreMisconfigured, StoreUnavailable
from observatory.store.address import address
from observatory.store.link import Link
from tests.proxy import Proxy, proxy
from tests.servers import Server


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """The link takes over the loop's own transport: it is tried on both kinds of loop."""
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


def link_to(url: str, *, max_wait: float = 0.25, drop_after: float = 2.0) -> Link:
    where = address(url, environment="production", home=Path("/nowhere"))

    async def connect():  # type: ignore[no-untyped-def]
        return where.connection(2.0)

    return Link(connect, name="test", max_wait=max_wait, drop_after=drop_after)


@pytest.fixture
async def link(any_server: Server) -> AsyncIterator[Link]:
    one = link_to(any_server.url, max_wait=5.0)
    yield one
    one.close()


@pytest.fixture
async def between(server: Server, tmp_path: Path) -> AsyncIterator[Proxy]:
    async with proxy(server.path, tmp_path / "p") as one:
        yield one


async def test_replies_find_their_callers(link: Link) -> None:
    """2,000 calls at once over one connection: each has its own answer."""
    answers = await asyncio.gather(*(link.call("ECHO", f"{number}") for number in range(2000)))
    assert answers == [str(number).encode() for number in range(2000)]


async def test_cancelled_callers_drop_only_their_own_reply(link: Link) -> None:
    """Every second caller is cancelled at a random moment; nobody hears another's answer, and the connection stays."""
    await link.call("PING")
    identity = await link.call("CLIENT", "ID")

    async def ask(number: int) -> bool:
        with_deadline = number % 2 == 0
        try:
            async with asyncio.timeout(random.uniform(0, 0.003) if with_deadline else None):
                return bool(await link.call("ECHO", str(number)) == str(number).encode())
        except TimeoutError:
            return True

    for _ in range(10):
        assert all(await asyncio.gather(*(ask(number) for number in range(300))))
    assert await link.call("CLIENT", "ID") == identity, "a cancelled caller must not cost a connection"


async def test_every_type_of_reply_is_read(link: Link) -> None:
    """Nil, integers, false, maps, nested arrays, doubles, and an error in the midst of others."""
    script = "redis.setresp(3); return {1, false, {map={a='b'}}, {double=1.5}, 'x'}"
    got = await asyncio.gather(
        *(link.call("EVAL", script, 0), link.call("GET", "nothing-here"), link.call("NOSUCHCOMMAND"), link.call("PING")),
        return_exceptions=True,
    )
    assert got[0] == [1, False, {b"a": b"b"}, 1.5, b"x"]
    assert got[1] is None
    assert isinstance(got[2], StoreMisconfigured)
    assert got[3] == b"PONG"


async def test_binary_survives(link: Link) -> None:
    """Any bytes, and a megabyte of them."""
    blob = random.Random(1).randbytes(1 << 20) + b"\r\n\x00$-1"
    assert await link.call("ECHO", blob) == blob


async def test_slow_store_costs_at_most_the_bounded_wait(own_server: Server) -> None:
    """Calls on a server that stands still are given up in time; when it goes on, so does the link, on the same connection."""
    link = link_to(own_server.url, max_wait=0.2)
    identity = await link.call("CLIENT", "ID")
    loop = asyncio.get_running_loop()
    began = loop.time()
    own_server.signal(signal.SIGSTOP)
    try:
        for call in [link.call("PING"), link.call("PING")]:
            with pytest.raises(StoreUnavailable, match=r"did not answer within 0\.2 s"):
                await call
        assert 0.19 < loop.time() - began < 0.6
    finally:
        own_server.signal(signal.SIGCONT)
    assert await link.call("CLIENT", "ID") == identity
    link.close()


async def test_stuck_link_is_dropped_and_made_again(between: Proxy) -> None:
    """A half-open connection: outstanding calls end unknown, a new connection serves the next."""
    link = link_to(between.url, max_wait=0.2, drop_after=0.5)
    first = await link.call("CLIENT", "ID")
    between.deaf = True
    with pytest.raises(StoreUnavailable):
        await link.call("PING")
    await asyncio.sleep(0.5)
    between.deaf = False
    assert await link.call("CLIENT", "ID") != first
    link.close()


async def test_blocked_loop_does_not_cost_the_link(server: Server) -> None:
    """The application blocks its own loop for longer than a stuck link is given: late, but not cut off."""
    link = link_to(server.url, max_wait=5.0, drop_after=0.2)
    identity = await link.call("CLIENT", "ID")
    for _ in range(3):
        call = link.call("PING")
        time.sleep(0.4)  # noqa: ASYNC251 (that is the point)
        assert await call == b"PONG"
        call = link.call("PING")
        await asyncio.sleep(0)
        time.sleep(0.4)  # noqa: ASYNC251
        assert await call == b"PONG"
    assert await link.call("CLIENT", "ID") == identity
    link.close()


async def test_blocked_loop_reads_before_it_gives_up(server: Server) -> None:
    """Longer than max_wait: what was answered meanwhile is an answer. (No more than the sockets hold: it was all answered.)"""
    link = link_to(server.url, max_wait=0.1, drop_after=5.0)
    await link.call("PING")
    for _ in range(5):
        calls = [link.call("ECHO", "x" * 5_000) for _ in range(20)]
        await asyncio.sleep(0)
        time.sleep(0.3)  # noqa: ASYNC251 (that is the point)
        assert await asyncio.gather(*calls) == [b"x" * 5_000] * 20
        call = link.call("PING")
        time.sleep(0.3)  # noqa: ASYNC251
        assert await call == b"PONG"
    link.close()


async def test_demoted_primary_is_left(own_server: Server, server: Server, tmp_path: Path) -> None:
    """A name that moves to another server: the old one, now a replica, keeps its clients; they leave by themselves."""
    name = tmp_path / "name"
    name.symlink_to(own_server.path)
    link = link_to(f"unix://{name}")
    await link.call("SET", "demoted", "1", "PX", 60_000)
    await link.call("REPLICAOF", "127.0.0.1", "1")
    name.unlink()
    name.symlink_to(server.path)
    with pytest.raises(StoreUnavailable, match="READONLY"):
        await link.call("SET", "demoted", "2", "PX", 60_000)
    assert await link.call("SET", "demoted", "3", "PX", 60_000) == b"OK"
    assert await link.call("DEL", "demoted") == 1
    link.close()


async def test_answers_are_not_kept(link: Link) -> None:
    """What watches deadlines holds no reply that was given."""
    await asyncio.gather(*(link.call("ECHO", str(number)) for number in range(100)))
    assert all(call.future is None for call in link._waiting)


async def test_lost_connection_ends_every_call_once(between: Proxy) -> None:
    """All outstanding callers hear of it at once; nothing is sent again behind their back."""
    link = link_to(between.url, max_wait=5.0)
    await link.call("DEL", "lost")
    between.swallow_replies = True
    calls = [link.call("INCR", "lost") for _ in range(100)]
    await asyncio.sleep(0.1)
    between.cut()
    ended = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(error, StoreUnavailable) for error in ended)
    between.swallow_replies = False
    assert int(await link.call("GET", "lost")) == 100, "each was executed once"
    await link.call("DEL", "lost")
    link.close()


async def test_refused_connection_fails_at_once_and_recovers(own_server: Server) -> None:
    """No server: the error comes at once, not after the wait; the link finds the server when it is back."""
    link = link_to(own_server.url, max_wait=2.0)
    await link.call("PING")
    own_server.stop()
    loop = asyncio.get_running_loop()
    began = loop.time()
    for _ in range(20):
        with pytest.raises(StoreUnavailable):
            await link.call("PING")
    assert loop.time() - began < 1.0
    own_server.start()
    async with asyncio.timeout(5):
        while True:
            try:
                await link.call("PING")
                break
            except StoreUnavailable:
                await asyncio.sleep(0.05)
    link.close()


async def test_closed_link_says_so(server: Server) -> None:
    """What is outstanding ends, and nothing new begins."""
    link = link_to(server.url)
    await link.call("PING")
    outstanding = link.call("PING")
    link.close()
    for call in (outstanding, link.call("PING")):
        with pytest.raises(StoreUnavailable, match="closed"):
            await call


async def test_wrong_password_is_a_misconfiguration(own_server: Server) -> None:
    """With the remedy, and without the password."""
    link = link_to(own_server.url)
    await link.call("CONFIG", "SET", "requirepass", "right")
    wrong = link_to(own_server.url.replace("unix://", "unix://:wrong@"))
    with pytest.raises(StoreMisconfigured, match="OBSERVATORY_REDIS_PASSWORD") as caught:
        await wrong.call("PING")
    assert "wrong@" not in str(caught.value)
    right = link_to(own_server.url.replace("unix://", "unix://:right@"))
    assert await right.call("PING") == b"PONG"
    for one in (link, wrong, right):
        one.close()


async def test_out_of_memory_counts_as_away(own_server: Server) -> None:
    """A store that cannot take writes is unavailable, not broken."""
    link = link_to(own_server.url)
    await link.call("CONFIG", "SET", "maxmemory", "1mb")
    with pytest.raises(StoreUnavailable, match="OOM"):
        await link.call("SET", "k", "v")
    with pytest.raises(StoreError, match=r"WRONGTYPE|OOM"):
        await link.call("EVAL", "return redis.error_reply('WRONGTYPE x')", 0)
    link.close()
