"""Streams on their way: one leader, followers in the same process and in others, byte by byte."""

import asyncio
import statistics
from collections.abc import AsyncIterator
from typing import Any

import pytest

from observatory import AnswerCache, AnswerInterrupted, Observatory
from observatory.clock import monotonic
from observatory.llm.answers.run import Head, Pulse, Reader, Run
from tests.conftest import Open
from tests.llm.conftest import Connect
from tests.llm.fleet import Gate, said, until
from tests.llm.provider import Provider, Said, body_of, question


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


@pytest.mark.parametrize(("limit", "size"), [(1, 20), (100, 20), (20_000, 65_536), (100_000, 65_536)])
async def test_a_stream_that_is_too_long_from_its_beginning(
    obs: Observatory, connect: Connect, there: Provider, monkeypatch: pytest.MonkeyPatch, limit: int, size: int
) -> None:
    """More than may be kept has come before anybody begins to read: every reader has it all, and in order."""
    monkeypatch.setattr(obs.caches, "max_value", limit)
    body = b"".join(b"data: %07d\n\n" % number for number in range(40_000))
    there.says = lambda asked, number: Said(
        200, {"content-type": "text/event-stream"}, [body[start : start + size] for start in range(0, 60 * size, size)]
    )
    client = connect(obs)
    replies = await asyncio.gather(*(client.ask(question(stream=True)) for _ in range(3)))
    bodies = await asyncio.gather(*(body_of(reply) for reply in replies))
    assert set(bodies) == {body[: 60 * size]}
    assert "miss" in [reply.cached for reply in replies]


async def test_what_is_gone_is_not_replaced_by_what_is_there() -> None:
    """Nothing goes before the first reader is there; who comes when the beginning is gone is told so."""
    run = Run("a", Pulse(), limit=10, bounded=True, own=True)
    run.begin(Head(200, (), ()))
    for number in range(2):
        run.add(b"%d" % number * 20, 0)
        await run.room()
    reader = Reader(run)
    assert [await reader.next() for _ in range(2)] == [b"0" * 20, b"1" * 20]
    for number in range(2, 5):
        run.add(b"%d" % number * 20, 0)
        await run.room()
        assert await reader.next() == b"%d" % number * 20
    await run.room()
    with pytest.raises(AnswerInterrupted, match="beginning"):
        await Reader(run).next()
    run.add(b"more", 0)
    assert await reader.next() == b"more"
