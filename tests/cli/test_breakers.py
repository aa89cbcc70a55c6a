"""Breakers at the doors: the command line and HTTP see and decide what the fleet's processes go by."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from observatory import CircuitOpen, Observatory
from observatory.errors import ObservatoryError
from observatory.service.app import build
from tests.conftest import Open
from tests.features.test_breaker import open_it, until, works
from tests.servers import Server, command, environment


@pytest.fixture
async def http(opening: Open) -> AsyncIterator[httpx2.AsyncClient]:
    """The application itself, in this process, beside the client of the test."""
    app, _ = build(await opening(role="service"))
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test") as client:
        yield client


async def test_command_line(server: Server, namespace: str, obs: Observatory) -> None:
    """List, show with its exit code, force and let go."""
    env = environment(OBSERVATORY_REDIS_URL=server.url, OBSERVATORY_NAMESPACE=namespace)

    async def run(*asked: str) -> Any:
        return await asyncio.to_thread(command, "breaker", *asked, env=env)

    breaker = obs.breaker("openai/gpt")
    await breaker.execute(works)
    await obs.breakers.flush()
    shown = await run("show", "openai/gpt")
    assert shown.returncode == 0, shown.stderr
    assert (shown.returncode, shown.stdout) == (0, "openai/gpt: closed, 0 of 1 calls failed\n")
    done = await run("force", "openai/gpt", "open", "--reason", "announced outage")
    assert (done.returncode, done.stderr) == (0, "")
    await until(lambda: breaker.state == "open", "told")
    with pytest.raises(CircuitOpen, match="announced outage"):
        await breaker.execute(works)
    assert (await run("show", "openai/gpt")).returncode == 1
    listed = json.loads((await run("list", "--json")).stdout)
    assert [(one["name"], one["state"], one["forced"], one["reason"]) for one in listed] == [
        ("openai/gpt", "open", "open", "announced outage")
    ]
    assert "held open: announced outage" in (await run("list")).stdout
    let_go = await run("force", "openai/gpt", "auto")
    assert (let_go.returncode, let_go.stderr) == (0, "")
    await until(lambda: breaker.state == "closed", "told")
    for wrong, says in (
        (("force", "openai/gpt", "opened"), "forced closed, open or auto, got 'opened'"),
        (("force", "openai/gpt", "open"), "reason must say why"),
        (("force", "openai/gpt", "auto", "--reason", " "), "reason must say why"),
        (("show", "no name"), "no name"),
    ):
        done = await run(*wrong)
        assert (done.returncode, says in done.stderr) == (2, True), done.stderr


async def test_a_name_that_nobody_has_used(server: Server, namespace: str, obs: Observatory) -> None:
    """Is said to be one: a typo does not look like a breaker in order. One that is held has been used."""
    env = environment(OBSERVATORY_REDIS_URL=server.url, OBSERVATORY_NAMESPACE=namespace)
    shown = await asyncio.to_thread(command, "breaker", "show", "opnai", env=env)
    assert (shown.returncode, shown.stdout) == (0, "opnai: closed, nobody has used it in the last week\n")
    assert not (await obs.breakers.show("opnai")).used
    await obs.breaker("opnai").force("closed", reason="kept")
    assert (await obs.breakers.show("opnai")).used
    await obs.breaker("opnai").force("auto")
    assert (await obs.breakers.show("opnai")).forced == ""


async def test_over_http(http: httpx2.AsyncClient, obs: Observatory) -> None:
    """The same, with problems by name."""
    breaker = obs.breaker("openai")
    await open_it(breaker)
    listed = (await http.get("/v1/breaker")).json()
    assert [(one["name"], one["state"]) for one in listed] == [("openai", "open")]
    assert listed[0]["left"] > 20
    forced = await http.post("/v1/breaker/force", json={"name": "openai", "state": "closed", "reason": "works again"})
    assert (forced.status_code, forced.json()["state"], forced.json()["reason"]) == (200, "closed", "works again")
    await until(lambda: breaker.state == "closed", "told")
    assert [one["forced"] for one in (await http.get("/v1/breaker?name=openai")).json()] == ["closed"]
    let_go = await http.post("/v1/breaker/force", json={"name": "openai", "state": "auto"})
    assert (let_go.status_code, let_go.json()["forced"]) == (200, "")
    for wrong in (
        {"name": "openai", "state": "shut", "reason": "x"},
        {"name": "openai", "state": "open", "reason": " "},
        {"name": "a b", "state": "open", "reason": "x"},
        {"name": "openai", "state": "open"},
    ):
        refused = await http.post("/v1/breaker/force", json=wrong)
        assert refused.status_code == 400
        assert ObservatoryError.from_problem(refused.json()).code == "invalid_argument"
    assert (await http.get("/v1/breaker?nmae=x")).status_code == 400
