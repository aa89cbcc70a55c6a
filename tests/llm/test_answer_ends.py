"""One call in the fleet, whoever of it goes away: killed, cancelled, deleted, refused."""

import asyncio
import hashlib
import signal

import pytest

from observatory import AnswerInterrupted, Observatory
from observatory.clock import monotonic
from observatory.features.cache.lease import LEASE
from observatory.llm.answers import Reply
from tests.conftest import Open
from tests.llm.conftest import Connect
from tests.llm.fleet import Gate, fleet, rest_of, said, until
from tests.llm.provider import Provider, Said, question
from tests.servers import Server
from tests.topologies import Cluster


@pytest.fixture(params=["valkey", "redis", "cluster"])
def place(request: pytest.FixtureRequest) -> str:
    """Where the fleet meets."""
    if request.param == "cluster":
        cluster = request.getfixturevalue("cluster")
        assert isinstance(cluster, Cluster)
        return cluster.url
    server: Server = request.getfixturevalue("servers")(request.param)
    return server.url


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
            got.append(await rest_of(stream))
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
    first = await rest_of(streams[0])
    assert said(there, 1).endswith(first)
    with pytest.raises(AnswerInterrupted):
        await rest_of(streams[1])
    for reply in early:
        await reply.aclose()


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
