"""Breakers: what opens them, who tries, what callers meet; several clients of one store."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx2
import pytest

from observatory import CircuitOpen, InvalidArgument, Observatory, RateLimitExceeded, StoreUnavailable
from observatory.clock import monotonic
from observatory.features.breaker import Breaker, blocks
from observatory.features.breaker.breaker import verdict
from observatory.features.breaker.machine import View
from observatory.settings import BreakerSettings, Settings
from tests.conftest import Open
from tests.proxy import proxy
from tests.servers import Server

QUICK = BreakerSettings(min_calls=10, consecutive=5, window=60, open_for=0.3)


@pytest.fixture
def fleet(opening: Open) -> Callable[..., Awaitable[list[Observatory]]]:
    """So many clients with the same settings for every breaker that these tests use."""

    async def made(
        size: int = 1, server: Server | None = None, said: BreakerSettings = QUICK, **more: Any
    ) -> list[Observatory]:
        settings = Settings(breakers=dict.fromkeys(("p", "q"), said))
        return [await opening(server, settings=settings, **more) for _ in range(size)]

    return made


async def until(fact: Callable[[], object], description: str, timeout: float = 10.0) -> float:
    """Wait for a fact; how long it took."""
    began = time.monotonic()
    while not fact():
        assert time.monotonic() - began < timeout, f"still not: {description}"
        await asyncio.sleep(0.002)
    return time.monotonic() - began


def stands(obs: Observatory, *states: str) -> Callable[[], bool]:
    """As the client knows it."""
    return lambda: obs.breaker("p").state in states


async def works() -> str:
    return "ok"


async def fails() -> str:
    raise ConnectionError("reset")


async def open_it(breaker: Breaker) -> None:
    """By failing until it is open."""
    while breaker.state == "closed":
        with pytest.raises((ConnectionError, CircuitOpen)):
            await breaker.execute(fails)
        await asyncio.sleep(0.001)


async def close_it(breaker: Breaker) -> None:
    """By the first probe that is let through."""
    while breaker.state != "closed":
        try:
            await breaker.execute(works)
        except CircuitOpen as refused:
            await asyncio.sleep(min(refused.retry_after or 0.01, 0.05))


def response(status: int) -> httpx2.HTTPStatusError:
    return httpx2.HTTPStatusError("x", request=httpx2.Request("GET", "http://x"), response=httpx2.Response(status))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (None, True),
        (response(404), True),
        (response(400), True),
        (response(500), False),
        (response(503), False),
        (response(408), False),
        (response(429), None),
        (ConnectionError(), False),
        (TimeoutError(), False),
        (httpx2.ReadTimeout("x"), False),
        (ValueError("a bug"), None),
        (StoreUnavailable("of ours"), None),
        (RateLimitExceeded("of ours"), None),
        (asyncio.CancelledError(), None),
        (KeyboardInterrupt(), None),
    ],
)
def test_what_a_call_says(error: BaseException | None, said: bool | None) -> None:
    """Of what it called; an error of somebody else's says nothing."""
    assert verdict(error) is said


async def test_failures_in_a_row_open_it_for_everybody(fleet: Any) -> None:
    """Three here and two there; nobody calls any more, and each is told when to come again."""
    one, two = await fleet(2)
    breakers = [obs.breaker("p") for obs in (one, two)]
    await asyncio.gather(*(breaker.execute(works) for breaker in breakers))
    await asyncio.gather(one.breakers.flush(), two.breakers.flush())
    for obs, times in ((one, 3), (two, 2)):
        for _ in range(times):
            with pytest.raises(ConnectionError):
                await obs.breaker("p").execute(fails)
        await obs.breakers.flush()
    for obs, breaker in zip((one, two), breakers, strict=True):
        took = await until(stands(obs, "open"), "it is open here too")
        assert took < 1.0
        with pytest.raises(CircuitOpen) as refused:
            await breaker.execute(works)
        assert 0 < (refused.value.retry_after or 0) < 0.4
        assert refused.value.context == {"breaker": "p"}
        assert refused.value.retryable
    assert one.breaker("q").state == "closed", "another one is another one"


