"""The role that carries alerts to webhooks: at least once, each receiver for itself, under the id that the alert has."""

import asyncio
import importlib
import logging
import random
import time
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

from .. import replies
from ..client import Observatory
from ..clock import monotonic
from ..errors import ConfigurationError, StoreError
from ..features.alerts import Entry, Outbox, checked_secrets, signed
from ..logs import INTERNAL
from ..names import ALERTS_DROPPED, ALERTS_SENT
from ..settings import Webhook

LOOK_EVERY: Final = 1.0
LONGEST_PAUSE: Final = 60.0
"""Seconds until a receiver that fails is tried again, at most."""
ATTEMPT: Final = 10.0
"""Seconds that a receiver has to answer."""
_TIDY_EVERY: Final = 5.0
_RETRIED: Final = frozenset({408, 409, 425, 429})


_sending: ContextVar[bool] = ContextVar("observatory_alerts_sending", default=False)


def _unsaid(record: logging.LogRecord) -> bool:
    """The client has a line of its own for each request, with all of the address, for whoever listens to it."""
    return not _sending.get()


class _Receiver(NamedTuple):
    hook: Webhook
    keys: tuple[bytes, ...]


class _Refused(NamedTuple):
    """An entry that a receiver would not take: when it is tried again, and how long that was."""

    until: float
    pause: float


class Delivery:
    """What holds: an alert is sent until the receiver says 2xx, or it is a day old, also by the next leader, with the same
    webhook-id. A receiver that is slow, away or refuses keeps no other waiting. Redirects are failures. Neither address nor
    secret nor answer is in any line.
    """

    name: Final = "alerts"
    every: Final = 1.0

    def __init__(self, obs: Observatory) -> None:
        self._obs = obs
        try:
            self._lib: Any = importlib.import_module("httpx2")
        except ImportError as error:
            raise ConfigurationError(
                "alerts.webhooks: httpx2 is not installed", remedy="pip install observatory-fleet[cli]"
            ) from error
        logging.getLogger("httpx2").addFilter(_unsaid)
        self._hooks = obs.settings.alerts.webhooks
        self._receivers()  # a secret that cannot be read is told at the door
        self._failing: set[str] = set()

    def _receivers(self) -> list[_Receiver]:
        return [
            _Receiver(hook, checked_secrets(hook.read_secret(), f"alerts.webhooks of {hook.host}: its secret"))
            for hook in self._hooks
        ]

    async def step(self, fence: int) -> None:
        """Goes on until the lease is lost. Secrets are read anew by each leader."""
        async with self._lib.AsyncClient(timeout=ATTEMPT, follow_redirects=False) as client, asyncio.TaskGroup() as group:
            for one in self._receivers():
                group.create_task(self._serve(client, one))
            group.create_task(self._tidy())

    def leave(self) -> None:
        self._failing.clear()

    async def _serve(self, client: Any, one: _Receiver) -> None:
        _sending.set(True)
        pause, refused = 0.0, dict[str, _Refused]()
        while True:
            outbox = Outbox(self._obs.store)
            try:
                waiting = await outbox.unsent(self._fresh(outbox, await outbox.entries(), one.hook), one.hook.digest)
                refused = {entry.place: refused[entry.place] for entry in waiting if entry.place in refused}
                failed = await self._send_all(client, outbox, one, waiting, refused)
            except StoreError as error:
                INTERNAL.debug("alerts wait for the store: %s", error)
                failed = True
            pause = min(max(2 * pause, LOOK_EVERY), LONGEST_PAUSE) if failed else 0.0
            await asyncio.sleep(pause * random.uniform(0.8, 1.2) or LOOK_EVERY)

    @staticmethod
    def _fresh(outbox: Outbox, entries: Sequence[Entry], hook: Webhook) -> list[Entry]:
        old = set(outbox.too_old(entries))
        return [entry for entry in entries if entry.is_for(hook.events) and entry not in old]

    async def _send_all(
        self, client: Any, outbox: Outbox, one: _Receiver, waiting: Sequence[Entry], refused: dict[str, _Refused]
    ) -> bool:
        """Whether the receiver is away: nothing else is tried then. One that refuses an entry is sent the next; the refused one
        waits by itself, longer each time."""
        for entry in waiting:
            pause = refused[entry.place].pause if entry.place in refused else 0.0
            if pause and monotonic() < refused[entry.place].until:
                continue
            status, why = await self._send(client, one, entry)
            self._obs.metrics.increment_counter(ALERTS_SENT, 1, {"outcome": "failed" if why else "delivered"})
            self._tell(one.hook, why)
            if not why:
                await outbox.acknowledged(entry, one.hook.digest)
                continue
            if status is None or status >= 500 or status in _RETRIED:
                return True
            pause = min(max(2 * pause, LOOK_EVERY), LONGEST_PAUSE)
            refused[entry.place] = _Refused(monotonic() + pause, pause)
        return False

    async def _send(self, client: Any, one: _Receiver, entry: Entry) -> tuple[int | None, str]:
        """The last status, and why it failed: no words of somebody else's, which may have the address in them."""

        async def attempt() -> None:
            headers = {
                "content-type": "application/json",
                "user-agent": "observatory",
                **signed(one.keys, entry.id, int(time.time()), entry.body),
            }
            # Its answer is not read, however long it is.
            async with client.stream("POST", one.hook.url, content=entry.body, headers=headers) as answer:
                answer.raise_for_status()

        # A handful of alerts by one sender multiplies no outage: they take nothing of the fleet's budget.
        policy = self._obs.retry(name="alerts", attempt_timeout=ATTEMPT, budget=False)
        try:
            await policy.execute(attempt)
        except (self._lib.HTTPError, self._lib.InvalidURL, self._lib.StreamError, OSError, TimeoutError, ValueError) as error:
            status = replies.status(error)
            return status, type(error).__name__ if status is None else f"HTTP {status}"
        return 200, ""

    def _tell(self, hook: Webhook, why: str) -> None:
        """One line when it begins to fail, and one when it takes alerts again."""
        if why and hook.digest not in self._failing:
            self._failing.add(hook.digest)
            INTERNAL.warning("alerts: the webhook at %s fails (%s); they are kept for a day, and tried again", hook.host, why)
        elif not why and hook.digest in self._failing:
            self._failing.discard(hook.digest)
            INTERNAL.info("alerts: the webhook at %s takes them again", hook.host)

    async def _tidy(self) -> None:
        """What everybody has goes; what is a day old goes too, and is counted for each who never had it."""
        while True:
            try:
                await self._tidied(Outbox(self._obs.store))
            except StoreError as error:
                INTERNAL.debug("alerts wait for the store: %s", error)
            await asyncio.sleep(_TIDY_EVERY)

    async def _tidied(self, outbox: Outbox) -> None:
        entries = await outbox.entries()
        missing = dict.fromkeys(entries, 0)
        for hook in self._hooks:
            for entry in await outbox.unsent([entry for entry in entries if entry.is_for(hook.events)], hook.digest):
                missing[entry] += 1
        old = set(outbox.too_old(entries))
        for entry, receivers in missing.items():
            # Only who removes it counts it: for a moment there may be two leaders.
            if (not receivers or entry in old) and await outbox.remove(entry) and receivers:
                self._obs.metrics.increment_counter(ALERTS_DROPPED, receivers, {"reason": "expired"})
