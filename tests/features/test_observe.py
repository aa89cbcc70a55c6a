"""obs.observe: a span around an async function or generator, how long it took, how it ended; what it was given, when asked."""

import asyncio
import functools
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from opentelemetry import trace

from observatory import InvalidArgument, Observatory
from tests.conftest import Open


@pytest.fixture
def closed() -> Observatory:
    return Observatory("observed", redis_url="redis://127.0.0.1:1")


def here() -> Any:
    return trace.get_current_span()


async def test_duration_and_outcome_are_metrics_of_the_fleet(opening: Open) -> None:
    """By function, with the name of the error; a cancelled call is neither well nor failed."""
    obs = await opening()

    @obs.observe(name="lookup")
    async def lookup(fail: bool = False, wait: float = 0) -> int:
        await asyncio.sleep(wait)
        if fail:
            raise KeyError("x")
        return 5

    assert await lookup() == 5
    assert await lookup() == 5
    with pytest.raises(KeyError):
        await lookup(True)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await lookup(wait=5)
    await obs.flush()
    found = await obs.metrics.query("observatory_observed_seconds", "count", by=("function", "status", "error"))
    rows = {tuple(row.labels.get(name, "") for name in ("function", "status", "error")): row.value for row in found.series}
    assert rows == {("lookup", "ok", ""): 2, ("lookup", "error", "KeyError"): 1, ("lookup", "cancelled", ""): 1}


async def test_arguments_and_result_only_when_asked_and_without_secrets(closed: Observatory) -> None:
    """By name; `self` is nobody's argument; what is not asked for is not on the span."""
    seen: list[Any] = []

    class Client:
        @closed.observe(capture=True)
        async def ask(self, question: str, *, password: str, more: dict[str, Any]) -> dict[str, str]:
            seen.append(here())
            return {"answer": "Bearer hush-hush-hush", "q": question}

        @closed.observe
        async def plainly(self, question: str) -> str:
            seen.append(here())
            return question

    secret = {"password": "hush"}
    assert await Client().ask("why", **secret, more={"api_key": "hush", "n": 1}) == {
        "answer": "Bearer hush-hush-hush",
        "q": "why",
    }
    assert await Client().plainly("what") == "what"
    asked, plain = seen
    assert json.loads(asked.attributes["observatory.arguments"]) == {
        "question": "why",
        "password": "[redacted]",
        "more": {"api_key": "[redacted]", "n": 1},
    }
    assert json.loads(asked.attributes["observatory.result"]) == {"result": {"answer": "Bearer [redacted]", "q": "why"}}
    assert asked.name.endswith("Client.ask")
    assert not plain.attributes
    await closed.tracing.aclose(5)


async def test_a_generator_is_one_span_that_is_not_its_readers(closed: Observatory) -> None:
    """Current while it works; ended with it, also when it is left early; errors go both ways."""
    seen: list[Any] = []

    @closed.observe
    async def numbers(most: int) -> AsyncIterator[int]:
        try:
            for number in range(most):
                seen.append(here())
                yield number
        finally:
            seen.append("closed")

    with closed.span("reader") as reader:
        got = []
        async for number in numbers(3):
            assert here() is reader
            got.append(number)
        assert got == [0, 1, 2]
    own, *_ = seen
    assert seen == [own, own, own, "closed"]
    assert own.parent.span_id == reader.get_span_context().span_id
    assert own.attributes["observatory.items"] == 3
    assert own.end_time is not None
    seen.clear()
    early = numbers(3)
    assert await anext(early) == 0
    await early.aclose()  # type: ignore[attr-defined]
    assert seen[1:] == ["closed"]
    assert seen[0].end_time is not None
    assert seen[0].status.status_code.name == "UNSET"
    await closed.tracing.aclose(5)


async def test_a_generator_hears_what_it_is_sent_and_thrown(closed: Observatory) -> None:
    """asend, athrow, and an error of its own."""
    said: list[Any] = []

    @closed.observe
    async def echo() -> Any:
        said.append(here())
        heard = yield "first"
        try:
            yield heard
        except KeyError:
            yield "caught"
        raise ValueError("end")

    talk = echo()
    assert await anext(talk) == "first"
    assert await talk.asend("hello") == "hello"
    assert await talk.athrow(KeyError("x")) == "caught"
    with pytest.raises(ValueError, match="end"):
        await anext(talk)
    assert said[0].status.status_code.name == "ERROR"
    assert said[0].end_time is not None
    await closed.tracing.aclose(5)


class Doubling:
    async def __call__(self, value: int) -> int:
        return value


async def test_what_awaits_is_taken_and_what_does_not_is_refused(closed: Observatory) -> None:
    """Partials and objects too; a sync function is told what to do instead, when it is decorated."""

    async def double(value: int) -> int:
        return 2 * value

    assert await closed.observe(functools.partial(double, 4))() == 8
    assert await closed.observe(Doubling())(3) == 3
    assert closed.observe(double).__name__ == "double"
    for wrong in (lambda: 1, len, 5, staticmethod(double)):
        with pytest.raises(InvalidArgument, match=r"async function") as refused:
            closed.observe(wrong)  # type: ignore[arg-type]
        assert refused.value.remedy
    with pytest.raises(InvalidArgument, match="name"):
        closed.observe(name="")(double)
    await closed.tracing.aclose(5)


async def test_dimensions_travel_with_the_headers_and_are_bound_by_whoever_trusts_them(closed: Observatory) -> None:
    """inject sends them as baggage; carried reads them, and leaves out what is no dimension; nothing is bound by itself."""
    headers: dict[str, str] = {"X-Other": "1"}
    with closed.bound(team="search", user="ann müller, 2"), closed.span("call"):
        closed.tracing.inject(headers)
    assert closed.dimensions == {}
    arrived = {name.title(): value for name, value in headers.items()}
    assert closed.tracing.carried(arrived) == {"team": "search", "user": "ann müller, 2"}
    with closed.span("served", parent=arrived):
        assert closed.dimensions == {}
        onward: dict[str, str] = {}
        assert closed.tracing.inject(onward)["baggage"] == headers["baggage"]
    assert closed.tracing.carried({"baggage": "no-name=1,empty=,ok=2," + ",".join(f"d{n}=1" for n in range(100))})["ok"] == "2"
    assert closed.tracing.carried({"baggage": "%%%;;=,,="}) == {}
    assert closed.tracing.carried({}) == {}
    await closed.tracing.aclose(5)
