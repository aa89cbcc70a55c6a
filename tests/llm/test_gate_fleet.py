"""What one process of the fleet is told by a provider, and what the others make of it: pauses, breakers, retries."""

import asyncio
import contextlib
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import openai
import pytest

from observatory import Limit, Observatory
from observatory.clock import monotonic
from observatory.settings import BreakerSettings, LlmSettings, RetrySettings, Settings
from tests.conftest import Open
from tests.llm.fleet import until
from tests.llm.guarded import DOCUMENT, KEY, STREAM, asking, document, error, sdk, settled, stream
from tests.llm.observed import closing
from tests.llm.replay import Answer, Provider, provider
from tests.servers import ROOT, Server, environment

PROGRAM = """
import asyncio, collections, json, sys
import openai
from observatory import Observatory

async def main():
    url, calls, retries = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    async with Observatory("test") as obs:
        http = obs.llm.http_client(provider="openai", trust_env=False)
        client = openai.AsyncOpenAI(api_key="sk-1", base_url=url + "/v1", max_retries=retries, http_client=http)
        found = collections.Counter()
        async def one():
            try:
                await client.chat.completions.create(model="m-1", messages=[{"role": "user", "content": "x"}])
                found["fine"] += 1
            except openai.OpenAIError as error:
                found[f"{type(error).__name__} {getattr(error, 'status_code', '')}"] += 1
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        for _ in range(calls // 10):
            await asyncio.gather(*(one() for _ in range(10)))
        await client.close()
        print(json.dumps(found), flush=True)

asyncio.run(main())
"""


@pytest.fixture
async def there() -> AsyncIterator[Provider]:
    async with provider() as one:
        one.says = lambda _: document()
        yield one


async def fleet(
    server: Server, namespace: str, there: Provider, size: int, calls: int, retries: int, **env: str
) -> Counter[str]:
    """What calls of several processes came to."""
    settings = environment(OBSERVATORY_REDIS_URL=server.url, OBSERVATORY_NAMESPACE=namespace, PYTHONPATH=str(ROOT), **env)
    running: list[asyncio.subprocess.Process] = []
    command = (sys.executable, "-W", "default", "-c", PROGRAM, there.url, str(calls), str(retries))
    pipe = asyncio.subprocess.PIPE
    try:
        while len(running) < size:
            running.append(await asyncio.create_subprocess_exec(*command, env=settings, stdin=pipe, stdout=pipe))
        async with asyncio.timeout(90):
            for one in running:
                assert one.stdout is not None
                assert await one.stdout.readline() == b"ready\n"
            said = await asyncio.gather(*(one.communicate(b"go\n") for one in running))
    finally:
        for one in running:
            if one.returncode is None:
                one.kill()
                await one.wait()
    return sum((Counter(json.loads(out)) for out, _ in said), Counter[str]())


@pytest.mark.parametrize("status", [429, 503, 529])
async def test_a_pause_that_one_is_told_of_all_keep(opening: Open, there: Provider, status: int) -> None:
    """Of this provider, model and key: others wait for it, or are refused; other models and keys go on."""
    one, two = await opening(), await opening()
    first, second = sdk(one, there), sdk(two, there)
    patient, other = sdk(two, there, wait=10), sdk(two, there, key="sk-of-somebody-else")
    async with closing(first, second, patient, other):
        await asking(second)
        there.says = lambda _: error(status, retry_after="2")
        with pytest.raises(openai.APIStatusError):
            await asking(first)
        began = monotonic()
        there.says = lambda _: document()
        await until(lambda: two.pauses.left("openai", "m-1", KEY), "the other has heard of it")
        seen = len(there.requests)
        with pytest.raises(openai.RateLimitError) as refused:
            await asking(second)
        headers = refused.value.response.headers
        assert headers["observatory-code"] == "cooling_down"
        assert 0 < int(headers["retry-after-ms"]) <= 2000
        assert "x-should-retry" not in headers
        assert len(there.requests) == seen
        await asking(second, model="m-2")
        await asking(other)
        with two.llm.collect() as calls:
            await asking(patient)
        assert monotonic() - began > 1.8
        assert calls[0].waited > 0.2
        assert len(there.requests) == seen + 3


