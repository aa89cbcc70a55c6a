"""Who is here: one beat a second per process, which also carries the namespace's record and the server's time."""

from collections.abc import Awaitable
from typing import NamedTuple

import msgspec

from .. import keys
from ..clock import monotonic
from ..errors import StoreMisconfigured
from ..keys import LAYOUT, Key
from ..store.script import lua
from ..store.store import Store

BEAT_EVERY = 1.0
GONE_AFTER_US = 3_000_000
"""An instance unseen for three beats is no longer counted."""


class Says(msgspec.Struct, frozen=True):
    """What an instance says of itself."""

    service: str
    role: str
    version: str
    since_us: int = 0
    leads: tuple[str, ...] = ()
    """The roles of a worker that it alone has."""


class Member(msgspec.Struct, frozen=True):
    """An instance, as others see it."""

    instance: str
    says: Says
    last_beat: float
    """Seconds since its last beat."""


class Beat(NamedTuple):
    """What a beat learned: live instances, those of our role, and the number that was given out (or 0)."""

    live: int
    live_peers: int
    number: int


@lua("presence/beat")
def _beat(
    store: Store,
    *,
    record: Key,
    members: Key,
    peers: Key,
    instances: Key,
    now_us: int,
    instance: str,
    says: bytes,
    layout: int,
    partitions: int,
    salt: str,
    gone_after_us: int,
    newcomer: int,
) -> Awaitable[list[bytes]]: ...


@lua("presence/leave")
def _leave(store: Store, *, members: Key, peers: Key, instances: Key, instance: str) -> Awaitable[list[int]]: ...


class Presence:
    """This process among the others."""

    def __init__(self, store: Store, instance: str, says: Says, partitions: int, number: int | None = None) -> None:
        self._store = store
        self._instance = instance
        self._says = says
        self._partitions = partitions
        self._newcomer = number is None
        self._seen: list[tuple[float, int]] = []
        """Falling numbers of live instances of the last minute, by when they were seen."""
        self.live = 0
        """Instances seen within the last three seconds, ours included; 0 before the first beat."""
        self.live_peers = 0
        self.log_level: str | None = None
        """The level that all instances were told to log at, or None."""
        self.number = number or 0
        """The number that this process was given, by which its telemetry is dealt to a partition."""

    @property
    def most_live(self) -> int:
        """The most instances that were seen in the last minute before the last beat; 0 when there was none."""
        return self._seen[0][1] if self._seen else 0

    async def beat(self) -> Beat:
        """Say "I am here". StoreMisconfigured when the namespace was made by a newer layout."""
        name, role = self._store.namespace, self._says.role
        asked_at = monotonic()
        reply = await _beat(
            self._store,
            record=keys.record(name),
            members=keys.members(name),
            peers=keys.peers(name, role),
            instances=keys.instances(name),
            now_us=0,
            instance=self._instance,
            says=msgspec.json.encode(self._says),
            layout=LAYOUT,
            partitions=self._partitions,
            salt=self._store.proposed_salt.hex(),
            gone_after_us=GONE_AFTER_US,
            newcomer=int(self._newcomer),
        )
        now_us, layout, partitions, salt, live, live_peers, number, log_level = map(_plain, reply)
        if int(layout) > LAYOUT:
            raise StoreMisconfigured(
                f"namespace {name} has key layout {layout}, this version knows up to {LAYOUT}", remedy="Upgrade this process"
            )
        self._store.learn_time(int(now_us), asked_at, monotonic())
        self._store.join(int(partitions), bytes.fromhex(str(salt)))
        if self._newcomer:
            self.number, self._newcomer = int(number), False
            self._says = msgspec.structs.replace(self._says, since_us=int(now_us))
        self.live, self.live_peers = int(live), int(live_peers)
        self.log_level = str(log_level) or None
        now = monotonic()
        self._seen = [one for one in self._seen if one[0] > now - 60 and one[1] > self.live] + [(now, self.live)]
        return Beat(self.live, self.live_peers, self.number)

    def tell(self, *, leads: tuple[str, ...]) -> None:
        """What the next beat says of us."""
        self._says = msgspec.structs.replace(self._says, leads=leads)

    async def leave(self) -> None:
        """Say goodbye, so that nobody has to wait for our silence."""
        name = self._store.namespace
        await _leave(
            self._store,
            members=keys.members(name),
            peers=keys.peers(name, self._says.role),
            instances=keys.instances(name),
            instance=self._instance,
        )

    async def members(self) -> tuple[Member, ...]:
        """Every live instance, by name."""
        name, bulk = self._store.namespace, self._store.bulk()
        says = await bulk.command("HGETALL", keys.instances(name))
        flat = await bulk.command("ZRANGE", keys.members(name), 0, -1, "WITHSCORES")
        now_us = self._store.server_us() or 0
        found = []
        for instance, seen_us in flat:
            if instance in says and (silence := (now_us - int(seen_us)) / 1e6) <= GONE_AFTER_US / 1e6:
                said = msgspec.json.decode(says[instance], type=Says)
                found.append(Member(instance.decode(), said, max(silence, 0.0)))
        return tuple(sorted(found, key=lambda member: (member.says.role, member.instance)))


async def tell_log_level(store: Store, level: str | None) -> None:
    """Every instance of the namespace logs at this level from its next beat; None: at that of its own settings again."""
    record, bulk = keys.record(store.namespace), store.bulk()
    if level is None:
        await bulk.command("HDEL", record, "log_level")
    else:
        await bulk.command("HSET", record, "log_level", level)


async def told_log_level(store: Store) -> str | None:
    """The level that all instances were told, or None."""
    told = await store.bulk().command("HGET", keys.record(store.namespace), "log_level")
    return None if told is None else told.decode()


def _plain(value: bytes | int) -> str | int:
    return value.decode() if isinstance(value, bytes) else value
