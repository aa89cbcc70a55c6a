"""The limiter's scripts, as Python calls them: sent in this tick of the loop, answered by a future."""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any

from ...keys import Key
from ...store.script import lua
from ...store.store import Store


@lua("rate_limiter/decide")
def decide(
    store: Any, *, fence: Key, states: Sequence[Key], now_us: int, known: int, limits: bytes, requests: bytes
) -> "asyncio.Future[list[Any]]": ...


@lua("rate_limiter/settle")
def settle(
    store: Any, *, fence: Key, states: Sequence[Key], now_us: int, known: int, limits: bytes, requests: bytes
) -> "asyncio.Future[list[Any]]": ...


@lua("rate_limiter/advance")
def advance(
    store: Any,
    *,
    fence: Key,
    state: Key,
    now_us: int,
    known: int,
    limits: bytes,
    owner: str,
    joins: bytes,
    leaves: bytes,
) -> Awaitable[list[Any]]: ...


class Sending:
    """A store as the stubs see it: it sends, on a link, and hands back the future."""

    __slots__ = ("_replicas", "_store")

    def __init__(self, store: Store, replicas: int) -> None:
        self._store = store
        self._replicas = replicas

    def run(self, script: Any, keys: list[str], arguments: list[Any]) -> Any:
        if self._replicas:
            return self._store.send(script, keys, arguments, "durable", replicas=self._replicas)
        return self._store.send(script, keys, arguments)
