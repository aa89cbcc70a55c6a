"""Clients whose calls are let in, and what the fleet's limits show of them afterwards."""

import asyncio
import json
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import anthropic
import groq
import openai

from observatory import Call, Limit, Observatory, Price
from observatory.features.rate_limiter.ledger import reservations
from observatory.llm.gate import Gate
from tests.llm.replay import Answer, Provider

KEY = "sk-proj-this-is-a-secret-0123456789"
MODEL = "m-1"
PROMPT = "the secret of the prompt"
SECRET = "the secret of the answer"
DOCUMENT = {"content-type": "application/json"}
STREAM = {"content-type": "text/event-stream"}
PLENTY = 10**9
COUNTED = (
    Limit("calls", PLENTY, per="month", match="*"),
    Limit("tokens", PLENTY, per="month", unit="tokens", match="*"),
    Limit("money", 100_000, per="month", unit="usd", match="*"),
    Limit("slots", 500, unit="slots", match="*"),
)
"""Of every unit one, that nothing grows back in."""


def sdk(obs: Observatory, there: Provider, name: str = "openai", *, retries: int = 0, key: str = KEY, **options: Any) -> Any:
    """The SDK of a provider, with our client in it."""
    library = "httpx" if name == "groq" else "httpx2"
    client = obs.llm.http_client(library, provider=name, trust_env=False, **options)  # type: ignore[call-overload]
    kinds: dict[str, Any] = {"openai": openai.AsyncOpenAI, "anthropic": anthropic.AsyncAnthropic, "groq": groq.AsyncGroq}
    url = f"{there.url}/v1" if name == "openai" else there.url
    return kinds[name](api_key=key, base_url=url, max_retries=retries, http_client=client)


def asking(client: Any, *, stream: bool = False, text: str = PROMPT, model: str = MODEL, **more: Any) -> Any:
    """One question, by whatever SDK."""
    said: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": text}], **more}
    if stream:
        said["stream"] = True
    if isinstance(client, anthropic.AsyncAnthropic):
        return client.messages.create(**{"max_tokens": 50, **said})
    return client.chat.completions.create(**said)


def priced(obs: Observatory) -> None:
    """A dollar for a million tokens in, ten for a million out."""
    for name in ("openai", "anthropic", "groq"):
        obs.llm.prices.set(f"{name}/*", Price(input=1, output=10))


def document(tokens_in: int = 11, tokens_out: int = 7, *, messages: bool = False) -> Answer:
    """A whole answer that says what it took."""
    if messages:
        said: dict[str, Any] = {
            "id": "m",
            "type": "message",
            "role": "assistant",
            "model": MODEL,
            "stop_reason": "end_turn",
            "content": [{"type": "text", "text": SECRET}],
            "usage": {"input_tokens": tokens_in, "output_tokens": tokens_out},
        }
    else:
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": SECRET}}
        used = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}
        said = {"id": "c", "object": "chat.completion", "created": 1, "model": MODEL, "choices": [choice], "usage": used}
    return Answer(200, DOCUMENT, [json.dumps(said).encode()])


def event(said: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(said).encode() + b"\n\n"


def stream(tokens_in: int = 11, tokens_out: int = 7, *, words: int = 6, says: bool = True) -> Answer:
    """A stream; says: its last event has what it took."""
    base = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    chunks = [event({**base, "choices": [{"index": 0, "delta": {"content": f"{SECRET} {n}"}}]}) for n in range(words)]
    chunks.append(event({**base, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
    if says:
        used = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}
        chunks.append(event({**base, "choices": [], "usage": used}))
    return Answer(200, STREAM, [*chunks, b"data: [DONE]\n\n"])


def error(status: int, **headers: str) -> Answer:
    body = {"error": {"message": SECRET, "type": "server_error", "code": None}}
    said = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, {**DOCUMENT, **said}, [json.dumps(body).encode()])


def gate(obs: Observatory) -> Gate:
    return obs._desk.gate


async def settled(obs: Observatory) -> None:
    """Nothing that was let in is under way any more, and nothing is held."""
    async with asyncio.timeout(20):
        while gate(obs)._inside or gate(obs)._working:
            await asyncio.sleep(0.005)


async def still_held(obs: Observatory) -> int:
    return (await reservations(obs.store)).open


async def shown(obs: Observatory, *limits: Limit) -> dict[str, Decimal]:
    """What limits say is used of them."""
    found = {}
    for limit in limits or COUNTED:
        seen = await obs.rate_limiter.peek(limit.name)
        found[limit.name] = Decimal(str(limit.amount)) - Decimal(seen.remaining)
    return found


def said(calls: Iterable[Call]) -> dict[str, Decimal]:
    """What calls say that they used, of those that a provider was asked for."""
    made = [call for call in calls if not call.cached and call.refused_by is None]
    return {
        "calls": Decimal(len(made)),
        "tokens": Decimal(sum(call.usage.total_tokens for call in made if call.usage is not None)),
        "money": sum((call.cost_usd or Decimal() for call in made), Decimal()),
        "slots": Decimal(),
    }
