"""Refusals as the provider that was asked would say them: its SDK raises its own errors, and knows whether to come again."""

import math
from typing import Any, Final, NamedTuple

import msgspec

from ..errors import BudgetExceeded, CoolingDown, ObservatoryError, RateLimitExceeded
from .wire import Endpoint

LIMIT: Final = "observatory-limit"
CODE: Final = "observatory-code"
CALL: Final = "observatory-call-id"
_OBEYED: Final = 60.0
"""Seconds: an SDK that is told to wait longer comes again after its own, much shorter wait."""
_SLOT: Final = 1.0
"""Seconds: nobody knows when whoever holds a slot lets it go; at its lease's end at the latest."""
_ANTHROPIC: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_OPENAI: Final = {400: "invalid_request_error", 429: "rate_limit_error"}


class Refused(NamedTuple):
    """A response of ours."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


def refused(error: ObservatoryError, endpoint: Endpoint, *, waited: bool, call: str = "") -> Refused:
    """call: the id of its event. waited: who stands in line has stood there as long as he was to. Then, and where time alone
    does not help, an SDK should not come again by itself."""
    status = 429 if isinstance(error, CoolingDown) else error.status if 400 <= error.status <= 599 else 500
    headers = [("content-type", "application/json"), (CODE, error.code)]
    if call:
        headers += [(CALL, call), ("x-request-id", f"obs_{call}"), ("request-id", f"obs_{call}")]
    if "limit" in error.context:
        headers.append((LIMIT, error.context["limit"]))
    if error.retry_after is not None:
        after = max(error.retry_after, 0.001)
        if isinstance(error, RateLimitExceeded) and error.decision is not None and error.decision.unit == "slots":
            after = min(after, _SLOT)
        headers += [("retry-after", str(math.ceil(after))), ("retry-after-ms", str(math.ceil(after * 1000)))]
    if not _passes(error) or (waited and isinstance(error, RateLimitExceeded | CoolingDown)):
        headers.append(("x-should-retry", "false"))
    said = f"observatory: {error}"  # and not the provider, whose error it looks like
    body: dict[str, Any]
    if endpoint == "messages":
        body = {"type": "error", "error": {"type": _ANTHROPIC.get(status, "api_error"), "message": said}}
        if call:
            body["request_id"] = f"obs_{call}"
    else:
        kind = _OPENAI.get(status, "server_error")
        body = {"error": {"message": said, "type": kind, "param": None, "code": error.code}}
    return Refused(status, headers, msgspec.json.encode(body))


def _passes(error: ObservatoryError) -> bool:
    """Whether the same call may be let in in a while, without anybody doing anything."""
    if isinstance(error, BudgetExceeded) or (error.retry_after or 0.0) > _OBEYED:
        return False
    if isinstance(error, RateLimitExceeded):
        return error.retry_after is not None
    return error.retryable
