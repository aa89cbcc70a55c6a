"""Breakers without their store: each process goes on from what it knew, and the fleet is one again afterwards."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from observatory import CircuitOpen, Observatory
from observatory.settings import BreakerSettings, Settings
from tests.conftest import Open
from tests.features.test_breaker import close_it, fails, open_it, stands, until, works
from tests.servers import Server
from tests.store.test_sentinel import switch
from tests.topologies import Cluster, Sentinels

LASTING = BreakerSettings(min_calls=10, consecutive=5, open_for=60)
QUICK = BreakerSettings(min_calls=10, consecutive=5, open_for=0.3)
Made = Callable[..., Awaitable[Observatory]]


@pytest.fixture
def at(opening: Open) -> Made:
    async def made(url: str, said: BreakerSettings = QUICK) -> Observatory:
        return await opening(redis_url=url, settings=Settings(breakers={"p": said, "q": said}))

    return made


@pytest.mark.parametrize("how", ["gone", "stopped"])
async def test_last_known_state_goes_on(at: Made, own_server: Server, how: str) -> None:
    """Open stays open and closed stays closed, nobody waits for the store; what fails here is opened here, and tried here."""
    obs = await at(own_server.url, LASTING)
    await open_it(obs.breaker("p"))
    await obs.breaker("q").execute(works)
    await until(lambda: not obs.breaker("q")._calls, "it was told")
    if how == "gone":
        own_server.stop()
    else:
        own_server.signal(signal.SIGSTOP)
    obs.breakers.use({"p": LASTING, "q": QUICK})
    began = time.monotonic()
    for _ in range(100):
        with pytest.raises(CircuitOpen):
            await obs.breaker("p").execute(works)
        assert await obs.breaker("q").execute(works) == "ok"
    assert time.monotonic() - began < 0.2
    await open_it(obs.breaker("q"))
    with pytest.raises(CircuitOpen):
        await obs.breaker("q").execute(works)
    await until(lambda: obs.breaker("q").state == "half_open", "its time is over")
    with pytest.raises(ConnectionError):
        await obs.breaker("q").execute(fails)
    assert obs.breaker("q").state == "open", "a probe of here"
    await asyncio.wait_for(close_it(obs.breaker("q")), 10)
    assert obs.breaker("p").state == "open"
    own_server.signal(signal.SIGCONT)


async def test_fleet_is_one_again_when_the_store_is_back(at: Made, own_server: Server) -> None:
    """An empty one: nobody remembers what was before, and what fails is opened for all."""
    one, two = await at(own_server.url), await at(own_server.url)
    for _ in range(2):
        await open_it(one.breaker("p"))
        await until(lambda: two.breaker("p").state != "closed", "told")
        await close_it(two.breaker("p"))
        await until(lambda: one.breaker("p").state == "closed", "told")
    await open_it(one.breaker("p"))
    await until(lambda: two.breaker("p").state != "closed", "told")
    own_server.stop()
    own_server.start()
    for obs in (one, two):
        await until(stands(obs, "closed"), "as the store says", timeout=15)
    await open_it(two.breaker("p"))
    await until(lambda: one.breaker("p").state != "closed", "they agree on one epoch")
    await close_it(one.breaker("p"))
    await until(lambda: two.breaker("p").state == "closed", "and go on")


async def test_pause_without_the_store(at: Made, own_server: Server) -> None:
    """It holds here; the others hear nothing of it, and nobody an error."""
    obs = await at(own_server.url)
    own_server.stop()
    assert await obs.pauses.heed("openai", error=asked_to_wait(30)) == pytest.approx(30, abs=1)
    assert obs.pauses.left("openai") == pytest.approx(30, abs=1)
    own_server.start()
    await until(lambda: obs.breakers._seen not in ("", "?"), "it has looked", timeout=15)
    assert obs.pauses.left("openai") > 25, "the fleet's silence does not end it"


def asked_to_wait(seconds: float) -> Exception:
    class Response:
        status_code = 429
        headers = {"Retry-After": str(seconds)}  # noqa: RUF012

    error: Any = RuntimeError("rate limited")
    error.response = Response()
    return error  # type: ignore[no-any-return]


async def test_failover(own_sentinels: Sentinels, at: Made) -> None:
    """Clients follow; what the new primary knows is what holds, and it can be opened and closed on it."""
    one, two = await at(own_sentinels.url, LASTING), await at(own_sentinels.url, LASTING)
    await open_it(one.breaker("p"))
    await until(lambda: two.breaker("p").state == "open", "told")
    await asyncio.to_thread(switch, own_sentinels)
    await until(lambda: one.breakers._seen not in ("", "?"), "found", timeout=30)

    async def answered() -> bool:
        try:
            return (await one.breakers.show("p")).state == "open"
        except Exception:
            return False

    began = time.monotonic()
    while not await answered():
        assert time.monotonic() - began < 30
        await asyncio.sleep(0.05)
    await one.breaker("p").force("closed", reason="works again")
    await until(lambda: two.breaker("p").state == "closed", "told by the new primary", timeout=15)


async def test_on_a_cluster(cluster: Cluster, at: Made) -> None:
    """All of it is in one slot."""
    one, two = await at(cluster.url), await at(cluster.url)
    await open_it(one.breaker("p"))
    assert await until(lambda: two.breaker("p").state == "open", "told") < 1.0
    await close_it(two.breaker("p"))
    await until(lambda: one.breaker("p").state == "closed", "told", timeout=1.0)
    await one.pauses.begin("openai", "gpt", "key", seconds=5)
    await until(lambda: two.pauses.left("openai", "gpt", "key") > 0, "told", timeout=1.0)
