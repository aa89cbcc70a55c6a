"""Problem documents (RFC 9457) as they come over the wire: whoever wrote them, what can be read of them is read."""

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple, Protocol

QUOTA_EXCEEDED = "https://iana.org/assignments/http-problem-types#quota-exceeded"
"""The problem types of the IETF RateLimit draft (draft-ietf-httpapi-ratelimit-headers): a limit refused,"""
REDUCED_CAPACITY = "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"
"""and nobody could ask it."""


_IN_SECONDS = 120.0
"""Up to here a wait is told in seconds;"""
_WORDS = ((86_400, 3600, 24, "d", "h"), (3600, 60, 60, "h", "min"), (60, 1, 60, "min", "s"))
"""from so many on in these: how long the smaller unit is, and how many of it the larger one has."""


class Refusal(Protocol):
    """What a refused decision says. `Decision` is one; errors stand on the ground and import nothing."""

    @property
    def allowed(self) -> bool: ...
    @property
    def parts(self) -> "Sequence[Refusal]": ...
    @property
    def limit(self) -> str: ...
    @property
    def identity(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def cost(self) -> int | Decimal: ...
    @property
    def remaining(self) -> int | Decimal: ...
    @property
    def capacity(self) -> int | Decimal: ...
    @property
    def retry_after(self) -> float | None: ...
    @property
    def reset_after(self) -> float: ...


def refused(decision: Refusal) -> str:
    """A refusal as a sentence."""
    whose = f" of {decision.identity}" if decision.identity else ""
    of = f"limit {decision.limit}{whose}: "
    if decision.retry_after is None:
        return f"{of}{decision.cost} {decision.unit} can never fit a capacity of {decision.capacity}"
    left = f"{decision.remaining} of {decision.capacity} {decision.unit} left"
    resets = abs(decision.retry_after - decision.reset_after) < 0.001 and decision.retry_after > _IN_SECONDS
    return f"{of}{left}, {decision.cost} asked; retry in {waiting(decision.retry_after)}{', when it resets' if resets else ''}"


def waiting(seconds: float) -> str:
    """How long, as people say it: two units of it, never too short; up to two minutes to the millisecond."""
    if seconds <= _IN_SECONDS:
        return f"{seconds:.3f} s"
    _, small, many, name, less = next(words for words in _WORDS if seconds >= words[0])
    whole, rest = divmod(math.ceil(seconds / small), many)
    return f"{whole:,} {name}" + (f" {rest} {less}" if rest else "")


class Document(NamedTuple):
    """The members that mean something to us; None where one is missing, or means nothing."""

    code: str | None
    title: str | None
    detail: str | None
    status: int | None
    retryable: bool | None
    retry_after: float | None
    remedy: str | None
    context: Mapping[str, str] | None


def read(problem: Mapping[str, Any]) -> Document:
    """Never raises."""
    status, retryable, context = problem.get("status"), problem.get("retryable"), problem.get("context")
    return Document(
        code=_text(problem.get("code")),
        title=_text(problem.get("title")),
        detail=_text(problem.get("detail")),
        status=status if type(status) is int and 400 <= status <= 599 else None,
        retryable=retryable if isinstance(retryable, bool) else None,
        retry_after=_seconds(problem.get("retry_after")),
        remedy=_text(problem.get("remedy")),
        context={str(name): str(value) for name, value in context.items()} if isinstance(context, Mapping) else None,
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _seconds(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e12 or not math.isfinite(value):
        return None
    return float(value)
