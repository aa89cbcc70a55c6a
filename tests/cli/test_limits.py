"""The limiter on the command line: several limits, explanations, who is nearly through, and forgetting."""

import asyncio
import json
import os
import pty
import sys
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path
from typing import Any

import pytest

from observatory import Limit, Observatory, overview
from observatory.overview import near_exhaustion
from tests.conftest import Open
from tests.servers import Server, command, environment

LIMITS = """
[limits.per-user]
amount = 10
per = "1h"
by = "user"
match = "*"
overrides = { vip = { allow = true } }

[limits.tokens]
amount = 1000
per = "24h"
unit = "tokens"
match = { model = "gpt-[a-z4]*" }
on_store_down = "closed"

[limits.month]
amount = 5
per = "month"
unit = "usd"
by = ["team", "user"]
match = { team = "*" }
shadow = true
"""


@pytest.fixture
def env(server: Server, namespace: str, tmp_path: Path) -> dict[str, str]:
    file = tmp_path / "limits.toml"
    file.write_text(LIMITS)
    return environment(OBSERVATORY_REDIS_URL=server.url, OBSERVATORY_NAMESPACE=namespace, OBSERVATORY_CONFIG=str(file))


def test_several_limits_at_once(env: dict[str, str]) -> None:
    """By comma, by option, or all that match; all or nothing; the one that binds comes first."""
    ask = ["rate-limiter", "check"]
    done = command(*ask, "per-user,tokens", "-d", "user=ann", "--cost", "tokens=900", env=env)
    assert (done.returncode, done.stdout.splitlines()) == (
        0,
        ["allowed: tokens -: 100 of 1000 tokens left", "allowed: per-user ann: 9 of 10 requests left"],
    )
    again = command(*ask, "per-user", "--limit", "tokens", "-d", "user=ann", "--cost", "tokens=900", "--json", env=env)
    assert again.returncode == 1
    assert (json.loads(again.stdout)["limit"], [one["remaining"] for one in json.loads(again.stdout)["parts"]]) == (
        "tokens",
        [9, 100],
    )
    look = ["rate-limiter", "peek", "*", "-d", "user=ann", "-d", "model=gpt-4o", "--unit", "tokens", "--json"]
    assert [(one["limit"], one["remaining"]) for one in json.loads(command(*look, env=env).stdout)["parts"]] == [
        ("per-user", 9),
        ("tokens", 100),
    ]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (["check", "*,tokens"], "nothing can stand beside it"),
        (["check", "per-user,per-user", "ann"], "named twice"),
        (["check", "tokens", "--cost", "5", "--cost", "tokens=5"], "one UNIT=NUMBER for each unit"),
        (["check", "*", "ann"], "needs dimensions"),
        (["reset", "per-user", "ann"], "Say --yes"),
        (["reset", "nope", "--yes"], 'no limit named "nope"'),
        (["list", "--near-exhaustion", "-1"], "share must be"),
        (["explain", "-d", "user"], "K=V"),
    ],
    ids=" ".join,
)
def test_usage(env: dict[str, str], asked: list[str], says: str) -> None:
    """Exit 2, one line."""
    done = command("rate-limiter", *asked, env=env)
    assert (done.returncode, says in done.stderr, len(done.stderr.splitlines())) == (2, True, 1), done.stderr


def test_list_and_explain_need_no_store(env: dict[str, str]) -> None:
    """What matters of each limit; why it applies; globs as they were written."""
    away = {**env, "OBSERVATORY_REDIS_URL": "redis://127.0.0.1:1"}
    listed = command("rate-limiter", "list", env=away)
    assert listed.returncode == 0
    rows = {line.split()[0]: " ".join(line.split()) for line in listed.stdout.splitlines()}
    assert rows["tokens"] == "tokens 1000 24h 1000 tokens – model=gpt-[a-z4]* token_bucket closed"
    assert rows["month"] == "month 5 month 5 usd team,user team=* fixed_window local shadow"
    assert rows["per-user"] == "per-user 10 1h 10 requests user * token_bucket local 1 overrides"
    told = command("rate-limiter", "explain", "-d", "user=vip", "-d", "model=o3", "--unit", "tokens", env=away)
    lines = {line.split()[0]: " ".join(line.split()) for line in told.stdout.splitlines()}
    assert lines["per-user"] == "per-user yes vip it matches every call override: allow=True"
    assert lines["tokens"] == "tokens no one for all model is o3, which does not match gpt-[a-z4]*"
    assert lines["api"] == "api no one for all it has no match: only by its name"
    assert "team is not known, and must match *; it counts usd, which the call does not bring" in lines["month"]
    assert "by name: team must be known" in lines["month"]
    found = json.loads(command("rate-limiter", "explain", "-d", "team=a", "--unit", "usd", "--json", env=away).stdout)
    assert {one["limit"]: (one["applies"], one["identity"]) for one in found}["month"] == (True, "team=a&user=-")


