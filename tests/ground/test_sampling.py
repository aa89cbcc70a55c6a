"""Which traces are sent: a share of them by their id, and those that failed, were slow or dear, by all that saw them."""

import asyncio
import contextlib
import contextvars
import re
import subprocess
import sys
from typing import Any

import pytest
from opentelemetry.sdk.trace.sampling import Decision

from observatory import Observatory
from observatory.tracing.sampling import MAX_SPANS, MAX_TRACES, Tail, sampler
from tests.ground.conftest import Made, sent
from tests.receiver import Receiver
from tests.servers import Server, environment, wait_until

DECIDE = """
import sys
from observatory.tracing.sampling import sampler
ours = sampler(0.3)
print("".join("01"[ours.should_sample(None, int(line, 16), "x").decision.is_sampled()] for line in sys.stdin))
"""


def test_processes_decide_the_same_by_the_trace_id() -> None:
    """Two of them, and this one; about the share that was asked for."""
    ids = [f"{(number * 0x9E3779B97F4A7C15F39CC0605CEDC835) % 2**128:032x}" for number in range(1, 2001)]
    told = [
        subprocess.run(
            [sys.executable, "-c", DECIDE], input="\n".join(ids), env=environment(), capture_output=True, text=True, check=True
        ).stdout.strip()
        for _ in range(2)
    ]
    assert told[0] == told[1]
    here = sampler(0.3)
    assert told[0] == "".join(
        "01"[here.should_sample(None, int(one, 16), "x").decision is Decision.RECORD_AND_SAMPLE] for one in ids
    )
    assert 500 < told[0].count("1") < 700


