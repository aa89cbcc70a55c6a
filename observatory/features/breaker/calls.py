"""The scripts of the breakers, and their answers as values."""

from collections.abc import Awaitable, Sequence
from typing import Any, NamedTuple

from ...keys import Key
from ...store.script import lua
from ...store.store import Store
from .machine import View
from .terms import Terms


class Batch(NamedTuple):
    """What one report says."""

    epoch: int
    calls: int = 0
    failures: int = 0
    tail: int = 0
    outcome: int = 0
    token: str = ""
    open_us: int = 0


class Look(NamedTuple):
    """version: of all. pauses: by digest, the microseconds left. views: in the order in which they were asked for."""

    version: str
    pauses: dict[str, int] | None
    views: tuple[View, ...]


@lua("breaker/report")
def _report(
    store: Store,
    *,
    state: Key,
    forced: Key,
    version: Key,
    known: Key,
    now_us: int,
    name: str,
    epoch: int,
    calls: int,
    failures: int,
    tail: int,
    outcome: int,
    token: str,
    failure_ppm: int,
    min_calls: int,
    consecutive: int,
    window_us: int,
    open_us: int,
) -> Awaitable[list[Any]]: ...


@lua("breaker/probe")
def _probe(
    store: Store, *, state: Key, forced: Key, now_us: int, name: str, token: str, lease_us: int
) -> Awaitable[list[Any]]: ...


@lua("breaker/force")
def _force(
    store: Store, *, state: Key, forced: Key, version: Key, known: Key, now_us: int, name: str, to: str, reason: str
) -> Awaitable[list[Any]]: ...


@lua("breaker/look")
def _look(
    store: Store,
    *,
    version: Key,
    forced: Key,
    pauses: Key,
    states: Sequence[Key],
    now_us: int,
    seen: str,
    names: Sequence[str],
) -> Awaitable[list[Any]]: ...


@lua("breaker/pause")
def _pause(
    store: Store, *, pauses: Key, version: Key, now_us: int, whose: str, pause_us: int, most: int
) -> Awaitable[list[int]]: ...


def _view(answer: Sequence[Any]) -> View:
    is_open, epoch, left_us, forced, *rest = answer
    return View(is_open, epoch, left_us, forced.decode("utf-8", "replace"), *rest)


async def report(store: Store, name: str, terms: Terms, batch: Batch, now_us: int = 0) -> View:
    """Not to be sent again, but for the outcome of a probe: calls would count twice."""
    keys = store.keys
    answer = await _report(
        store,
        state=keys.breaker(name),
        forced=keys.breakers_forced(),
        version=keys.breakers_version(),
        known=keys.breakers_known(),
        now_us=now_us,
        name=name,
        epoch=batch.epoch,
        calls=batch.calls,
        failures=batch.failures,
        tail=batch.tail,
        outcome=batch.outcome,
        token=batch.token,
        failure_ppm=terms.failure_ppm,
        min_calls=terms.min_calls,
        consecutive=terms.consecutive,
        window_us=terms.window_us,
        open_us=batch.open_us,
    )
    return _view(answer)


async def probe(store: Store, name: str, token: str, lease_us: int, now_us: int = 0) -> tuple[bool, View]:
    keys = store.keys
    granted, *rest = await _probe(
        store,
        state=keys.breaker(name),
        forced=keys.breakers_forced(),
        now_us=now_us,
        name=name,
        token=token,
        lease_us=lease_us,
    )
    return bool(granted), _view(rest)


async def force(store: Store, name: str, to: str, reason: str, now_us: int = 0) -> View:
    keys = store.keys
    answer = await _force(
        store,
        state=keys.breaker(name),
        forced=keys.breakers_forced(),
        version=keys.breakers_version(),
        known=keys.breakers_known(),
        now_us=now_us,
        name=name,
        to=to,
        reason=reason,
    )
    return _view(answer)


async def look(store: Store, names: Sequence[str], seen: str = "", now_us: int = 0) -> Look:
    """How these stand. pauses is None where nothing has changed since the version that was seen."""
    keys = store.keys
    answer = await _look(
        store,
        version=keys.breakers_version(),
        forced=keys.breakers_forced(),
        pauses=keys.pauses(),
        states=[keys.breaker(name) for name in names],
        now_us=now_us,
        seen=seen,
        names=list(names),
    )
    if len(answer) == 1:
        return Look(answer[0].decode(), None, ())
    flat = answer[1]
    pauses = {whose.decode(): int(left) for whose, left in zip(flat[::2], flat[1::2], strict=True)}
    return Look(answer[0].decode(), pauses, tuple(map(_view, answer[2:])))


async def pause(store: Store, whose: str, pause_us: int, most: int, now_us: int = 0) -> int:
    keys = store.keys
    answer = await _pause(
        store,
        pauses=keys.pauses(),
        version=keys.breakers_version(),
        now_us=now_us,
        whose=whose,
        pause_us=pause_us,
        most=most,
    )
    return answer[0]
