"""What a process holds and does for its calls: no more with every client, no estimate that nobody asks for, true times."""

import asyncio
import gc
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from observatory import AnswerCache, Fallback, Limit, Observatory
from observatory.features.breaker.pauses import _MOST_DIGESTS
from observatory.llm.wire import Recognised
from tests.llm.fleet import until
from tests.llm.guarded import KEY, PROMPT, asking, document, error, sdk, settled, stream
from tests.llm.observed import Spans, closing
from tests.llm.replay import Provider, Request, provider


@pytest.fixture
async def there() -> AsyncIterator[Provider]:
    async with provider() as one:
        one.says = lambda _: document()
        yield one


async def test_a_client_for_each_request_leaves_nothing(obs: Observatory, there: Provider) -> None:
    """Each with a policy that says the same; another one is another."""
    question = {"model": "m-1", "temperature": 0, "messages": []}
    for ttl in (60.0, 60.0, 60, 90.0, 90.0):
        policy = AnswerCache(ttl=ttl, by=["tenant"], vary=("x-a",))  # type: ignore[arg-type]
        async with obs.llm.http_client(provider="openai", cache=policy, trust_env=False, base_url=there.url) as client:
            await client.post("/v1/chat/completions", json=question)
    assert len(obs.llm._answers) == 2
    assert AnswerCache() == AnswerCache()
    assert AnswerCache() != AnswerCache(nondeterministic=True)
    assert AnswerCache() != "tenant"
    assert len(there.requests) == 1


def consumers(obs: Observatory) -> int:
    return sum(source._consumers for answers in obs.llm._answers.values() for source in answers._sources.values())


async def test_who_waited_for_a_shared_answer_has_waited(obs: Observatory, there: Provider) -> None:
    """Its time, and its span's, begin when it asks."""
    goes_on = asyncio.Event()

    async def before(_: Request) -> None:
        await goes_on.wait()

    there.before = before
    spans = Spans(obs)
    async with closing(client := sdk(obs, there, cache=True)):
        with obs.llm.collect() as calls:
            working = [asyncio.create_task(asking(client, temperature=0)) for _ in range(2)]
            await until(lambda: consumers(obs) == 2, "both wait for one answer")
            await until(lambda: there.requests, "one is asked")
            await asyncio.sleep(0.2)
            goes_on.set()
            await asyncio.gather(*working)
    assert sorted(call.cached for call in calls) == [False, True]
    assert len(there.requests) == 1
    for call, span in zip(calls, spans.taken(), strict=True):
        assert span.start_time is not None
        assert span.end_time is not None
        assert 0.2 <= call.latency < 20
        assert 0.2 <= (span.end_time - span.start_time) / 1e9 < 20


async def test_a_tokenizer_is_asked_once_and_only_where_it_matters(obs: Observatory, there: Provider) -> None:
    asked = list[str]()

    def tokenizer(text: str) -> int:
        asked.append(text)
        return len(text)

    async with provider() as other:
        other.says = lambda _: document()
        fallback = Fallback(base_url=f"{other.url}/v1", api_key=KEY, provider="other", model="m-2")
        options: dict[str, Any] = {"tokenizer": tokenizer, "fallbacks": [fallback], "cache": True, "hedge_after": 20}
        async with closing(client := sdk(obs, there, **options)):
            for _ in range(2):
                await asking(client, temperature=0)
            assert asked == [], "a document says what was used, and a hit needs no estimate"
            there.says = lambda _: stream(says=False)
            with obs.llm.collect() as calls:
                async for _ in await asking(client, stream=True):
                    pass
            assert calls[0].estimated
            assert calls[0].usage is not None
            assert calls[0].usage.input_tokens > len(PROMPT)
            asked.clear()
            obs.rate_limiter.define(Limit("tokens", 10**9, per="month", unit="tokens", match="*"))
            there.says = lambda _: error(503)
            await asking(client)
            await settled(obs)
        assert json.loads(other.requests[0].body)["model"] == "m-2"
    assert asked == [PROMPT], "once, for both tries"


async def test_whom_pauses_are_of_is_remembered_and_bounded(obs: Observatory) -> None:
    """Never by the key itself."""
    pauses = obs.breakers.pauses
    await pauses.begin("somebody", seconds=60)
    await pauses.begin("openai", "m-1", KEY, seconds=60)
    for number in range(_MOST_DIGESTS + 10):
        assert not pauses.left("openai", f"model-{number}", KEY)
    assert pauses.left("openai", "m-1", KEY) > 50
    assert 0 < len(pauses._digests) <= _MOST_DIGESTS
    assert KEY not in f"{pauses._digests}"
    held = dict(pauses._digests)
    pauses.left("openai", "m-1", KEY)
    assert pauses._digests == held


async def test_a_stream_that_is_open_keeps_no_prompt(obs: Observatory, there: Provider) -> None:
    """It may last, and its prompt be long: what it may have taken is counted when it begins."""
    there.says = lambda _: stream(100, 50, says=False)
    more = asyncio.Event()

    async def gate(number: int) -> None:
        if number > 2:
            await more.wait()

    there.gate = gate
    async with closing(client := sdk(obs, there)):
        with obs.llm.collect() as calls:
            answer = await asking(client, stream=True, text="x" * 400_000)
            await anext(aiter(answer))
            gc.collect()
            assert not [one for one in gc.get_objects() if type(one) is Recognised]
            more.set()
            async for _ in answer:
                pass
    assert calls[0].usage is not None
    assert calls[0].usage.input_tokens >= 100_000