async def test_rate_of_the_whole_fleet_counts(fleet: Any) -> None:
    """Half of ten calls, of four clients, none of which has seen enough by itself."""
    clients = await fleet(4, said=BreakerSettings(min_calls=10, consecutive=0, window=60, open_for=60))
    for number in range(9):
        obs = clients[number % 4]
        call = fails if number % 2 else works
        await asyncio.gather(obs.breaker("p").execute(call), return_exceptions=True)
        await obs.breakers.flush()
    assert (await clients[0].breakers.show("p")).state == "closed"
    await asyncio.gather(clients[2].breaker("p").execute(fails), return_exceptions=True)
    await clients[2].breakers.flush()
    report = await clients[0].breakers.show("p")
    assert (report.state, report.calls) == ("open", 0)
    for obs in clients:
        await until(stands(obs, "open"), "every client knows")


async def test_one_probe_in_the_fleet(fleet: Any) -> None:
    """Of eighty callers in four clients one is let through; it brings everybody back."""
    clients = await fleet(4)
    await open_it(clients[0].breaker("p"))
    for obs in clients:
        await until(stands(obs, "open", "half_open"), "everybody knows")
    await until(lambda: all(obs.breaker("p").state == "half_open" for obs in clients), "its time is over")
    inside, answer = [], asyncio.Event()

    async def called() -> str:
        inside.append(1)
        await answer.wait()
        return "ok"

    calls = [asyncio.create_task(obs.breaker("p").execute(called)) for obs in clients for _ in range(20)]
    await until(lambda: sum(call.done() for call in calls) == 79, "all others are refused")
    assert len(inside) == 1
    assert all(isinstance(call.exception(), CircuitOpen) for call in calls if call.done())
    answer.set()
    for obs in clients:
        assert await until(stands(obs, "closed"), "one call was enough") < 1.0
        assert await obs.breaker("p").execute(works) == "ok"


async def test_probe_that_fails_opens_it_again(fleet: Any) -> None:
    """For everybody, and for another while."""
    one, two = await fleet(2)
    await open_it(one.breaker("p"))
    await until(lambda: one.breaker("p").state == two.breaker("p").state == "half_open", "both know")
    with pytest.raises(ConnectionError):
        await one.breaker("p").execute(fails)
    assert one.breaker("p").state == "open"
    await until(lambda: two.breaker("p").state == "open", "told", timeout=1.0)


@pytest.mark.parametrize("ends", ["cancelled", "a bug"])
async def test_probe_that_says_nothing_is_given_back(fleet: Any, ends: str) -> None:
    """Nobody waits for its lease."""
    one, two = await fleet(2, said=BreakerSettings(consecutive=1, open_for=0.2))
    await open_it(one.breaker("p"))
    await until(lambda: one.breaker("p").state == two.breaker("p").state == "half_open", "both know")
    for obs in (one, two):
        obs.breakers.use({"p": BreakerSettings(consecutive=1, open_for=60)})
    began = asyncio.Event()

    async def odd() -> None:
        began.set()
        if ends == "a bug":
            raise ValueError("of the caller")
        await asyncio.sleep(60)

    probe = asyncio.create_task(one.breaker("p").execute(odd))
    await began.wait()
    probe.cancel()
    await asyncio.gather(probe, return_exceptions=True)
    await asyncio.wait_for(close_it(two.breaker("p")), 10)


async def test_cancelled_while_asking_for_the_probe(fleet: Any, server: Server, tmp_path: Any) -> None:
    """The store had granted it, and nobody heard: whoever comes next need not wait for the lease."""
    async with proxy(server.path, tmp_path / "between") as between:
        said = BreakerSettings(consecutive=1, open_for=0.2)
        (one,), (two,) = await fleet(1, redis_url=between.url, said=said), await fleet(1, said=said)
        await open_it(one.breaker("p"))
        await until(lambda: one.breaker("p").state == two.breaker("p").state == "half_open", "both know")
        for obs in (one, two):
            obs.breakers.use({"p": BreakerSettings(consecutive=1, open_for=60)})
        between.swallow_replies = True
        asking = asyncio.create_task(one.breaker("p").execute(works))
        while not (await two.breakers.show("p")).probing:
            await asyncio.sleep(0.002)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        between.swallow_replies = False
        between.cut()
        await asyncio.wait_for(close_it(two.breaker("p")), 10)


async def test_old_news_change_nothing(fleet: Any) -> None:
    """An answer that was on its way while a probe came back; and counts of a state that is over."""
    (obs,) = await fleet()
    breaker: Breaker = obs.breaker("p")
    await open_it(breaker)
    asked_at = monotonic()
    await close_it(breaker)
    await until(lambda: not breaker._outcomes, "the fleet knows")
    breaker.adopt(View(open=1, epoch=1, left_us=10**7), asked_at)
    assert breaker.state == "closed"
    for _ in range(3):
        await breaker.execute(works)
    assert breaker._calls == 3
    breaker.adopt(View(epoch=77), monotonic())
    assert breaker.take() == []


