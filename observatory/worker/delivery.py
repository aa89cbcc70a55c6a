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


class _Failed(NamedTuple):
    """An entry that a receiver did not take: how often, and if it waits by itself, until when, and how long that was."""

    times: int
    until: float = 0.0
    pause: float = 0.0

    def alone(self) -> "_Failed":
        """Others go on without it."""
        pause = min(max(2 * self.pause, LOOK_EVERY), LONGEST_PAUSE)
        return _Failed(self.times + 1, monotonic() + pause, pause)


def _keys_of(hook: Webhook) -> tuple[bytes, ...]:
    """As its secret stands now. ConfigurationError."""
    return checked_secrets(hook.read_secret(), f"alerts.webhooks of {hook.host}: its secret")


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
        for hook in self._hooks:
            _keys_of(hook)  # what cannot be read is told at the door
        self._failing: set[str] = set()

    async def step(self, fence: int) -> None:
        """Goes on until the lease is lost."""
        # Before anything is sent: what one of ours lacks then, no leader with other settings removes.
        await self._known(Outbox(self._obs.store))
        async with self._lib.AsyncClient(timeout=ATTEMPT, follow_redirects=False) as client, asyncio.TaskGroup() as group:
            for hook in self._hooks:
                group.create_task(self._serve(client, hook))
            group.create_task(self._tidy())

    def leave(self) -> None:
        self._failing.clear()

    async def _serve(self, client: Any, hook: Webhook) -> None:
        _sending.set(True)
        pause, failures = 0.0, dict[str, _Failed]()
        while True:
            outbox = Outbox(self._obs.store)
            try:
                waiting = await outbox.unsent(self._fresh(outbox, await outbox.entries(), hook), hook.digest)
                failures = {entry.place: failures[entry.place] for entry in waiting if entry.place in failures}
                failed = await self._send_all(client, outbox, hook, waiting, failures)
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
        self, client: Any, outbox: Outbox, hook: Webhook, waiting: Sequence[Entry], failures: dict[str, _Failed]
    ) -> bool:
        """Whether the receiver is away: nothing else is tried then.

        One that refuses an entry (4xx) is sent the next, and the refused one waits by itself, longer each time. What fails
        otherwise may be the receiver or the entry: another goes first the next time, and where that is taken it is the entry.
        """
        if not waiting:
            return False
        try:
            # Anew for each batch: a secret is changed while a worker leads. A disk may be slow.
            keys = await asyncio.to_thread(_keys_of, hook)
        except ConfigurationError as error:
            self._tell(hook, error.message)
            return True
        taken = False
        for entry in sorted(waiting, key=lambda entry: failures[entry.place].times if entry.place in failures else 0):
            before = failures.get(entry.place, _Failed(0))
            if before.pause and monotonic() < before.until:
                continue
            status, why = await self._send(client, hook, keys, entry)
            self._obs.metrics.increment_counter(ALERTS_SENT, 1, {"outcome": "failed" if why else "delivered"})
            self._tell(hook, why)
            if not why:
                await outbox.acknowledged(entry, hook.digest)
                taken = True
            elif status in _RETRIED:
                return True
            elif status is not None and status < 500:
                failures[entry.place] = before.alone()
            elif taken:
                failures[entry.place], taken = before.alone(), False
            elif before.pause:
                # Known to fail by itself: it says nothing of the receiver, and what is new has its turn before the next such.
                failures[entry.place] = before.alone()
                return False
            else:
                failures[entry.place] = _Failed(before.times + 1)
                return True
        return False

    async def _send(self, client: Any, hook: Webhook, keys: tuple[bytes, ...], entry: Entry) -> tuple[int | None, str]:
        """The last status, and why it failed: no words of somebody else's, which may have the address in them."""

        async def attempt() -> None:
            headers = {
                "content-type": "application/json",
                "user-agent": "observatory",
                **signed(keys, entry.id, int(time.time()), entry.body),
            }
            # Its answer is not read, however long it is.
            async with client.stream("POST", hook.url, content=entry.body, headers=headers) as answer:
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

    async def _known(self, outbox: Outbox) -> dict[str, tuple[str, ...]]:
        return await outbox.known({hook.digest: hook.events for hook in self._hooks})

    async def _tidied(self, outbox: Outbox) -> None:
        entries = await outbox.entries()
        # Also those of leaders with other settings: while a change rolls out, one that knows nothing of them must not remove.
        receivers = await self._known(outbox)
        missing = dict.fromkeys(entries, 0)
        for digest, events in receivers.items():
            for entry in await outbox.unsent([entry for entry in entries if entry.is_for(events)], digest):
                missing[entry] += 1
        old = set(outbox.too_old(entries))
        for entry, number in missing.items():
            # Only who removes it counts it: for a moment there may be two leaders.
            if (not number or entry in old) and await outbox.remove(entry) and number:
                self._obs.metrics.increment_counter(ALERTS_DROPPED, number, {"reason": "expired"})
