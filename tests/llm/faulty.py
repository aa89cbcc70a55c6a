"""A provider that breaks in every way there is, and a client that knows what it should have had of each call."""

import asyncio
import contextlib
import gzip
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from decimal import Decimal
from typing import Any, Final

import httpx2

from observatory import Call, Limit, Observatory
from observatory.llm.gate import Asked, Passed
from tests.llm.guarded import DOCUMENT, SECRET, STREAM, document, gate, settled, stream
from tests.servers import free_port

MOST: Final = 10**12
LIMITS: Final = (
    Limit("calls", MOST, per="month", match="*"),
    Limit("tokens", MOST, per="month", unit="tokens", match="*"),
    Limit("money", 4_000_000, per="month", unit="usd", match="*"),
    Limit("slots", 5000, unit="slots", match="*"),
)
FAULTS: Final = (
    *("fine", "refused", "reset before head", "half a head", "silent", "reset in body", "slow", "stalled", "429", "429 later"),
    *("500", "502", "503", "529", "truncated", "error event", "no json", "no gzip", "no usage", "gzip"),
)
LARGE: Final = 50 * 2**20
UNSENT: Final = {"ConnectError", "ConnectTimeout"}
TIMEOUT: Final = httpx2.Timeout(20, read=0.5)


def _said(fault: str, *, streamed: bool) -> tuple[int, dict[str, str], list[bytes]]:
    """What comes of an answer."""
    said = stream(100, 50, says=fault != "no usage") if streamed else document(100, 50)
    headers, chunks = STREAM if streamed else DOCUMENT, said.chunks
    if fault[:3].isdecimal():
        body = json.dumps({"error": {"message": SECRET, "type": "server_error"}}).encode()
        return int(fault[:3]), {**DOCUMENT, **({"retry-after": "0.05"} if "later" in fault else {})}, [body]
    cut = chunks[:3] if streamed else [chunks[0][:50]]
    large = [b'{"choices": "', *[b"x" * 2**20] * (LARGE // 2**20), b'", "usage": {"prompt_tokens": 5, "completion_tokens": 7}}']
    broken = {
        "error event": (headers, [*chunks[:2], b'data: {"error": {"message": "x", "type": "server_error"}}\n\n']),
        "truncated": (headers, cut),
        "reset in body": (headers, cut),
        "stalled": (headers, cut),
        "no json": (headers, [b'{"choices": [' + b"data: {no json}\n\n" * 3]),
        "no gzip": ({**headers, "content-encoding": "gzip"}, chunks),
        "gzip": ({**headers, "content-encoding": "gzip"}, [gzip.compress(b"".join(chunks))]),
        "large": (DOCUMENT, large),
    }
    return 200, *broken.get(fault, (headers, chunks))


class Faulty:
    """Does with each request what its user says: `fault|number`."""

    def __init__(self) -> None:
        self.sent: dict[str, bytearray] = defaultdict(bytearray)
        """Of each call's body, by number: what was written of it."""
        self.heard: list[str] = []
        self.hold = asyncio.Event()
        """Nobody is answered before it is set."""
        self.hold.set()
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
                asked = json.loads(await reader.readexactly(length))
                fault, _, number = asked["user"].partition("|")
                self.heard.append(number)
                await self.hold.wait()
                if not await self._one(writer, fault, number, bool(asked.get("stream"))):
                    break
        writer.transport.abort()

    async def _one(self, writer: asyncio.StreamWriter, fault: str, number: str, streamed: bool) -> bool:
        if fault in ("reset before head", "half a head"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-ty" if fault == "half a head" else b"")
            await writer.drain()
            return False
        if fault == "silent":
            await asyncio.sleep(30)
        status, headers, chunks = _said(fault, streamed=streamed)
        lines = [f"HTTP/1.1 {status} x", *(f"{name}: {value}" for name, value in headers.items()), "transfer-encoding: chunked"]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        for chunk in chunks:
            if fault == "slow":
                await asyncio.sleep(0.05)
            self.sent[number] += chunk
            writer.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            await writer.drain()
        if fault == "stalled":
            await asyncio.sleep(30)
        if fault == "reset in body":
            await asyncio.sleep(0.02)
            return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


@contextlib.asynccontextmanager
async def faulty() -> AsyncIterator[Faulty]:
    one = Faulty()
    running: set[asyncio.Task[None]] = set()

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(one.serve(reader, writer))
        running.add(task)
        task.add_done_callback(running.discard)

    server = await asyncio.start_server(accepted, "127.0.0.1", 0, limit=2**24)
    one.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield one
    finally:
        server.close()
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)


class Books:
    """Makes calls of one Observatory, and keeps beside it what each was let in with and what became of it."""

    def __init__(self, obs: Observatory, there: Faulty, key: str, **options: Any) -> None:
        self.obs = obs
        self.there = there
        self.let: dict[str, Asked] = {}
        self.errors: list[BaseException] = []
        self.calls: list[Call] = []
        self.done = 0
        self._key = key
        self._nobody = f"http://127.0.0.1:{free_port()}"
        self._number = 0
        self.client = obs.llm.http_client(provider="openai", trust_env=False, **{"timeout": TIMEOUT, **options})
        inner = gate(obs)
        enter = inner.enter

        async def entered(asked: Asked, wait: float) -> Passed:
            passed = await enter(asked, wait)
            self.let[asked.dimensions["number"]] = asked
            return passed

        inner.enter = entered  # type: ignore[method-assign]

    async def call(self, fault: str, *, streamed: bool, text: str, stop: int | None = None) -> None:
        """One, read to its end, or stopped after so many chunks: what came is what was sent, as far as it came."""
        self._number += 1
        number = str(self._number)
        said = {
            "model": "m-1",
            "user": f"{fault}|{number}",
            "max_tokens": 100 + self._number,
            "stream": streamed,
            "stream_options": {"include_usage": True},
            "messages": [{"role": "user", "content": text}],
        }
        got, whole = bytearray(), False
        url = f"{self._nobody if fault == 'refused' else self.there.url}/v1/chat/completions"
        try:
            async with asyncio.timeout(10):
                with self.obs.bound(number=number), self.obs.llm.collect() as calls:
                    try:
                        request = self.client.build_request(
                            "POST",
                            url,
                            json=said,
                            headers={"authorization": f"Bearer {self._key}", "x-stainless-retry-count": "0"},
                        )
                        response = await self.client.send(request, stream=True)
                        try:
                            refused = "observatory-code" in response.headers
                            seen = 0
                            async for chunk in response.aiter_raw():
                                got += chunk
                                seen += 1
                                if seen == stop:
                                    break
                            else:
                                whole = True
                        finally:
                            await response.aclose()
                        if not refused:
                            sent = self.there.sent[number]
                            assert bytes(got) == sent if whole else sent.startswith(got)
                    finally:
                        self.calls += calls
        except httpx2.TransportError as error:
            self.errors.append(error)
            assert self.there.sent[number].startswith(got)
        self.done += 1

    def expected(self) -> dict[str, Decimal]:
        """What limits should show: what calls say they used; their estimates where nobody knows."""
        calls = tokens = money = Decimal()
        for call in self.calls:
            asked = self.let.get(call.dimensions["number"])
            if asked is None or call.error in UNSENT:
                continue
            calls += 1
            if call.usage is not None:
                tokens += call.usage.total_tokens
                money += call.cost_usd or 0
            elif call.status is None or call.status < 400:
                tokens += Decimal(str(asked.cost["tokens"]))
                money += Decimal(str(asked.cost["usd"]))
        return {"calls": calls, "tokens": tokens, "money": money, "slots": Decimal()}

    async def quiet(self) -> None:
        """Nothing of ours runs any more but what always does."""
        await settled(self.obs)
        names = [task.get_name() for task in asyncio.all_tasks()]
        left = [name for name in names if name in ("observatory LLM call", "observatory reservation")]
        assert not left


def dump(client: Any, pattern: str) -> Sequence[bytes]:
    """All keys and what stands in them."""
    found: list[bytes] = []
    read: dict[bytes, Callable[[bytes], list[bytes]]] = {
        b"string": lambda key: [client.get(key) or b""],
        b"hash": lambda key: [part for pair in client.hgetall(key).items() for part in pair],
        b"list": lambda key: list(client.lrange(key, 0, -1)),
        b"set": lambda key: list(client.smembers(key)),
        b"zset": lambda key: list(client.zrange(key, 0, -1)),
        b"stream": lambda key: [part for _, said in client.xrange(key) for pair in said.items() for part in pair],
    }
    for key in client.scan_iter(match=pattern, count=1000):
        found += [key, *read[client.type(key)](key)]
    return found
