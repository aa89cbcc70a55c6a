"""Streams on their way: one leader, followers in the same process and in others, byte by byte; and what ends early."""

import asyncio
import contextlib
import hashlib
import json
import signal
import statistics
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from observatory import AnswerCache, AnswerInterrupted, Observatory
from observatory.clock import monotonic
from observatory.features.cache.lease import LEASE
from observatory.llm.answers import Reply
from tests.conftest import Open
from tests.llm.conftest import Connect
from tests.llm.provider import Provider, Said, body_of, question
from tests.servers import ROOT, Server, environment
from tests.topologies import Cluster

PROGRAM = """
import asyncio, hashlib, json, sys
import httpx
from observatory import AnswerCache, AnswerInterrupted, Observatory
from observatory.llm.answers import Answers
from tests.llm.provider import Client, question

async def one(client, stream):
    digest, size = hashlib.sha256(), 0
    reply = await client.ask(question(stream=stream))
    outcome = reply.cached
    try:
        async for chunk in reply:
            digest.update(chunk)
            size += len(chunk)
            print("chunk", flush=True)
    except AnswerInterrupted:
        outcome = "interrupted"
    finally:
        await reply.aclose()
    return [outcome, digest.hexdigest(), size]

async def main():
    url, tasks, stream = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "stream"
    async with Observatory("test") as obs, httpx.AsyncClient(trust_env=False, timeout=60) as http:
        client = Client(Answers(obs, AnswerCache()), url, http)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        found = await asyncio.gather(*(one(client, stream) for _ in range(tasks)))
        await client.settled()
        print(json.dumps(found), flush=True)

asyncio.run(main())
"""


