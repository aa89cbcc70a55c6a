"""Lines under pressure: broken streams and values, many tasks and threads, the same thing again and again."""

import asyncio
import io
import json
import logging
import os
import sys
import threading
from collections import Counter
from typing import Any

import pytest

from observatory import Observatory
from observatory.asgi import ObservatoryMiddleware
from observatory.logs import INTERNAL, Logger
from observatory.logs.pen import Pen
from observatory.redaction import Redactor
from tests.conftest import Open

NOWHERE = "redis://127.0.0.1:1"


def made(stream: Any, **how: Any) -> Logger:
    logger = Logger(Pen("chat", "i-1", **how))
    logger.to(stream)
    return logger


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


class Broken:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__
    __hash__ = None  # type: ignore[assignment]


class Faulty(io.StringIO):
    """A stream that fails for a while."""

    failing = False

    def write(self, text: str) -> int:
        if self.failing:
            raise OSError("full")
        return super().write(text)


@pytest.mark.parametrize("form", ["json", "text"])
def test_nothing_raises_into_the_caller(form: str) -> None:
    """Values, messages, fields and exceptions that cannot be asked: each is a line all the same."""
    stream = io.StringIO()
    logger = Logger(Pen("chat", "i-1", max_repeats=20))
    logger.to(stream, form)
    cycle: list[Any] = []
    cycle.append(cycle)

    def deep(left: int) -> None:
        if left:
            deep(left - 1)
        else:
            logger.info("deep")

    logger.info("value", it=Broken(), them=[Broken()], cycle=cycle, half="\ud800", huge=10**6000, nan=float("nan"))
    logger.info(Broken())  # type: ignore[arg-type]
    logger.info(None)  # type: ignore[arg-type]
    logger.info("half \ud800 a character")
    logger.info("x" * 5_000_000, y="y" * 5_000_000)
    logger.info("fields", **{"not an identifier": 1, "": 2, "\ud800": 3})
    logger.bind(it=Broken()).info("bound")
    logger.exception("no exception")
    try:
        raise ValueError(Broken())
    except ValueError:
        logger.exception("failed")
    deep(100)
    written = stream.getvalue().splitlines()
    assert len(written) >= 10
    assert len(stream.getvalue()) < 200_000
    if form == "json":
        assert all(json.loads(line)["service"] == "chat" for line in written)
        assert sum("could not be written" in line for line in written) == 1  # the message that cannot be asked
    assert "ValueError" in stream.getvalue()


def test_a_stack_that_is_nearly_used_up_is_no_reason_to_raise() -> None:
    """Whoever logs at the end of a recursion gets their own RecursionError, not ours."""
    logger = made(io.StringIO())

    def down(depth: int) -> int:
        logger.info("down", depth=depth)
        return down(depth + 1)

    with pytest.raises(RecursionError) as met:
        down(0)
    assert met.traceback[-1].name in ("down", "info", "_log")


def test_what_could_not_be_written_is_counted_and_told() -> None:
    """A stream that fails, is closed, or is not there."""
    stream = Faulty()
    logger = made(stream)
    logger.info("one")
    stream.failing = True
    for _ in range(5):
        logger.info("into the void")
    stream.failing = False
    logger.info("two")
    logger.info("three")
    assert [(line["message"], line.get("lost")) for line in lines(stream)] == [("one", None), ("two", 5), ("three", None)]
    stream.close()
    logger.info("nowhere")


