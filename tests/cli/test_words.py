"""What commands say: one document where it is asked for, one line where something is wrong, an address that can be opened."""

import asyncio
import json
import socket

import httpx2
import pytest

from observatory import Observatory
from tests.servers import Server, command, environment, process


@pytest.fixture
def env(server: Server, namespace: str) -> dict[str, str]:
    return environment(OBSERVATORY_REDIS_URL=server.url, OBSERVATORY_NAMESPACE=namespace)


@pytest.mark.parametrize(
    "asked",
    [
        ["instances"],
        ["doctor"],
        ["rate-limiter", "check", "api"],
        ["rate-limiter", "peek", "api"],
        ["rate-limiter", "list"],
        ["metrics", "query", "observatory_requests_total"],
        ["metrics", "list"],
        ["events", "lag"],
        ["config", "docs"],
        ["config", "check"],
    ],
    ids=" ".join,
)
def test_json_may_stand_behind_the_command(env: dict[str, str], asked: list[str]) -> None:
    """As well as before it, and of the same shape."""
    behind, before = command(*asked, "--json", env=env), command("--json", *asked, env=env)
    assert (behind.returncode, before.returncode) == (0, 0), behind.stderr + before.stderr
    assert type(json.loads(behind.stdout)) is type(json.loads(before.stdout))


@pytest.mark.parametrize(
    "asked",
    [["instances"], ["metrics", "list"], ["rate-limiter", "check", "api"], ["doctor"], ["events", "lag"]],
    ids=" ".join,
)
def test_a_store_that_is_away_is_one_line(asked: list[str]) -> None:
    """For people; our own lines would say the same thing again."""
    done = command("--redis-url", "redis://127.0.0.1:1", *asked, env=environment())
    assert done.returncode == 3
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("observatory: ")


async def test_gauges_are_listed(server: Server, namespace: str, env: dict[str, str]) -> None:
    """Those of live processes, with their kind."""
    async with Observatory("x", redis_url=server.url, namespace=namespace) as obs:
        obs.metrics.set_gauge("test_open", 5)
        obs.metrics.increment_counter("test_total")
        await obs.flush()
        shown = await asyncio.to_thread(command, "metrics", "list", "--json", env=env)
    found = json.loads(shown.stdout)
    assert (found["test_open"]["kind"], found["test_total"]["kind"]) == ("gauge", "counter")


@pytest.mark.parametrize("processes", ["1", "2"])
def test_address_with_colons_can_be_opened(env: dict[str, str], processes: str) -> None:
    """What `serve` prints is a URL, also on ::1."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no ::1")
    serve = ["-m", "observatory", "serve", "--host", "::1", "--port", "0", "--processes", processes]
    with process(serve, {**env, "OBSERVATORY_SERVE_DRAIN_FOR": "0"}) as running:
        assert running.stdout
        url = running.stdout.readline().removeprefix("serving on ").strip()
        assert url.startswith("http://[::1]:")
        assert httpx2.get(f"{url}/livez", trust_env=False).status_code == 200


@pytest.mark.parametrize("asked", [["serve", "--port", "0"], ["up", "--port", "0"]], ids=" ".join)
@pytest.mark.parametrize("missing", ["starlette", "uvicorn"])
def test_missing_extra_is_named(env: dict[str, str], asked: list[str], missing: str) -> None:
    """And how to install it."""
    program = f"""
import sys
sys.modules[{missing!r}] = None
sys.argv = ["observatory", *{asked!r}]
from observatory.__main__ import main
main()
"""
    with process(["-c", program], env) as running:
        _, said = running.communicate(timeout=30)
    assert running.returncode == 2
    assert said.splitlines()[-1] == (
        f"observatory: the service needs {missing}, which is not installed. pip install 'observatory-fleet[service]'"
    )