async def test_a_pause_by_hand_is_of_all_keys(opening: Open, there: Provider) -> None:
    one, two = await opening(), await opening()
    client = sdk(two, there)
    async with closing(client):
        await asking(client)
        for given in (("openai",), ("openai", "m-1"), ("openai", "", KEY)):
            await one.pauses.begin(*given, seconds=60)
            await until(lambda given=given: two.pauses.left(*given), "the other has heard")  # type: ignore[misc]
            with pytest.raises(openai.RateLimitError):
                await asking(client)
            await one.pauses.end(*given)
            await until(lambda given=given: not two.pauses.left(*given), "the other has heard")  # type: ignore[misc]
            await asking(client)


async def failing(client: Any, how: str) -> None:
    """What the SDK makes of each is its own."""
    with contextlib.suppress(openai.APIError, httpx2.TransportError):
        answer = await asking(client, stream=how in ("truncated", "stopped", "event"))
        async for _ in answer:
            pass


def _failing(how: str) -> Answer:
    if how == "truncated":
        whole = stream()
        return Answer(200, STREAM, whole.chunks[:3], cut=True)
    if how == "stopped":
        return Answer(200, STREAM, stream().chunks[:3])
    if how == "event":
        return Answer(200, STREAM, [b'data: {"error": {"message": "x", "type": "server_error"}}\n\n'])
    return error(int(how))


@pytest.mark.parametrize("how", ["500", "503", "529", "408", "truncated", "stopped", "event", "timeout"])
async def test_a_breaker_opens_for_the_fleet_and_one_call_tries(opening: Open, there: Provider, how: str) -> None:
    """By errors, timeouts and streams that break; the file's [breakers.openai] holds for each of its models."""
    settings = Settings(breakers={"openai": BreakerSettings(consecutive=3, open_for=0.5)})
    one, two = await opening(settings=settings), await opening(settings=settings)
    first, second = sdk(one, there), sdk(two, there, wait=5)
    never = asyncio.Event()
    async with closing(first, second):
        await asking(second)
        await two.breakers.flush()  # or this success may be heard of between the failures
        if how == "timeout":
            there.before = lambda _: never.wait()
            first = first.with_options(timeout=0.1)
        else:
            there.says = lambda _: _failing(how)
        for _ in range(3):
            with one.llm.collect() as calls:
                await failing(first, how)
            assert [bool(call.error) for call in calls] == [True]
        await settled(one)
        await until(lambda: two.breaker("openai/m-1").state != "closed", "it is open for the other too")
        seen = len(there.requests)
        with pytest.raises(openai.InternalServerError) as refused:
            await asking(second)
        headers = refused.value.response.headers
        assert (refused.value.status_code, headers["observatory-code"]) == (503, "circuit_open")
        assert "x-should-retry" not in headers
        assert int(headers["retry-after-ms"]) > 0
        assert len(there.requests) == seen
        there.before = None
        there.says = lambda _: document()
        seen = len(there.requests)
        await until(lambda: two.breaker("openai/m-1").state == "half_open", "it may be tried", 5.0)
        answers = await asyncio.gather(*(asking(one) for one in [second] * 5), return_exceptions=True)
        assert len(there.requests) == seen + 1, "one of them tries"
        assert sum(not isinstance(answer, BaseException) for answer in answers) == 1
        await until(lambda: two.breaker("openai/m-1").state == "closed", "it is closed", 5.0)
        await asking(second)
    never.set()


async def test_a_breaker_that_is_switched_off(opening: Open, there: Provider) -> None:
    settings = Settings(llm=LlmSettings(breaker="off"), breakers={"openai": BreakerSettings(consecutive=1)})
    obs = await opening(settings=settings)
    there.says = lambda _: error(500)
    client = sdk(obs, there)
    async with closing(client):
        for _ in range(5):
            with pytest.raises(openai.InternalServerError):
                await asking(client)
        await obs.breakers.flush()
    assert len(there.requests) == 5
    assert obs.breaker("openai/m-1").state == "closed"


@pytest.mark.parametrize("status", [429, 400, 401])
async def test_what_says_nothing_against_a_provider(opening: Open, there: Provider, status: int) -> None:
    obs = await opening(settings=Settings(breakers={"openai": BreakerSettings(consecutive=1)}))
    there.says = lambda _: error(status)
    client = sdk(obs, there)
    async with closing(client):
        for _ in range(5):
            with pytest.raises(openai.APIStatusError):
                await asking(client)
        await obs.breakers.flush()
    assert len(there.requests) == 5


