"""A plain look at a server on this machine, blocking: for tests, which also look while our own connections are away."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

_AGE = """
local left = redis.call('PTTL', KEYS[1])
if left >= 0 then
  if left > tonumber(ARGV[1]) then
    redis.call('PEXPIRE', KEYS[1], left - ARGV[1])
  else
    redis.call('UNLINK', KEYS[1])
  end
end
"""
_MANY = 1000


class Bare:
    """One connection to it."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def keys(self, pattern: str) -> Iterator[bytes]:
        """Those that fit, found in small steps."""
        yield from self._client.scan_iter(match=pattern, count=_MANY)

    def lasting(self, pattern: str) -> list[str]:
        """Those of them that have no TTL."""
        found = list(self.keys(pattern))
        left: list[int] = []
        for at in range(0, len(found), _MANY):
            with self._client.pipeline(transaction=False) as pipe:
                for key in found[at : at + _MANY]:
                    pipe.pttl(key)
                left += pipe.execute()
        return sorted(key.decode() for key, ms in zip(found, left, strict=True) if ms == -1)

    def remove(self, pattern: str) -> None:
        batch: list[bytes] = []
        for key in self.keys(pattern):
            batch.append(key)
            if len(batch) == _MANY:
                self._client.unlink(*batch)
                batch.clear()
        if batch:
            self._client.unlink(*batch)

    def age(self, pattern: str, ms: int) -> None:
        """Their time to live is shorter by so much; what is over is gone."""
        for key in self.keys(pattern):
            self._client.eval(_AGE, 1, key, ms)


@contextmanager
def bare(path: Path) -> Iterator[Bare]:
    """The server that listens on this unix socket."""
    client = redis.Redis(unix_socket_path=str(path), socket_timeout=10.0)
    try:
        yield Bare(client)
    finally:
        client.close()
