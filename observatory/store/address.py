"""From a URL to a way to connect. One place; the password never appears in what is printed."""

import os
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, quote, unquote, unquote_to_bytes, urlsplit

import msgspec
import platformdirs
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from ..errors import ConfigurationError

ORCHESTRATORS = ("KUBERNETES_SERVICE_HOST", "ECS_CONTAINER_METADATA_URI_V4")
_ESCAPE = "Write redis://user:password@host:6379/0, with / # ? @ : of a password escaped as %2F %23 %3F %40 %3A"
"""What a URL has wrong is told without the URL: it may hold a password."""
_TLS_OPTIONS = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"}
_SENTINEL_OPTIONS = {"sentinel_username", "sentinel_password"}
_SUPPORTED = "Write redis://, rediss://, unix:// or embedded://; redis+sentinel:// or redis+cluster:// (rediss+… with TLS)"


class Address(msgspec.Struct, frozen=True):
    """Where a store is."""

    shown: str
    """The URL without secrets."""
    kind: type[AbstractConnection] = UnixDomainSocketConnection
    options: Mapping[str, Any] = {}
    embedded: Path | None = None
    """The directory of the embedded server; its socket is known once it runs."""
    topology: Literal["one", "sentinel", "cluster"] = "one"
    nodes: tuple[tuple[str, int], ...] = ()
    """The sentinels, or the cluster's nodes that are asked first."""
    primary: str = ""
    """The name under which the sentinels know the primary."""
    sentinel_options: Mapping[str, Any] = {}
    """How a sentinel is spoken to: it has credentials of its own."""

    def connection(self, connect_timeout: float, **more: Any) -> AbstractConnection:
        """A connection that has not been made yet. The driver resends nothing: after a lost reply it would count twice."""
        return self._made({**self.options, **more}, connect_timeout)

    def to_sentinel(self, connect_timeout: float, host: str, port: int) -> AbstractConnection:
        """The same to a sentinel."""
        return self._made({**self.sentinel_options, "host": host, "port": port}, connect_timeout)

    def _made(self, options: Mapping[str, Any], connect_timeout: float) -> AbstractConnection:
        return self.kind(
            **options,
            protocol=3,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=connect_timeout,
            socket_connect_timeout=connect_timeout,
            driver_info=None,
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
        )


def home(setting: str | None) -> Path:
    """Where the embedded server keeps its state."""
    return Path(setting).expanduser().absolute() if setting else Path(platformdirs.user_data_dir("observatory", False))


_SETTING = "redis.url"


def address(
    url: str | None,
    *,
    password: str | None = None,
    environment: str,
    home: Path,
    environ: Mapping[str, str] = os.environ,
    setting: str = _SETTING,
) -> Address:
    """The address of a URL. None: the embedded server where that is harmless, else ConfigurationError with the remedy.

    An embedded server is private to its machine: where an orchestrator runs replicas, each would have limits of its own.
    setting: which one the URL is of, for who has it wrong.
    """
    try:
        return _address(url, password, environment, home, environ)
    except ConfigurationError as error:
        if setting == _SETTING or not error.message.startswith(_SETTING):
            raise
        raise ConfigurationError(setting + error.message.removeprefix(_SETTING), remedy=error.remedy) from None


def _address(url: str | None, password: str | None, environment: str, home: Path, environ: Mapping[str, str]) -> Address:
    if url is None:
        _may_be_embedded(environment, environ)
        url = "embedded://"
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigurationError("redis.url cannot be read", remedy=_ESCAPE) from None
    match parts.scheme:
        case "embedded":
            return _embedded(url, home)
        case "redis" | "rediss":
            return _tcp(parts.scheme, url, password)
        case "unix":
            path = unquote(parts.path)
            if not path:
                raise ConfigurationError("redis.url: a unix:// URL without a path", remedy="Write unix:///run/redis.sock")
            options = {**_user(url, password), "path": path, "db": _database(parse_qs(parts.query).get("db", ["0"])[-1])}
            return Address(shown=f"unix://{path}", kind=UnixDomainSocketConnection, options=options)
        case "redis+sentinel" | "rediss+sentinel":
            return _sentinel(parts.scheme, url, password)
        case "redis+cluster" | "rediss+cluster":
            return _cluster(parts.scheme, url, password)
        case _:
            raise ConfigurationError(f"redis.url: scheme {parts.scheme!r} is not supported", remedy=_SUPPORTED)


def _embedded(url: str, home: Path) -> Address:
    parts = urlsplit(url)
    if parts.netloc or parts.query or parts.fragment:
        raise ConfigurationError(
            "redis.url: embedded:// takes a path and nothing else",
            remedy="Write embedded:///absolute/path, with # ? % of a path escaped as %23 %3F %25",
        )
    directory = Path(os.fsdecode(unquote_to_bytes(parts.path))) if parts.path.strip("/") else home / "embedded"
    return Address(shown=embedded_url(directory), embedded=directory)


