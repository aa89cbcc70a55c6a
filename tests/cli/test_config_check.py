"""`observatory config check`: what would not open is found without a store, all of it at once."""

import json
from pathlib import Path

import pytest

from observatory import ConfigurationError, Observatory, Settings
from observatory.cli.checking import checked
from tests.servers import Server, command

WRONG = """
namespce = "x"
[redis]
url = "localhost:6379"
max_wait = -5
[cache]
redis_url = "http://:hunter2@cache"
[limits.a]
by = 5
[limits.b]
amount = 5
per = "monthly"
[limits.c]
amount = 0
per = "1m"
[limits.d]
overrides = { x = "allowed" }
[limits.e]
on_store_down = "maybe"
[breakers.p]
window = "x"
[breakers.q]
failure_rate = 2
[prices.nothing]
input = 1
[worker]
roles = ["evnts"]
[[alerts.webhooks]]
url = "https://hooks.example/T0"
secret = "hunter2"
"""
SAID = (
    'namespce: unknown key, did you mean "namespace"?',
    "redis.url: scheme 'localhost' is not supported",
    "redis.max_wait=-5: must be 0.001 to 60 s",
    "cache.redis_url: scheme 'http' is not supported",
    "limits.a.by: must be a text or a list, got a whole number",
    "limits.b: per: 'monthly' is not a duration",
    "limits.c: amount, per and burst must be above 0",
    "limits.d: overrides.x: must be a table of amount, burst, allow, deny, got 'allowed'",
    "limits.e: on_store_down must be one of local, open, closed",
    "breakers.p.window: 'x' is not a duration",
    "breakers.q.failure_rate=2.0: must be a fraction",
    'prices."nothing":',
    "worker.roles: no role named 'evnts'",
    "alerts.webhooks of hooks.example: its secret is not a signing secret",
)


def test_every_mistake_is_told_once_with_its_file(tmp_path: Path) -> None:
    """A line each, exit 2; no secret, and nothing of what follows from another mistake."""
    file = tmp_path / "wrong.toml"
    file.write_text(WRONG)
    done = command("config", "check", str(file))
    assert (done.returncode, done.stdout.count("only changes what code declares")) == (2, 2)
    lines = done.stderr.splitlines()
    for said in SAID:
        assert [line for line in lines if line.startswith(f"observatory: wrong.toml: {said}")], f"{said}\n{done.stderr}"
    assert len(lines) == len(SAID), done.stderr
    assert "hunter2" not in done.stderr


def test_each_mistake_alone_is_what_opening_refuses(tmp_path: Path) -> None:
    """A process that is opened with the file says the first of them; loading says one, as ever."""
    file = tmp_path / "wrong.toml"
    file.write_text(WRONG)
    with pytest.raises(ConfigurationError):
        Settings.load(str(file), environ={})
    settings, faults = Settings.examine(str(file), environ={})
    assert len(faults) == 4
    assert (settings.redis.max_wait, sorted(settings.limits), sorted(settings.breakers)) == (
        0.25,
        ["b", "c", "d", "e"],
        ["p", "q"],
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[redis]\nurl = "localhost:6379"', "redis.url: scheme 'localhost' is not supported"),
        ('[cache]\nredis_url = "localhost:6379"', "cache.redis_url: scheme 'localhost' is not supported"),
    ],
)
async def test_what_check_refuses_does_not_open(server: Server, tmp_path: Path, text: str, says: str) -> None:
    """By the name of the setting that is wrong."""
    file = tmp_path / "wrong.toml"
    file.write_text(text)
    (found,) = checked(str(file), None, None).mistakes
    assert str(found).startswith(f"wrong.toml: {says}")
    given = {} if "[redis]" in text else {"redis_url": server.url}
    with pytest.raises(ConfigurationError) as caught:
        await Observatory("x", settings=Settings.load(str(file), environ={}, **given)).open()
    assert str(caught.value).startswith(says)


def test_what_only_this_machine_lacks_is_a_warning(tmp_path: Path) -> None:
    """A secret is where the worker is; a table without numbers of its own means something together with code."""
    file, secret = tmp_path / "good.toml", tmp_path / "hook"
    hook = f'[[alerts.webhooks]]\nurl = "https://hooks.example/T0"\nsecret_file = "{secret}"\n'
    file.write_text(
        f'{hook}[limits.later]\namount = 5\non_store_down = "open"\nburst = 9\n[limits.whole]\namount = 5\nper = "day"\n'
    )
    done = command("config", "check", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"warning: alerts.webhooks of hooks.example: secret_file {secret} is not there; a worker must be able to read it",
        "note: [limits.later] only changes what code declares: it has no amount and per of its own",
        "ok: 1 settings, 2 limits",
    ]
    told = json.loads(command("config", "check", str(file), "--json").stdout)
    assert (len(told["warnings"]), len(told["notes"]), told["limits"]) == (1, 1, ["later", "whole"])
    secret.write_text("hunter2")
    wrong = command("config", "check", str(file))
    assert wrong.returncode == 2
    assert "its secret is not a signing secret" in wrong.stderr
    assert "hunter2" not in wrong.stderr
