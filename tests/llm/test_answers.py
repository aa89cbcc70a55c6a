"""What is kept comes again as it was; to nobody who must not have it; and whatever happens to the store, the call goes on."""

import asyncio
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from observatory import AnswerCache, NotOpen, Observatory
from observatory.clock import monotonic
from tests.conftest import Open
from tests.llm.conftest import Connect
from tests.llm.provider import Asked, Client, Provider, Said, question
from tests.llm.replay import DATA
from tests.proxy import proxy
from tests.servers import Server

RECORDED = DATA / "recorded_llm_exchanges.ndjson"


@pytest.mark.parametrize("stream", [False, True])
async def test_one_call_and_then_the_same_bytes(opening_any: Open, connect: Connect, there: Provider, stream: bool) -> None:
    """From any process; chunk by chunk as they came, with the headers that say something of the answer, and its age."""
    first, other = connect(await opening_any()), connect(await opening_any())
    reply = await first.ask(question(stream=stream))
    chunks = [chunk async for chunk in reply]
    await reply.aclose()
    await first.settled()
    assert reply.cached == "miss"
    again = await other.ask(question(stream=stream))
    assert [chunk async for chunk in again] == chunks
    await again.aclose()
    assert (again.cached, again.status, again.reason) == ("hit", 200, None)
    headers = dict(again.headers)
    assert headers.pop("age") == "0"
    assert headers == {
        "content-type": dict(reply.headers)["content-type"],
        "x-request-id": "req_1",
        "cache-status": "observatory; hit",
    }
    assert len(there.asked) == 1


async def test_a_stream_answers_no_question_for_a_document(client: Client, there: Provider) -> None:
    """Nor the other way: they are two representations."""
    _, stream = await client.read(question(stream=True))
    reply, document = await client.read(question())
    assert reply.cached == "miss"
    assert json.loads(document)["id"] == "chatcmpl-2"
    assert stream.endswith(b"data: [DONE]\n\n")
    assert len(there.asked) == 2


async def test_hits_and_misses_are_counted_as_of_any_cache(obs: Observatory, client: Client, there: Provider) -> None:
    """Under a name of its own."""
    with obs.bound(tenant="acme"):
        replies = await asyncio.gather(*(client.read(question()) for _ in range(5)))
        await client.settled()
        replies.append(await client.read(question()))
        stats = await client.answers._cache(("tenant",)).cache.stats(fleet=False)
    assert sorted(reply.cached for reply, _ in replies) == ["hit", "miss", *["shared"] * 4]
    assert (stats.hits, stats.misses, stats.coalesced, stats.computed) == (1, 5, 4, 1)
    assert len(there.asked) == 1


async def test_tenants_have_answers_of_their_own(obs: Observatory, client: Client, there: Provider) -> None:
    """Nobody reads another's, nor by having none; where none is bound, an API key keeps them apart."""
    seen: dict[tuple[str | None, str | None], set[bytes]] = {}
    for tenant in ("acme", "globex", None, "acme"):
        with obs.bound(tenant=tenant):
            for api_key in ("one", "two"):
                _, body = await client.read(question(), authorization=f"Bearer {api_key}")
                await client.settled()
                seen.setdefault((tenant, None if tenant else api_key), set()).add(body)
    assert all(len(bodies) == 1 for bodies in seen.values())
    assert len({next(iter(bodies)) for bodies in seen.values()}) == len(seen) == len(there.asked) == 4


async def test_tenants_never_share_a_stream_on_its_way(obs: Observatory, client: Client, there: Provider) -> None:
    """Each has a call of its own, at the same time."""

    async def read(tenant: str) -> bytes:
        with obs.bound(tenant=tenant):
            return (await client.read(question(stream=True)))[1]

    bodies = await asyncio.gather(*(read(tenant) for tenant in ("a", "b", "a", "b")))
    assert (bodies[0], bodies[1]) == (bodies[2], bodies[3])
    assert bodies[0] != bodies[1]
    assert len(there.asked) == 2


async def test_by_says_who_shares(opening: Open, connect: Connect, there: Provider) -> None:
    """Several dimensions; fewer of them bound is another cache; () is everybody, and asks for no key."""
    obs = await opening()
    team = connect(obs, AnswerCache(by=("tenant", "team")))
    for bound in ({"tenant": "a", "team": "x"}, {"tenant": "a", "team": "y"}, {"tenant": "a"}, {"team": "x"}, {}):
        for _ in range(2):
            with obs.bound(**bound):
                await team.read(question())
                await team.settled()
    assert len(there.asked) == 5
    everybody = connect(obs, AnswerCache(by=()))
    for tenant in ("a", "b", None):
        with obs.bound(tenant=tenant):
            await everybody.read(question(), x_api_key=f"key of {tenant}")
            await everybody.settled()
    assert len(there.asked) == 6


async def test_clear_ends_what_one_tenant_has(obs: Observatory, client: Client, there: Provider) -> None:
    """And nothing of the others."""
    for _ in range(2):
        for tenant in ("a", "b"):
            with obs.bound(tenant=tenant):
                await client.read(question())
                await client.settled()
        with obs.bound(tenant="a"):
            await client.answers.clear()
    assert len(there.asked) == 3