async def test_reset(env: dict[str, str], opening: Open) -> None:
    """Of one identity, after --yes, or a yes on a terminal."""
    obs = await opening()
    limit = Limit("per-user", 10, per="1h", by="user")
    obs.rate_limiter.define(limit)
    for user in ("ann", "bob"):
        await obs.rate_limiter.check("per-user", user, 10)
    done = await asyncio.to_thread(command, "rate-limiter", "reset", "per-user", "-d", "user=ann", "--yes", "--json", env=env)
    assert json.loads(done.stdout) == {"reset": "per-user", "identity": {"user": "ann"}}
    assert [(await obs.rate_limiter.peek("per-user", user)).remaining for user in ("ann", "bob")] == [10, 0]
    for answer, code, left in ((b"n\n", 1, 0), (b"y\n", 0, 10)):
        ours, theirs = pty.openpty()
        asked = (sys.executable, "-m", "observatory", "rate-limiter", "reset", "per-user", "bob")
        running = await asyncio.create_subprocess_exec(*asked, env=env, stdin=theirs, stdout=DEVNULL, stderr=PIPE)
        os.write(ours, answer)
        _, said = await asyncio.wait_for(running.communicate(), 60)
        os.close(ours)
        os.close(theirs)
        assert (running.returncode, b"Forget what bob took of per-user?" in said) == (code, True), said
        assert (await obs.rate_limiter.peek("per-user", "bob")).remaining == left


async def test_who_is_nearly_through(obs: Observatory, env: dict[str, str]) -> None:
    """Buckets, windows, slots and money; long names; limits that only code declares; what stands beside a bucket is none."""
    limits = (
        Limit("per-user", 10, per="1h", by="user"),
        Limit("month", 5, per="month", unit="usd", by="user"),
        Limit("gpu", 2, unit="slots"),
        Limit("slide", 4, per="1h", algorithm="sliding_window"),
        Limit("code-only", 100, per="1h"),
    )
    limiter = obs.rate_limiter
    limiter.define(*limits)
    long = "ü:/" * 60
    for user, cost in (("ann", 9), ("bob", 7), (long, 8)):
        await limiter.check("per-user", user, cost)
    await limiter.check("month", "ann", 4.5)
    held = [await limiter.reserve("gpu") for _ in range(2)]
    await limiter.check("slide", None, 3)
    await limiter.check("code-only", None, 100)
    found = await near_exhaustion(obs.store, limiter.limits(), 0.8)
    digest = [one.identity for one in found.buckets if one.identity.startswith("~")]
    assert [(one.limit, one.identity, str(one.used), str(one.capacity)) for one in found.buckets] == [
        ("code-only", "", "100", "100"),
        ("gpu", "", "2", "2"),
        ("month", "ann", "4.5", "5"),
        ("per-user", "ann", "9", "10"),
        ("per-user", digest[0], "8", "10"),
    ]
    assert (found.asked, found.unknown) == (7, {})
    for one in held:
        await one.cancel()
    assert "gpu" not in [one.limit for one in (await near_exhaustion(obs.store, limiter.limits(), 0.5)).buckets]
    # The command knows per-user and month by its settings, code-only by what the fleet tells of it.
    async with asyncio.timeout(5):
        while not await obs.store.command("EXISTS", obs.store.keys.shape("code-only")):
            await asyncio.sleep(0.01)
    done = await asyncio.to_thread(command, "rate-limiter", "list", "--near-exhaustion", "0.85", env=env)
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()[:4]) for line in done.stdout.splitlines()[1:]]
    assert lines[0].startswith("code-only - 100% 100")
    assert "per-user ann 90% 9" in lines
    assert not any(line.startswith("slide") for line in lines)
    await obs.store.command("UNLINK", obs.store.keys.shape("slide"))
    alone = await near_exhaustion(obs.store, limits[:1], 0.5)
    assert alone.unknown == {"slide": 1}


async def test_many_buckets_in_pages(obs: Observatory, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than a page, more than are shown: the largest shares are."""
    pages: list[int] = []
    asking = overview._Search.ask

    async def ask(self: Any, page: list[bytes]) -> None:
        pages.append(len(page))
        await asking(self, page)

    monkeypatch.setattr(overview._Search, "ask", ask)
    limit = Limit("many", 100, per="24h")
    await asyncio.gather(*(obs.rate_limiter.check(limit, f"user-{n}", 100 if n < 30 else 60) for n in range(1300)))
    found = await near_exhaustion(obs.store, [limit], 0.5)
    assert (found.asked, len(found.buckets), max(pages)) == (1300, 1000, 100)
    assert [one.share for one in found.buckets[:31]] == [1.0] * 30 + [0.6]
