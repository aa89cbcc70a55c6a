"""Who is told of alerts: [[alerts.webhooks]] of a file."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from .. import units
from ..errors import ConfigurationError

EVENTS: Final = ("budget", "limit")
"""What can be told of: thresholds of limits that count dollars, and of others."""
MOST: Final = 32


class Webhook(msgspec.Struct, frozen=True):
    """One receiver. Its address may be a secret, as those of chat rooms are: it is shown by its host."""

    url: str
    secret: str | None = None
    secret_file: str | None = None
    events: tuple[str, ...] = ()
    """Of EVENTS; none named: all."""

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or "?"

    @property
    def digest(self) -> str:
        """What the store knows it by; another secret is no other receiver."""
        return hashlib.blake2b(self.url.encode(), digest_size=8).hexdigest()

    def read_secret(self) -> str:
        """As it stands now. ConfigurationError, which does not show it."""
        if self.secret is not None:
            return self.secret
        try:
            return Path(self.secret_file or "").read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "is not text in UTF-8"
            raise ConfigurationError(
                f"alerts.webhooks of {self.host}: secret_file {self.secret_file}: cannot be read ({why})"
            ) from None

    def __repr__(self) -> str:
        return f"Webhook(host={self.host!r}, events={self.events!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("host", self.host), ("events", self.events)]


def webhooks(value: Any, where: str) -> tuple[Webhook, ...]:
    """As a file, an argument, or the environment (JSON) says them. ConfigurationError names the fault, never an address."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ConfigurationError(f"{where}: not JSON", remedy='Write [{"url": "https://…", "secret_file": "…"}]') from None
    if not isinstance(value, list | tuple) or len(value) > MOST:
        raise ConfigurationError(f"{where}: must be at most {MOST} tables", remedy="Write [[alerts.webhooks]] above each")
    found = tuple(one if isinstance(one, Webhook) else _webhook(one, f"{where}[{number}]") for number, one in enumerate(value))
    if len({one.url for one in found}) < len(found):
        raise ConfigurationError(f"{where}: one url is there twice")
    return found


def _webhook(table: Any, where: str) -> Webhook:
    if not isinstance(table, Mapping):
        raise ConfigurationError(f"{where}: must be a table")
    known = Webhook.__struct_fields__
    if strange := [name for name in table if name not in known]:
        raise ConfigurationError(f"{where}.{strange[0]!s:.60}: unknown key, known are {', '.join(known)}")
    for name in ("url", "secret", "secret_file"):
        if name in table and (not isinstance(table[name], str) or not table[name]):
            raise ConfigurationError(f"{where}.{name}: must be a text")
    if not _usable(table.get("url", "")):
        raise ConfigurationError(f"{where}.url: must be http:// or https:// and a host, without user and password")
    if ("secret" in table) == ("secret_file" in table):
        raise ConfigurationError(
            f"{where}: secret_file, or secret, must be there, and one of them", remedy='Write secret_file = "/run/secrets/hook"'
        )
    return Webhook(table["url"], table.get("secret"), table.get("secret_file"), _events(table.get("events", ()), where))


def _usable(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and not parts.username
    except ValueError:
        return False


def _events(said: Any, where: str) -> tuple[str, ...]:
    if not isinstance(said, list | tuple):
        raise ConfigurationError(f"{where}.events: must be a list, got {units.shown(said, 60)}")
    for one in said:
        if one not in EVENTS and one not in [f"{kind}.threshold" for kind in EVENTS]:
            raise ConfigurationError(f"{where}.events: {units.shown(one, 60)} is never told; known are {', '.join(EVENTS)}")
    return tuple(said)
