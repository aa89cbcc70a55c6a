"""Settings: four layers in order, and errors that name the key, the layer and the remedy."""

from pathlib import Path

import pytest

from observatory import ConfigurationError, Limit, Observatory, Settings
from observatory.settings import TABLE

FILE = """
namespace = "file"
[redis]
url = "redis://file:1/0"
max_wait = "500ms"
[metrics]
flush_every = 2
dimensions = ["team"]
[limits.user-requests]
amount = 120
by = "user"
[limits.whole]
amount = "0.50"
per = "1d"
unit = "usd"
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "observatory.toml"
    path.write_text(FILE)
    return str(path)


def test_layers_in_order(file: str) -> None:
    """defaults < file < environment < arguments; each says where it came from."""
    settings = Settings.load(file, environ={"OBSERVATORY_NAMESPACE": "environment", "OBSERVATORY_REDIS_MAX_WAIT": "0.1"})
    assert (settings.namespace, settings.redis.max_wait, settings.metrics.flush_every) == ("environment", 0.1, 2.0)
    assert settings.sources["namespace"] == "environment"
    assert settings.sources["redis.url"] == "observatory.toml"
    assert settings.cache.ttl == 300
    assert Settings.load(file, environ={}, namespace="argument").namespace == "argument"
    assert Settings.load(file, environ={}, namespace=None).namespace == "file"


def test_limits_of_the_file_win_field_by_field(file: str) -> None:
    """Code declares defaults; the SRE's number wins; what the file leaves out stays."""
    obs = Observatory("x", settings=Settings.load(file, environ={}))
    obs.rate_limiter.define(Limit("user-requests", 60, per="1m", burst=10))
    found = {limit.name: limit for limit in obs.rate_limiter.limits()}
    assert (found["user-requests"].amount, found["user-requests"].burst, found["user-requests"].by) == (120, 10, "user")
    assert (found["whole"].amount, found["whole"].unit) == ("0.50", "usd")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[limits.user-requests]\nammount = 1", 'limits.user-requests.ammount: unknown key, did you mean "amount"?'),
        ("[redis]\nulr = 'x'", 'redis.ulr: unknown key, did you mean "url"?'),
        ("namespce = 'x'", 'namespce: unknown key, did you mean "namespace"?'),
        ("redis = 5", "redis: must be a table"),
        ("[metrics]\nflush_every = 'fast'", "metrics.flush_every='fast': not a duration; write seconds or \"500ms\""),
        ("[metrics]\nflush_every = true", "not a duration"),
        ("[serve]\nport = -1", "serve.port=-1: not a whole number"),
        ("[log]\nlevel = 'loud'", "log.level='loud': not one of debug, info"),
        ("[cache]\nmax_value = '1 potato'", "not a size"),
        ("namespace = 'a:b'", "namespace='a:b': must match"),
        ("[limits.'A B']\namount = 1", "limits: limit name 'A B'"),
        ("[limits.x]\namount = []", "limits.x.amount: must be a number or a text, got a list"),
        ("[limits.x]\nweights = { a = 'b' }", "limits.x.weights.*: must be a whole number, got a text"),
        ("[limits.x]\nalert_at = '80%'", "limits.x.alert_at: must be a number or a list, got a text"),
        ("[limits.x]\noverrides = 5", "limits.x.overrides: must be a table, got a whole number"),
        ("[breakers.x]\nmin_calls = 'many'", "breakers.x.min_calls: must be a whole number, got a text"),
        ("[llm]\nwait = -5", "llm.wait=-5: must be 0 to 86,400 s. Leave it out for the default, 0.0"),
        ("[llm]\nwait = '-5'", "llm.wait='-5': must be 0 to 86,400 s"),
        ("[llm]\nwait = '-5s'", "llm.wait='-5s': must be 0 to 86,400 s"),
        ("[llm]\nwait = 1e300", "llm.wait=1e+300: must be 0 to 86,400 s"),
        ("[llm]\nwait = nan", "llm.wait=nan: not a duration"),
        ("[llm]\nwait = '-'", "llm.wait='-': not a duration"),
        ("[retry]\ntimeout = -1", "retry.timeout=-1: must not be negative"),
        ("[cache]\nmax_value = -1", "cache.max_value=-1: must be 1 to 536,870,912 bytes"),
        ("[cache]\nmax_value = '-64MiB'", "cache.max_value='-64MiB': must be 1 to"),
        ("[events]\npartitions = 0", "events.partitions=0: must be 1 to 1,024"),
        ("this is not toml", "not TOML"),
        ("a = " + "[" * 5000, "not TOML"),
        ("[serve]\nport = " + "9" * 5000, "not TOML"),
        ("[serve]\nport = " + "9" * 400, "serve.port=a whole number of 1,329 bits: must be 0 to 65,535"),
        ("[serve]\nport = 65536", "serve.port=65536: must be 0 to 65,535. Leave it out for the default, 8484"),
        ("[serve]\nprocesses = 0", "serve.processes=0: must be 1 to 1,024"),
        ("[retry]\nattempts = 0", "retry.attempts=0: must be 1 to 1,000,000"),
        ("[retry]\nwait_exp_base = 0.5", "retry.wait_exp_base=0.5: must be 1 to 1,000"),
        ("[cache]\njitter = 5", "cache.jitter=5: must be 0 to 1"),
        ("[cache]\nttl = 0", "cache.ttl=0: must be at least 0.001 s"),
        ("[tracing]\nsample_ratio = 7", "tracing.sample_ratio=7: must be 0 to 1"),
        ("[events]\nmax_buffered = 0", "events.max_buffered=0: must be 1 to 10,000,000"),
        ("[metrics]\nflush_every = 0", "metrics.flush_every=0: must be 0.01 to 3,600 s"),
        ("[redis]\nmax_wait = 0", "redis.max_wait=0: must be 0.001 to 60 s"),
        ("[worker]\nlease = '10ms'", "worker.lease='10ms': must be 1 to 3,600 s"),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, text: str, says: str) -> None:
    """The file's name, the key, and what would do."""
    path = tmp_path / "observatory.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(str(path), environ={})
    assert says in str(caught.value)
    assert "observatory.toml" in str(caught.value)


