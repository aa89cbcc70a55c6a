"""Traces that were not sampled and are sent all the same, by every process that has a part of them."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from ..keys import Key
from ..store.script import lua
from ..store.store import Store

KEEP_FOR_US = 120_000_000
MOST = 1000
"""Ids in one exchange."""


class Tail(Protocol):
    """What waits here for the end of its trace, wherever that is."""

    @property
    def concerned(self) -> bool:
        """Whether anything waits, or is to be told."""

    def listen(self) -> None: ...
    def told(self) -> list[str]: ...
    def untold(self, traces: Iterable[str]) -> None: ...
    def heard(self, traces: Iterable[str]) -> None: ...


@lua("tracing/exchange")
def _exchange(
    store: Store, *, kept: Key, now_us: int, since_us: int, keep_for_us: int, most: int, traces: list[str]
) -> Awaitable[list[bytes]]: ...


class Traces:
    """Tells the fleet which traces are sent from here, and has sent from here what others tell."""

    def __init__(self, store: Callable[[], Store], tail: Callable[[], Tail | None]) -> None:
        self._store = store
        self._tail = tail
        self._since_us = 0

    async def exchange(self) -> None:
        """StoreUnavailable: what was to be told is told the next time."""
        tail = self._tail()
        if tail is None:
            return
        tail.listen()
        if not tail.concerned:
            return
        store = self._store()
        traces = tail.told()
        try:
            heard_us, *heard = await _exchange(
                store,
                kept=store.keys.kept_traces(),
                now_us=0,
                since_us=self._since_us,
                keep_for_us=KEEP_FOR_US,
                most=MOST,
                traces=traces,
            )
        except BaseException:
            tail.untold(traces)
            raise
        self._since_us = int(heard_us)
        tail.heard(one.decode() for one in heard)
