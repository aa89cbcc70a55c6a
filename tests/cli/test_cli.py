"""The command line: asking, exit codes, and mistakes that say what would do."""

import json
from pathlib import Path

import pytest

from tests.servers import Server, command, environment


@pytest.fixture
def env(server: Server, namespace: str) -> dict[str, str]:
    return environment(OBSERVATORY_REDIS_URL=server.url, OBSERVATORY_NAMESPACE=namespace)


def test_check_and_peek_say_yes_and_no(env: dict[str, str], tmp_path: Path) -> None:
    """Exit 0 allowed, 1 refused; --json is one document."""
    (tmp_path / "observatory.toml").write_text('[limits.few]\namount = 2\nper = "1h"\nby = "user"\n')
    ask = ["--config", str(tmp_path / "observatory.toml"), "rate-limiter"]
    assert command(*ask, "check", "few", "ann", env=env).returncode == 0
    second = command("--json", *ask, "check", "few", "-d", "user=ann", "--cost", "requests=1", env=env)
    assert (second.returncode, json.loads(second.stdout)["remaining"]) == (0, 0)
    refused = command(*ask, "check", "few", "ann", env=env)
    assert refused.returncode == 1
    assert refused.stdout.startswith("refused: few ann: 0 of 2 requests left; retry in ")
    assert command(*ask, "peek", "few", "bob", env=env).stdout == "allowed: few bob: 2 of 2 requests left\n"
    assert "few" in command(*ask, "list", env=env).stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["rate-limiter", "check", "nope"], 2, 'no limit named "nope"; defined: api'),
        (["rate-limiter", "check", "api", "--cost", "many"], 2, "--cost: 'many' is not a number"),
        (["rate-limiter", "check", "api", "--cost=-1"], 2, "must not be negative"),
        (["rate-limiter", "check", "api", "ann", "-d", "user=ann"], 2, "not both"),
        (["rate-limiter", "check", "api", "-d", "user"], 2, "K=V"),
        (["metrics", "query", "never_recorded"], 2, "was ever recorded"),
        (["metrics", "query", "observatory_requests_total", "--stat", "p95"], 2, "it knows total, rate"),
        (["--redis-url", "http://x", "instances"], 2, "scheme 'http' is not supported"),
        (["--redis-url", "redis://127.0.0.1:1", "instances"], 3, "cannot be reached"),
        (["--config", "/nothing.toml", "instances"], 2, "/nothing.toml: cannot be read"),
        (["nonsense"], 2, "No such command"),
        (["replay", "/nothing.csv", "--tokens-per-minute", "5"], 2, "/nothing.csv: cannot be read"),
        (["serve", "--port", "99999999"], 2, "99999999"),
        (["up", "--host", "0.0.0.0"], 2, "--allow-anonymous"),
        (["replay", "/nothing.csv", "--tokens-per-minute", "5", "--speed", "inf"], 2, "finite"),
        (["--redis-url", "http://x", "serve", "--port", "0"], 2, "scheme 'http' is not supported"),
        (["--redis-url", "http://x", "worker"], 2, "scheme 'http' is not supported"),
        (["--redis-url", "http://x", "up", "--port", "0"], 2, "scheme 'http' is not supported"),
    ],
)
def test_mistakes_say_what_is_wrong(env: dict[str, str], arguments: list[str], code: int, says: str) -> None:
    """One line on stderr, no traceback, an exit code that means something."""
    done = command(*arguments, env=env)
    assert done.returncode == code, done.stdout + done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_asking_the_fleet(env: dict[str, str]) -> None:
    """instances, events lag, metrics, doctor: tables for people, documents for machines."""
    command("rate-limiter", "check", "api", env=env)
    instances = json.loads(command("--json", "instances", env=env).stdout)
    assert [one["says"]["role"] for one in instances] == ["cli"]
    assert json.loads(command("--json", "events", "lag", env=env).stdout)["waiting"] == 0
    for _ in range(101):
        if command("rate-limiter", "check", "api", "--cost", "100", env=env).returncode == 1:
            break
    shown = command("metrics", "query", "observatory_rate_limit_rejections_total", "--by", "limit", env=env)
    assert shown.stdout.split() == ["LIMIT", "TOTAL", "api", "1"]
    assert "observatory_rate_limit_rejections_total" in command("metrics", "list", env=env).stdout
    doctor = command("doctor", env=env)
    assert doctor.returncode == 0
    assert [line.split()[1] for line in doctor.stdout.splitlines() if line[0] != " "] == [
        "redis",
        "version",
        "eviction",
        "persistence",
        "fence",
    ]
    assert command("doctor", "--strict", env=env).returncode == 1, "the test's server has no append-only file"


def test_forgetful_server_is_refused(own_server: Server) -> None:
    """A coordination store that may evict is found by doctor, and refused at opening, unless allowed."""
    import redis

    with redis.Redis.from_url(own_server.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    env = environment(OBSERVATORY_REDIS_URL=own_server.url)
    refused = command("doctor", env=env)
    assert refused.returncode != 0
    assert "limits and counters would be deleted" in refused.stdout + refused.stderr
    assert command("doctor", env={**env, "OBSERVATORY_REDIS_ALLOW_EVICTION": "allkeys-lru"}).returncode == 0


def test_config_check_and_docs(tmp_path: Path) -> None:
    """A good file is ok; a typo is an error with the nearest name; the reference is printed from the table."""
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text('[limits.x]\namount = 5\nper = "1m"\n')
    bad.write_text("[limits.x]\namount = -5\nper = 1\n")
    assert command("config", "check", str(good)).returncode == 0
    wrong = command("config", "check", str(bad))
    assert wrong.returncode == 2
    assert "limits.x" in wrong.stderr
    typo = command("config", "check", str(good), env=environment(OBSERVATORY_REDIS_ULR="x"))
    assert typo.returncode == 2
    assert "did you mean OBSERVATORY_REDIS_URL?" in typo.stderr
    assert "| `redis.max_wait` | `OBSERVATORY_REDIS_MAX_WAIT` | `0.25` | s |" in command("config", "docs").stdout


def test_version_and_help() -> None:
    """--version prints one; --help lists the commands."""
    assert command("--version").stdout.startswith("observatory 0.")
    shown = command("--help").stdout
    for name in (
        "up",
        "demo",
        "serve",
        "worker",
        "replay",
        "doctor",
        "instances",
        "rate-limiter",
        "metrics",
        "events",
        "config",
    ):
        assert name in shown