def test_mistakes_in_the_environment() -> None:
    """A wrong value is an error that names the variable; an unknown variable is a warning with the nearest name."""
    with pytest.raises(ConfigurationError, match=r"OBSERVATORY_METRICS_FLUSH_EVERY=.fast.: not a duration"):
        Settings.load(environ={"OBSERVATORY_METRICS_FLUSH_EVERY": "fast"})
    settings = Settings.load(environ={"OBSERVATORY_REDIS_ULR": "redis://x"})
    assert settings.warnings == ("OBSERVATORY_REDIS_ULR: no such setting, did you mean OBSERVATORY_REDIS_URL?",)


def test_service_links_of_kubernetes_are_not_settings() -> None:
    """A Service called observatory writes these into every pod; none is ours, and none warns."""
    links = {
        "OBSERVATORY_SERVICE_HOST": "10.0.0.7",
        "OBSERVATORY_SERVICE_PORT": "8484",
        "OBSERVATORY_PORT": "tcp://10.0.0.7:8484",
        "OBSERVATORY_PORT_8484_TCP": "tcp://10.0.0.7:8484",
        "OBSERVATORY_PORT_8484_TCP_ADDR": "10.0.0.7",
    }
    settings = Settings.load(environ=links)
    assert settings.serve.host == "127.0.0.1"
    assert not settings.warnings