async def test_what_began_before_a_change_says_nothing_of_after(fleet: Any) -> None:
    """Calls of the state before, that fail when it is closed again."""
    (obs,) = await fleet()
    breaker = obs.breaker("p")
    go = asyncio.Event()

    async def late() -> None:
        await go.wait()
        raise ConnectionError("from before")

    async def inside() -> None:
        async with breaker:
            await late()

    old = [asyncio.create_task(one) for one in [breaker.execute(late) for _ in range(5)] + [inside() for _ in range(5)]]
    await asyncio.sleep(0.01)
    await open_it(breaker)
    await close_it(breaker)
    await obs.breakers.flush()
    go.set()
    assert {type(error) for error in await asyncio.gather(*old, return_exceptions=True)} == {ConnectionError}
    await obs.breakers.flush()
    report = await obs.breakers.show("p")
    assert (report.state, report.failures) == ("closed", 0)


async def test_slow_calls_count_as_failures(fleet: Any) -> None:
    """Also those that the caller gave up."""
    (obs,) = await fleet(said=BreakerSettings(consecutive=4, open_for=60, slow_after=0.02))
    breaker: Breaker = obs.breaker("p")

    @breaker
    async def slow(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "ok"

    assert await slow(0) == "ok"
    await slow(0.03)
    async with breaker:
        await asyncio.sleep(0.03)
    for _ in range(2):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await slow(60)
    await until(lambda: breaker.state == "open", "four were slow")


async def test_by_hand(fleet: Any) -> None:
    """Open and closed stand for everybody, whatever is counted, until they are let go; why is told."""
    one, two = await fleet(2)
    await one.breaker("p").force("open", reason="announced outage")
    await until(lambda: two.breaker("p").state == "open", "told", timeout=1.0)
    with pytest.raises(CircuitOpen, match="announced outage") as refused:
        await two.breaker("p").execute(works)
    assert refused.value.retry_after is None
    await two.breaker("p").force("closed", reason="they are back")
    await until(lambda: one.breaker("p").state == "closed", "told", timeout=1.0)
    for _ in range(20):
        with pytest.raises(ConnectionError):
            await one.breaker("p").execute(fails)
    await one.breakers.flush()
    report = await two.breakers.show("p")
    assert (report.state, report.forced, report.reason) == ("closed", "closed", "they are back")
    await two.breaker("p").force("auto", reason="as usual")
    await open_it(one.breaker("p"))
    for wrong in ({"state": "shut", "reason": "x"}, {"state": "open", "reason": " "}, {"state": "open", "reason": "a\nb"}):
        with pytest.raises(InvalidArgument):
            await one.breaker("p").force(**wrong)
    assert [one.name for one in await one.breakers.list()] == ["p"]


async def test_nothing_is_asked_while_it_is_closed(fleet: Any, own_server: Server) -> None:
    """Half a second of calls: a handful of reports, and no look that is not once a second."""
    (obs,) = await fleet(1, own_server)
    breaker = obs.breaker("p")
    await breaker.execute(works)
    await obs.breakers.flush()
    await until(lambda: obs.breakers._seen != "", "the first look is over")

    async def scripts() -> int:
        said = (await obs.store.command("INFO", "commandstats")).decode()
        return sum(
            int(line.split("calls=")[1].split(",")[0]) for line in said.splitlines() if line.startswith("cmdstat_evalsha:")
        )

    obs.breaker("q")  # asked for once the jobs run: there is one look more
    await until(lambda: obs.breakers._seen not in ("", "?"), "it has looked")
    before, began, made = await scripts(), time.monotonic(), 1
    while time.monotonic() - began < 0.5:
        for _ in range(100):
            async with breaker:
                pass
        made += 100
        await asyncio.sleep(0)
    await obs.breakers.flush()
    # Four reports a second, a look, a beat, and what the metrics flush.
    assert await scripts() - before <= 10 + 12 * (time.monotonic() - began)
    assert (await obs.breakers.show("p")).calls == made


async def test_lost_replies_count_nothing_twice(fleet: Any, server: Server, tmp_path: Any) -> None:
    """The server has counted what it never acknowledged; it is not told again."""
    async with proxy(server.path, tmp_path / "between") as between:
        (obs,) = await fleet(1, redis_url=between.url, said=BreakerSettings(min_calls=1000, consecutive=0))
        breaker = obs.breaker("p")
        await breaker.execute(works)
        await obs.breakers.flush()
        for _ in range(3):
            for _ in range(4):
                await breaker.execute(works)
            between.swallow_replies = True
            with pytest.raises(StoreUnavailable):
                await obs.breakers.flush()
            between.swallow_replies = False
            between.cut()
            await obs.ready()
        (other,) = await fleet(1)
        assert 1 <= (await other.breakers.show("p")).calls <= 13
    assert breaker.state == "closed"


async def test_result_of_a_probe_is_told_again_until_it_is_heard(fleet: Any, server: Server, tmp_path: Any) -> None:
    """Its reply was lost, or it never arrived: the fleet hears of it all the same, once."""
    async with proxy(server.path, tmp_path / "between") as between:
        (one,) = await fleet(1, redis_url=between.url)
        (two,) = await fleet(1)
        await open_it(two.breaker("p"))
        breaker = one.breaker("p")
        await until(lambda: breaker.state == "half_open", "its time is over")
        go = asyncio.Event()

        async def called() -> str:
            await go.wait()
            return "ok"

        probe = asyncio.create_task(breaker.execute(called))
        await until(lambda: breaker._probing_until > 0, "it is let through")
        between.deaf = True
        go.set()
        assert await probe == "ok"
        assert breaker.state == "closed", "here at once"
        await asyncio.sleep(0.4)
        between.deaf = False
        between.cut()
        await until(lambda: two.breaker("p").state == "closed", "and there when it was heard")
        await until(lambda: breaker.state == "closed", "and it stays so")


async def test_one_task_inside_several_times(fleet: Any) -> None:
    """Each way out belongs to its own way in: also a probe inside of a call from before, and the other way round."""
    (obs,) = await fleet()
    breaker = obs.breaker("p")

    async def nested() -> None:
        async with breaker:
            async with breaker, breaker:
                pass
            raise ConnectionError("the outermost")

    with pytest.raises(ConnectionError):
        await nested()
    await obs.breakers.flush()
    report = await obs.breakers.show("p")
    assert (report.calls, report.failures) == (3, 1)
    async with breaker:
        await asyncio.create_task(open_it(breaker))
        await until(lambda: breaker.state == "half_open", "its time is over")
        async with breaker:
            pass
        assert breaker.state == "closed"
    await open_it(breaker)
    await until(lambda: breaker.state == "half_open", "its time is over")
    async with breaker:
        with pytest.raises(CircuitOpen):
            async with breaker:
                pass
        assert breaker.state == "half_open"
    assert breaker.state == "closed"


async def test_blocks_left_in_another_order(fleet: Any) -> None:
    """Those of async generators: each is counted as its own, and nothing stays behind."""
    (obs,) = await fleet(said=BreakerSettings(min_calls=100, consecutive=0))

    async def inside(name: str) -> AsyncIterator[None]:
        async with obs.breaker(name):
            yield
            if name == "p":
                raise ConnectionError("of the first")

    first, second = inside("p"), inside("q")
    await anext(first)
    await anext(second)
    with pytest.raises(ConnectionError):
        await anext(first)
    with pytest.raises(StopAsyncIteration):
        await anext(second)
    await obs.breakers.flush()
    reports = {one.name: (one.calls, one.failures) for one in await obs.breakers.list()}
    assert reports == {"p": (1, 1), "q": (1, 0)}
    assert blocks.entered.get() is None
    third = inside("q")
    await asyncio.create_task(anext(third))  # type: ignore[arg-type]
    with pytest.raises(StopAsyncIteration):
        await anext(third)
    await obs.breakers.flush()
    assert (await obs.breakers.show("q")).calls == 1, "of what was entered elsewhere nothing is known"


async def test_nothing_is_left_behind(server: Server, namespace: str) -> None:
    """No task waits for what nobody will say any more."""
    before = asyncio.all_tasks()
    async with Observatory("test", redis_url=server.url, namespace=namespace) as obs:
        async with obs.breaker("x"):
            pass
        await until(lambda: any(task.get_name() == "observatory breaker reports" for task in asyncio.all_tasks()), "begun")
        await asyncio.sleep(0.05)
    await until(lambda: asyncio.all_tasks() == before, "ended")