def embedded_url(directory: Path) -> str:
    """The URL of an embedded server's directory, as another process will read it."""
    return f"embedded://{quote(os.fsencode(directory))}"


def _may_be_embedded(environment: str, environ: Mapping[str, str]) -> None:
    if environment != "development":
        raise ConfigurationError(
            f"no OBSERVATORY_REDIS_URL, and environment is {environment}",
            remedy='Set OBSERVATORY_REDIS_URL=redis://…; or redis_url="embedded://" if you mean a private server',
        )
    if any(name in environ for name in ORCHESTRATORS):
        raise ConfigurationError(
            "no OBSERVATORY_REDIS_URL, and an embedded server here would be private to this pod: every replica would have "
            "its own limits",
            remedy='Set it; or redis_url="embedded://" if you mean it',
        )


def _user(url: str, password: str | None) -> dict[str, Any]:
    parts = urlsplit(url)
    given = {"username": unquote(parts.username) if parts.username else None}
    given["password"] = unquote(parts.password) if parts.password else password
    return {name: value for name, value in given.items() if value}


def _database(text: str) -> int:
    if not text.isdecimal():
        raise ConfigurationError(f"redis.url: {text!r} is not a database number")
    return int(text)


def _tcp(scheme: str, url: str, password: str | None) -> Address:
    parts = urlsplit(url)
    try:
        host, port = parts.hostname or "localhost", parts.port or 6379
    except ValueError:
        raise ConfigurationError("redis.url: its host or port cannot be read", remedy=_ESCAPE) from None
    query, _ = _options(scheme, parts.query)
    options = {**_user(url, password), "host": host, "port": port, "db": _database(parts.path.strip("/") or "0"), **query}
    return Address(shown=f"{scheme}://{host}:{port}/{options['db']}", kind=_kind(scheme), options=options)


def _sentinel(scheme: str, url: str, password: str | None) -> Address:
    parts = urlsplit(url)
    nodes = _nodes(parts.netloc, 26379)
    name, _, database = unquote(parts.path).strip("/").partition("/")
    if not name:
        raise ConfigurationError(
            "redis.url: the name of the primary is missing", remedy=f"Write {scheme}://HOST:26379,HOST:26379/NAME"
        )
    query, own = _options(scheme, parts.query, _SENTINEL_OPTIONS)
    db = _database(database or "0")
    return Address(
        shown=f"{scheme}://{_shown(nodes)}/{name}/{db}",
        kind=_kind(scheme),
        options={**_user(url, password), "db": db, **query},
        topology="sentinel",
        nodes=nodes,
        primary=name,
        sentinel_options={**{option.removeprefix("sentinel_"): value for option, value in own.items()}, **query},
    )


def _cluster(scheme: str, url: str, password: str | None) -> Address:
    parts = urlsplit(url)
    nodes = _nodes(parts.netloc, 6379)
    if _database(parts.path.strip("/") or "0"):
        raise ConfigurationError("redis.url: a cluster has only database 0")
    query, _ = _options(scheme, parts.query)
    return Address(
        shown=f"{scheme}://{_shown(nodes)}",
        kind=_kind(scheme),
        options={**_user(url, password), **query},
        topology="cluster",
        nodes=nodes,
    )


def _kind(scheme: str) -> type[AbstractConnection]:
    return SSLConnection if scheme.startswith("rediss") else Connection


def _nodes(netloc: str, default_port: int) -> tuple[tuple[str, int], ...]:
    """host:port,host:port behind what may be user and password."""
    found = []
    for place in netloc.rpartition("@")[2].split(","):
        try:
            one = urlsplit(f"//{place}")
            host, port = one.hostname, one.port or default_port
        except ValueError:
            host, port = None, 0
        if not host:
            raise ConfigurationError("redis.url: its hosts or ports cannot be read", remedy=_ESCAPE)
        found.append((host, port))
    return tuple(found)


def _shown(nodes: tuple[tuple[str, int], ...]) -> str:
    return ",".join(place(*node) for node in nodes)


def place(host: str, port: int) -> str:
    """host:port, as it is written and read."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _options(scheme: str, text: str, more: AbstractSet[str] = frozenset()) -> tuple[dict[str, Any], dict[str, str]]:
    """The query's options for every connection, and those named in `more`."""
    query = {name: values[-1] for name, values in parse_qs(text).items()}
    own = {name: query.pop(name) for name in more if name in query}
    unknown = set(query) - (_TLS_OPTIONS if scheme.startswith("rediss") else set())
    if unknown:
        raise ConfigurationError(f"redis.url: unknown option {min(unknown)!r}")
    options: dict[str, Any] = {**query}
    if "ssl_check_hostname" in options:
        options["ssl_check_hostname"] = options["ssl_check_hostname"].lower() not in ("0", "false", "no")
    return options, own