def test_without_a_stderr_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a daemon."""
    monkeypatch.setattr(sys, "stderr", None)
    Logger(Pen("chat", "i-1")).info("unheard")


def test_a_stream_that_speaks_ascii_gets_ascii() -> None:
    """As under LANG=C, without the error handler that Python gives stderr."""
    raw = io.BytesIO()
    logger = made(io.TextIOWrapper(raw, encoding="ascii"))
    logger.info("grün")
    assert b"gr\\xfcn" in raw.getvalue()


def test_what_is_ours_cannot_be_overwritten_by_a_dimension() -> None:
    """Nor by a bound field."""
    stream, obs = io.StringIO(), Observatory("chat", redis_url=NOWHERE)
    obs.logger.to(stream)
    with obs.bound(level="x", message="y", service="z", team="t"):
        obs.logger.bind(instance="w").info("said")
    (line,) = lines(stream)
    assert (line["level"], line["message"], line["service"], line["team"]) == ("info", "said", "chat", "t")
    assert (line["field_level"], line["field_instance"]) == ("x", "w")


async def test_a_trace_id_of_ones_own_wins_without_the_span_of_another() -> None:
    """A line speaks of one trace."""
    stream, obs = io.StringIO(), Observatory("chat", redis_url=NOWHERE)
    obs.logger.to(stream)
    with obs.span("x"):
        obs.logger.info("own", trace_id="abc123")
        obs.logger.info("current")
    own, current = lines(stream)
    assert own["trace_id"] == "abc123"
    assert "span_id" not in own
    assert len(current["span_id"]) == 16
    await obs.tracing.aclose(5)


# the same again and again


def test_the_same_line_is_written_so_often_and_the_rest_is_told() -> None:
    """Another message, level or field is another line; what is bound around it is not."""
    stream = io.StringIO()
    logger = made(stream, max_repeats=3)
    for number in range(10):
        logger.bind(turn=number).info("same", path="/x")
        logger.info("same", path="/x", number=number)
        logger.warning("same", path="/x")
        logger.info(f"same {number}")
        logger.info("same", path=["/x"])
        logger.info("apart", path=["/x", number])
        try:
            raise ValueError(number % 2)
        except ValueError:
            logger.exception("same")
    assert logger.pen.settle(all=True) == 7 * 3 + 4
    found = lines(stream)
    assert sum(1 + line.get("repeated", 0) for line in found) == 70
    assert sum(line["message"] == "apart" for line in found) == 10
    counted = Counter((line["level"], line["message"], str(line.get("path")), "number" in line) for line in found)
    assert counted["info", "same", "/x", True] == 10
    assert sum(count for (_, message, _, _), count in counted.items() if message.startswith("same ")) == 10
    assert counted["info", "same", "/x", False] == 4
    assert counted["warning", "same", "/x", False] == 4
    assert counted["info", "same", "['/x']", False] == 4
    assert counted["error", "same", "None", False] == 8


def test_a_line_that_is_told_later_says_what_was_so_then() -> None:
    """Whoever logs a mapping may change it."""
    stream = io.StringIO()
    logger = made(stream, max_repeats=1)
    state = {"step": 1}
    for _ in range(3):
        logger.info("state", state=state)
    state["step"] = 2
    logger.pen.settle(all=True)
    assert [line["state"] for line in lines(stream)] == [{"step": 1}, {"step": 1}]


def test_a_setting_of_zero_writes_them_all() -> None:
    """For whoever counts lines elsewhere."""
    stream = io.StringIO()
    logger = made(stream, max_repeats=0)
    for _ in range(100):
        logger.info("same")
    assert len(lines(stream)) == 100


async def test_lines_of_ours_are_cleaned_and_counted_too(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning of the library a hundred times: some are written, with its own name, and a metric counts the rest."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    obs, stream = await opening(), io.StringIO()
    obs.logger.to(stream)
    for _ in range(100):
        INTERNAL.warning("cannot reach %s", "redis://u:hush@host")
    INTERNAL.warning("badly %d formed", "x")
    INTERNAL.warning("broken %s", Broken())
    INTERNAL.debug("unheard")
    obs.logger.level = "debug"
    INTERNAL.debug("heard")
    obs.logger.level = "info"
    for number in range(50):
        try:
            raise ValueError(number % 2)
        except ValueError:
            INTERNAL.exception("it failed")
    async with asyncio.timeout(5):
        while await obs.metrics.query("observatory_log_lines_repeated_total", "total") is None:
            await asyncio.sleep(0.05)
        await asyncio.sleep(1.2)
    await obs.flush()
    assert (await obs.metrics.query("observatory_log_lines_repeated_total", "total")).value == 80 + 10
    await obs.aclose()
    assert (INTERNAL.level, len(INTERNAL.handlers)) == (logging.NOTSET, 1), "as it was before anybody was open"
    await obs.aclose()
    found = lines(stream)
    assert "hush" not in stream.getvalue()
    own = [line for line in found if line["message"] == "cannot reach redis://u:[redacted]@host"]
    assert len(own) == 21
    assert own[-1]["repeated"] == 79
    assert own[0]["logger"] == "observatory"
    assert own[0]["instance"] == obs.instance
    assert any("badly %d formed" in line["message"] for line in found)
    assert [line["message"] for line in found if "heard" in line["message"]] == ["heard"]
    assert sum(line["message"] == "it failed" for line in found) == 42
    assert any("could not be written: RuntimeError" in line["message"] for line in found)
    await obs.open()


# many at once


async def test_tasks_do_not_mix() -> None:
    """Two hundred users at a time: each line has its own user and trace."""
    stream, obs = io.StringIO(), Observatory("chat", redis_url=NOWHERE)
    obs.logger.to(stream)

    async def user(name: str) -> str:
        obs.bind(user=name)
        with obs.span(name) as span:
            for step in range(5):
                obs.logger.info("step", of=name, step=step)
                await asyncio.sleep(0)
        return f"{span.get_span_context().trace_id:032x}"

    traces = await asyncio.gather(*(asyncio.create_task(user(f"user-{number}")) for number in range(200)))
    found = lines(stream)
    assert len(found) == 1000
    assert all(line["user"] == line["of"] and line["trace_id"] == traces[int(line["of"][5:])] for line in found)
    await obs.tracing.aclose(5)


def test_threads_write_whole_lines(tmp_path: Any) -> None:
    """Eight of them, through one file; none is lost or torn."""
    path = tmp_path / "lines"
    with path.open("w") as stream:
        logger = made(stream, max_repeats=5)

        def work(number: int) -> None:
            for step in range(500):
                logger.info("work", number=number, step=step, pad="x" * 300)
                logger.info("same")

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        logger.pen.settle(all=True)
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({(line["number"], line["step"]) for line in found if line["message"] == "work"}) == 4000
    assert sum(1 + line.get("repeated", 0) for line in found if line["message"] == "same") == 4000


async def test_the_door_binds_the_request_id() -> None:
    """Two requests at once, one id each, in lines of the application and in the answer."""
    stream, obs = io.StringIO(), Observatory("chat", redis_url=NOWHERE)
    obs.logger.to(stream)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.01)
        obs.logger.info("served", path=scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask(number: int) -> None:
        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                assert (b"x-request-id", f"req-{number}".encode()) in message["headers"]

        headers = [(b"x-request-id", f"req-{number}".encode())]
        scope = {"type": "http", "method": "GET", "path": f"/{number}", "headers": headers}
        await ObservatoryMiddleware(app, obs=obs, enforce=False)(scope, None, send)  # type: ignore[arg-type]

    await asyncio.gather(*(ask(number) for number in range(20)))
    await ask(99)
    obs.logger.info("outside")
    *found, outside = lines(stream)
    assert sorted(line["request_id"] for line in found) == sorted(f"req{line['path'].replace('/', '-')}" for line in found)
    assert len({line["request_id"] for line in found}) == 21
    assert "request_id" not in outside


def test_a_forked_child_tells_nothing_of_its_parents() -> None:
    """What was held back before the fork is told once, by the parent."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        obs = Observatory("chat", redis_url=NOWHERE)
        obs.logger.to(stream)
        for _ in range(50):
            obs.logger.info("same")
        child = os.fork()
        if child == 0:
            obs.logger.pen.settle(all=True)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        obs.logger.pen.settle(all=True)
    with os.fdopen(reading) as heard:
        found = [json.loads(line) for line in heard]
    assert sum(1 + line.get("repeated", 0) for line in found) == 50


def test_more_is_hidden_by_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """In lines, in what is captured, in exceptions of spans: one redactor."""
    monkeypatch.setenv("OBSERVATORY_LOG_REDACT", "email")
    stream, obs = io.StringIO(), Observatory("chat", redis_url=NOWHERE)
    obs.logger.to(stream)
    obs.logger.info("signed up", user_email="ann@example.org")
    assert lines(stream)[0]["user_email"] == "[redacted]"
    assert Redactor(["email"]).hides("userEmail")
