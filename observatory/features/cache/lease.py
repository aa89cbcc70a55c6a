"""The right to compute one entry, held by one computation in the fleet at a time: lua/cache/{claim,renew,release}.lua."""

import asyncio
import secrets
from collections.abc import Awaitable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, NamedTuple

import msgspec

from ...clock import monotonic
from ...errors import CacheComputationFailed, StoreError
from ...keys import Key
from ...store.script import lua
from ...store.store import Store
from .shelf import Place
from .versions import Values

LEASE = 3.0
"""Seconds after which a holder that was killed is replaced. A live one renews."""
_RENEW_EVERY = LEASE / 4
TOLD_FOR = 1.0
"""Seconds for which a failure is told to everybody who asks."""
_LONGEST = 500

held: ContextVar[str] = ContextVar("observatory_cache_lease", default="")
"""The token under which the task at hand computes; empty where it does so for itself alone."""

WAIT, LEASED, THERE, FAILED = range(4)


@lua("cache/claim")
def _claim(
    store: Values, *, entry: Key, lease: Key, token: str, lease_ms: int, seen: bytes
) -> Awaitable[tuple[int, bytes, int]]: ...


@lua("cache/renew")
def _renew(store: Values, *, lease: Key, token: str, lease_ms: int) -> Awaitable[list[int]]: ...


@lua("cache/release")
def _release(store: Values, *, lease: Key, token: str, failure: str | bytes, keep_ms: int) -> Awaitable[list[int]]: ...


SPOILT = b"spoilt"


class Claim(NamedTuple):
    """What the script answered. detail: why it failed, or SPOILT where the store had another type of key for the entry."""

    state: int
    detail: bytes
    left: float
    """Seconds that the lease or the failure lasts."""


class Lease:
    """One computation's. The token is new each time: a lease that was evicted and taken again is another one."""

    def __init__(self, store: Store, place: Place) -> None:
        self._values = Values(store)
        self._place = place
        self.token = secrets.token_hex(16)

    async def claim(self, seen: bytes) -> Claim:
        """seen: how the entry begins that may not be used."""
        state, detail, left_ms = await _claim(
            self._values,
            entry=self._place.entry,
            lease=self._place.lease,
            token=self.token,
            lease_ms=int(LEASE * 1000),
            seen=seen,
        )
        return Claim(state, detail, max(left_ms, 0) / 1000)

    async def keep(self) -> None:
        """Renew until cancelled, or until it is lost: then what is computed will not be stored, but answered."""
        while True:
            await asyncio.sleep(_RENEW_EVERY)
            with suppress(StoreError):
                (held,) = await _renew(self._values, lease=self._place.lease, token=self.token, lease_ms=int(LEASE * 1000))
                if not held:
                    return

    async def release(self, error: Exception | None = None, fail_for: float = 0.0) -> None:
        """Let go; an error is told for a while to whoever asks. With the store away the lease ends by itself."""
        failure = b"" if error is None else b"!" + _written(error)
        keep_ms = int(max(fail_for, TOLD_FOR) * 1000)
        with suppress(StoreError):
            await _release(self._values, lease=self._place.lease, token=self.token, failure=failure, keep_ms=keep_ms)

    async def give_back(self) -> None:
        """Let go of what may have been granted though nobody heard of it: again while the store is slow, until it has ended."""
        ends = monotonic() + LEASE
        while monotonic() < ends:
            try:
                await _release(self._values, lease=self._place.lease, token=self.token, failure=b"", keep_ms=0)
            except StoreError:
                await asyncio.sleep(LEASE / 12)
            else:
                return


async def release(store: Store, lease: Key, token: str) -> int:
    """Of any lock that is a token; 1 when it was held."""
    (released,) = await _release(Values(store), lease=lease, token=token, failure=b"", keep_ms=0)
    return released


def _written(error: Exception) -> bytes:
    try:
        text = str(error)
    except Exception:  # a stranger's __str__
        text = ""
    text = text[:_LONGEST].encode("utf-8", "replace").decode()
    return msgspec.msgpack.encode([type(error).__name__[:100], text])


def failure(cache: str, told: bytes, left: float) -> CacheComputationFailed:
    """The error that a failure becomes in other processes, and here a moment later."""
    kind, text = "", ""
    with suppress(msgspec.MsgspecError, ValueError):
        said: Any = msgspec.msgpack.decode(told, type=tuple[str, str])
        kind, text = said
    return CacheComputationFailed(
        f"cache {cache}: the computation failed with {kind or 'an error'}{': ' if text else ''}{text}",
        retry_after=left,
        context={"cache": cache, "error": kind},
    )