async def test_a_probe_that_is_told_to_come_later_has_found_nothing(opening: Open, there: Provider) -> None:
    """429 is no proof that a provider works: the next call tries again."""
    obs = await opening(settings=Settings(breakers={"openai": BreakerSettings(consecutive=1, open_for=0.2)}))
    breaker = obs.breaker("openai/m-1")
    client = sdk(obs, there)
    async with closing(client):
        there.says = lambda _: error(500)
        with pytest.raises(openai.InternalServerError):
            await asking(client)
        await until(lambda: breaker.state == "half_open", "it may be tried", 5.0)
        there.says = lambda _: error(429)
        with pytest.raises(openai.RateLimitError):
            await asking(client)
        await obs.breakers.flush()
        assert breaker.state != "closed"
        assert len(there.requests) == 2
        there.says = lambda _: document()
        await asking(client)
        assert len(there.requests) == 3
        await until(lambda: breaker.state == "closed", "it is closed", 5.0)


async def test_an_outage_is_not_multiplied(server: Server, namespace: str, there: Provider) -> None:
    """Four processes, 60 calls each, two retries: a provider that is down hears of each call once, of a tenth of them again,
    and of the reserve. What comes out is its own error."""
    there.says = lambda _: error(500)
    found = await fleet(server, namespace, there, 4, 60, 2, OBSERVATORY_LLM_BREAKER="off")
    assert found == {"InternalServerError 500": 240}
    assert 240 <= len(there.requests) <= 240 * 1.1 + 10
    retried = [request for request in there.requests if request.headers["x-stainless-retry-count"] != "0"]
    assert retried, "some were allowed"


async def test_the_budget_is_kept_for_those_who_come_again(opening: Open, there: Provider) -> None:
    """Clients that never try again, and last attempts, leave it to the others."""
    obs = await opening(settings=Settings(llm=LlmSettings(breaker="off"), retry=RetrySettings(budget=0.0, budget_reserve=10)))
    there.says = lambda _: error(500)
    never, twice = sdk(obs, there), sdk(obs, there, retries=2)
    async with closing(never, twice):
        for _ in range(40):
            with pytest.raises(openai.InternalServerError):
                await asking(never)
        seen = len(there.requests)
        await asyncio.gather(*(asking(twice) for _ in range(3)), return_exceptions=True)
        assert len(there.requests) - seen >= 3 + 5


async def test_retries_without_a_response_are_within_the_budget_too(opening: Open) -> None:
    """Nobody could be told not to come: who comes all the same is refused, and the provider is not asked."""
    obs = await opening(settings=Settings(llm=LlmSettings(breaker="off"), retry=RetrySettings(budget=0.0, budget_reserve=4)))
    tried = 0

    def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal tried
        tried += 1
        writer.transport.abort()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    gone = Provider()
    gone.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    client = sdk(obs, gone, retries=2)
    async with closing(client):
        with obs.llm.collect() as calls:
            errors = await asyncio.gather(*(asking(client) for _ in range(20)), return_exceptions=True)
    server.close()
    assert all(isinstance(error, openai.APIConnectionError | openai.InternalServerError) for error in errors)
    assert tried == 24
    assert {call.refused_by for call in calls if call.status == 503} == {"retry_budget_exceeded"}


async def test_last_attempts_ask_for_nothing(opening: Open, there: Provider) -> None:
    """Nobody comes after them: two calls of three attempts take four retries, and no more."""
    obs = await opening(settings=Settings(llm=LlmSettings(breaker="off"), retry=RetrySettings(budget=0.0, budget_reserve=4)))
    there.says = lambda _: error(500)
    client = sdk(obs, there, retries=2)
    async with closing(client):
        for _ in range(2):
            with pytest.raises(openai.InternalServerError):
                await asking(client)
    assert len(there.requests) == 6


