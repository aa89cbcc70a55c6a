"""Telling: once in the fleet, whoever sees it first; an event on the stream, and an entry of the outbox for webhooks."""

from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any, Protocol

import msgspec

from ... import units
from ...keys import Key
from ...names import ALERTS_DROPPED
from ...store.store import Store
from ...types import Dimensions
from .outbox import Entry, Outbox


class Recording(Protocol):
    """What alerts need of the metrics."""

    def increment_counter(self, metric: str, value: int = 1, labels: Mapping[str, str] | None = None) -> None: ...


class Streaming(Protocol):
    """And of the events."""

    def put(self, kind: str, data: Any, about: Mapping[str, str], *, id: str | None, counted: bool) -> tuple[str, bool]: ...  # noqa: A002


class Alerts:
    """Whoever has something to tell asks here; a worker with the role `alerts` carries it to webhooks."""

    def __init__(self, store: Callable[[], Store], metrics: Recording, events: Callable[[], Streaming]) -> None:
        self._store = store
        self._metrics = metrics
        self._events = events

    async def tell(self, claim: Key, claim_ms: int, kind: str, at_us: int, data: Mapping[str, Any], about: Dimensions) -> bool:
        """False: somebody else has. StoreUnavailable: unknown; told again it is told once."""
        at = f"{units.moment(at_us):%Y-%m-%dT%H:%M:%SZ}"
        body = msgspec.json.encode({"type": kind, "at": at, **data})
        known = f"msg_{blake2b(claim.encode(), digest_size=16).hexdigest()}"
        told, dropped = await Outbox(self._store()).put(claim, claim_ms, Entry("", known, kind, body))
        if dropped:
            self._metrics.increment_counter(ALERTS_DROPPED, dropped, {"reason": "full"})
        if told:
            # As the body has it: money as text, whatever reads the stream.
            said = msgspec.json.decode(body, type=dict[str, Any])
            del said["type"]
            self._events().put(kind, said, about, id=known, counted=False)
        return told
