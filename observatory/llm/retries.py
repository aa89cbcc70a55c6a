"""The SDKs' own retries, under the fleet's retry budget.

An SDK says by `x-stainless-retry-count` which attempt it makes, and obeys `x-should-retry`. So a failure that it would retry is
asked for before it is handed on: what the budget does not allow is handed on with `x-should-retry: false`, and comes out of the
SDK as what it is. What is allowed is a promise, which the retry redeems when it comes.

How often an SDK tries, it does not say. A promise that nobody redeems in time is the next failure's; a client that has never
come again gets few at a time; one that let several lapse, and an attempt that is usually the last, is not asked for at all. If
it comes all the same, it is asked for then.
"""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, Protocol

from .. import replies
from ..clock import RoomClock, monotonic
from ..features.retry import RetryBudget
from ..features.retry.budget import WINDOW
from ..names import Metric

COUNT: Final = "x-stainless-retry-count"
ADVICE: Final = "x-should-retry"
_RETRIED: Final = frozenset({408, 409, 429})
"""And 5xx: what the SDKs retry where nobody advises them."""
_LONGEST: Final = 60.0
"""Seconds: what they wait at most because they are told to."""
_FIRST: Final = 0.5
_BACKOFF: Final = 8.0
"""Seconds: the first of their own waits, which doubles, and the longest."""
_LATE: Final = 1.0
"""Seconds: a retry that comes so much later than it should still finds its promise."""
_LAST: Final = 2
"""The attempt after which they give up (max_retries), unless a client was seen to go on."""
_UNPROVEN: Final = 5
"""Promises at a time to a client that has never come again."""
_LAPSED: Final = 3
_MOST: Final = 1000


class Habits:
    """What one client was seen to do. last: the attempt that it makes no further one after."""

    __slots__ = ("comes", "lapsed", "last")

    def __init__(self) -> None:
        self.comes = False
        self.lapsed = 0
        self.last = _LAST

    def came(self, attempt: int) -> None:
        self.comes, self.lapsed = True, 0
        if attempt > self.last:
            self.last = attempt + 1


class _Promise(NamedTuple):
    """at: of the clock that the budget goes by. until: of real time, in which SDKs wait whatever clock that is."""

    at: float
    until: float
    habits: Habits


class Recording(Protocol):
    """What retries need of the metrics."""

    def increment_counter(self, metric: str, value: int = 1, labels: Mapping[str, str] | None = None) -> None: ...


class Retries:
    """Of one process."""

    def __init__(self, budget: Callable[[], RetryBudget], metrics: Callable[[], Recording], clock: RoomClock) -> None:
        self.clock = clock
        self._budget = budget
        self._metrics = metrics
        self._promised: dict[str, list[_Promise]] = {}

    async def begin(self, where: str, attempt: int, habits: Habits) -> bool:
        """A call arrives. False: it is a retry that nobody has promised, and one too many."""
        if not attempt:
            return True
        habits.came(attempt)
        promised = self._promised.get(where, [])
        mine = next((one for one in promised if one.habits is habits), None)
        if mine is not None:
            promised.remove(mine)
            if not promised:
                del self._promised[where]
        elif not await self._spend(where):
            return False
        self._count(where, "retried")
        return True

    def sent(self, where: str) -> None:
        """A first attempt is let in: of what is refused here, no retry can come."""
        self._budget().account(f"llm:{where}").calls += 1

    async def hedge(self, where: str) -> bool:
        """Whether a call may be sent once more while it is under way. It is spent then."""
        return await self._budget().take(self._budget().account(f"llm:{where}"))

    async def advise(self, where: str, attempt: int, status: int, said: Mapping[str, str], habits: Habits) -> bool:
        """Whether an SDK may try again after this. False: tell it not to."""
        if not (status in _RETRIED or status >= 500 or replies.should_retry(said)) or replies.should_retry(said) is False:
            return True
        if attempt >= habits.last or habits.lapsed >= _LAPSED:
            return True
        promised = self._promised.get(where, [])
        lapsed = self._lapsed(promised)
        if not promised:
            self._promised.pop(where, None)
        if not lapsed:
            unproven = not habits.comes and sum(one.habits is habits for one in promised) >= _UNPROVEN
            if unproven or not await self._spend(where):
                return False
        asked = replies.wait(said) or 0.0
        wait = max(asked if asked <= _LONGEST else 0.0, min(_FIRST * 2**attempt, _BACKOFF))
        self._promise(where, _Promise(self.clock.monotonic(), monotonic() + wait + _LATE, habits))
        return True

    def _promise(self, where: str, one: _Promise) -> None:
        promised = self._promised.pop(where, [])  # whoever was promised something last is last
        if len(promised) < _MOST:
            promised.append(one)
        self._promised[where] = promised
        if len(self._promised) > _MOST:  # if they come all the same, they are asked for then
            del self._promised[next(iter(self._promised))]

    async def _spend(self, where: str) -> bool:
        if await self._budget().take(self._budget().account(f"llm:{where}")):
            return True
        self._count(where, "over_budget")
        return False

    def _lapsed(self, promised: list[_Promise]) -> bool:
        """Whether there was one that nobody redeemed in time, and that the budget still counts."""
        late = monotonic()
        for one in [one for one in promised if one.until < late]:
            one.habits.lapsed += 1
            promised.remove(one)
            if self.clock.monotonic() - one.at < WINDOW:
                return True
        return False

    def _count(self, where: str, outcome: str) -> None:
        self._metrics().increment_counter(Metric.RETRY_ATTEMPTS, 1, {"name": f"llm:{where}"[:200], "outcome": outcome})

    def forget(self) -> None:
        """A forked child has promised nothing."""
        self._promised.clear()
