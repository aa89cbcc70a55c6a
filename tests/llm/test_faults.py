"""Faults of the provider times faults of the store: what limits show is what calls say, to the last token and billionth.

After each: nothing is held any more (what a lost answer left, when its lease is over), no task is left, no stream is corrupted,
nothing hangs, and nothing that somebody wrote, or a key, stands anywhere.
"""

import asyncio
import contextlib
import random
import signal
import traceback
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import redis

from observatory import Observatory
from observatory.clock import monotonic
from observatory.settings import LlmSettings, Settings
from tests.llm.faulty import FAULTS, LIMITS, Books, Faulty, dump, faulty
from tests.llm.fleet import until
from tests.llm.guarded import KEY, PROMPT, SECRET, priced, shown, still_held
from tests.llm.observed import Spans, total
from tests.proxy import Proxy
from tests.servers import Server

LEASE = 2.0
SETTINGS = Settings(llm=LlmSettings(breaker="off"))
SECRETS = (KEY, KEY[-10:], PROMPT, SECRET)


@pytest.fixture
async def there() -> AsyncIterator[Faulty]:
    async with faulty() as one:
        yield one


@pytest.fixture(autouse=True)
def _short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """What only a lease gives back comes back while the test runs."""
    monkeypatch.setattr("observatory.llm.gate._LEASE", LEASE)


class Between(Proxy):
    """A proxy that may also be slow."""

    delay = 0.0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await super()._serve(reader, writer)
        except OSError:  # nobody is there: the same to whoever asks
            writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                if self.delay and not up:
                    await asyncio.sleep(self.delay)
                while up and self.deaf:
                    await asyncio.sleep(0.01)
                if up or not self.swallow_replies:
                    writer.write(data)
                    await writer.drain()
        writer.close()


@pytest.fixture
async def between(own_server: Server, tmp_path: Path) -> AsyncIterator[Between]:
    one = Between(own_server.path, tmp_path / "between")
    listener = await asyncio.start_unix_server(one._serve, str(one.path))
    try:
        yield one
    finally:
        listener.close()
        one.cut()
        await asyncio.sleep(0.05)


async def balanced(books: Books) -> None:
    """All that was held has come back; what limits show is what calls say."""
    await books.quiet()
    obs = books.obs
    until_ = monotonic() + LEASE + 10
    while await still_held(obs) or (await shown(obs, *LIMITS)) != books.expected():
        async with obs.rate_limiter.reserve("*", {}, {"tokens": 1, "usd": 0}) as held:
            await held.cancel()  # whoever takes something next reaps what has run out
        assert monotonic() < until_, (await still_held(obs), await shown(obs, *LIMITS), books.expected())
        await asyncio.sleep(0.1)
    assert await total(obs, "observatory_active_connections", kind="llm") == 0


