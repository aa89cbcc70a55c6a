"""A sandbox's beginning and end: their own Observatory, and afterwards as it was; leaks, errors, cancellations."""

import asyncio
import gc
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from observatory import InvalidArgument, Limit, Metric, Observatory, StoreUnavailable
from observatory.store.bare import bare
from observatory.testing import FrozenClock, LeakedKeys, Sandbox, reply, sandbox, server
from observatory.testing.machine import MACHINE
from tests.servers import Server

obs = Observatory("their-app")
obs.rate_limiter.define(Limit("declared", 2, per="1h"))
log = obs.logger.bind(part="import")
hits = obs.metrics.counter("their_hits_total").bind(kind="one")
answers = obs.cache(str, name="answers")


@obs.observe
async def work() -> str:
    hits.add()
    return await answers.get_or_compute("k", _make)


async def _make() -> str:
    return "made"


def left_of(namespace: str) -> list[bytes]:
    with bare(MACHINE.socket()) as raw:
        return list(raw.keys(f"obs1:{namespace}:*"))


async def test_a_sandbox_is_empty_and_nothing_stays() -> None:
    """Decorators, handles and caches of import time work in it, one sandbox after the other."""
    namespaces = []
    for _ in range(3):
        async with sandbox(obs) as box:
            namespaces.append(box.namespace)
            assert obs.is_open
            assert obs.settings.namespace == box.namespace
            assert await answers.get("k") is None
            assert await work() == "made"
            assert await answers.get("k") == "made"
            assert await obs.rate_limiter.check("declared", None, 2)
            assert not await obs.rate_limiter.check("declared")
            assert await box.total("their_hits_total", kind="one") == 1
            assert await box.total(Metric.RATE_LIMIT_REJECTIONS, limit="declared") == 1
            assert await box.total("their_hits_total", kind="another") == 0
            assert left_of(box.namespace)
        assert not obs.is_open
        assert not left_of(box.namespace)
    assert len(set(namespaces)) == 3


def test_another_loop_each_time() -> None:
    async def once() -> None:
        async with sandbox(obs, clock=FrozenClock()):
            assert await obs.rate_limiter.check("declared", None, 2)

    for _ in range(2):
        asyncio.run(once())


def test_a_loop_that_ends_in_the_middle_leaves_an_observatory_that_works() -> None:
    """As a runner that is stopped does."""

    async def never_left() -> None:
        box = sandbox(obs)
        await box.__aenter__()
        kept.append(box)

    kept: list[object] = []
    with asyncio.Runner() as runner:
        runner.run(never_left())
        runner.run(kept[0].__aexit__(None, None, None))  # type: ignore[attr-defined]
    asyncio.run(test_a_sandbox_is_empty_and_nothing_stays())


