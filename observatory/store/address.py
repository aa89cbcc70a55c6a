"""From a URL to a way to connect. One place; the password never appears in what is printed."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

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


class Address(msgspec.Struct, frozen=True):
    """Where a store is."""

    shown: str
    """The URL without secrets."""
    kind: type[AbstractConnection] = UnixDomainSocketConnection
    options: Mapping[str, Any] = {}
    embedded: Path | None = None
    """The directory of the embedded server; its socket is known once it runs."""

    def connection(self, connect_timeout: float, **more: Any) -> AbstractConnection:
        """A connection that has not been made yet. The driver resends nothing: after a lost reply it would count twice."""
        return self.kind(
            **{**self.options, **more},
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


def address(
    url: str | None, *, password: str | None = None, environment: str, home: Path, environ: Mapping[str, str] = os.environ
) -> Address:
    """The address of a URL. None: the embedded server where that is harmless, else ConfigurationError with the remedy.

    An embedded server is private to its machine: where an orchestrator runs replicas, each would have limits of its own.
    """
    if url is None:
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
        url = "embedded://"
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigurationError("redis.url cannot be read", remedy=_ESCAPE) from None
    match parts.scheme:
        case "embedded":
            directory = Path(unquote(parts.path)) if parts.path.strip("/") else home / "embedded"
            return Address(shown=f"embedded://{directory}", embedded=directory)
        case "redis" | "rediss":
            return _tcp(parts.scheme, url, password)
        case "unix":
            path = unquote(parts.path)
            if not path:
                raise ConfigurationError("redis.url: a unix:// URL without a path", remedy="Write unix:///run/redis.sock")
            options = {**_user(url, password), "path": path, "db": _database(parse_qs(parts.query).get("db", ["0"])[-1])}
            return Address(shown=f"unix://{path}", kind=UnixDomainSocketConnection, options=options)
        case _:
            raise ConfigurationError(
                f"redis.url: scheme {parts.scheme!r} is not supported",
                remedy="Write redis://, rediss://, unix:// or embedded://",
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
    options: dict[str, Any] = {**_user(url, password), "host": host, "port": port}
    options["db"] = _database(parts.path.strip("/") or "0")
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    unknown = set(query) - (_TLS_OPTIONS if scheme == "rediss" else set())
    if unknown:
        raise ConfigurationError(f"redis.url: unknown option {min(unknown)!r}")
    if "ssl_check_hostname" in query:
        query["ssl_check_hostname"] = query["ssl_check_hostname"].lower() not in ("0", "false", "no")  # type: ignore[assignment]
    options.update(query)
    shown = f"{scheme}://{host}:{port}/{options['db']}"
    return Address(shown=shown, kind=SSLConnection if scheme == "rediss" else Connection, options=options)