def hidden(books: Books, spans: Spans, server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """No secret stands anywhere."""
    said = [record.getMessage() + (record.exc_text or "") for record in caplog.records]
    said += [span.to_json() for span in spans.taken()]
    for error in books.errors:
        said += traceback.format_exception(error)
    said += [msgspec.json.encode(call).decode() for call in books.calls]
    with redis.Redis.from_url(server.url) as client:
        kept = dump(client, "obs1:*")
    assert len(kept) > 20, "there is something to look through"
    for secret in SECRETS:
        assert not [line for line in said if secret in line]
        assert not [value for value in kept if secret.encode() in value]


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
async def test_every_fault_of_a_provider(
    own_server: Server, there: Faulty, caplog: pytest.LogCaptureFixture, streamed: bool
) -> None:
    """One after the other: after each the books are even."""
    async with Observatory("test", redis_url=own_server.url, namespace="n", settings=SETTINGS) as obs:
        obs.rate_limiter.define(*LIMITS)
        priced(obs)
        spans, books = Spans(obs), Books(obs, there, KEY)
        async with books.client:
            for fault in (*FAULTS, "large"):
                with obs.bound():
                    await books.call(fault, streamed=streamed, text=PROMPT)
                await obs.pauses.end("openai", "m-1", KEY)
                await books.quiet()
                assert await shown(obs, *LIMITS) == books.expected(), fault
                assert await still_held(obs) == 0, fault
        assert len(books.let) == len(FAULTS) + 1
        assert any(call.usage for call in books.calls)
        await obs.flush()
        hidden(books, spans, own_server, caplog)


async def _storm(books: Books, dice: random.Random, calls: int, *, cancel: bool) -> None:
    """So many calls at once with all faults; some of them cancelled, or left by their reader, at any moment."""
    faults = [FAULTS[number % len(FAULTS)] for number in range(calls)]

    async def one(number: int, fault: str) -> None:
        await asyncio.sleep(dice.uniform(0, 0.3))
        stop = dice.choice([None, None, 1, 2]) if cancel else None
        calling = asyncio.ensure_future(books.call(fault, streamed=number % 2 == 0, text=PROMPT, stop=stop))
        if cancel and dice.random() < 0.5:
            for _ in range(dice.choice([0, 1, 2, 3, 5, 10, 30, 100])):
                await asyncio.sleep(0)
            await asyncio.sleep(dice.choice([0, 0, 0.01, 0.05]))
            calling.cancel()
        await asyncio.wait({calling})
        if not calling.cancelled():
            calling.result()

    await asyncio.gather(*(one(number, fault) for number, fault in enumerate(faults)))


@pytest.mark.parametrize("how", ["cut", "slow", "restarted", "stopped", "deaf", "replies lost"])
async def test_the_store_fails_under_calls(
    own_server: Server, between: Between, there: Faulty, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """All faults at once, before, while and after the store is broken."""
    async with Observatory("test", redis_url=between.url, namespace="n", settings=SETTINGS) as obs:
        obs.rate_limiter.define(*LIMITS)
        priced(obs)
        await until(lambda: obs._lifetime.most_live() > 0, "it knows how many there are")
        spans, books = Spans(obs), Books(obs, there, KEY)
        dice = random.Random(how)
        async with books.client, asyncio.timeout(40):
            there.hold.clear()
            under_way = asyncio.ensure_future(_storm(books, dice, 40, cancel=False))
            await until(lambda: len(there.heard) > 20, "many are under way")
            if how == "slow":
                between.delay = 0.2
            elif how == "deaf":
                between.deaf = True
            elif how == "replies lost":
                between.swallow_replies = True
            elif how == "stopped":
                own_server.signal(signal.SIGSTOP)
            elif how == "restarted":
                own_server.stop()
            between.cut() if how == "cut" else None
            there.hold.set()
            await _storm(books, dice, 40, cancel=False)
            await asyncio.sleep(0.5)
            between.delay, between.deaf = 0.0, False
            if between.swallow_replies:
                between.swallow_replies = False
                between.cut()
            if how == "restarted":
                own_server.start()
            own_server.signal(signal.SIGCONT)
            await _storm(books, dice, 20, cancel=False)
            await under_way
            await balanced(books) if how != "restarted" else await books.quiet()
            assert await still_held(obs) == 0
            assert books.done == 100
        await obs.flush()
        hidden(books, spans, own_server, caplog)


async def test_the_store_was_never_there(tmp_path: Path, there: Faulty) -> None:
    """Every call is made, and ends as without us."""
    limits = [msgspec.structs.replace(limit, on_store_down="open") for limit in LIMITS]
    async with Observatory("test", redis_url=f"unix://{tmp_path}/none", namespace="n", settings=SETTINGS) as obs:
        obs.rate_limiter.define(*limits)
        priced(obs)
        books = Books(obs, there, KEY)
        async with books.client, asyncio.timeout(40):
            await _storm(books, random.Random(1), 40, cancel=False)
            await books.quiet()
        assert books.done == len(books.let) == 40
        assert len({call.error for call in books.calls}) > 5


@pytest.mark.parametrize("seed", range(3))
async def test_a_history_of_faults_and_cancellations(
    own_server: Server, between: Between, there: Faulty, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    """Calls that break, are cancelled and left at any moment, over a store whose connections break: the books are even."""
    async with Observatory("test", redis_url=between.url, namespace="n", settings=SETTINGS) as obs:
        obs.rate_limiter.define(*LIMITS)
        priced(obs)
        await until(lambda: obs._lifetime.most_live() > 0, "it knows how many there are")
        spans, books = Spans(obs), Books(obs, there, KEY)
        dice = random.Random(seed)

        async def cuts() -> None:
            while seed:
                await asyncio.sleep(dice.uniform(0.05, 0.3))
                between.cut()

        cutting = asyncio.ensure_future(cuts())
        async with books.client, asyncio.timeout(60):
            for _ in range(4):
                await _storm(books, dice, 60, cancel=True)
            cutting.cancel()
            await balanced(books)
        assert books.done > 50
        assert len(books.calls) == 240 or books._number < 240
        await obs.flush()
        hidden(books, spans, own_server, caplog)
