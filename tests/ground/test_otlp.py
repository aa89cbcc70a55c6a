"""Spans and lines that leave by OTLP, received by a real one that is not OpenTelemetry's own: rotel, in Rust."""

import asyncio
import contextlib
import contextvars
import importlib.util
import io
import logging
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace.sampling import Decision

from observatory import Observatory
from observatory.tracing.sampling import MAX_SPANS, MAX_TRACES, Tail, sampler
from tests.servers import Server, die_with_parent, environment, free_port, skip_or_fail, wait_until

NOWHERE = "redis://127.0.0.1:1"


class Receiver:
    """What a collector shows of what it got."""

    def __init__(self, directory: Path) -> None:
        found = importlib.util.find_spec("rotel")
        if found is None or found.origin is None:
            skip_or_fail("no rotel (an OTLP receiver from PyPI, in the dev extra)")
            raise AssertionError
        self.ports = {"grpc": free_port(), "http/protobuf": free_port()}
        self._shown = directory / "shown"
        self._out = self._shown.open("w")
        shown = [word for signal in ("traces", "logs") for word in ("--debug-log", signal)]
        self._process = subprocess.Popen(
            [
                *(str(Path(found.origin).parent / "rotel-agent"), "start", "--exporter", "blackhole"),
                *("--otlp-grpc-endpoint", f"127.0.0.1:{self.ports['grpc']}"),
                *("--otlp-http-endpoint", f"127.0.0.1:{self.ports['http/protobuf']}"),
                *(*shown, "--debug-log-verbosity", "detailed", "--pid-file", str(directory / "pid")),
            ],
            stdout=self._out,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,
        )
        for port in self.ports.values():
            wait_until(lambda port=port: _answers(port), "rotel listens")  # type: ignore[misc]

    def text(self) -> str:
        return self._shown.read_text()

    def blocks(self, kind: str) -> list[str]:
        """Every "Span" or "LogRecord" that came, as it is shown."""
        return re.split(rf"^{kind} #\d+$", self.text(), flags=re.MULTILINE)[1:]

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._out.close()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    one = Receiver(tmp_path)
    yield one
    one.stop()


