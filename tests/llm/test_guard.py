"""guard: the steps of a guarded call around what is not HTTP; what it leaves behind, however its block ends."""

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from observatory import (
    BudgetExceeded,
    CircuitOpen,
    CoolingDown,
    InvalidArgument,
    Limit,
    Metric,
    Observatory,
    RateLimitExceeded,
    Settings,
    StoreUnavailable,
    Usage,
)
from observatory.settings import BreakerSettings
from tests.llm import tried
from tests.llm.observed import Spans, total
from tests.llm.tried import NONE, ONE, used

counted = tried.counted
pytestmark = pytest.mark.usefixtures("counted")
TOOK = Usage(input_tokens=11, output_tokens=7)
ESTIMATED = (1, 30, Decimal("0.000210"))
"""Of tokens=10, output_tokens=20."""


def guard(obs: Observatory, **more: Any) -> Any:
    return obs.llm.guard("first", "m-1", **{"tokens": 10, "output_tokens": 20, **more})


def parent(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


async def test_what_was_used_is_charged_and_told(obs: Observatory) -> None:
    spans = Spans(obs)
    with obs.bound(tenant="acme"), obs.llm.collect() as calls, obs.span("request") as around:
        async with guard(obs, dimensions={"feature": "search"}) as call:
            assert (await obs.rate_limiter.peek("first-tokens")).remaining == tried.PLENTY - 30
            with obs.span("inside"):
                call.first_token()
            call.used(TOOK)
    (told,) = calls
    assert told.id == call.id
    assert (told.provider, told.model, told.operation, told.usage) == ("first", "m-1", "chat", TOOK)
    assert (told.cost_usd, told.error, told.status, told.estimated) == (Decimal("0.000081"), None, None, False)
    assert told.dimensions == {"tenant": "acme", "feature": "search"}
    assert told.time_to_first_token is not None
    assert told.time_to_first_token <= told.latency
    assert await used(obs, "first") == ONE
    within, span, _ = spans.taken()
    assert (span.kind, span.name, span.status.status_code) == (SpanKind.CLIENT, "chat m-1", StatusCode.UNSET)
    assert parent(span) == around.get_span_context().span_id
    assert span.context is not None
    assert parent(within) == span.context.span_id
    assert within.name == "inside"
    said = dict(span.attributes or {})
    said.pop("observatory.waited", None)
    assert said.pop("gen_ai.response.time_to_first_chunk") == told.time_to_first_token
    assert said == {
        "tenant": "acme",
        "feature": "search",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "first",
        "gen_ai.request.model": "m-1",
        "gen_ai.usage.input_tokens": 11,
        "gen_ai.usage.output_tokens": 7,
        "observatory.cost_usd": 0.000081,
        "gen_ai.request.max_tokens": 20,
    }
    assert await total(obs, Metric.TOKENS_PROCESSED, provider="first") == 18
    assert await total(obs, Metric.REQUESTS_TOTAL, provider="first", status="success") == 1


async def test_left_without_a_word_it_costs_what_was_estimated(obs: Observatory) -> None:
    """Also by an exception, and by a cancellation; of what was said until then, that."""
    with obs.llm.collect() as calls:
        async with guard(obs):
            pass
        assert await used(obs, "first") == ESTIMATED
        with pytest.raises(ZeroDivisionError):
            async with guard(obs):
                raise ZeroDivisionError
        with pytest.raises(httpx.ConnectError):
            async with guard(obs):
                raise httpx.ConnectError("of the second of two requests, perhaps")
        inside = asyncio.Event()

        async def hangs() -> None:
            async with guard(obs) as call:
                call.used(Usage(input_tokens=10, output_tokens=1))
                inside.set()
                await asyncio.sleep(60)

        task = asyncio.create_task(hangs())
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await used(obs, "first") == (4, 3 * 30 + 11, 3 * ESTIMATED[2] + Decimal("0.000020"))
    assert [(call.error, call.usage) for call in calls] == [
        (None, None),
        ("ZeroDivisionError", None),
        ("ConnectError", None),
        ("cancelled", Usage(input_tokens=10, output_tokens=1)),
    ]


async def test_used_is_what_was_used_so_far(obs: Observatory) -> None:
    """The last word holds. A cost of its own goes before the prices; alone, it says nothing of tokens."""
    with obs.llm.collect() as calls:
        async with guard(obs) as call:
            for tokens in range(1, 8):
                call.used(Usage(input_tokens=11, output_tokens=tokens))
        assert await used(obs, "first") == ONE
        async with guard(obs) as call:
            call.used(cost_usd=0.5)
            call.used(TOOK)
        assert await used(obs, "first") == (2, 36, ONE[2] + Decimal("0.5"))
        async with guard(obs) as call:
            call.used(cost_usd=Decimal("0.25"))
        assert await used(obs, "first") == (3, 66, ONE[2] + Decimal("0.75"))
        async with guard(obs) as call:
            call.used(TOOK)
            call.cancel()
    assert await used(obs, "first") == (3, 66, ONE[2] + Decimal("0.75")), "cancel gives all back"
    assert [call.cost_usd for call in calls] == [ONE[2], Decimal("0.5"), Decimal("0.25"), Decimal(0)]


async def test_values_are_checked(obs: Observatory) -> None:
    for wrong in (
        {"tokens": -1},
        {"tokens": 1.5},
        {"output_tokens": -1},
        {"operation": ""},
        {"wait": -1},
        {"dimensions": {"a": ""}},
    ):
        with pytest.raises(InvalidArgument):
            guard(obs, **wrong)
    for provider, model in (("", "m"), ("p", ""), (1, "m"), ("p", "x" * 257)):
        with pytest.raises(InvalidArgument):
            obs.llm.guard(provider, model)  # type: ignore[arg-type]
    around = guard(obs)
    async with around as call:
        for usage, cost in ((18, None), (None, -1), (None, float("nan"))):
            with pytest.raises(InvalidArgument):
                call.used(usage, cost_usd=cost)
        call.used(TOOK)
    for late in (lambda: call.used(TOOK), call.first_token, call.cancel):
        with pytest.raises(InvalidArgument, match="over"):
            late()
    with pytest.raises(InvalidArgument):
        await around.__aenter__()
    assert await used(obs, "first") == ONE


async def test_refusals_are_exceptions(obs: Observatory) -> None:
    """Nothing of the block runs, and nothing is held."""
    limits = {
        "narrow": Limit("narrow", 1, per="month", match={"model": "narrow"}),
        "dear": Limit("dear", 0.0001, per="month", unit="usd", match={"model": "dear"}),
    }
    obs.rate_limiter.define(*limits.values())
    await obs.rate_limiter.check("narrow")
    await obs.rate_limiter.check("dear", None, 0.00009)
    await obs.pauses.begin("first", "paused", seconds=30)
    await obs.breaker("first/broken").force("open", reason="a test")
    expected = {"narrow": RateLimitExceeded, "dear": BudgetExceeded, "paused": CoolingDown, "broken": CircuitOpen}
    spans = Spans(obs)
    with obs.llm.collect() as calls:
        for model, kind in expected.items():
            with pytest.raises(kind):
                async with obs.llm.guard("first", model, tokens=10, output_tokens=20):
                    pytest.fail("it was let in")
    assert [call.refused_by for call in calls] == ["narrow", "dear", "cooling_down", "circuit_open"]
    assert {call.status for call in calls} == {None}
    assert len(spans.taken()) == 4
    assert await used(obs, "first") == NONE
    assert await total(obs, Metric.REQUESTS_TOTAL, provider="first", status="refused") == 4


async def test_dimensions_that_are_required(opening: Any) -> None:
    obs = await opening(settings=Settings().replace(llm_require=("tenant",)))
    with pytest.raises(InvalidArgument, match="tenant"):
        async with guard(obs):
            pytest.fail("it was let in")
    with obs.bound(tenant="acme"):
        async with guard(obs):
            pass


async def test_the_store_away(obs: Observatory, opening: Any, own_server: Any) -> None:
    """A limit that is `closed` refuses; without one, calls go on, and are over in time."""
    away = await opening(own_server)
    own_server.stop()
    async with guard(away) as call:
        call.used(TOOK)
    away.rate_limiter.define(Limit("strict", 5, per="month", match="*", on_store_down="closed"))
    with pytest.raises(StoreUnavailable):
        async with guard(away):
            pytest.fail("it was let in")


async def test_waits_in_line(obs: Observatory) -> None:
    obs.rate_limiter.define(Limit("slot", 1, unit="slots", match={"model": "local"}))
    order: list[str] = []
    inside = asyncio.Event()

    async def first() -> None:
        async with obs.llm.guard("first", "local"):
            inside.set()
            await asyncio.sleep(0.1)
            order.append("first")

    async def second() -> None:
        await inside.wait()
        async with obs.llm.guard("first", "local", wait=20):
            order.append("second")

    with obs.llm.collect() as calls:
        await asyncio.gather(first(), second())
    assert order == ["first", "second"]
    assert calls[1].waited > 0.05
    with pytest.raises(RateLimitExceeded):
        async with obs.llm.guard("first", "local"), obs.llm.guard("first", "local"):
            pytest.fail("it was let in")
    await used(obs, "first")


async def test_the_breaker_judges_what_the_block_raises(obs: Observatory) -> None:
    """A bug says nothing; that nobody answered, does."""
    for error, state in ((ValueError, "closed"), (TimeoutError, "open")):
        breaker = obs.breaker("first/m-1")
        for _ in range(30):
            if breaker.state == "closed":
                with pytest.raises(error):
                    async with guard(obs):
                        raise error
                await obs.breakers.flush()
        assert breaker.state == state
    with pytest.raises(CircuitOpen):
        async with guard(obs):
            pytest.fail("it was let in")


async def test_the_first_token_ends_a_probe(opening: Any) -> None:
    """Whoever waits for the provider to work again need not wait for all of an answer."""
    obs = await opening(settings=Settings(breakers={"first/m-1": BreakerSettings(open_for=0.2)}))
    breaker = obs.breaker("first/m-1")
    while breaker.state == "closed":
        with pytest.raises(TimeoutError):
            async with guard(obs):
                raise TimeoutError
        await obs.breakers.flush()
    async with asyncio.timeout(20):
        while True:
            try:
                async with guard(obs) as call:
                    assert breaker.state != "closed"
                    call.first_token()
                    await tried.until(lambda: breaker.state == "closed", "closed")
                break
            except CircuitOpen as refused:
                await asyncio.sleep(refused.retry_after or 0.01)


class TooMany(Exception):
    """As some client of some service has it."""

    def __init__(self) -> None:
        super().__init__("too many")
        self.status_code = 429
        self.headers = {"Retry-After": "30"}


async def test_a_pause_that_an_exception_asks_for(obs: Observatory) -> None:
    with pytest.raises(TooMany):
        async with guard(obs):
            raise TooMany
    await used(obs, "first")
    with pytest.raises(CoolingDown):
        async with guard(obs):
            pytest.fail("it was let in")
    with obs.llm.collect() as calls, pytest.raises(CoolingDown):  # and one of ours says nothing of this provider
        async with obs.llm.guard("second", "m"), guard(obs):
            pytest.fail("it was let in")
    assert [(call.provider, call.status) for call in calls] == [("first", None), ("second", None)]
    async with obs.llm.guard("second", "m"):
        pass


async def test_as_a_decorator(obs: Observatory) -> None:
    """Each call is one; several at a time."""

    @obs.llm.guard("first", "embedder", tokens=10, operation="embeddings")
    async def embed(text: str, *, times: int) -> list[str]:
        await asyncio.sleep(0)
        return [text] * times

    with obs.llm.collect() as calls:
        assert await asyncio.gather(*(embed("a", times=number) for number in range(3))) == [[], ["a"], ["a", "a"]]
    assert [(call.operation, call.usage) for call in calls] == [("embeddings", None)] * 3
    assert len({call.id for call in calls}) == 3
    assert await used(obs, "first") == (3, 30, Decimal("0.00003")), "embeddings have no output"
    with pytest.raises(InvalidArgument):
        guard(obs)(3)


async def test_a_stream_of_a_local_model(obs: Observatory) -> None:
    """Inside of a generator, whose reader may leave in the middle."""

    async def tokens() -> AsyncIterator[str]:
        async with guard(obs) as call:
            for number in range(1, 100):
                call.first_token()
                call.used(Usage(input_tokens=11, output_tokens=number))
                yield f"token {number}"

    with obs.llm.collect() as calls:
        stream = tokens()
        async for _ in stream:
            if calls or _ == "token 7":
                break
        await stream.aclose()  # type: ignore[attr-defined]
    assert [(call.usage, call.error) for call in calls] == [(TOOK, "cancelled")]
    assert await used(obs, "first") == ONE
    assert await total(obs, Metric.REQUESTS_TOTAL, provider="first", status="success") == 1
