"""The shared cache on the command line: beside Python's entries, with exit codes that mean something."""

import asyncio
import json
import os
import pty
import subprocess
import sys
from asyncio.subprocess import DEVNULL, PIPE

import msgspec
import pytest

from observatory import Observatory
from tests.conftest import Open
from tests.servers import Server, command, environment


class Answer(msgspec.Struct, frozen=True):
    text: str
    score: float = 0.0


@pytest.fixture
def env(server: Server, namespace: str) -> dict[str, str]:
    return environment(OBSERVATORY_REDIS_URL=server.url, OBSERVATORY_NAMESPACE=namespace)


async def run(env: dict[str, str], *asked: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(command, "cache", *asked, env=env)


async def test_entries_beside_python(env: dict[str, str], obs: Observatory) -> None:
    """Read as JSON, written for a class, deleted; tags; a miss is exit 1 and one line."""
    cache = obs.cache(Answer, name="answers")
    await cache.set("k/ü", Answer("ja ✓"))
    shown = await run(env, "get", "answers", "k/ü")
    assert (shown.returncode, shown.stdout) == (0, '{"text":"ja ✓","score":0.0}\n')
    whole = json.loads((await run(env, "get", "answers", "k/ü", "--json")).stdout)
    assert whole["value"] == {"text": "ja ✓", "score": 0.0}
    assert 0 <= whole["age"] < 60 < whole["ttl"] <= 300
    told = await run(env, "set", "answers", "k", '{"text": "from here"}', "--ttl", "5m", "--tag", "a", "--tag", "b")
    assert (told.returncode, told.stdout) == (0, "set: answers k\n")
    assert await cache.get("k") == Answer("from here")
    gone = await run(env, "invalidate", "answers", "none", "b", "--json")
    assert (gone.returncode, json.loads(gone.stdout)) == (0, {"invalidated": ["none", "b"]})
    assert await cache.get("k") is None
    missed = await run(env, "get", "answers", "k")
    assert (missed.returncode, missed.stdout) == (1, "")
    assert missed.stderr == "observatory: cache answers has no entry 'k'\n"
    assert (await run(env, "delete", "answers", "k/ü")).returncode == 0
    assert await cache.get("k/ü") is None
    again = await run(env, "delete", "answers", "k/ü", "--json")
    assert (again.returncode, json.loads(again.stdout)) == (1, {"deleted": False})


def test_a_value_may_come_on_stdin(env: dict[str, str]) -> None:
    """As large as the cache takes them."""
    asked = [sys.executable, "-m", "observatory", "cache", "set", "files", "k"]
    text = json.dumps({"text": "x" * 300_000}).encode()
    assert subprocess.run(asked, input=text, env=env, check=False, timeout=60, capture_output=True).returncode == 0
    assert json.loads(command("cache", "get", "files", "k", env=env).stdout) == {"text": "x" * 300_000}
    wrong = subprocess.run(asked, input=b"\xff", env=env, check=False, timeout=60, capture_output=True)
    assert (wrong.returncode, b"is not JSON" in wrong.stderr) == (2, True)


async def test_dimensions_say_whose(env: dict[str, str], obs: Observatory) -> None:
    """Of a cache that is kept by them; clear takes that part alone."""
    cache = obs.cache(str, name="private", by="tenant")
    for tenant in ("acme", "acme:k"):
        with obs.bound(tenant=tenant):
            await cache.set("k", tenant)
    assert (await run(env, "get", "private", "k")).returncode == 1
    assert (await run(env, "get", "private", "k", "-d", "tenant=acme")).stdout == '"acme"\n'
    assert (await run(env, "set", "private", "k", '"mine"', "-d", "tenant=acme")).returncode == 0
    cleared = await run(env, "clear", "private", "-d", "tenant=acme:k", "--yes")
    assert (cleared.returncode, cleared.stdout) == (0, "cleared: private of tenant=acme:k\n")
    with obs.bound(tenant="acme"):
        assert await cache.get("k") == "mine"
    with obs.bound(tenant="acme:k"):
        assert await cache.get("k") is None


async def test_clear_asks_on_a_terminal(env: dict[str, str], obs: Observatory) -> None:
    """No is exit 1, and everything stays."""
    cache = obs.cache(str, name="c")
    await cache.set("k", "v")
    for answer, code, left in ((b"n\n", 1, "v"), (b"y\n", 0, None)):
        ours, theirs = pty.openpty()
        asked = (sys.executable, "-m", "observatory", "cache", "clear", "c")
        running = await asyncio.create_subprocess_exec(*asked, env=env, stdin=theirs, stdout=DEVNULL, stderr=PIPE)
        os.write(ours, answer)
        _, said = await asyncio.wait_for(running.communicate(), 60)
        os.close(ours)
        os.close(theirs)
        assert (running.returncode, b"Clear the cache c?" in said) == (code, True), said
        assert await cache.get("k") == left


async def test_stats(env: dict[str, str], opening: Open) -> None:
    """Of one cache, or of all that were asked in the last hour."""
    obs = await opening()
    one, two = obs.cache(str, name="one"), obs.cache(str, name="two")
    await one.set("k", "v")
    await one.get("k")
    await one.get("other")
    await two.get("k")
    await obs.flush()
    found = json.loads((await run(env, "stats", "one", "--json")).stdout)
    assert (found["cache"], found["hits"], found["misses"], found["hit_rate"]) == ("one", 1, 1, 0.5)
    every = json.loads((await run(env, "stats", "--json")).stdout)
    assert [(one["cache"], one["hits"], one["misses"]) for one in every] == [("one", 1, 1), ("two", 0, 1)]
    lines = [line.split() for line in (await run(env, "stats")).stdout.splitlines()]
    assert lines[0][:5] == ["CACHE", "HIT", "RATE", "HITS", "MISSES"]
    assert [line[:4] for line in lines[1:]] == [["one", "50.0%", "1", "1"], ["two", "0.0%", "0", "1"]]
    assert (await run(env, "stats", "nobody", "--json")).returncode == 0


@pytest.mark.parametrize(
    ("asked", "code", "says"),
    [
        (["get", "no name", "k"], 2, "cache name"),
        (["get", "c", ""], 2, "non-empty"),
        (["get", "c", "k", "-d", "tenant"], 2, "K=V"),
        (["get", "c", "k", "-d", "a=b", "-d", "a=c"], 2, "given twice"),
        (["get", "c", "k", "-d", "tenant="], 2, "non-empty string"),
        (["set", "c", "k", "text"], 2, "A text stands in quotes: '\"text\"'"),
        (["set", "c", "k", "1", "--ttl", "soon"], 2, "not a duration"),
        (["set", "c", "k", "1", "--ttl", "0"], 2, "ttl"),
        (["set", "c", "k", "1", "--tag", ""], 2, "tags"),
        (["set", "c", "k", "1" * 30], 1, "serialize ints"),
        (["invalidate", "c", ""], 2, "tags"),
        (["clear", "c"], 2, "Say --yes"),
        (["stats", "no name"], 2, "cache name"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_mistakes(env: dict[str, str], asked: list[str], code: int, says: str) -> None:
    """One line, and what would do."""
    done = command("cache", *asked, env=env)
    assert (done.returncode, says in done.stderr, len(done.stderr.splitlines())) == (code, True, 1), done.stderr


@pytest.mark.parametrize("asked", [["get", "c", "k"], ["set", "c", "k", "1"], ["stats"], ["clear", "c", "--yes"]], ids=" ".join)
def test_a_store_that_is_away(asked: list[str]) -> None:
    """Exit 3: no miss."""
    done = command("--redis-url", "redis://127.0.0.1:1", "cache", *asked, env=environment())
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (3, "", 1), done.stderr
