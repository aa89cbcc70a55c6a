"""Real servers in company: a primary with replicas and sentinels, and a cluster. On loopback, and gone with the test."""

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import redis

from tests.servers import die_with_parent, find, wait_until

PRIMARY = "main"
_given: set[int] = set()


def _port() -> int:
    """Free, with the one 10,000 higher, where a cluster's bus is; below those that the system gives to outgoing connections."""
    while True:
        port = random.randrange(10_500, 20_500)
        with socket.socket() as one, socket.socket() as bus, suppress(OSError):
            one.bind(("127.0.0.1", port))
            bus.bind(("127.0.0.1", port + 10_000))
            if port not in _given:
                _given.add(port)
                return port


class Member:
    """One server of several, on a port of its own."""

    def __init__(self, kind: str, directory: Path, *options: str, sentinel: str | None = None) -> None:
        self.port = _port()
        directory.mkdir(parents=True, exist_ok=True)
        common = ("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(directory), "--loglevel", "warning")
        if sentinel is not None:
            (directory / "sentinel.conf").write_text(sentinel)
            self._command = [find(kind), str(directory / "sentinel.conf"), "--sentinel", *common]
        else:
            fast = ("--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0")
            self._command = [find(kind), *common, *fast, *options]
        self._process: subprocess.Popen[bytes] | None = None
        self._client: redis.Redis | None = None

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command, preexec_fn=die_with_parent, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )

    def stop(self) -> None:
        """Gone at once, also when it stands still."""
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            os.kill(self._process.pid, number)

    def __call__(self, *command: Any) -> Any:
        """One command, answered as RESP2 has it."""
        if self._client is None:
            self._client = redis.Redis(port=self.port, protocol=2, socket_timeout=5)
        reply = self._client.connection_pool.get_connection()
        try:
            reply.send_command(*command)  # type: ignore[no-untyped-call]
            return reply.read_response()
        finally:
            self._client.connection_pool.release(reply)

    def answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"it has ended: {self._command}"
        with suppress(redis.RedisError):
            return bool(self("PING"))
        return False

    def role(self) -> str:
        with suppress(redis.RedisError):
            return str(self("ROLE")[0].decode())
        return "away"

    def keys(self, pattern: str) -> Iterator[tuple[str, int]]:
        """Every key that matches, and its remaining milliseconds (-1: it never goes)."""
        with redis.Redis(port=self.port) as client:
            for key in client.scan_iter(match=pattern, count=1000):
                yield key.decode(), int(client.pttl(key))
                client.unlink(key)


def _quiet(members: Sequence[Member]) -> None:
    for member in members:
        member.start()
    for member in members:
        wait_until(member.answers, "the server answers")


class Sentinels:
    """One primary, two replicas, three sentinels."""

    def __init__(self, kind: str, directory: Path) -> None:
        first = Member(kind, directory / "d0")
        replicas = [Member(kind, directory / f"d{number}", "--replicaof", "127.0.0.1", str(first.port)) for number in (1, 2)]
        self.data = [first, *replicas]
        text = (
            f"sentinel monitor {PRIMARY} 127.0.0.1 {first.port} 2\n"
            f"sentinel down-after-milliseconds {PRIMARY} 500\n"
            f"sentinel failover-timeout {PRIMARY} 3000\n"
        )
        self.sentinels = [Member(kind, directory / f"s{number}", sentinel=text) for number in range(3)]

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(one.place for one in self.sentinels)}/{PRIMARY}"

    @property
    def members(self) -> list[Member]:
        return [*self.data, *self.sentinels]

    def start(self) -> None:
        _quiet(self.data)
        # Sentinels look for replicas at once, and then every ten seconds.
        wait_until(lambda: len(self.data[0]("ROLE")[2]) == 2, "both replicas are attached")
        _quiet(self.sentinels)
        wait_until(lambda: all(self._seen(one) == (2, 2) for one in self.sentinels), "the sentinels know each other")

    @staticmethod
    def _seen(sentinel: Member) -> tuple[int, int]:
        flat = sentinel("SENTINEL", "MASTER", PRIMARY)
        facts = dict(zip(flat[::2], flat[1::2], strict=True))
        return int(facts[b"num-slaves"]), int(facts[b"num-other-sentinels"])

    @property
    def primary(self) -> Member:
        """As the majority of the sentinels say."""
        said = []
        for one in self.sentinels:
            with suppress(redis.RedisError):
                said.append(int(one("SENTINEL", "GET-MASTER-ADDR-BY-NAME", PRIMARY)[1]))
        port = max(set(said), key=said.count)
        return next(member for member in self.data if member.port == port)

    @property
    def primaries(self) -> list[Member]:
        return [self.primary]

    @property
    def replicas(self) -> list[Member]:
        primary = self.primary
        return [member for member in self.data if member is not primary]