@pytest.fixture(params=["http/protobuf", "grpc"])
def protocol(request: pytest.FixtureRequest, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{receiver.ports[request.param]}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", request.param)
    return str(request.param)


@pytest.fixture
def http(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Receiver:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{receiver.ports['http/protobuf']}")
    return receiver


Made = Callable[..., Observatory]


@pytest.fixture
async def made() -> AsyncIterator[Made]:
    all_of_them = []

    def make(service: str = "chat") -> Observatory:
        obs = Observatory(service, redis_url=NOWHERE)
        obs.logger.to(io.StringIO())
        all_of_them.append(obs)
        return obs

    yield make
    for obs in all_of_them:
        await sent(obs)
    wait_until(nobody_is_closing, "exporters have given up")


def nobody_is_closing() -> bool:
    """An exporter that waits for a collector in vain outlives the bound of closing, on a thread of its own."""
    return not any("closing" in thread.name or "RecordProcessor" in thread.name for thread in threading.enumerate())


async def sent(obs: Observatory) -> None:
    await obs.tracing.aclose(5)
    await obs.logger.pen.aclose(5)


async def test_spans_and_lines_arrive(protocol: str, receiver: Receiver, made: Made) -> None:
    """With one trace id, severity, attributes of every kind, the resource; without secrets; held lines by their count."""
    obs = made()
    with obs.span("outer", {"k": 5}, kind="client") as span, obs.bound(team="search"):
        obs.logger.info("hello", n=1, ratio=0.5, ok=True, nested={"a": [1, {"token": "hush-hush-1"}]})
        for _ in range(30):
            obs.logger.warning("again")
        with pytest.raises(ValueError, match="Bearer"), obs.span("inner"):
            raise ValueError("Bearer hush-hush-2-hush")
        try:
            raise KeyError("redis://u:hush-hush-3@h")
        except KeyError:
            obs.logger.exception("failed")
    trace_id = f"{span.get_span_context().trace_id:032x}"
    obs.logger.info("theirs", trace_id="4bf92f3577b34da6a3ce929d0e0e4736")
    await sent(obs)
    wait_until(lambda: len(receiver.blocks("LogRecord")) == 24 and len(receiver.blocks("Span")) == 2, "all of it came")
    shown = receiver.text()
    assert "hush-hush" not in shown
    assert f"service.instance.id: Str({obs.instance})" in shown
    assert "service.name: Str(chat)" in shown
    hello, *again, failed, theirs, told = receiver.blocks("LogRecord")
    for said in ("Body: Str(hello)", "team: Str(search)", "n: Int(1)", "ratio: Double(0.5)", "ok: Bool(true)", "nested: Map("):
        assert said in hello
    assert "SEVERITY_NUMBER_INFO(9)" in hello
    assert f"Trace ID       : {trace_id}" in hello
    assert f"Span ID        : {span.get_span_context().span_id:016x}" in hello
    assert all("SEVERITY_NUMBER_WARN(13)" in one for one in again)
    assert "exception.type: Str(KeyError)" in failed
    assert "exception.stacktrace" in failed
    assert "Trace ID       : 4bf92f3577b34da6a3ce929d0e0e4736" in theirs
    assert "repeated: Int(9)" in told
    assert f"Trace ID       : {trace_id}" in told
    inner, outer = receiver.blocks("Span")
    assert "STATUS_CODE_ERROR" in inner
    assert "Name           : outer" in outer
    assert "SPAN_KIND_CLIENT" in outer
    assert f"Trace ID       : {trace_id}" in inner


@pytest.mark.parametrize(
    "variables", [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_LOGS_EXPORTER": "none", "OTEL_TRACES_EXPORTER": "none"}]
)
async def test_what_is_switched_off_sends_nothing(
    http: Receiver, made: Made, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    """By the standard variables, each for its signal."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    obs = made()
    with obs.span("unsent"):
        obs.logger.info("unsent")
    await sent(obs)
    await asyncio.sleep(0.3)
    assert "unsent" not in http.text()


async def test_a_silent_collector_blocks_nobody(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of lines: none waits, the queue is bounded, and closing ends within its bound."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}/v1/logs")
        obs, loop = made(), asyncio.get_running_loop()
        began = loop.time()
        for number in range(5000):
            obs.logger.info("line", number=number)
        assert loop.time() - began < 5
        began = loop.time()
        await obs.logger.pen.aclose(0.5)
        assert loop.time() - began < 2


async def test_an_exporter_that_cannot_be_made_costs_no_line(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line is written, and that it is not sent is said."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_BLRP_MAX_QUEUE_SIZE", "-1")
    obs, stream = made(), io.StringIO()
    obs.logger.to(stream)
    obs.logger.info("written")
    obs.logger.info("written too")
    first, second, third = stream.getvalue().splitlines()
    assert '"message":"written"' in first
    assert "not sent by OTLP" in second
    assert '"message":"written too"' in third


# sampling


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


def names(receiver: Receiver) -> list[str]:
    return re.findall(r"Name           : (.*)", receiver.text())


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
    wait_until(lambda: len(names(http)) == 4, "the failed trace came")
    assert sorted(names(http)) == ["after", "before", "failing", "root"]
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
    wait_until(lambda: len(names(http)) == 2, "both came")
    assert sorted(names(http)) == ["dear", "slow"]
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
    wait_until(lambda: len(names(http)) == 2, "both came")
    assert sorted(names(http)) == ["failed below", "sampled above"]
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
    wait_until(lambda: len(names(http)) >= 5, "both parts came")
    assert sorted(names(http)) == ["called", "calls", "later", "later still", "works"]
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
    wait_until(lambda: len(names(http)) >= 3, "both parts came")
    assert sorted(names(http)) == ["called", "calls", "works"]


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


@contextmanager
def quiet() -> Iterator[None]:
    """OpenTelemetry's own complaints are not this test's."""
    logger = logging.getLogger("opentelemetry")
    before, logger.disabled = logger.disabled, True
    yield
    logger.disabled = before


def test_a_forked_child_sends_its_own(http: Receiver) -> None:
    """Another instance, with threads of its own; what the parent had not sent yet is the parent's."""
    obs = Observatory("chat", redis_url=NOWHERE)
    obs.logger.to(io.StringIO())
    with obs.span("parent's"):
        obs.logger.info("parent's line")
    child = os.fork()
    if child == 0:
        with quiet():
            with obs.span("child's"):
                obs.logger.info("child's line")
            asyncio.run(sent(obs))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    asyncio.run(sent(obs))
    wait_until(lambda: len(names(http)) == 2 and len(http.blocks("LogRecord")) == 2, "both came")
    assert sorted(names(http)) == ["child's", "parent's"]
    assert len(set(re.findall(r"service.instance.id: Str\((.*)\)", http.text()))) == 2
