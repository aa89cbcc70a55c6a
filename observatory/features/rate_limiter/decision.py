"""The whole answer to one question, in one trip."""

from decimal import Decimal
from math import ceil
from typing import Literal, Self

import msgspec

from ...errors import RateLimitExceeded

DecidedBy = Literal["redis", "lease", "local", "denial"]
"""redis: the script. lease: tokens debited before. local: Redis was away. denial: refused a moment ago, and still."""


class Decision(msgspec.Struct, frozen=True):
    """Truthy when allowed. Units are those of the limit; times are seconds."""

    allowed: bool
    limit: str
    """The limit that binds: the one refusing longest, else the one nearest to exhaustion."""
    identity: str
    unit: str
    cost: int | Decimal
    remaining: int | Decimal
    capacity: int | Decimal
    retry_after: float | None
    """Seconds until the same call would succeed if alone. 0.0 when allowed, None when it never can (cost > capacity)."""
    reset_after: float
    """Seconds until all of it is free again; of slots 0."""
    quota: int | Decimal = 0
    """What is given in `window` seconds."""
    window: float = 0.0
    waited: float = 0.0
    """Seconds spent in line (acquire, reserve)."""
    shadow: bool = False
    """True: would have been refused, but the limit only watches."""
    decided_by: DecidedBy = "redis"
    parts: "tuple[Decision, ...]" = ()
    """One per limit when several were asked; empty for one."""
    more_after: float = 0.0
    """Seconds until more is left than now."""

    def __bool__(self) -> bool:
        return self.allowed

    def headers(self) -> dict[str, str]:
        """RateLimit-Policy and RateLimit (draft-ietf-httpapi-ratelimit-headers-10), X-RateLimit-*, Retry-After when refused.

        Nothing of usd limits: what a budget has left is nobody else's business.
        """
        told = [part for part in self.parts or (self,) if part.unit != "usd" and part.capacity]
        found: dict[str, str] = {}
        if told:
            found["RateLimit-Policy"] = ", ".join(_policy(part) for part in told)
            found["RateLimit"] = ", ".join(_state(part) for part in told)
        if self.unit != "usd" and self.capacity:
            found["X-RateLimit-Limit"] = str(self.quota)
            found["X-RateLimit-Remaining"] = str(self.remaining)
            found["X-RateLimit-Reset"] = str(ceil(self.reset_after))
        if told and not self.allowed and self.retry_after is not None:
            found["Retry-After"] = str(max(ceil(self.retry_after), 1))
        return found

    def raise_if_denied(self) -> Self:
        """Raises RateLimitExceeded or BudgetExceeded; returns itself when allowed."""
        if not self.allowed:
            raise RateLimitExceeded.of(self)
        return self


def verdict(decisions: list[Decision]) -> Decision:
    """Of one limit its own answer, of several the one over all."""
    return decisions[0] if len(decisions) == 1 else together(decisions)


def together(decisions: list[Decision]) -> Decision:
    """One verdict over several limits: the binding one's, with all of them as its parts."""
    refusing = [one for one in decisions if not one.allowed]
    if refusing:
        binding = max(refusing, key=lambda one: float("inf") if one.retry_after is None else one.retry_after)
    else:
        # What only watches binds nobody.
        real = [one for one in decisions if not one.shadow] or decisions
        binding = min(real, key=lambda one: one.remaining / one.capacity if one.capacity else 0)
    return msgspec.structs.replace(binding, parts=tuple(decisions), shadow=any(one.shadow for one in decisions))


def _policy(one: Decision) -> str:
    window = f";w={max(ceil(one.window), 1)}" if one.window else ""
    unit = {"requests": "", "slots": ';qu="concurrent-requests"'}.get(one.unit, f';observatory-unit="{one.unit}"')
    return f'"{one.limit}";q={one.quota}{window}{unit}'


def _state(one: Decision) -> str:
    """`t` says when more comes: the wait of a refusal, never later than Retry-After."""
    more_in = one.retry_after if one.retry_after is not None and not one.allowed else one.more_after
    when = f";t={ceil(more_in)}" if more_in or one.unit != "slots" else ""
    return f'"{one.limit}";r={one.remaining}{when}'
