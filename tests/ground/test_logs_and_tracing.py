"""Log lines that a machine can read and nobody can forge; spans whose context goes out and comes in."""

import asyncio
import io
import json
import logging
import socket

import pytest
from opentelemetry import trace

from observatory import Observatory
from observatory.logs import Logger
from observatory.logs.pen import Pen
from tests.ground.conftest import nobody_is_closing
from tests.servers import Server, wait_until


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_line_has_who_where_and_what() -> None:
    """Time, level, message, service, instance, bound dimensions, fields; a passed field wins; ours cannot be overwritten."""
    stream = io.StringIO()
    obs = Observatory("chat", redis_url="redis://127.0.0.1:1")
    obs.logger.to(stream)
    with obs.bound(team="search", user="ann"):
        obs.logger.info("Processing request", trace_id="abc123", user="bob", level="fake")
    obs.logger.bind(job="x").warning("two\nlines", value=object())
    obs.logger.debug("not shown")
    try:
        raise ValueError("it")
    except ValueError:
        obs.logger.exception("failed")
    first, second, third = lines(stream)
    assert {name: first[name] for name in ("level", "message", "service", "team", "user", "trace_id", "field_level")} == {
        "level": "info",
        "message": "Processing request",
        "service": "chat",
        "team": "search",
        "user": "bob",
        "trace_id": "abc123",
        "field_level": "fake",
    }
    assert str(first["timestamp"]).endswith("Z")
    assert first["instance"] == obs.instance
    assert (second["message"], second["job"]) == ("two\nlines", "x")
    assert "ValueError: it" in str(third["exception"])


def test_text_form_is_one_line_a_call() -> None:
    """For terminals; a newline in a message does not begin a second line."""
    stream = io.StringIO()
    logger = Logger(Pen("chat", "i-1", format="text"))
    logger.to(stream, "text")
    logger.info("one\ntwo", other="x\ny\x1b[2J", key="v")
    assert stream.getvalue().count("\n") == 1
    assert "one\\ntwo" in stream.getvalue()
    assert stream.getvalue().rstrip().endswith("key=v")


async def test_our_own_lines_go_where_the_application_says(caplog: pytest.LogCaptureFixture, obs: Observatory) -> None:
    """Under the logger "observatory"; with handlers of yours there are none of ours."""
    assert len(logging.getLogger("observatory").handlers) == 1
    logging.getLogger("observatory").warning("seen")
    assert "seen" in caplog.text


async def test_span_context_goes_out_and_comes_in() -> None:
    """W3C traceparent and baggage; log lines carry the ids; a parent from headers is the parent."""
    obs, stream = Observatory("traced", redis_url="redis://127.0.0.1:1"), io.StringIO()
    obs.logger.to(stream)
    headers: dict[str, str] = {}
    with obs.span("outer", {"k": 5}) as outer, obs.bound(team="search"):
        obs.tracing.inject(headers)
        obs.logger.info("inside")
        assert obs.tracing.trace_id == f"{outer.get_span_context().trace_id:032x}"
    version, trace_id, span_id, flags = headers["traceparent"].split("-")
    assert (version, int(flags, 16) & 1) == ("00", 1)
    assert headers["baggage"] == "team=search"
    assert lines(stream)[0]["trace_id"] == trace_id
    other = Observatory("callee", redis_url="redis://127.0.0.1:1")
    with other.span("inner", kind="server", parent=headers) as inner:
        context = inner.get_span_context()
        assert f"{context.trace_id:032x}" == trace_id
        parent = getattr(inner, "parent", None)
        assert parent is not None
        assert f"{parent.span_id:016x}" == span_id
    assert not trace.get_current_span().get_span_context().is_valid
    await obs.tracing.aclose(5)
    await other.tracing.aclose(5)


async def test_observed_function_has_a_span_and_its_error() -> None:
    """obs.observe: a span around an async function; an exception is recorded and goes on."""
    obs = Observatory("observed", redis_url="redis://127.0.0.1:1")
    seen = []

    @obs.observe
    async def work() -> None:
        seen.append(trace.get_current_span())
        raise KeyError("x")

    with pytest.raises(KeyError):
        await work()
    assert "work" in getattr(seen[0], "name", "")
    assert getattr(seen[0], "status").status_code.name == "ERROR"  # noqa: B009
    await obs.tracing.aclose(5)


async def test_silent_collector_does_not_hold_up_closing(
    server: Server, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backend takes connections and says nothing: closing ends within its bound all the same."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "2")
        monkeypatch.setenv("OBSERVATORY_SHUTDOWN_TIMEOUT", "1")
        obs = Observatory("traced", redis_url=server.url, namespace=namespace)
        await obs.open()
        with obs.span("lost"):
            pass
        loop = asyncio.get_running_loop()
        began = loop.time()
        await obs.aclose()
        assert loop.time() - began < 2.5
    wait_until(nobody_is_closing, "the exporter has given up")