async def test_a_trace_that_fails_is_sent_though_it_was_not_sampled(
    http: Receiver, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that this process saw of it, before and after; with the reason; and a good one is not."""
    monkeypatch.setenv("OBSERVATORY_TRACING_SAMPLE_RATIO", "0")
    obs = made()
    with obs.span("good"), obs.span("good child"):
        pass
    headers: dict[str, str] = {}
    with obs.span("root"):
        obs.tracing.inject(headers)
        with obs.span("before", {"k": 5}):
            pass
        with pytest.raises(KeyError), obs.span("failing"):
            raise KeyError
        with obs.span("after"):
            pass
    assert int(headers["traceparent"][-2:], 16) & 1 == 0
    await sent(obs)
    wait_until(lambda: len(http.names()) == 4, "the failed trace came")
    assert sorted(http.names()) == ["after", "before", "failing", "root"]
    assert all("observatory.kept: Str(error)" in block for block in http.blocks("Span"))
    assert "k: Int(5)" in http.text()
    assert len(set(re.findall(r"Trace ID       : (\w+)", http.text()))) == 1


async def test_slow_and_dear_traces_are_sent(http: Receiver, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the settings; what record_request says a call cost is the current span's."""
    monkeypatch.setenv("OBSERVATORY_TRACING_SAMPLE_RATIO", "0")
    monkeypatch.setenv("OBSERVATORY_TRACING_SLOW_AFTER", "50ms")
    monkeypatch.setenv("OBSERVATORY_TRACING_EXPENSIVE_USD", "0.5")
    obs = made()
    with obs.span("slow"):
        await asyncio.sleep(0.06)
    with obs.span("cheap"):
        obs.record_request("openai", "gpt-4o", latency=1, cost_usd=0.1)
    with obs.span("dear"):
        obs.record_request("openai", "gpt-4o", latency=1, cost_usd=0.3)
        obs.record_request("openai", "gpt-4o", latency=1, cost_usd=0.3)
    await sent(obs)
    wait_until(lambda: len(http.names()) == 2, "both came")
    assert sorted(http.names()) == ["dear", "slow"]
    assert "observatory.kept: Str(slow)" in http.text()
    assert "observatory.kept: Str(expensive)" in http.text()


async def test_whoever_began_the_trace_has_decided(http: Receiver, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sampled parent from elsewhere is followed at ratio 0; an unsampled one at ratio 1, but for errors."""
    obs = made()
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    with obs.span("unsampled above", parent={"Traceparent": f"00-{trace_id}-00f067aa0ba902b7-00"}):
        pass
    with pytest.raises(KeyError), obs.span("failed below", parent={"traceparent": f"00-{trace_id}-00f067aa0ba902b7-00"}):
        raise KeyError
    monkeypatch.setenv("OBSERVATORY_TRACING_SAMPLE_RATIO", "0")
    other = made()
    with other.span("sampled above", parent={"TRACEPARENT": f"00-{trace_id}-00f067aa0ba902b7-01"}):
        pass
    await sent(obs)
    await sent(other)
    wait_until(lambda: len(http.names()) == 2, "both came")
    assert sorted(http.names()) == ["failed below", "sampled above"]
    assert all(f"Trace ID       : {trace_id}" in block for block in http.blocks("Span"))


async def test_what_others_saw_of_a_failed_trace_is_sent_by_them(
    http: Receiver, server: Server, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The callee ended well, seconds before the caller failed: both send their parts; of a good trace nobody sends any."""
    monkeypatch.setenv("OBSERVATORY_TRACING_SAMPLE_RATIO", "0")
    where: dict[str, Any] = {"redis_url": server.url, "namespace": namespace}
    headers: dict[str, str] = {}
    async with Observatory("caller", **where) as caller, Observatory("callee", **where) as callee:
        for fails in (False, True):
            headers = {}
            with contextlib.suppress(KeyError), caller.span("calls"):
                caller.tracing.inject(headers)
                # As in another process: the headers are all that it knows.
                await asyncio.create_task(_called(callee, headers), context=contextvars.Context())
                await asyncio.sleep(1.5)
                if fails:
                    raise KeyError
        with callee.span("later", parent=headers):
            pass
        await asyncio.sleep(2.5)
        with callee.span("later still", parent=headers):
            pass
    wait_until(lambda: len(http.names()) >= 5, "both parts came")
    assert sorted(http.names()) == ["called", "calls", "later", "later still", "works"]
    assert len(set(re.findall(r"Trace ID       : (\w+)", http.text()))) == 1
    kept = {re.findall(r"Name           : (.*)", block)[0]: "Str(elsewhere)" in block for block in http.blocks("Span")}
    assert kept == {"calls": False, "called": True, "works": True, "later": True, "later still": True}


async def _called(callee: Observatory, headers: dict[str, str]) -> None:
    with callee.span("called", parent=headers), callee.span("works"):
        pass


async def test_what_cannot_be_told_is_told_when_the_store_is_back(
    http: Receiver, own_server: Server, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trace that failed while Redis was away."""
    monkeypatch.setenv("OBSERVATORY_TRACING_SAMPLE_RATIO", "0")
    where: dict[str, Any] = {"redis_url": own_server.url, "namespace": namespace}
    async with Observatory("caller", **where) as caller, Observatory("callee", **where) as callee:
        headers: dict[str, str] = {}
        with callee.span("warm"), callee.span("up"):
            pass
        with contextlib.suppress(KeyError), caller.span("calls"):
            caller.tracing.inject(headers)
            await asyncio.sleep(1.2)
            await asyncio.create_task(_called(callee, headers), context=contextvars.Context())
            own_server.stop()
            raise KeyError
        await asyncio.sleep(1.5)
        own_server.start()
        async with asyncio.timeout(10):
            while len(callee.tracing.tail._kept) == 0:
                await asyncio.sleep(0.1)
    wait_until(lambda: len(http.names()) >= 3, "both parts came")
    assert sorted(http.names()) == ["called", "calls", "works"]


class Counted:
    """Takes what would be sent."""

    def __init__(self) -> None:
        self.spans: list[Any] = []

    def on_start(self, span: Any, parent_context: Any = None) -> None: ...

    def on_end(self, span: Any) -> None:
        self.spans.append(span)


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traces that never end, and a trace of very many spans: the oldest are forgotten, and counted."""
    from opentelemetry.sdk.trace import TracerProvider

    tail = Tail(Counted(), slow_after=60, expensive_usd=1)
    provider = TracerProvider(sampler=sampler(0), shutdown_on_exit=False)
    provider.add_span_processor(tail)
    tracer = provider.get_tracer("t")
    never_ended = [tracer.start_span(f"{number}") for number in range(2 * MAX_TRACES)]
    assert len(tail._traces) == MAX_TRACES
    with tracer.start_as_current_span("many"):
        for _ in range(2 * MAX_SPANS):
            tracer.start_span("one").end()
    assert tail.forgotten == MAX_SPANS
    assert not tail._waiting
    for span in never_ended:
        span.end()
    assert not tail._traces
    assert not tail.concerned
    with contextlib.suppress(KeyError), tracer.start_as_current_span("fails"):
        raise KeyError
    assert tail.told()
    assert not tail._traces
    tail.listen()
    monkeypatch.setattr("observatory.tracing.sampling.MAX_WAITING", 500)
    for _ in range(100):
        with tracer.start_as_current_span("waits"):
            for _ in range(9):
                tracer.start_span("one").end()
    assert 0 < tail._waiting <= 500
    assert sum(len(trace.spans) for trace in tail._traces.values()) == tail._waiting
    monkeypatch.setattr("observatory.tracing.sampling.WAITS_FOR", -1.0)
    tracer.start_span("last").end()
    assert tail._waiting <= 1, "what has waited long enough is let go"