async def test_replay_as_recorded(opening: Open, connect: Connect, there: Provider) -> None:
    """With the pauses that it had; fast as it can be read otherwise."""
    obs = await opening()

    async def slowly(number: int) -> None:
        await asyncio.sleep(0.3 if number in (3, 6) else 0)

    there.gate = slowly
    fast, recorded = connect(obs), connect(obs, AnswerCache(replay="recorded"))
    _, body = await fast.read(question(stream=True))
    await fast.settled()
    took = {}
    for name, client in (("fast", fast), ("recorded", recorded)):
        began, at = monotonic(), []
        reply = await client.ask(question(stream=True))
        assert b"".join([chunk async for chunk in reply if at.append(monotonic() - began) is None]) == body  # type: ignore[func-returns-value]
        await reply.aclose()
        took[name] = at
    assert took["fast"][-1] < 0.25
    assert took["recorded"][2] < 0.25
    assert 0.55 < took["recorded"][-1] < 1.5
    assert took["recorded"][3] >= 0.28


async def test_gzip_is_kept_as_it_came(client: Client, there: Provider) -> None:
    """For those who can read it; the provider is asked for nothing that we cannot look into."""
    plain = there.says

    def says(asked: Asked, number: int) -> Said:
        said = plain(asked, number)
        if "gzip" not in asked.headers["accept-encoding"]:
            return said
        return said._replace(
            headers={**said.headers, "content-encoding": "gzip"}, chunks=[gzip.compress(b"".join(said.chunks))]
        )

    there.says = says
    for stream in (False, True):
        for accepted in ("gzip, br", "identity"):
            bodies = []
            for cached in ("miss", "hit"):
                reply, body = await client.read(question(stream=stream), accept_encoding=accepted)
                await client.settled()
                assert reply.cached == cached
                bodies.append(body)
            assert bodies[0] == bodies[1]
            assert bodies[0].startswith(b"\x1f\x8b") == (accepted != "identity")
    assert {asked.headers["accept-encoding"] for asked in there.asked} == {"gzip", "identity"}
    assert len(there.asked) == 4


async def test_large_answers(client: Client, there: Provider) -> None:
    """A stream of 3 MB in many chunks, and a document of 3 MB."""

    def says(asked: Asked, number: int) -> Said:
        if asked.document.get("stream"):
            delta = {"choices": [{"index": 0, "delta": {"content": "x" * 1000}}]}
            body = b"".join(b"data: %s\n\n" % json.dumps(delta).encode() for _ in range(3000))
            last = b'data: {"choices":[{"index":0,"finish_reason":"length"}]}\n\ndata: [DONE]\n\n'
            return Said(
                200, {"content-type": "text/event-stream"}, [body[at : at + 4000] for at in range(0, len(body), 4000)] + [last]
            )
        return Said(200, {"content-type": "application/json"}, [b'{"data":["' + b"x" * 3_000_000 + b'"]}'])

    there.says = says
    for path, stream in (("/v1/embeddings", False), ("/v1/chat/completions", True)):
        (_, first) = await client.read(question(stream=stream), path=path)
        await client.settled()
        (reply, again) = await client.read(question(stream=stream), path=path)
        assert (reply.cached, again == first, len(first) > 3_000_000) == ("hit", True, True)


async def test_what_the_call_meets_reaches_everybody_here(client: Client, there: Provider) -> None:
    """As it is; and nothing is kept of it."""
    client.url = client.url.replace("http://", "http://127.0.0.1:1/")
    for stream in (False, True):
        asked = [client.read(question(stream=stream)) for _ in range(5)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(one) for one in found} == {httpx.ConnectError}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_body_that_is_torn(client: Client, there: Provider, stream: bool) -> None:
    """The reader gets what came, and the error that the client of the provider raised; the next one asks anew."""
    whole = there.says
    there.says = lambda asked, number: whole(asked, number)._replace(cut=True)
    with pytest.raises(httpx.RemoteProtocolError):
        await client.read(question(stream=stream))
    await client.settled()
    there.says = whole
    reply, _ = await client.read(question(stream=stream))
    assert reply.status == 200


async def test_nothing_is_refreshed_before_its_end(opening: Open, connect: Connect, there: Provider) -> None:
    """As other entries are that were dear to make: a call that nobody asks for costs money."""
    client = connect(await opening(), AnswerCache(ttl=3))

    async def slowly(_: int) -> None:
        await asyncio.sleep(1.0)

    there.gate = slowly
    await client.read(question())
    await client.settled()
    until = monotonic() + 1.0
    while monotonic() < until:
        assert (await client.read(question()))[0].cached == "hit"
        await asyncio.sleep(0.01)
    assert len(there.asked) == 1


