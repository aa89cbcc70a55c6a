"""The SDKs' own retries, under the fleet's retry budget.

An SDK says by `x-stainless-retry-count` which attempt it makes, and obeys `x-should-retry`. So a failure that it would retry is
asked for before it is handed on: what the budget does not allow is handed on with `x-should-retry: false`, and comes out of the
SDK as what it is. What is allowed is a promise, which the retry redeems when it comes. Of those that do not come (an SDK that
has tried often enough, or does not retry at all) the next failure takes over the promise, so that they cost the fleet nothing.
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from .. import replies
from ..clock import monotonic
from ..features.retry import RetryBudget
from ..names import Metric

COUNT: Final = "x-stainless-retry-count"
ADVICE: Final = "x-should-retry"
_RETRIED: Final = frozenset({408, 409, 429})
"""And 5xx: what the SDKs retry where nobody advises them."""
_LONGEST: Final = 60.0
"""Seconds: what they wait at most because they are told to."""
_BACKOFF: Final = 8.5
"""Seconds: the longest of their own waits."""
_MOST: Final = 1000


class Recording(Protocol):
    """What retries need of the metrics."""

    def increment_counter(self, metric: str, value: int = 1, labels: Mapping[str, str] | None = None) -> None: ...


class Retries:
    """Of one process."""

    def __init__(self, budget: Callable[[], RetryBudget], metrics: Callable[[], Recording]) -> None:
        self._budget = budget
        self._metrics = metrics
        self._promised: dict[str, deque[float]] = {}

    async def begin(self, where: str, attempt: int) -> bool:
        """A call arrives. False: it is a retry that nobody has promised, and one too many."""
        account = self._budget().account(f"llm:{where}")
        if not attempt:
            account.calls += 1
            return True
        promised = self._promised.get(where)
        if promised:
            promised.popleft()
        elif not await self._budget().take(account):
            self._count(where, "over_budget")
            return False
        self._count(where, "retried")
        return True

    async def hedge(self, where: str) -> bool:
        """Whether a call may be sent once more while it is under way. It is spent then."""
        return await self._budget().take(self._budget().account(f"llm:{where}"))

    async def advise(self, where: str, status: int, said: Mapping[str, str]) -> bool:
        """Whether an SDK may try again after this. False: tell it not to."""
        if not (status in _RETRIED or status >= 500 or replies.should_retry(said)) or replies.should_retry(said) is False:
            return True
        asked = replies.wait(said) or 0.0
        now = monotonic()
        promised = self._promised.setdefault(where, deque(maxlen=_MOST))
        if not (promised and promised[0] < now):
            if not await self._budget().take(self._budget().account(f"llm:{where}")):
                self._count(where, "over_budget")
                return False
        elif promised:
            promised.popleft()
        promised.append(monotonic() + max(asked if asked <= _LONGEST else 0.0, _BACKOFF))
        return True

    def _count(self, where: str, outcome: str) -> None:
        self._metrics().increment_counter(Metric.RETRY_ATTEMPTS, 1, {"name": f"llm:{where}"[:200], "outcome": outcome})

    def forget(self) -> None:
        """A forked child has promised nothing."""
        self._promised.clear()
