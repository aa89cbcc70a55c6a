"""The whole answer to one question, in one trip."""

from decimal import Decimal
from math import ceil
from typing import Literal, Self

import msgspec

from ...errors import RateLimitExceeded


class Decision(msgspec.Struct, frozen=True):
    """Truthy when allowed. Units are those of the limit; times are seconds."""

    allowed: bool
    limit: str
    identity: str
    unit: str
    cost: int | Decimal
    remaining: int | Decimal
    capacity: int | Decimal
    retry_after: float | None
    """Seconds until the same call would succeed if alone. 0.0 when allowed, None when it never can (cost > capacity)."""
    reset_after: float
    """Seconds until the bucket is full again."""
    quota: int | Decimal = 0
    """What grows back in `window` seconds."""
    window: float = 0.0
    decided_by: Literal["redis", "lease", "local", "denial"] = "redis"

    def __bool__(self) -> bool:
        return self.allowed

    def headers(self) -> dict[str, str]:
        """RateLimit-Policy and RateLimit (draft-ietf-httpapi-ratelimit-headers-10), X-RateLimit-*, Retry-After when refused.

        Empty for usd limits: what a budget has left is nobody else's business.
        """
        if self.unit == "usd":
            return {}
        more_in = ceil(self.retry_after) if self.retry_after is not None and not self.allowed else ceil(self.reset_after)
        unit = "" if self.unit == "requests" else f';observatory-unit="{self.unit}"'
        found = {
            "RateLimit-Policy": f'"{self.limit}";q={self.quota};w={max(ceil(self.window), 1)}{unit}',
            "RateLimit": f'"{self.limit}";r={self.remaining};t={more_in}',
            "X-RateLimit-Limit": str(self.quota),
            "X-RateLimit-Remaining": str(self.remaining),
            "X-RateLimit-Reset": str(ceil(self.reset_after)),
        }
        if not self.allowed and self.retry_after is not None:
            found["Retry-After"] = str(max(ceil(self.retry_after), 1))
        return found

    def raise_if_denied(self) -> Self:
        """Raises RateLimitExceeded or BudgetExceeded; returns itself when allowed."""
        if not self.allowed:
            raise RateLimitExceeded.of(self)
        return self
