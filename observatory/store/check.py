"""Is this server fit to coordinate a fleet? ok, bad or unknown (managed services hide what we ask); only bad refuses."""

from typing import Literal

import msgspec

from ..errors import ObservatoryError, StoreError, StoreMisconfigured, StoreUnavailable
from .store import Store

OLDEST = (7, 0)
FORGETFUL = ("allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-lru", "volatile-lfu", "volatile-random", "volatile-ttl")
"""Policies that would delete limits and counters when memory is short; volatile-ttl deletes limits first."""

_WORSE = ("ok", "unknown", "warn", "bad")


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
    """Look at the server, at each primary of a cluster: the worst is told. StoreUnavailable when none answers at all."""
    said: dict[str, dict[str, str]] = {}
    away: dict[str, StoreUnavailable] = {}
    for section in ("server", "memory", "persistence", "replication"):
        for where, reply in (await store.everywhere("INFO", section)).items():
            facts = said.setdefault(where, {})
            if isinstance(reply, StoreUnavailable):
                away[where] = reply
            elif isinstance(reply, bytes):
                parted = (line.partition(":") for line in reply.decode(errors="replace").splitlines())
                facts.update((name, value) for name, colon, value in parted if colon)
            elif not isinstance(reply, StoreError):
                raise reply
    if len(away) == len(said):
        raise next(iter(away.values()))
    embedded = store.address.embedded is not None
    looked = {
        where: (_version(facts), _eviction(facts, allow_eviction), _persistence(facts, embedded=embedded), _fence(facts))
        for where, facts in said.items()
        if where not in away
    }
    if not store.is_cluster:
        return [finding for found in looked.values() for finding in found]
    each = [Finding("store", "bad", f"{where}: {fault.message}", fault.remedy) for where, fault in away.items()]
    rows = zip(*looked.values(), strict=True)
    return [_slots(len(said), store.unserved), *each, *(_worst(dict(zip(looked, row, strict=True))) for row in rows)]


def _worst(found: dict[str, Finding]) -> Finding:
    """Of the same thing at several servers; where it is said once, all of them are so."""
    where, worst = max(found.items(), key=lambda item: _WORSE.index(item[1].status))
    if all(finding == worst for finding in found.values()):
        return worst
    return Finding(worst.name, worst.status, f"{where}: {worst.message}", worst.remedy)


def _slots(primaries: int, unserved: int) -> Finding:
    if unserved:
        return Finding("cluster", "warn", f"{unserved} slots are served by nobody", "Look at CLUSTER INFO and CLUSTER SHARDS")
    return Finding("cluster", "ok", f"{primaries} primaries, every slot is served")


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


def _fence(said: dict[str, str]) -> Finding:
    if "master_replid" in said:
        return Finding("fence", "ok", "a failover or restart is seen by the limits")
    return Finding(
        "fence",
        "unknown",
        "the server hides its replication id: after a failover a limit may admit again what was forgotten, one burst at most",
        'Allow INFO to our user; or durability="strict" on limits that must not',
    )


async def refuse_unfit(store: Store, allow_eviction: tuple[str, ...]) -> None:
    """The short form, on connect: StoreMisconfigured for the first bad finding. A part of a cluster may be away."""
    for finding in await findings(store, allow_eviction):
        if finding.status == "bad" and finding.name != "store":
            raise StoreMisconfigured(finding.message, remedy=finding.remedy)


def describe(error: ObservatoryError) -> Finding:
    """An error as a finding."""
    return Finding("store", "bad", error.message, error.remedy)