async def test_a_retry_that_does_not_come_is_anothers(opening: Open, there: Provider) -> None:
    """One retry in all: who was promised it and does not come leaves it to who does."""
    obs = await opening(settings=Settings(llm=LlmSettings(breaker="off"), retry=RetrySettings(budget=0.0, budget_reserve=1)))
    there.says = lambda _: error(500)
    never, twice = sdk(obs, there), sdk(obs, there, retries=2)
    async with closing(never, twice):
        for client, made in ((never, 1), (twice, 2)):
            with pytest.raises(openai.InternalServerError):
                await asking(client)
            assert len(there.requests) == made + (client is twice)
            (promise, *_) = obs._desk.retries._promised.get("openai") or (None,)
            await until(lambda promise=promise: promise is None or promise.until < monotonic(), "it is over")  # type: ignore[misc]


async def test_a_client_is_known_by_what_it_does(opening: Open, there: Provider) -> None:
    """One that makes more attempts than usual has the further ones asked for when they come; and gets its own error."""
    obs = await opening(settings=Settings(llm=LlmSettings(breaker="off"), retry=RetrySettings(budget=0.0, budget_reserve=3)))
    there.says = lambda _: error(500)
    client = sdk(obs, there, retries=3)
    async with closing(client):
        for attempts in (4, 1):
            seen = len(there.requests)
            with pytest.raises(openai.InternalServerError) as failed:
                await asking(client)
            assert failed.value.status_code == 500
            assert len(there.requests) - seen == attempts


async def test_a_provider_that_is_back_is_tried_again(obs: Observatory, there: Provider) -> None:
    """One failure, and the SDK's own retry finds it works: the call is fine."""
    answers = iter([error(500), error(503), document()])
    there.says = lambda _: next(answers)
    client = sdk(obs, there, retries=2)
    async with closing(client):
        with obs.llm.collect() as calls:
            await asking(client)
    assert [call.attempts for call in calls] == [1, 2, 3]
    assert [call.status for call in calls] == [500, 503, 200]


async def test_a_hit_costs_nothing(opening: Open, there: Provider) -> None:
    """Neither limits nor breakers nor pauses are asked; no number of the provider's grows; and it says so."""
    one, two = await opening(), await opening()
    for obs in (one, two):
        obs.rate_limiter.define(Limit("one", 1, per="month", match="*"))
    first, second = sdk(one, there, cache=True), sdk(two, there, cache=True)
    async with closing(first, second):
        with one.llm.collect() as calls:
            await asking(first, temperature=0)
            await until(lambda: not any(a._sources for a in one.llm._answers.values()), "it is kept")
            await asking(first, temperature=0)
        await two.breaker("openai/m-1").force("open", reason="test")
        await two.pauses.begin("openai", seconds=60)
        with two.llm.collect() as more:
            await asking(second, temperature=0)
            with pytest.raises(openai.APIStatusError):
                await asking(second, temperature=0, text="another")
        await one.flush()
        await two.flush()
        assert (await one.metrics.query("observatory_requests_total", where={"status": "success"})).value == 1
    assert [call.cached for call in calls] == [False, True]
    assert more[0].cached
    assert more[0].cost_usd == 0
    assert len(there.requests) == 1


async def test_who_joins_a_refused_call_is_asked_for_by_himself(opening: Open, there: Provider) -> None:
    """What the one who asked first may not, another may: of one process and of two."""
    for elsewhere in (False, True):
        one = await opening()
        two = await opening() if elsewhere else one
        for obs in {one, two}:
            obs.rate_limiter.define(Limit(f"one-{elsewhere}".lower(), 1, unit="slots", match={"user": "evil"}))
        policy: Any = {"cache": True, "wait": 0.5}
        first = sdk(one, there, **policy)
        second = sdk(two, there, **policy) if elsewhere else first
        seen = len(there.requests)
        async with closing(first, second), one.rate_limiter.reserve(f"one-{elsewhere}".lower(), {}):

            async def ask(client: Any, user: str, text: str) -> Any:
                return await asking(client, temperature=0, text=text)

            with one.bound(user="evil"):
                leader = asyncio.ensure_future(ask(first, "evil", f"x{elsewhere}"))
            await asyncio.sleep(0.2)
            with two.bound(user="good"):
                joiners = [asyncio.ensure_future(ask(second, "good", f"x{elsewhere}")) for _ in range(3)]
            with pytest.raises(openai.RateLimitError):
                await leader
            for answer in await asyncio.gather(*joiners):
                assert answer.usage.total_tokens == 18
        assert 1 <= len(there.requests) - seen <= 3
    assert DOCUMENT
