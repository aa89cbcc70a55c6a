"""Costs at the doors: the command line and HTTP say what the library says; money is text with all of its digits."""

import asyncio
import csv
import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import jsonschema
import pytest

from observatory import Limit, Observatory, Usage
from observatory.errors import ObservatoryError
from observatory.features.alerts import Outbox
from observatory.service import openapi
from observatory.service.app import build
from tests.conftest import Open
from tests.costs.test_budgets import known
from tests.servers import Server, command, environment


async def some(obs: Observatory) -> None:
    """Three calls, one of them without a price, and a budget that is spent and held."""
    obs.record_request("openai", "gpt", latency=0.5, tokens=Usage(1_200_000, 10), cost_usd=Decimal("1234.000000001"))
    obs.record_request("openai", "gpt", latency=0.5, tokens=Usage(5, 1), cost_usd=1)
    obs.record_request("vllm", "mine", latency=0.1, tokens=Usage(100, 10))
    obs.rate_limiter.define(Limit("team-budget", 100, per="month", unit="usd", by="team"))
    await obs.rate_limiter.reserve("team-budget", {"team": "search"}, 2)
    await obs.rate_limiter.check("team-budget", {"team": "search"}, Decimal("80.5"))
    await known(obs, ("team-budget", "search"))
    await obs.flush()


async def test_command_line(server: Server, namespace: str, obs: Observatory, tmp_path: Path) -> None:
    """Report (with and without the word), CSV, JSON, budgets, prices with exit codes, what-if; typed errors."""
    env = environment(OBSERVATORY_REDIS_URL=server.url, OBSERVATORY_NAMESPACE=namespace)
    (tmp_path / "observatory.toml").write_text('[prices."vllm/mine"]\ninput = 2\noutput = 1\n')

    async def run(*asked: str) -> Any:
        return await asyncio.to_thread(command, *asked, env=env)

    await some(obs)
    shown = await run("costs", "--since", "1h", "--latency")
    assert (shown.returncode, shown.stderr) == (0, "")
    first = shown.stdout.splitlines()
    assert first[1].split() == ["PROVIDER", "MODEL", "CALLS", "IN", "TOKENS", "OUT", "TOKENS", "USD", "P50", "P95"]
    assert first[2].split()[:7] == ["openai", "gpt", "2", "1.2", "M", "11", "1,235.000000001"]
    assert first[4].split() == ["total", "3", "1.2", "M", "21", "1,235.000000001"]
    assert "1 call has no price and is not in it" in first[5]
    said = json.loads((await run("costs", "report", "--by", "model", "--since", "1h", "--json")).stdout)
    assert said["total_usd"] == "1235.000000001"
    assert said["rows"][0]["group"] == {"model": "gpt"}
    table = list(csv.DictReader(io.StringIO((await run("costs", "report", "--since", "1h", "--csv")).stdout)))
    assert [(row["model"], row["cost_usd"]) for row in table] == [("gpt", "1235.000000001"), ("mine", "0")]

    listed = (await run("costs", "budgets")).stdout
    assert "team-budget" in listed
    assert "82%" in listed
    assert "← over" in listed or json.loads((await run("costs", "budgets", "--json")).stdout)[0]["forecast_usd"]
    missing = await run("costs", "prices", "--missing", "--json")
    assert missing.returncode == 1
    assert [one["model"] for one in json.loads(missing.stdout)] == ["mine"]
    assert (await run("costs", "prices")).returncode == 0
    other = await run("--config", str(tmp_path / "observatory.toml"), *WHAT_IF)
    assert other.returncode == 0, other.stderr
    assert "vllm/mine: 2.400021 USD" in other.stdout
    assert "not known: cached" in other.stdout
    assert (await run(*WHAT_IF[:2], "--instead-of", "gpt", "--model", "no/body")).returncode == 1
    for wrong in (
        ["costs", "--by", "tema"],
        ["costs", "report", "--period", "soon"],
        ["costs", "--period", "today", "--since", "1h"],
        ["costs", "what-if", "--model", "x", "--instead-of", "y"],
    ):
        assert (await run(*wrong)).returncode == 2, wrong


WHAT_IF = ["costs", "what-if", "--instead-of", "openai/gpt", "--model", "vllm/mine", "--since", "1h"]


async def test_over_http(opening: Open) -> None:
    """As described in OpenAPI; wrong questions are 400 with the field."""
    obs = await opening(role="service")
    app, _ = build(obs)
    await some(obs)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test") as http:
        report = (await http.get("/v1/costs?by=model&since=1h&latency=true")).json()
        assert (report["total_usd"], report["unpriced_calls"], report["currency"]) == ("1235.000000001", 1, "USD")
        assert report["rows"][0]["cost_usd"] == "1235.000000001"
        assert report["rows"][0]["latency_p95"] == pytest.approx(0.5, rel=0.012)
        assert (await http.get("/v1/costs?period=this-month&timezone=Europe/Berlin")).json()["calls"] == 3
        (budget,) = (await http.get("/v1/costs/budgets")).json()
        assert [budget[name] for name in ("limit", "identity", "spent_usd", "reserved_usd", "amount_usd")] == [
            *("team-budget", "search", "80.5", "2", "100"),
        ]
        document = openapi.document()
        for path, answer in (("/v1/costs", report), ("/v1/costs/budgets", [budget])):
            schema = document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
            jsonschema.validate(answer, {**schema, "components": document["components"]})
        for wrong in ("?by=tema", "?period=soon", "?since=x", "?peroid=today", "?latency=maybe", "/budgets?limit=x"):
            refused = await http.get(f"/v1/costs{wrong}")
            assert refused.status_code == 400, wrong
            assert ObservatoryError.from_problem(refused.json()).code == "invalid_argument"


async def test_everywhere(place: str, namespace: str) -> None:
    """On Valkey, Redis and a cluster: reports, budgets, and an alert in the outbox, marked and removed."""
    async with Observatory("test", redis_url=place, namespace=namespace) as obs:
        obs.rate_limiter.define(Limit("b", 10, per="day", unit="usd", by="team", alert_at=(0.5,)))
        obs.record_request("openai", "gpt", latency=0.5, tokens=Usage(5, 1), cost_usd=1)
        await obs.flush()
        assert (await obs.costs.report(since="1h")).total_usd == 1
        for team in "abc":
            await obs.rate_limiter.check("b", {"team": team}, 6)
            await known(obs, ("b", team))
        outbox = Outbox(obs.store)
        async with asyncio.timeout(10):
            while len(entries := await outbox.entries()) < 3:
                await asyncio.sleep(0.02)
        await outbox.acknowledged(entries[1], "somebody")
        assert await outbox.unsent(entries, "somebody") == [entries[0], entries[2]]
        assert await outbox.unsent(entries, "else") == entries
        assert [await outbox.remove(entries[0]) for _ in range(2)] == [True, False]
        assert await outbox.entries() == entries[1:]