async def test_redis_away(own_server: Server, tmp_path: Path, namespace: str, connect: Connect, there: Provider) -> None:
    """Each process asks for itself, once for all who ask at the same time, after one bounded wait; then keeps again."""
    async with (
        proxy(own_server.path, tmp_path / "p") as between,
        Observatory("test", redis_url=f"unix://{tmp_path / 'p'}", namespace=namespace) as obs,
    ):
        client = connect(obs)
        await client.read(question("before"))
        await client.settled()
        between.deaf = True
        for stream in (False, True):
            began = monotonic()
            bodies = await asyncio.gather(*(client.read(question("during", stream=stream)) for _ in range(5)))
            assert monotonic() - began < 4 * obs.settings.redis.max_wait
            assert len({body for _, body in bodies}) == 1
            assert {reply.status for reply, _ in bodies} == {200}
        assert len(there.asked) == 3
        between.deaf = False
        between.cut()
        await obs.ready()
        async with asyncio.timeout(20):
            while (await client.read(question("after")))[0].cached != "hit":
                await client.settled()


async def test_a_stream_that_redis_does_not_hear(
    own_server: Server, tmp_path: Path, namespace: str, connect: Connect, there: Provider
) -> None:
    """The store goes away in the middle: the one who reads it notices nothing."""
    gate = asyncio.Event()

    async def wait(number: int) -> None:
        if number == 5:
            await gate.wait()

    there.gate = wait
    async with (
        proxy(own_server.path, tmp_path / "p") as between,
        Observatory("test", redis_url=f"unix://{tmp_path / 'p'}", namespace=namespace) as obs,
    ):
        client = connect(obs)
        reply = await client.ask(question(stream=True))
        chunks = aiter(reply)
        got = [await anext(chunks) for _ in range(5)]
        between.deaf = True
        gate.set()
        began = monotonic()
        got += [chunk async for chunk in chunks]
        assert monotonic() - began < 0.2
        assert b"".join(got) == b"".join(there.says(there.asked[0], 1).chunks)
        await reply.aclose()


async def test_unopened(there: Provider, connect: Connect) -> None:
    """The line that is missing is said."""
    with pytest.raises(NotOpen):
        await connect(Observatory("test")).read(question())


async def test_a_slow_reader_of_what_is_too_long_to_keep_holds_it_back(
    obs: Observatory, connect: Connect, there: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory does not grow with an answer that nobody may keep."""
    monkeypatch.setattr(obs.caches, "max_value", 100_000)
    there.says = lambda asked, number: Said(200, {"content-type": "text/event-stream"}, [b"x" * 65536] * 400)
    sent = 0

    async def counting(number: int) -> None:
        nonlocal sent
        sent = number

    there.gate = counting
    client = connect(obs)
    reply = await client.ask(question(stream=True))
    chunks = aiter(reply)
    await anext(chunks)
    source = next(iter(client.answers._sources.values()))
    held, before = 0, -1
    while sent != before:  # until nothing moves any more
        before = sent
        for _ in range(20):
            await asyncio.sleep(0.01)
            assert source._run is not None
            held = max(held, sum(map(len, source._run.chunks)))
    assert held < 2**21
    assert len(await _rest(chunks)) + 1 >= 400
    assert reply.cached == "miss"
    await reply.aclose()


async def _rest(chunks: Any) -> Sequence[bytes]:
    return [chunk async for chunk in chunks]


def _exchanges() -> list[dict[str, Any]]:
    if not RECORDED.exists():
        pytest.skip("the recorded exchanges are not beside the checkout (../shared/data)")
    return [json.loads(line) for line in RECORDED.read_text().splitlines()]


async def test_recorded_exchanges(opening: Open, connect: Connect, there: Provider) -> None:
    """Everything that OpenAI and Anthropic have really said: byte-identical the first time and from the cache; what is whole is
    kept, errors and what the provider keeps itself are not; two questions have one key only when they are one."""
    exchanges = _exchanges()
    client = connect(await opening(), AnswerCache(nondeterministic=True))
    cached: dict[tuple[str, str], int] = {}
    for number, exchange in enumerate(exchanges):
        body, request = exchange["body"].encode(), dict(exchange["request"])
        chunks = [body[at : at + 700] for at in range(0, len(body), 700)]
        there.says = lambda _, __, said=exchange, chunks=chunks: Said(said["status"], said["headers"], chunks)  # type: ignore[misc]
        path = exchange["path"]
        for store in (None, False) if path == "/v1/responses" else (None,):
            document = {**request, **({} if store is None else {"store": store})}
            # Some were recorded several times, with another answer: each is a question of its own here.
            common = {"path": path, "provider": exchange["provider"], "openai_project": str(number)}
            replies = []
            for _ in range(2):
                reply, got = await client.read(document, **common)
                await client.settled()
                assert (got, reply.status) == (body, exchange["status"])
                replies.append(reply)
            outcome = (replies[1].cached, replies[1].reason or "")
            cached[outcome] = cached.get(outcome, 0) + 1
            if exchange["status"] != 200:  # told to who asks within a second, and then forgotten
                assert outcome == ("shared", "")
            else:
                assert outcome == (("passed", "state") if path == "/v1/responses" and store is None else ("hit", ""))
    assert cached["hit", ""] + cached["shared", ""] == len(exchanges)