class Member:
    """Another process that asks."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self._reading: asyncio.Task[None] | None = None

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            self.lines.append(line.decode().strip())

    async def start(self) -> None:
        self._reading = asyncio.ensure_future(self._read())
        await until(lambda: "ready" in self.lines, "it is open")

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"go\n")

    @property
    def chunks(self) -> int:
        return self.lines.count("chunk")

    async def found(self) -> list[list[Any]]:
        """Of each task: how it was served, and a digest of the bytes."""
        async with asyncio.timeout(60):
            assert await self.process.wait() == 0
            assert self._reading is not None
            await self._reading
        found: list[list[Any]] = json.loads(self.lines[-1])
        return found


async def until(fact: Callable[[], object], what: str, timeout: float = 30.0) -> None:
    deadline = monotonic() + timeout
    while not fact():
        assert monotonic() < deadline, f"after {timeout:g} s still not: {what}"
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def fleet(
    url: str, namespace: str, provider: str, size: int, tasks: int, kind: str = "stream"
) -> AsyncIterator[list[Member]]:
    env = environment(OBSERVATORY_REDIS_URL=url, OBSERVATORY_NAMESPACE=namespace, PYTHONPATH=str(ROOT))
    members = []
    try:
        for _ in range(size):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", PROGRAM, provider, str(tasks), kind),
                env=env,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            members.append(Member(process))
        await asyncio.gather(*(member.start() for member in members))
        yield members
    finally:
        for member in members:
            if member.process.returncode is None:
                member.process.kill()
                await member.process.wait()


class Gate:
    """Chunks go as far as it is open."""

    def __init__(self, there: Provider, upto: int) -> None:
        self._upto = upto
        self._changed = asyncio.Condition()
        there.gate = self._pass

    async def _pass(self, number: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: number < self._upto)

    async def open(self, upto: int = 10**9) -> None:
        async with self._changed:
            self._upto = upto
            self._changed.notify_all()


@pytest.fixture(params=["valkey", "redis", "cluster"])
def place(request: pytest.FixtureRequest) -> str:
    """Where the fleet meets."""
    if request.param == "cluster":
        cluster = request.getfixturevalue("cluster")
        assert isinstance(cluster, Cluster)
        return cluster.url
    server: Server = request.getfixturevalue("servers")(request.param)
    return server.url


def said(there: Provider, call: int) -> bytes:
    return b"".join(there.says(there.asked[call - 1], call).chunks)


@pytest.mark.parametrize("kind", ["stream", "document"])
async def test_three_processes_and_thirty_tasks_make_one_call(place: str, namespace: str, there: Provider, kind: str) -> None:
    """All have the same bytes; those of the stream while it comes."""
    gate = Gate(there, 5 if kind == "stream" else 0)
    async with fleet(place, namespace, there.url, 3, 10, kind) as members:
        for member in members:
            member.go()
        if kind == "stream":
            # Everybody has what has come so far, while the provider still has the rest.
            await until(lambda: all(member.chunks >= 10 for member in members), "all read along")
        else:
            await until(lambda: there.asked, "somebody asks")
        await gate.open()
        found = [one for member in members for one in await member.found()]
    assert len(there.asked) == 1
    body = said(there, 1)
    assert {(digest, size) for _, digest, size in found} == {(hashlib.sha256(body).hexdigest(), len(body))}
    assert sorted(outcome for outcome, _, _ in found).count("miss") == 1
    assert {outcome for outcome, _, _ in found} <= {"miss", "shared", "hit"}


async def test_followers_are_close_behind(opening: Open, connect: Connect, there: Provider) -> None:
    """In another process a chunk is there a moment after it came; nobody polls for it."""
    leader, follower = connect(await opening()), connect(await opening())
    gate = Gate(there, 1)
    behind = []
    replies = [await leader.ask(question(stream=True)), await follower.ask(question(stream=True))]
    assert [reply.cached for reply in replies] == ["miss", "shared"]
    streams = [aiter(reply) for reply in replies]
    for number in range(1, 20):
        first = await anext(streams[0])
        began = monotonic()
        assert await anext(streams[1]) == first
        behind.append(monotonic() - began)
        await gate.open(number + 1)
    await gate.open()
    assert statistics.median(behind) < 0.1
    rest = [[chunk async for chunk in stream] for stream in streams]
    assert b"".join(rest[0]) == b"".join(rest[1])
    for reply in replies:
        await reply.aclose()
    assert len(there.asked) == 1


async def test_a_follower_of_a_stream_that_is_half_over(opening: Open, connect: Connect, there: Provider) -> None:
    """Reads from its beginning, here and elsewhere."""
    obs = await opening()
    leader, here, elsewhere = connect(obs), connect(obs), connect(await opening())
    here.answers = leader.answers
    gate = Gate(there, 10)
    first = await leader.ask(question(stream=True))
    stream = aiter(first)
    got = [await anext(stream) for _ in range(10)]
    late = [asyncio.ensure_future(one.read(question(stream=True))) for one in (here, elsewhere)]
    await gate.open()
    got += [chunk async for chunk in stream]
    await first.aclose()
    for reply, body in await asyncio.gather(*late):
        assert (reply.cached, body) == ("shared", b"".join(got))
    assert len(there.asked) == 1


async def test_a_killed_leader(server: Server, namespace: str, opening: Open, connect: Connect, there: Provider) -> None:
    """SIGKILL in the middle: who has read of it is told, soon after its lease; who has not has the stream of another call, as
    has whoever asks afterwards."""
    gate = Gate(there, 6)
    follower = connect(await opening())
    async with fleet(server.url, namespace, there.url, 1, 1) as (leader,):
        leader.go()
        await until(lambda: leader.chunks >= 6, "it leads")
        reply = await follower.ask(question(stream=True))
        stream = aiter(reply)
        got = [await anext(stream) for _ in range(6)]
        leader.process.send_signal(signal.SIGKILL)
        began = monotonic()
        with pytest.raises(AnswerInterrupted) as error:
            got.append(await _end(stream))
        assert monotonic() - began < LEASE + 1.5
        assert error.value.retryable
        assert b"".join(got) == b"".join(there.says(there.asked[0], 1).chunks[:6])
        again = asyncio.ensure_future(follower.read(question(stream=True)))
        await until(lambda: len(there.asked) == 2, "somebody makes the call anew")
        await reply.aclose()
        await gate.open()
        assert (await again)[1] == said(there, 2)
        await follower.settled()
        assert (await follower.read(question(stream=True)))[0].cached == "hit"
    assert len(there.asked) == 2


async def test_a_leader_killed_before_its_first_byte(
    server: Server, namespace: str, opening: Open, connect: Connect, there: Provider
) -> None:
    """Nobody notices but by the time it takes."""
    gate = Gate(there, 0)
    follower = connect(await opening())
    async with fleet(server.url, namespace, there.url, 1, 1) as (leader,):
        leader.go()
        await until(lambda: there.asked, "it leads")
        reading = asyncio.ensure_future(follower.read(question(stream=True)))
        await until(lambda: follower.answers._sources, "somebody follows")
        leader.process.send_signal(signal.SIGKILL)
        await until(lambda: len(there.asked) == 2, "the follower leads")
        await gate.open()
        assert (await reading)[1] == said(there, 2)


async def test_a_reader_who_goes_away_ends_the_call(opening: Open, connect: Connect, there: Provider) -> None:
    """When nobody else reads it, here or elsewhere; and gives the lease back, so that the next has not to wait for it."""
    client = connect(await opening())
    gate = Gate(there, 3)
    reply = await client.ask(question(stream=True))
    await anext(aiter(reply))
    await reply.aclose()
    await until(lambda: there.cancelled == 1, "the provider is hung up on")
    await gate.open()
    began = monotonic()
    assert (await client.read(question(stream=True)))[1] == said(there, 2)
    assert monotonic() - began < 1.0
    assert (len(there.asked), there.cancelled) == (2, 1)


async def test_a_reader_cancelled_while_it_waits_for_the_head(opening: Open, connect: Connect, there: Provider) -> None:
    """Likewise; and another who waits for the same is not cancelled with it."""
    client = connect(await opening())
    gate = Gate(there, 0)
    alone = asyncio.ensure_future(client.read(question("alone")))
    await until(lambda: len(there.asked) == 1, "the call is made")
    alone.cancel()
    await until(lambda: there.cancelled == 1, "the provider is hung up on")
    first, other = [asyncio.ensure_future(client.read(question("together"))) for _ in range(2)]
    await until(lambda: len(there.asked) == 2, "the call is made")
    first.cancel()
    await asyncio.wait({alone, first})
    assert alone.cancelled()
    assert first.cancelled()
    await gate.open()
    assert (await other)[1] == said(there, 2)
    assert (len(there.asked), there.cancelled) == (2, 1)


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_leader_whose_reader_goes_away_goes_on_for_followers(
    opening: Open, connect: Connect, there: Provider, elsewhere: bool
) -> None:
    """To the end, and keeps what came; until the last of them goes too."""
    obs = await opening()
    leader = connect(obs)
    follower = connect(await opening() if elsewhere else obs)
    if not elsewhere:
        follower.answers = leader.answers
    for stays in (True, False):
        gate = Gate(there, 4)
        asked = question(f"{stays}", stream=True)
        first = await leader.ask(asked)
        await anext(aiter(first))
        second = await follower.ask(asked)
        stream = aiter(second)
        got = [await anext(stream) for _ in range(4)]
        await first.aclose()
        if not stays:
            await second.aclose()
            await until(lambda: there.cancelled == 1, "the provider is hung up on")
            continue
        await gate.open(8)
        got += [await anext(stream) for _ in range(4)]
        await gate.open()
        got += [chunk async for chunk in stream]
        await second.aclose()
        assert b"".join(got) == said(there, 1)
        await leader.settled()
        assert (await follower.read(asked))[0].cached in ("hit", "shared")
    assert (len(there.asked), there.cancelled) == (2, 1)


async def test_a_follower_cancelled_disturbs_nobody(opening: Open, connect: Connect, there: Provider) -> None:
    """Neither the leader nor another follower."""
    leader, follower, other = [connect(await opening()) for _ in range(3)]
    gate = Gate(there, 4)
    replies = [await one.ask(question(stream=True)) for one in (leader, follower, other)]
    streams = [aiter(reply) for reply in replies]
    for stream in streams:
        await anext(stream)
    going = asyncio.ensure_future(_drained(streams[1], 10))
    await asyncio.sleep(0)
    going.cancel()
    await replies[1].aclose()
    await gate.open()
    bodies = [b"".join([chunk async for chunk in streams[number]]) for number in (0, 2)]
    assert bodies[0] == bodies[1]
    assert said(there, 1).endswith(bodies[0])
    for reply in replies:
        await reply.aclose()
    assert len(there.asked) == 1


async def _drained(stream: AsyncIterator[bytes], count: int) -> None:
    for _ in range(count):
        await anext(stream)


async def test_a_slow_follower_delays_nobody(opening: Open, connect: Connect, there: Provider) -> None:
    """One that reads nothing at all: the leader reads to the end, and then the other has all of it too."""
    leader, follower = connect(await opening()), connect(await opening())
    gate = Gate(there, 2)
    first = await leader.ask(question(stream=True))
    slow = [await one.ask(question(stream=True)) for one in (leader, follower)]
    await gate.open()
    body = await body_of(first)
    await leader.settled()
    for reply in slow:
        assert await body_of(reply) == body


async def test_a_client_that_stops_at_the_last_event(opening: Open, connect: Connect, there: Provider) -> None:
    """And hangs up before the body has ended, as some SDKs do: the answer is kept all the same."""
    client = connect(await opening())
    gate = Gate(there, 23)
    there_says = there.says
    there.says = lambda asked, number: there_says(asked, number)._replace(
        chunks=[*there_says(asked, number).chunks, b": bye\n\n"]
    )
    reply = await client.ask(question(stream=True))
    async for chunk in reply:
        if b"[DONE]" in chunk:
            break
    await reply.aclose()
    await gate.open()
    await client.settled()
    assert (await client.read(question(stream=True)))[0].cached == "hit"


async def test_streams_that_are_not_shared(opening: Open, connect: Connect, there: Provider) -> None:
    """share_streams=False: each who asks meanwhile makes a call; what was whole is kept for those who come later."""
    client = connect(await opening(), AnswerCache(share_streams=False))
    replies = await asyncio.gather(*(client.read(question(stream=True)) for _ in range(3)))
    assert {reply.cached for reply, _ in replies} == {"miss"}
    assert len(there.asked) == 3
    async with asyncio.timeout(5):
        while (await client.read(question(stream=True)))[0].cached != "hit":
            pass


async def test_who_asks_after_a_delete_has_nothing_from_before(opening: Open, connect: Connect, there: Provider) -> None:
    """A stream on its way was begun before: who reads it in the process that makes the call has it to the end, who follows
    elsewhere is told that it ended; whoever asks now has a new one, from everywhere."""
    one, other = connect(await opening()), connect(await opening())
    gate = Gate(there, 3)
    early = [await client.ask(question(stream=True)) for client in (one, other)]
    streams = [aiter(reply) for reply in early]
    for stream in streams:
        await anext(stream)
    third = connect(await opening())
    late = asyncio.ensure_future(third.read(question(stream=True), cache_control="no-cache"))
    await until(lambda: len(there.asked) == 2, "the new call is made")
    later = asyncio.ensure_future(one.read(question(stream=True)))
    await gate.open()
    assert (await late)[1] == (await later)[1] == said(there, 2)
    first = await _end(streams[0])
    assert said(there, 1).endswith(first)
    with pytest.raises(AnswerInterrupted):
        await _end(streams[1])
    for reply in early:
        await reply.aclose()


async def _end(stream: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in stream])


async def test_a_failure_reaches_followers_elsewhere_as_it_is(opening: Open, connect: Connect, there: Provider) -> None:
    """The same status and body; a second later it is forgotten."""
    first, other = connect(await opening()), connect(await opening())
    body = b'{"error":{"message":"slow down"}}'
    says = there.says
    there.says = lambda _, __: Said(429, {"content-type": "application/json", "retry-after": "2"}, [body])
    for stream in (False, True):
        gate = Gate(there, 0)
        before = len(there.asked)
        asked = question(f"{stream}", stream=stream)
        waiting = [asyncio.ensure_future(one.read(asked)) for one in (first, other, first, other)]
        await until(lambda before=before: len(there.asked) > before, "one call is made")  # type: ignore[misc]
        await until(lambda: first.answers._sources and other.answers._sources, "both wait")
        await gate.open()
        for reply, got in await asyncio.gather(*waiting):
            assert (reply.status, got, dict(reply.headers)["retry-after"]) == (429, body, "2")
        assert len(there.asked) == before + 1
    there.says = says
    async with asyncio.timeout(5):
        began = monotonic()
        while (await other.read(question("True", stream=True)))[0].status != 200:
            await asyncio.sleep(0.02)
    assert monotonic() - began < 1.5


async def test_the_log_is_gone(own_server: Server, namespace: str, connect: Connect, there: Provider) -> None:
    """Evicted in the middle: followers have the rest when the answer is stored."""
    async with (
        Observatory("a", redis_url=own_server.url, namespace=namespace) as one,
        Observatory("b", redis_url=own_server.url, namespace=namespace) as two,
    ):
        leader, follower = connect(one), connect(two)
        gate = Gate(there, 4)
        replies: list[Reply] = [await client.ask(question(stream=True)) for client in (leader, follower)]
        streams = [aiter(reply) for reply in replies]
        got = [[await anext(stream) for _ in range(4)] for stream in streams]
        async for key in one.store.scan(f"{one.store.keys.pattern()[:-1]}answers:*:log"):
            await one.store.command("DEL", key)
        await gate.open()
        for stream, chunks in zip(streams, got, strict=True):
            chunks += [chunk async for chunk in stream]
            assert b"".join(chunks) == said(there, 1)
        for reply in replies:
            await reply.aclose()
        assert len(there.asked) == 1


async def test_two_clients_of_one_process(obs: Observatory, connect: Connect, there: Provider) -> None:
    """With an answer cache each, as two SDKs have: one call all the same."""
    one, other = connect(obs), connect(obs)
    gate = Gate(there, 3)
    reading: list[asyncio.Task[Any]] = [asyncio.ensure_future(client.read(question(stream=True))) for client in (one, other)]
    await until(lambda: there.asked, "the call is made")
    await gate.open()
    (_, first), (_, second) = await asyncio.gather(*reading)
    assert first == second
    assert len(there.asked) == 1
