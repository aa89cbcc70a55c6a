"""Spans and lines that leave by OTLP, received by a real one that is not OpenTelemetry's own: rotel, in Rust."""

import asyncio
import io
import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from observatory import Observatory
from tests.ground.conftest import NOWHERE, Made, sent
from tests.receiver import Receiver
from tests.servers import wait_until


@pytest.fixture(params=["http/protobuf", "grpc"])
def protocol(request: pytest.FixtureRequest, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.grpc if request.param == "grpc" else receiver.http)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", request.param)
    return str(request.param)


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
    wait_until(lambda: len(http.names()) == 2 and len(http.blocks("LogRecord")) == 2, "both came")
    assert sorted(http.names()) == ["child's", "parent's"]
    assert len(set(re.findall(r"service.instance.id: Str\((.*)\)", http.text()))) == 2
