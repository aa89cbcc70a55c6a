"""Fallbacks are strangers to a client that knows one provider: their cookies, redirects, proxies, their share of retries."""

import asyncio
from decimal import Decimal
from typing import Any

import httpx
import httpx2
import openai
import pytest

from observatory import Fallback, Limit, Observatory, Settings
from tests.llm import tried
from tests.llm.observed import closing
from tests.llm.replay import Answer, Provider
from tests.llm.tried import KEY, NONE, OTHER, asked, document, error, fallback, quiet, sdk, used

Three = tuple[Provider, Provider, Provider]
counted, three = tried.counted, tried.three
LIBRARIES: dict[str, Any] = {"httpx2": httpx2, "httpx": httpx}
QUESTION = {"model": "m-1", "messages": []}
pytestmark = pytest.mark.usefixtures("counted")


@pytest.mark.parametrize("library", LIBRARIES)
async def test_cookies_and_redirects(obs: Observatory, three: Three, library: Any) -> None:
    """The client would send the one to the first provider, and the first's key where the other leads."""
    first, second, third = three
    first.says = lambda _: error(503)
    second.says = lambda _: Answer(200, {**tried.DOCUMENT, "set-cookie": "theirs=1; Path=/"}, document().chunks)
    options: dict[str, Any] = {"provider": "first", "trust_env": False, "headers": {"x-api-key": KEY}}
    one = fallback(second)
    async with obs.llm.http_client(library, base_url=f"{first.url}/v1", fallbacks=[one], **options) as client:
        assert (await client.post("/chat/completions", json=QUESTION)).status_code == 200
        assert not client.cookies
        second.says = lambda _: Answer(307, {"location": f"{third.url}/v1/chat/completions"}, [])
        with pytest.raises(LIBRARIES[library].RemoteProtocolError, match="redirect"):
            await client.post("/chat/completions", json=QUESTION)
        assert third.requests == []
    async with obs.llm.http_client(
        library, base_url=f"{first.url}/v1", fallbacks=[one, fallback(third, "third")], **options
    ) as client:
        assert (await client.post("/chat/completions", json=QUESTION)).status_code == 200, "and the next is asked"
    assert [request.headers["authorization"] for request in third.requests] == [f"Bearer {OTHER}"]
    for name in tried.NAMES:
        await used(obs, name)


@pytest.mark.parametrize("library", LIBRARIES)
async def test_its_proxy_is_that_of_its_own_address(obs: Observatory, three: Three, library: Any) -> None:
    first, second, proxy = three
    first.says = lambda _: error(503)
    lib = LIBRARIES[library]
    stranger = Fallback(base_url="http://far.invalid/v1", api_key=OTHER, provider="second")
    mounts = {"all://far.invalid": lib.AsyncHTTPTransport(proxy=lib.Proxy(proxy.url))}
    async with obs.llm.http_client(
        library, provider="first", trust_env=False, mounts=mounts, base_url=f"{first.url}/v1", fallbacks=[stranger]
    ) as client:
        with obs.llm.collect() as calls:
            assert (await client.post("/chat/completions", json=QUESTION)).status_code == 200
    assert [request.path for request in proxy.requests] == ["http://far.invalid/v1/chat/completions"]
    assert [(call.provider, call.status) for call in calls] == [("first", 503), ("second", 200)]
    assert second.requests == []


@pytest.mark.parametrize("library", LIBRARIES)
async def test_around_a_transport_of_yours(obs: Observatory, three: Three, library: Any) -> None:
    first, second, _ = three
    first.says = lambda _: error(500)
    lib = LIBRARIES[library]
    transport = obs.llm.transport(lib.AsyncHTTPTransport(), provider="first", fallbacks=[fallback(second)], hedge_after=20)
    async with lib.AsyncClient(transport=transport) as client:
        answer = await client.post(f"{first.url}/v1/chat/completions", json=QUESTION)
    assert answer.content == document().chunks[0]
    assert (len(first.requests), len(second.requests)) == (1, 1)


async def test_a_retry_that_is_one_too_many_is_not_made_at_the_same_address(opening: Any, three: Three) -> None:
    """Elsewhere it is a first attempt."""
    first, second, _ = three
    obs = await opening(settings=Settings().replace(retry_budget=0, retry_budget_reserve=0))
    again = {"x-stainless-retry-count": "1"}
    same = fallback(first, "first", model="m-2")
    async with closing(client := sdk(obs, first, fallbacks=[same, fallback(second)])):
        with obs.llm.collect() as calls:
            await asked(client, extra_headers=again)
    assert [(call.provider, call.refused_by) for call in calls] == [("first", "retry_budget_exceeded"), ("second", None)]
    assert (len(first.requests), len(second.requests)) == (0, 1)


async def test_wait_is_for_all_together(obs: Observatory, three: Three) -> None:
    """What was stood in line for the first, is not for the second."""
    first, second, _ = three
    for name in ("first", "second"):
        obs.rate_limiter.define(Limit(f"slots-{name}", 1, unit="slots", match={"provider": name}))
    async with (
        obs.rate_limiter.reserve("slots-first"),
        obs.rate_limiter.reserve("slots-second"),
        closing(client := sdk(obs, first, wait=0.6, fallbacks=[fallback(second)])),
    ):
        with obs.llm.collect() as calls, pytest.raises(openai.RateLimitError):
            await asked(client)
        await quiet(client)
    assert [call.refused_by for call in calls] == ["slots-first", "slots-second"]
    assert calls[0].waited > 0.5
    assert calls[1].waited < calls[0].waited / 2
    assert await used(obs, "first") == await used(obs, "second") == NONE
    assert (first.requests, second.requests) == ([], [])


async def test_a_failure_that_goes_on_for_ever_is_not_read(obs: Observatory, three: Three) -> None:
    """Its body is read for a moment only; the fallback is asked all the same."""
    first, second, _ = three
    more = asyncio.Event()

    async def gate(number: int) -> None:
        if number:
            await more.wait()

    first.says = lambda _: Answer(503, tried.DOCUMENT, [b"{"] * 2)
    first.gate = gate
    async with closing(client := sdk(obs, first, fallbacks=[fallback(second)])):
        with obs.llm.collect() as calls:
            await asked(client)
        more.set()
        await quiet(client)
    assert [(call.provider, call.status, call.error) for call in calls] == [("first", 503, "503"), ("second", 200, None)]
    assert await used(obs, "first") == tried.FAILED
    first.says, first.gate = lambda _: Answer(503, tried.DOCUMENT, [b"x" * 10_000] * 1000), None
    async with closing(client := sdk(obs, first, fallbacks=[fallback(second)])):
        await asked(client)
        await quiet(client)
    assert await used(obs, "first") == (2, 0, Decimal(0)), "nor one that is long"