class Cluster:
    """Three masters, one replica each."""

    def __init__(self, kind: str, directory: Path, *options: str) -> None:
        fast = (
            "--cluster-enabled",
            "yes",
            "--cluster-node-timeout",
            "1000",
            "--cluster-replica-validity-factor",
            "0",
            *options,
        )
        self.members = [Member(kind, directory / f"c{number}", *fast) for number in range(6)]

    @property
    def url(self) -> str:
        return f"redis+cluster://{','.join(member.place for member in self.members[:3])}"

    def start(self) -> None:
        _quiet(self.members)
        masters, replicas = self.members[:3], self.members[3:]
        for number, master in enumerate(masters):
            master("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            master("CLUSTER", "ADDSLOTSRANGE", number * 16384 // 3, (number + 1) * 16384 // 3 - 1)
        for member in self.members[1:]:
            member("CLUSTER", "MEET", "127.0.0.1", self.members[0].port)
        wait_until(lambda: all(len(self.nodes(member)) == 6 for member in self.members), "they have met")
        for master, replica in zip(masters, replicas, strict=True):
            replica("CLUSTER", "REPLICATE", self.identity(master))
        wait_until(self.whole, "the cluster is whole")

    def nodes(self, member: Member) -> list[list[str]]:
        lines = member("CLUSTER", "NODES").decode().splitlines()
        return [fields for line in lines if "handshake" not in (fields := line.split())[2]]

    def identity(self, member: Member) -> str:
        return str(member("CLUSTER", "MYID").decode())

    def whole(self) -> bool:
        """Every slot is served, and every master has its replica in step."""
        for member in self.members:
            if b"cluster_state:ok" not in member("CLUSTER", "INFO"):
                return False
            if sum("slave" in fields[2] for fields in self.nodes(member)) < 3:
                return False
        return sum(len(member("ROLE")[2]) for member in self.primaries) >= 3

    @property
    def primaries(self) -> list[Member]:
        return [member for member in self.members if member.role() == "master"]

    def owner(self, slot: int) -> Member:
        """Who serves a slot, as most of them say."""
        said = []
        for member in self.members:
            with suppress(redis.RedisError):
                said += [one[2][1] for one in member("CLUSTER", "SLOTS") if one[0] <= slot <= one[1]]
        port = max(set(said), key=said.count)
        return next(member for member in self.members if member.port == port)

    def replica_of(self, master: Member) -> Member:
        name = self.identity(master)
        return next(
            member
            for member in self.members
            if any("myself" in fields[2] and fields[3] == name for fields in self.nodes(member))
        )


@contextmanager
def running(one: Sentinels | Cluster) -> Iterator[None]:
    """Up and in agreement; down at the end, however it went."""
    try:
        one.start()
        yield
    finally:
        for member in one.members:
            member.stop()


def timed(one: Sentinels | Cluster) -> float:
    """Seconds until it is up."""
    began = time.monotonic()
    with running(one):
        return time.monotonic() - began
