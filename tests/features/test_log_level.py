"""The level of all lines, set while processes run: in one of them, and in all."""

import asyncio
import io
import json
import os
import threading
import time

import pytest

from observatory import InvalidArgument, Observatory
from tests.conftest import Open
from tests.servers import Server, command, environment, process

WITHIN = 2.0
"""Seconds within which all have followed."""


def test_a_process_sets_its_own_level() -> None:
    """At once, for every logger bound from it too; another word names those there are."""
    obs, stream = Observatory("chat", redis_url="redis://127.0.0.1:1"), io.StringIO()
    obs.logger.to(stream)
    bound = obs.logger.bind(job="x")
    bound.debug("unheard")
    obs.logger.level = "debug"
    bound.debug("heard")
    bound.level = "error"
    obs.logger.warning("unheard")
    assert obs.logger.level == "error"
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["heard"]
    with pytest.raises(InvalidArgument, match="debug, info, warning, error, critical"):
        obs.logger.level = "loud"


CHATTY = """
import asyncio, sys
from observatory import Observatory

async def main():
    async with Observatory("chatty") as obs:
        print("open", flush=True)
        while True:
            obs.logger.debug("whisper")
            await asyncio.sleep(0.05)

asyncio.run(main())
"""


def test_the_fleet_follows_the_command_line(server: Server, namespace: str) -> None:
    """Three processes begin to say what they said only to themselves, and stop again; whoever comes later follows too."""
    env = environment(OBSERVATORY_REDIS_URL=server.url, OBSERVATORY_NAMESPACE=namespace, OBSERVATORY_LOG_MAX_REPEATS="0")
    with process(["-c", CHATTY], env) as one, process(["-c", CHATTY], env) as two, process(["-c", CHATTY], env) as three:
        heard: list[list[tuple[float, str]]] = [[], [], []]
        for number, each in enumerate((one, two, three)):
            assert each.stdout is not None
            assert each.stdout.readline() == "open\n"
            threading.Thread(target=_listen, args=(each.stderr, heard[number]), daemon=True).start()
        time.sleep(0.3)
        assert not any("whisper" in line for lines in heard for _, line in lines)
        done = command("--json", "config", "set", "log.level", "debug", env=env)
        told_at = time.monotonic()
        assert json.loads(done.stdout) == {"log.level": "debug", "instances": 3}, done.stderr
        time.sleep(WITHIN)
        for lines in heard:
            assert any("whisper" in line for at, line in lines if at < told_at + WITHIN)
            assert any("log level is debug, as the fleet was told" in line for _, line in lines)
        assert json.loads(command("--json", "config", "get", "log.level", env=env).stdout) == {"log.level": "debug"}
        with process(["-c", CHATTY], env) as late:
            assert late.stderr is not None
            assert any("whisper" in late.stderr.readline() for _ in range(5))
        assert command("config", "unset", "log.level", env=env).returncode == 0
        time.sleep(WITHIN)
        quiet_from = time.monotonic()
        time.sleep(0.5)
        assert not any("whisper" in line for lines in heard for at, line in lines if at > quiet_from)


def _listen(stream: object, heard: list[tuple[float, str]]) -> None:
    for line in stream:  # type: ignore[attr-defined]
        heard.append((time.monotonic(), line))  # noqa: PERF401 (the moment is what counts)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("set", "log.level", "loud"), "debug, info, warning, error, critical"),
        (("set", "namespace", "x"), "cannot be changed while processes run"),
        (("set", "log.levle", "debug"), "no such setting"),
        (("unset", "redis.url"), "cannot be changed while processes run"),
    ],
)
def test_what_cannot_be_told_is_refused(server: Server, namespace: str, arguments: tuple[str, ...], said: str) -> None:
    """Usage, exit 2, before anything is asked of the store."""
    env = environment(OBSERVATORY_REDIS_URL=server.url, OBSERVATORY_NAMESPACE=namespace)
    done = command("config", *arguments, env=env)
    assert done.returncode == 2
    assert said in done.stderr


async def test_a_level_of_ones_own_stands_until_the_fleet_is_told_another(opening: Open) -> None:
    """The fleet's level counts when it changes, not with every beat; a word that nobody knows is no level."""
    from observatory.features.presence import tell_log_level

    obs = await opening()
    obs.logger.level = "error"
    await asyncio.sleep(1.2)
    assert obs.logger.level == "error"
    await tell_log_level(obs.store, "debug")
    await _until(obs, "debug")
    obs.logger.level = "warning"
    await asyncio.sleep(1.2)
    assert obs.logger.level == "warning"
    await tell_log_level(obs.store, "deafening")
    await _until(obs, "info")


async def _until(obs: Observatory, level: str) -> None:
    async with asyncio.timeout(WITHIN):
        while obs.logger.level != level:
            await asyncio.sleep(0.02)


def test_a_forked_child_has_the_level_and_another_name() -> None:
    """It is another instance, whose lines carry its own name."""
    obs = Observatory("chat", redis_url="redis://127.0.0.1:1")
    obs.logger.level = "debug"
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with os.fdopen(writing, "w") as stream:
            obs.logger.to(stream)
            obs.logger.debug("of the child")
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as lines:
        line = json.loads(lines.read())
    assert os.waitpid(child, 0)[1] == 0
    assert line["message"] == "of the child"
    assert line["instance"] != obs.instance
