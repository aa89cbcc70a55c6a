"""What was refused a moment ago, and still is: answered here, without asking.

At most a second, so that a settlement, a reset or a raised limit is seen soon; never of limits with holds, slots, loans or a
line, where more may come at any moment.
"""

from typing import NamedTuple

import msgspec

from ...clock import monotonic
from ...keys import Key
from .decision import Decision
from .wanted import Wanted

AT_MOST = 1.0
"""Seconds."""
_MOST = 10_000


class _Denial(NamedTuple):
    until: float
    ends_at: float
    full_at: float
    asked: int
    version: int
    decision: Decision
    shape: object


class Memory:
    """The refusals of the last second."""

    def __init__(self) -> None:
        self._denials: dict[Key, _Denial] = {}

    def keep(self, one: Wanted, refused: Decision, version: int, asked_at: float, *, plain: bool) -> None:
        """asked_at: before it was sent, so that nothing is refused here that the script would allow."""
        if not plain or refused.retry_after is None or refused.retry_after <= 0:
            return
        if len(self._denials) >= _MOST:
            self._denials.clear()
        ends_at, full_at = asked_at + refused.retry_after, asked_at + refused.reset_after
        until = min(ends_at, asked_at + AT_MOST)
        self._denials[one.key] = _Denial(until, ends_at, full_at, one.asked, version, refused, one.shape)

    def recall(self, one: Wanted, version: int) -> Decision | None:
        """Still refused, or None: ask. A smaller cost may fit where a larger one did not."""
        denial = self._denials.get(one.key)
        if denial is None:
            return None
        now = monotonic()
        if now >= denial.until or denial.version != version or denial.shape != one.shape:
            del self._denials[one.key]
            return None
        if one.asked != denial.asked:
            return None
        return msgspec.structs.replace(
            denial.decision,
            retry_after=denial.ends_at - now,
            reset_after=max(denial.full_at - now, 0.0),
            decided_by="denial",
        )

    def forget(self, key: Key) -> None:
        self._denials.pop(key, None)

    def clear(self) -> None:
        self._denials.clear()
