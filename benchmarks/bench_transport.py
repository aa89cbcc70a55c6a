"""What our transport adds to a call, to a chunk of a stream, and to a stream that is open.

python -m benchmarks.bench_transport [--rounds 7] [--seconds 0.2] [--quick] [--write]
"""

import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable

import httpx2

from observatory import Observatory

from .contest import Server
from .harness import Benchmark, Plan, Study, main, reached, spread

URL = "https://api.openai.com/v1/chat/completions"
ASKED = {"model": "gpt-4o", "messages": [{"role": "user", "content": "What is the capital of France? " * 20}]}
DOCUMENT = b'{"model":"gpt-4o-2024-08-06","choices":[],"usage":{"prompt_tokens":150,"completion_tokens":9}}'
DELTA = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1731456257,"model":"gpt-4o-mini-2024-07-18",'
    b'"system_fingerprint":"fp_0ba0d124f1",'
    b'"choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null}]}\n\n'
)
CHUNKS = 500
OPEN = 100


class Body(httpx2.AsyncByteStream):
    """A response's bytes, from memory."""

    def __init__(self, chunk: bytes, times: int) -> None:
        self._chunk, self._times = chunk, times

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for _ in range(self._times):
            yield self._chunk


class Provider(httpx2.AsyncBaseTransport):
    """Answers at once."""

    def __init__(self, kind: str, chunk: bytes, times: int) -> None:
        self._said = {"content-type": kind}, chunk, times

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        headers, chunk, times = self._said
        return httpx2.Response(200, headers=headers, stream=Body(chunk, times))


def document() -> Provider:
    return Provider("application/json", DOCUMENT, 1)


def stream() -> Provider:
    return Provider("text/event-stream", DELTA, CHUNKS)


def _clients(make: Callable[[], Provider], server: Server) -> dict[str, httpx2.AsyncClient]:
    obs = Observatory("bench", redis_url=server.tcp_url)
    return {"httpx2": httpx2.AsyncClient(transport=make()), "ours": obs.llm.http_client(transport=make())}


async def _microseconds(client: httpx2.AsyncClient, calls: int) -> float:
    """Of CPU, per call."""
    began = time.process_time()
    for _ in range(calls):
        async with client.stream("POST", URL, json=ASKED) as response:
            async for _ in response.aiter_raw():
                pass
    return (time.process_time() - began) / calls * 1e6


async def _added(make: Callable[[], Provider], server: Server, plan: Plan, calls: int) -> tuple[list[str], list[float]]:
    clients, found = _clients(make, server), dict[str, list[float]]()
    for client in clients.values():
        await _microseconds(client, 5)
    for _ in range(2 if plan.quick else plan.rounds):
        for name, client in clients.items():
            found.setdefault(name, []).append(await _microseconds(client, calls))
    lines = [
        "| contender | µs of CPU a call |",
        "|---|---:|",
        *(f"| {name} | {spread(one, '.0f')} |" for name, one in found.items()),
    ]
    return lines, [ours - bare for bare, ours in zip(found["httpx2"], found["ours"], strict=True)]


async def _call(server: Server, plan: Plan) -> list[str]:
    lines, more = await _added(document, server, plan, 300)
    return [*lines, "", reached("µs of CPU that a call costs more", more, 300, at_most=True, form=".0f")]


async def _chunk(server: Server, plan: Plan) -> list[str]:
    lines, more = await _added(stream, server, plan, 10)
    return [*lines, "", reached("µs of CPU a chunk", [one / CHUNKS for one in more], 30, at_most=True, form=".1f")]


async def _memory(server: Server, plan: Plan) -> list[str]:
    kept = {}
    for name, client in _clients(stream, server).items():
        tracemalloc.start()
        responses = []
        for _ in range(OPEN):
            response = await client.send(client.build_request("POST", URL, json=ASKED), stream=True)
            chunks = response.aiter_raw()
            for _ in range(CHUNKS // 2):
                await anext(chunks)
            responses.append((response, chunks))
        kept[name] = tracemalloc.get_traced_memory()[0] / OPEN
        tracemalloc.stop()
        for response, _ in responses:
            await response.aclose()
    lines = ["| contender | bytes |", "|---|---:|", *(f"| {name} | {one:,.0f} |" for name, one in kept.items())]
    more = kept["ours"] - kept["httpx2"]
    return [*lines, "", reached("bytes that an open stream takes more", [more], 32_768, at_most=True, form=",.0f")]


BENCHMARK = Benchmark(
    name="bench_transport",
    title="LLM calls through our transport",
    about="""\
The same client of httpx2 with and without us, in turns, on a transport that answers from memory: what is measured is what we
add. A call is recorded in full: tokens, price, span (of OpenTelemetry's SDK, sent nowhere), metrics, event. No limits, no
breaker.""",
    parts=(
        Study("A call", "A document, with its usage.", _call),
        Study("A stream", f"{CHUNKS} chunks of one event each.", _chunk),
        Study("Open streams", f"{OPEN} of them, half read; tracemalloc's bytes.", _memory),
    ),
    libraries=("observatory-fleet", "httpx2", "opentelemetry-sdk", "genai-prices", "msgspec"),
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