async def test_afterwards_it_is_as_it_was(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its own URL, namespace, settings and clock; what the sandbox recorded is nobody else's."""
    monkeypatch.setenv("OBSERVATORY_REDIS_URL", server.url)
    monkeypatch.setenv("OBSERVATORY_NAMESPACE", "theirs")
    monkeypatch.setenv("OBSERVATORY_RETRY_ATTEMPTS", "7")
    (tmp_path / "observatory.toml").write_text("[limits.declared]\namount = 9\n[breakers.b]\nconsecutive = 9\n")
    own = Observatory("their-app")
    own.rate_limiter.define(Limit("declared", 2, per="1h"))
    counter = own.metrics.counter("their_hits_total")
    assert own.retry.attempts == 7
    breaker = own.breaker("b")
    asked = {"limits": {"declared": {"amount": 4}}, "retry": {"attempts": 2}, "breakers": {"b": {"consecutive": 1}}}
    async with sandbox(own, clock=FrozenClock(), settings=asked) as box:
        assert own.settings.redis.url == box.url != server.url
        assert own.retry.attempts == 2
        assert await own.rate_limiter.check("declared", None, 4)
        with pytest.raises(ConnectionError):
            await breaker.execute(refused)
        await box.settle()
        assert [breaker.state] == ["open"]
        counter.add(5)
    async with sandbox(own):
        assert breaker.state == "closed"
        assert own.settings.limits == {}
        assert own.retry.attempts == 3, "the default; neither environment nor file is read"
        assert own.settings.retry.attempts == 3
        assert [limit.amount for limit in own.rate_limiter.limits() if limit.name == "declared"] == [2]
    assert own._clock.given is None
    async with own:
        try:
            assert abs(own._lifetime.now_us() / 1e6 - time.time()) < 3600
            assert (own.settings.redis.url, own.settings.namespace, own.retry.attempts) == (server.url, "theirs", 7)
            assert breaker.terms.consecutive == 9
            assert await own.rate_limiter.check("declared", None, 9)
            refused_ = await own.rate_limiter.check("declared")
            assert refused_.retry_after is not None
            assert refused_.retry_after > 300
            await own.flush()
            with pytest.raises(InvalidArgument, match="ever recorded"):
                await own.metrics.query("their_hits_total")
        finally:
            with redis.Redis.from_url(server.url) as client:
                client.delete(*client.scan_iter(match="obs1:theirs:*"))


async def refused() -> None:
    raise ConnectionError("refused")


async def test_keys_that_would_stay_for_ever_fail_the_test() -> None:
    with pytest.raises(LeakedKeys, match=r"keys without a TTL: obs1:test-[0-9a-f-]+:own:one, obs1:test-[0-9a-f-]+:own:two[.]"):  # noqa: PT012 (raised at its end)
        async with sandbox(obs) as box:
            for name in ("two", "one"):
                await obs.store.command("SET", f"obs1:{box.namespace}:own:{name}", "x")
            await obs.store.command("SET", f"obs1:{box.namespace}:own:three", "x", "EX", 60)
    assert not left_of(box.namespace)
    assert issubclass(LeakedKeys, AssertionError)


async def test_what_the_test_raises_comes_first() -> None:
    """Before a leak, and before a call that nobody answered."""
    box: Sandbox | None = None
    with pytest.raises(KeyError, match="theirs"):  # noqa: PT012
        async with sandbox(obs) as box:
            await obs.store.command("SET", f"obs1:{box.namespace}:own:one", "x")
            with pytest.raises(AssertionError):
                await obs.llm.http_client().get("https://example.com")
            raise KeyError("theirs")
    assert box is not None
    assert not left_of(box.namespace)
    async with sandbox(obs):
        assert obs.is_open


async def test_a_sandbox_that_is_cancelled_is_closed_all_the_same() -> None:
    opened = asyncio.Event()
    boxes: list[Sandbox] = []

    async def test() -> None:
        async with sandbox(obs, provider=reply()) as box:
            boxes.append(box)
            await obs.rate_limiter.check("declared")
            opened.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(test())
    await opened.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not obs.is_open
    assert not left_of(boxes[0].namespace)
    async with sandbox(obs):
        pass


async def test_cancelled_at_every_moment_it_leaves_nothing() -> None:
    """While it opens, while it is open, while it closes."""
    level = logging.getLogger("observatory").level
    for turns in range(0, 160, 2):
        task = asyncio.create_task(_once())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        assert not obs.is_open
        assert logging.getLogger("observatory").level == level
    gc.collect()  # a socket that was forgotten would say so
    async with sandbox(obs):
        assert await obs.rate_limiter.check("declared")
    with bare(MACHINE.socket()) as raw:
        assert not list(raw.keys(f"obs1:{MACHINE.run}-*"))


async def _once() -> None:
    async with sandbox(obs):
        await obs.rate_limiter.check("declared")


async def test_one_sandbox_of_an_observatory_at_a_time() -> None:
    async with sandbox(obs) as box:
        with pytest.raises(InvalidArgument, match="in a sandbox already"):
            async with sandbox(obs):
                pass
        assert await obs.rate_limiter.check("declared"), "which does the first no harm"
        other = Observatory("another")
        async with sandbox(other) as beside:
            assert beside.namespace != box.namespace
    own = Observatory("their-app", redis_url=box.url.replace(box.namespace, "nowhere"))
    async with own:
        with pytest.raises(InvalidArgument, match="open already"):
            async with sandbox(own):
                pass
        assert own.is_open
    with pytest.raises(InvalidArgument, match="FrozenClock"):
        async with sandbox(obs, clock=object()):  # type: ignore[arg-type]
            pass


async def test_the_log_is_heard() -> None:
    """Theirs, of loggers that were bound before, and ours; not what is below the level, and each though they repeat."""
    async with sandbox(obs, settings={"log": {"level": "warning"}}) as box:
        log.info("too low")
        with obs.bound(user="ann"):
            for _ in range(30):
                log.warning("said", number=7, password="secret")  # noqa: S106
        await box.redis_down()
        with pytest.raises(StoreUnavailable):
            await obs.flush()
        await obs.rate_limiter.check("declared")
    said = [line for line in box.logs if line["message"] == "said"]
    assert len(said) == 30
    assert {"part": "import", "number": 7, "user": "ann", "level": "warning", "service": "their-app"}.items() <= said[0].items()
    assert said[0]["password"] != "secret"
    assert any("store away" in line["message"] for line in box.logs)
    assert not any(line["message"] == "too low" for line in box.logs)
    async with sandbox(obs) as box:
        obs.logger.info("low")
        assert [line["message"] for line in box.logs if line["message"] == "low"] == ["low"]


async def test_the_store_goes_and_comes_back() -> None:
    """For one sandbox; another on the same server does not notice."""
    other = Observatory("another")
    other.rate_limiter.define(Limit("declared", 2, per="1h"))
    async with sandbox(obs) as box, sandbox(other), box.other_process() as replica:
        assert (await obs.rate_limiter.check("declared")).decided_by == "redis"
        await box.redis_down()
        for one in (obs, replica):
            assert (await one.rate_limiter.check("declared", None, 0)).decided_by == "local"
            with pytest.raises(StoreUnavailable):
                await one.ready(timeout=0.1)
        assert (await other.rate_limiter.check("declared")).decided_by == "redis"
        await box.redis_up()
        for one in (obs, replica):
            decision = await one.rate_limiter.check("declared", None, 0)
            assert (decision.decided_by, decision.remaining) == ("redis", 1)
        await box.redis_down()
    assert not left_of(box.namespace)


async def test_another_process_is_another() -> None:
    async with sandbox(obs, settings={"limits": {"declared": {"amount": 3}}}) as box, box.other_process() as replica:
        assert replica.instance != obs.instance
        assert [limit.amount for limit in replica.rate_limiter.limits() if limit.name == "declared"] == [3]
        assert await replica.rate_limiter.check("declared", None, 3)
        assert not await obs.rate_limiter.check("declared")
        replica.metrics.increment_counter("their_hits_total", 2)
        hits.add()
        assert await box.total("their_hits_total") == 3
        assert len(await obs.instances()) == 2
        await replica.cache(str, name="answers").set("k", "theirs")
        assert await answers.get("k") == "theirs"
        with pytest.raises(AssertionError, match="no provider"):
            await replica.llm.http_client().get("https://example.com")
        box._provided.unexpected.clear()
    assert not replica.is_open


async def test_calls_of_every_task_are_heard() -> None:
    client = obs.llm.http_client()

    async def ask() -> None:
        await client.post("https://api.openai.com/v1/embeddings", json={"model": "m", "input": "a"})

    async with sandbox(obs, provider=reply()) as box:
        await asyncio.gather(*(asyncio.create_task(ask()) for _ in range(5)))
        assert len(box.calls) == 5
        assert await box.total(Metric.REQUESTS_TOTAL, model="m") == 5


async def test_telemetry_stays_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the variables say: nobody listens at this address, and nobody is asked."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    own = Observatory("their-app")
    async with sandbox(own) as box:
        own.logger.info("a line")
        with own.span("a span"):
            pass
        assert own.otlp.jobs == ()
    assert [line["message"] for line in box.logs if line["message"] == "a line"]
    assert not [line for line in box.logs if line["level"] in ("error", "warning")]


def test_a_server_without_an_observatory() -> None:
    with server() as url, redis.Redis.from_url(url) as client:
        assert client.ping()


@pytest.fixture(autouse=True)
def _level() -> Iterator[None]:
    before = logging.getLogger("observatory").level
    yield
    assert logging.getLogger("observatory").level == before