def test_secrets_come_by_file_and_are_not_shown(tmp_path: Path) -> None:
    """…_FILE for secrets; a wrong one is told without its content."""
    (tmp_path / "secret").write_text("hunter2\n")
    assert Settings.load(environ={"OBSERVATORY_REDIS_PASSWORD_FILE": str(tmp_path / "secret")}).redis.password == "hunter2"
    with pytest.raises(ConfigurationError, match=r"OBSERVATORY_REDIS_PASSWORD_FILE: .*cannot be read"):
        Settings.load(environ={"OBSERVATORY_REDIS_PASSWORD_FILE": str(tmp_path / "nothing")})
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(environ={}, redis_password=12345)
    assert "12345" not in str(caught.value)


def test_secret_that_is_no_text_is_told_without_it(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"\xff\xfe\x00hunter2")
    with pytest.raises(ConfigurationError, match=r"OBSERVATORY_REDIS_PASSWORD_FILE: .*is not text in UTF-8") as caught:
        Settings.load(environ={"OBSERVATORY_REDIS_PASSWORD_FILE": str(tmp_path / "secret")})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:s3cret@h:6379/0",
        "redis://:s3cret/with@slash@h",
        "rediss://h/0?username=s3cret&password=s3cret&ssl_check_hostname=false",
        "unix://:s3cret@/run/redis.sock?db=1",
    ],
)
def test_settings_are_printed_without_their_secrets(url: str) -> None:
    """Whoever logs them, or has them in a traceback."""
    from rich.pretty import pretty_repr

    settings = Settings.load(environ={}, redis_url=url, cache_redis_url=url, redis_password="s3cret")  # noqa: S106
    for shown in (repr(settings), str(settings), repr(settings.redis), repr(settings.cache), pretty_repr(settings)):
        assert "s3cret" not in shown
    assert "@h" in repr(settings) or "@/run" in repr(settings) or "h/0" in repr(settings)
    assert "max_wait=0.25" in repr(settings)
    assert Settings.load(environ={}, redis_url=url).redis.url == url


def test_empty_url_is_none() -> None:
    """As `docker compose` hands on a variable that is not set; an address that was given stays."""
    empty = {"OBSERVATORY_REDIS_URL": "", "OBSERVATORY_CACHE_REDIS_URL": ""}
    assert Settings.load(environ=empty).redis.url is None
    assert Settings.load(environ=empty).cache.redis_url is None
    assert not Settings.load(environ=empty).warnings


def test_unknown_argument_is_named() -> None:
    with pytest.raises(ConfigurationError, match='argument redis_ulr: no such setting, did you mean "redis_url"'):
        Settings.load(environ={}, redis_ulr="x")


def test_every_setting_says_what_it_means() -> None:
    """And the standard variable for the service's name is honoured."""
    assert all(row.meaning for row, _ in TABLE.values())
    assert Settings.load(environ={"OTEL_SERVICE_NAME": "chat"}).service_name == "chat"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://x", "scheme 'http' is not supported"),
        ("redis+sentinel://x", "name of the primary is missing"),
        ("redis+sentinel://:s3cret/x@h/main", "hosts or ports cannot be read"),
        ("redis+sentinel://h/main?sentinel_pass=x", "unknown option 'sentinel_pass'"),
        ("redis+cluster://h:1,,g", "hosts or ports cannot be read"),
        ("redis+cluster://h:1/2", "only database 0"),
        ("redis://h:port/0", "redis.url"),
        ("redis://h/zero", "not a database number"),
        ("redis://h/0?nonsense=1", "unknown option 'nonsense'"),
        ("unix://", "without a path"),
        ("redis://:s3cret/x@h", "host or port cannot be read"),
        ("redis://[::1", "cannot be read"),
        ("nonsense", "not supported"),
    ],
)
async def test_wrong_urls(url: str, says: str) -> None:
    """Refused at opening, by name."""
    with pytest.raises(ConfigurationError, match=says) as caught:
        await Observatory("x", redis_url=url).open()
    assert "s3cret" not in str(caught.value)
