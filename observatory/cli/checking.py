"""Would it open? What is wrong with the settings, as far as that can be known without the store."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ..client import Observatory
from ..errors import ConfigurationError, InvalidArgument
from ..features.alerts import checked_secrets
from ..features.rate_limiter import Limit
from ..features.rate_limiter.limit import fields_of
from ..settings import LimitSettings, Settings, Webhook
from ..settings.table import value_of
from ..store.address import address, home
from ..worker import chosen

_BY_THEMSELVES = frozenset(
    ("by", "match", "on_store_down", "after_failover", "durability", "shadow", "fair_by", "weights", "overrides", "alert_at")
)
"""Fields of a limit that are right or wrong without its others."""


class Checked(NamedTuple):
    """mistakes: with them it does not open. notes: what only means something together with code."""

    settings: Settings
    mistakes: list[ConfigurationError | str]
    warnings: list[str]
    notes: list[str]


def checked(file: str | None, redis_url: str | None, namespace: str | None) -> Checked:
    """Of what a process here would read. ConfigurationError: the file cannot be read at all."""
    settings, faults = Settings.examine(file, redis_url=redis_url, namespace=namespace)
    mistakes: list[ConfigurationError | str] = [*faults, *settings.warnings]
    for attempt in _attempts(settings):
        try:
            attempt()
        except ConfigurationError as error:
            mistakes.append(error)
    return Checked(settings, mistakes, list(_warnings(settings)), list(_notes(settings)))


def _attempts(settings: Settings) -> Iterator[Callable[[], object]]:
    """What a process does at its opening, one by one; each raises what it does not like."""
    for key in ("redis.url", "cache.redis_url"):
        # None may be embedded or not: that is a question of the machine that it will run on.
        if (url := value_of(settings, key)) is not None:
            yield partial(_from, settings, key, partial(_addressed, settings, key, url))
    yield partial(_from, settings, "worker.roles", partial(chosen, settings.worker.roles))
    for hook in settings.alerts.webhooks:
        if _is_there(hook):
            yield partial(_from, settings, "alerts.webhooks", partial(_signing, hook))
    for name, limit in settings.limits.items():
        yield partial(_limit, settings, name, limit)
    for name, breaker in settings.breakers.items():
        yield partial(lambda one: one.breakers, _room(settings, breakers={name: breaker}))


def _from(settings: Settings, key: str, attempt: Callable[[], object]) -> None:
    """The layer is named as every other error of the settings names it."""
    try:
        attempt()
    except ConfigurationError as error:
        layer = settings.sources.get(key)
        raise ConfigurationError(f"{layer}: {error.message}" if layer else error.message, remedy=error.remedy) from None


def _addressed(settings: Settings, key: str, url: str) -> None:
    where = home(settings.home)
    address(url, password=settings.redis.password, environment=settings.environment, home=where, setting=key)


def _signing(hook: Webhook) -> None:
    checked_secrets(hook.read_secret(), f"alerts.webhooks of {hook.host}: its secret")


def _room(settings: Settings, *, limits: Any = None, breakers: Any = None) -> Observatory:
    """One that has nothing else by name: each mistake is told once."""
    return Observatory("check", settings=msgspec.structs.replace(settings, limits=limits or {}, breakers=breakers or {}))


def _limit(settings: Settings, name: str, limit: LimitSettings) -> None:
    """Of a table that only changes what code declares, what is wrong whatever that is."""
    if not _room(settings, limits={name: limit}).rate_limiter.idle():
        return
    try:
        given = {field: value for field, value in fields_of(limit).items() if field in _BY_THEMSELVES}
        msgspec.structs.replace(Limit(name, 1, per=1), **given)
    except InvalidArgument as error:
        said = error.message.removeprefix(f"limit {name}: ")
        raise ConfigurationError(f"{settings.layer}: limits.{name}: {said}", remedy=error.remedy) from None


def _is_there(hook: Webhook) -> bool:
    """Secrets are where the worker is, and perhaps nowhere else."""
    return hook.secret is not None or os.access(hook.secret_file or "", os.R_OK)


def _warnings(settings: Settings) -> Iterator[str]:
    for hook in settings.alerts.webhooks:
        if not _is_there(hook):
            why = "cannot be read" if Path(hook.secret_file or "").exists() else "is not there"
            yield f"alerts.webhooks of {hook.host}: secret_file {hook.secret_file} {why}; a worker must be able to read it"


def _notes(settings: Settings) -> Iterator[str]:
    for name, limit in settings.limits.items():
        try:
            idle = _room(settings, limits={name: limit}).rate_limiter.idle()
        except ConfigurationError:
            continue  # it is a limit of its own, and a mistake
        if idle:
            yield f"[limits.{name}] only changes what code declares: it has no amount and per of its own"
