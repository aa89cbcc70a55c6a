"""A call of the OpenAI SDK with everything around it, beside the bare SDK and litellm.

python -m benchmarks.bench_guarded [--rounds 7] [--seconds 0.2] [--quick] [--write]
"""

import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, Final

import httpx2
from openai import AsyncOpenAI

from observatory import Limit, Observatory

from . import interpreters
from .child_litellm import ASKED
from .contest import Contender, Goal, Row, Server
from .elsewhere import ROOT, Elsewhere, elsewhere
from .harness import Benchmark, BrokenContender, Once, Table, main

BARE, SEEN, GUARDED, LITELLM = "openai", "openai, seen by us", "openai, guarded by us", "litellm Router"
_VERSION: Final = "1.83.0"
_AT_ONCE: Final = (1, 32)


@cache
def _provider() -> str:
    """Its URL; it ends with us, when our end of its standard input does."""
    child = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.child_provider"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    _children.append(child)
    assert child.stdout is not None
    return child.stdout.readline().strip()


_children: list[subprocess.Popen[str]] = []


def _client(http: httpx2.AsyncClient | None = None) -> AsyncOpenAI:
    return AsyncOpenAI(api_key="sk-bench", base_url=f"{_provider()}/v1", http_client=http)


def _once(client: AsyncOpenAI) -> Once:
    async def once(_: int) -> bool:
        said = await client.chat.completions.create(**ASKED)
        return bool(said.choices[0].message.content == "Paris.")

    return once


@asynccontextmanager
async def _bare(_: Server) -> AsyncIterator[Once]:
    async with _client(httpx2.AsyncClient(timeout=600, trust_env=False)) as client:
        yield _once(client)


def _ours(*limits: Limit) -> Callable[[Server], Any]:
    @asynccontextmanager
    async def setup(server: Server) -> AsyncIterator[Once]:
        obs = Observatory("bench", redis_url=server.tcp_url)
        obs.rate_limiter.define(*limits)
        async with obs, _client(obs.llm.http_client(provider="openai", trust_env=False)) as client:
            yield _once(client)

    return setup


_LIMITS = (
    Limit("requests", 10**7, per="1m", match={"provider": "openai"}),
    Limit("tokens", 10**10, per="1m", unit="tokens", match={"model": "gpt-4o*"}),
    Limit("budget", 10**6, per="month", unit="usd", match="*"),
)


async def _verify_bare(server: Server) -> None:
    async with _bare(server) as once:
        if not await once(0):
            raise BrokenContender("its answer was not the provider's")


async def _verify_seen(server: Server) -> None:
    await _verified(server, ())


async def _verify_guarded(server: Server) -> None:
    await _verified(server, (Limit("few", 450, per="day", unit="tokens", match={"provider": "openai"}),))


async def _verified(server: Server, limits: tuple[Limit, ...]) -> None:
    """Three calls of 159 tokens: all are recorded; of a limit of 450 the third is refused."""
    obs = Observatory("verify", redis_url=server.tcp_url, namespace="verify")
    obs.rate_limiter.define(*limits)
    async with obs, _client(obs.llm.http_client(provider="openai", trust_env=False)) as client:
        with obs.llm.collect() as calls:
            for _ in range(3):
                try:
                    await client.with_options(max_retries=0).chat.completions.create(**ASKED)
                except Exception:
                    if len(calls) < 3 or not limits:
                        raise
                await obs.llm.settled()
    wanted = [159, 159, None if limits else 159]
    if [call.usage and call.usage.total_tokens for call in calls] != wanted or calls[0].cost_usd is None:
        raise BrokenContender(f"it recorded {calls}")


@asynccontextmanager
async def _theirs(server: Server) -> AsyncIterator[Elsewhere]:
    python = interpreters.having("litellm", (f"litellm=={_VERSION}", *interpreters.drivers()))
    if python is None:
        raise BrokenContender("litellm could not be installed here")
    async with elsewhere("child_litellm", server.tcp_url, _provider(), python=python, loud=False) as child:
        yield child


async def _verify_theirs(server: Server) -> None:
    async with _theirs(server) as child:
        await child.ask("verify", start_at=0.0)


def _more(said: str, of: str, at_most: float, in_flight: int) -> Goal:
    """What a call of ours takes more than the bare one in the same round: "p50" or "client_cpu", in µs."""

    def value(rows: Mapping[str, Row]) -> Sequence[float]:
        if GUARDED not in rows or BARE not in rows:
            return []
        pairs = zip(rows[GUARDED].measures, rows[BARE].measures, strict=True)
        return [getattr(ours, of) - getattr(bare, of) for ours, bare in pairs]

    return Goal(said, in_flight, value, at_most, at_most=True)


BENCHMARK = Benchmark(
    name="bench_guarded",
    title="LLM calls, guarded",
    about="""\
One chat completion of the OpenAI SDK over HTTP to a provider on this machine that answers at once, in a process of its own.
*Guarded*: a limit of requests, one of tokens, a budget in dollars, a breaker, metrics, a span, an event; *seen*: without the
limits. litellm: its Router with one deployment, requests and tokens a minute counted in the same Redis, in a process of its
own.""",
    parts=(
        Table(
            title="A call",
            about="",
            contenders=(
                Contender(BARE, _bare, _verify_bare),
                Contender(SEEN, _ours(), _verify_seen),
                Contender(GUARDED, _ours(*_LIMITS), _verify_guarded),
                Contender(LITELLM, _theirs, _verify_theirs),
            ),
            reference=BARE,
            in_flight=_AT_ONCE,
            goals=(
                _more("µs of a guarded call over the bare one, median", "p50", 400, 1),
                _more("µs of CPU of a guarded call over the bare one, one at a time", "client_cpu", 300, 1),
                _more("µs of CPU of a guarded call over the bare one, 32 in flight", "client_cpu", 300, 32),
            ),
        ),
    ),
    libraries=("observatory-fleet", "openai", "httpx2", "opentelemetry-sdk", "genai-prices"),
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
