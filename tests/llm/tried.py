"""Calls that may be tried at several providers, and what the fleet's limits show of them afterwards."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from decimal import Decimal
from typing import Any

import anthropic
import openai
import pytest

from observatory import Fallback, Limit, Observatory, Price
from observatory.clock import monotonic
from observatory.features.rate_limiter.ledger import reservations
from tests.llm.replay import Answer, Provider, provider

KEY = "sk-first-this-is-a-secret-0123456789"
OTHER = "sk-other-this-is-a-secret-9876543210"
DOCUMENT = {"content-type": "application/json"}
EVENTS = {"content-type": "text/event-stream"}
USED = (11, 7)
PLENTY = 10**9
NAMES = ("first", "second", "third")


@pytest.fixture
async def three() -> AsyncIterator[tuple[Provider, Provider, Provider]]:
    async with AsyncExitStack() as stack:
        found = [await stack.enter_async_context(provider()) for _ in range(3)]
        for one in found:
            one.says = lambda _: document()
        yield found[0], found[1], found[2]
        await until(lambda: not serving(), "every connection is over")
        await asyncio.sleep(0)  # and its transport closed


@pytest.fixture
def counted(obs: Observatory) -> Observatory:
    """With limits of every unit for each provider, that nothing grows back in; a dollar for a million tokens of input, ten for
    one of output."""
    for name in NAMES:
        obs.llm.prices.set(f"{name}/*", Price(input=1, output=10))
        obs.rate_limiter.define(
            Limit(f"{name}-calls", PLENTY, per="month", match={"provider": name}),
            Limit(f"{name}-tokens", PLENTY, per="month", unit="tokens", match={"provider": name}),
            Limit(f"{name}-money", 100_000, per="month", unit="usd", match={"provider": name}),
        )
    return obs


def sdk(obs: Observatory, there: Provider, kind: str = "openai", *, retries: int = 0, **options: Any) -> Any:
    """The SDK, with our client in it, of the provider called first."""
    client = obs.llm.http_client(provider="first", trust_env=False, **options)
    if kind == "anthropic":
        return anthropic.AsyncAnthropic(api_key=KEY, base_url=there.url, max_retries=retries, http_client=client)
    return openai.AsyncOpenAI(
        api_key=KEY,
        base_url=f"{there.url}/v1",
        organization="org-1",
        project="p-1",
        max_retries=retries,
        http_client=client,
    )


def fallback(there: Provider, name: str = "second", kind: str = "openai", **more: Any) -> Fallback:
    url = f"{there.url}/v1" if kind == "openai" else there.url
    return Fallback(base_url=url, **{"api_key": OTHER, "provider": name, **more})


def asked(client: Any, *, stream: bool = False, model: str = "m-1", **more: Any) -> Any:
    said: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50, **more}
    if stream:
        said["stream"] = True
    if isinstance(client, anthropic.AsyncAnthropic):
        return client.messages.create(**said)
    return client.chat.completions.create(**said)


def document(text: str = "yes", *, messages: bool = False) -> Answer:
    """An answer that says what it took: USED."""
    said: dict[str, Any]
    if messages:
        said = {"id": "m", "type": "message", "role": "assistant", "model": "m-1", "stop_reason": "end_turn"}
        said["content"] = [{"type": "text", "text": text}]
        said["usage"] = {"input_tokens": USED[0], "output_tokens": USED[1]}
    else:
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        said = {"id": "c", "object": "chat.completion", "created": 1, "model": "m-1", "choices": [choice]}
        said["usage"] = {"prompt_tokens": USED[0], "completion_tokens": USED[1], "total_tokens": sum(USED)}
    return Answer(200, DOCUMENT, [json.dumps(said).encode()])


def event(said: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(said).encode() + b"\n\n"


def stream(*words: str, cut: bool = False) -> Answer:
    base = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m-1"}
    chunks = [event({**base, "choices": [{"index": 0, "delta": {"content": one}}]}) for one in words]
    if not cut:
        chunks.append(event({**base, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
        used = {"prompt_tokens": USED[0], "completion_tokens": USED[1], "total_tokens": sum(USED)}
        chunks += [event({**base, "choices": [], "usage": used}), b"data: [DONE]\n\n"]
    return Answer(200, EVENTS, chunks, cut)


def error(status: int, code: str = "broken", **headers: str) -> Answer:
    body = {"type": "error", "error": {"message": "no", "type": "server_error", "code": code}}
    said = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, {**DOCUMENT, **said}, [json.dumps(body).encode()])


async def until(fact: Callable[[], object], what: str) -> None:
    deadline = monotonic() + 20
    while not fact():
        assert monotonic() < deadline, f"still not: {what}"
        await asyncio.sleep(0.005)


async def used(obs: Observatory, name: str) -> tuple[int, int, Decimal]:
    """Calls, tokens and dollars that the limits of a provider show, when all is settled; and nothing is held anywhere."""
    gate = obs._desk.gate
    await until(lambda: not gate._inside and not gate._working, "settled")
    assert (await reservations(obs.store)).open == 0
    found = []
    for unit, most in (("calls", PLENTY), ("tokens", PLENTY), ("money", 100_000)):
        found.append(most - (await obs.rate_limiter.peek(f"{name}-{unit}")).remaining)
    return int(found[0]), int(found[1]), Decimal(found[2])


ONE = (1, sum(USED), Decimal("0.000081"))
"""What one call that says what it took leaves behind."""
NONE = (0, 0, Decimal(0))
FAILED = (1, 0, Decimal(0))
"""A call that was made, and took nothing."""


def serving() -> int:
    """Connections that a provider has."""
    return sum("Provider._serve" in repr(task.get_coro()) for task in asyncio.all_tasks())


def tasks() -> int:
    """That belong to a call of ours."""
    return sum(task.get_name() == "observatory LLM call" for task in asyncio.all_tasks())


def connections(client: Any) -> list[Any]:
    """That carry a response which nobody has closed."""
    http = client._client
    return [one for one in http._transport.inner._pool.connections if not one.is_idle() and not one.is_closed()]


async def quiet(client: Any) -> None:
    """Nothing is open, and nobody works."""
    await until(lambda: not tasks() and not connections(client), "at rest")
