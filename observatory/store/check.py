"""Is this server fit to coordinate a fleet? ok, bad or unknown (managed services hide what we ask); only bad refuses."""

from typing import Literal

import msgspec

from ..errors import ObservatoryError, StoreError, StoreMisconfigured
from .store import Store

OLDEST = (7, 0)
FORGETFUL = ("allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-lru", "volatile-lfu", "volatile-random", "volatile-ttl")
"""Policies that would delete limits and counters when memory is short; volatile-ttl deletes limits first."""


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    name: str
    status: Literal["ok", "warn", "bad", "unknown"]
    message: str
    remedy: str | None = None


class Health(msgspec.Struct, frozen=True):
    """How this process is. Truthy unless down."""

    status: Literal["ok", "degraded", "down"]
    instances: int
    checks: tuple[Finding, ...]

    def __bool__(self) -> bool:
        return self.status != "down"


async def findings(store: Store, allow_eviction: tuple[str, ...]) -> list[Finding]:
    """Look at the server. StoreUnavailable when it does not answer at all."""
    said: dict[str, str] = {}
    for section in ("server", "memory", "persistence"):
        try:
            reply = await store.bulk().command("INFO", section)
        except StoreMisconfigured:
            continue
        except StoreError as error:
            if type(error) is not StoreError:
                raise
            continue
        pairs = (line.split(":", 1) for line in reply.decode(errors="replace").splitlines() if ":" in line)
        said.update((name, value) for name, value in pairs)
    return [_version(said), _eviction(said, allow_eviction), _persistence(said, embedded=store.address.embedded is not None)]


def _version(said: dict[str, str]) -> Finding:
    shown = said.get("valkey_version") or said.get("redis_version")
    if shown is None:
        return Finding("version", "unknown", "the server does not say its version")
    name = "Valkey" if "valkey_version" in said else "Redis"
    speaks = tuple(int(part) for part in said.get("redis_version", shown).split(".")[:2] if part.isdigit())
    if speaks < OLDEST:
        return Finding("version", "bad", f"{name} {shown} is too old", "Use Redis 7.0 or Valkey 7.2, or newer")
    return Finding("version", "ok", f"{name} {shown}")


def _eviction(said: dict[str, str], allowed: tuple[str, ...]) -> Finding:
    policy = said.get("maxmemory_policy")
    if policy is None:
        return Finding("eviction", "unknown", "the server does not say its maxmemory-policy")
    if policy in FORGETFUL and policy not in allowed:
        return Finding(
            "eviction",
            "bad",
            f"maxmemory-policy is {policy}: limits and counters would be deleted when memory is short",
            "Set maxmemory-policy noeviction on the coordination store and give the cache one of its own (cache.redis_url); "
            f'or allow it: redis.allow_eviction = ["{policy}"]',
        )
    return Finding("eviction", "ok", policy)


def _persistence(said: dict[str, str], *, embedded: bool) -> Finding:
    if "aof_enabled" not in said:
        return Finding("persistence", "unknown", "the server does not say how it persists")
    if said["aof_enabled"] == "1":
        return Finding("persistence", "ok", "append-only file" + (" of the embedded server" if embedded else ""))
    return Finding(
        "persistence", "warn", "no append-only file: a restart loses limits and counters", "Set appendonly yes on the server"
    )


async def refuse_unfit(store: Store, allow_eviction: tuple[str, ...]) -> None:
    """The short form, on connect: StoreMisconfigured for the first bad finding."""
    for finding in await findings(store, allow_eviction):
        if finding.status == "bad":
            raise StoreMisconfigured(finding.message, remedy=finding.remedy)


def describe(error: ObservatoryError) -> Finding:
    """An error as a finding."""
    return Finding("store", "bad", error.message, error.remedy)
