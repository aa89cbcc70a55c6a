"""Every error a user can meet, in one tree. Test with `except`, or by `code`, which never changes.

ObservatoryError                      code                    HTTP  retryable
 ├─ InvalidArgument (ValueError)      invalid_argument        400   no
 │   └─ UnknownLimit                  unknown_limit           404   no
 ├─ ConfigurationError                configuration           500   no     refused at the door, names the key and the layer
 ├─ NotOpen                           not_open                500   no     used before `async with`, after it, on another loop
 ├─ RateLimitExceeded                 rate_limit_exceeded     429   yes*   .decision; *no when retry_after is None
 │   └─ BudgetExceeded                budget_exceeded         429   yes*   the binding limit counts usd
 ├─ ReservationLost                   reservation_lost        409   no     settled with other numbers, run out, not there
 ├─ CircuitOpen                       circuit_open            503   yes    .retry_after: when a call may be let through again
 │   └─ CoolingDown                   cooling_down            503   yes    a provider asked everybody to wait
 ├─ RetryBudgetExceeded               retry_budget_exceeded   503   no     the fleet retries too much already
 ├─ CacheError                        cache                   500   no
 │   ├─ ValueTooLarge                 value_too_large         413   no
 │   ├─ NotEncodable (TypeError)      not_encodable           422   no
 │   ├─ CacheComputationFailed        cache_computation       503   yes    of another process, or a moment ago
 │   └─ AnswerInterrupted             answer_interrupted      502   yes    a shared stream, in its middle
 ├─ StoreError                        store                   503   yes
 │   ├─ StoreUnavailable              store_unavailable       503   yes    away, or slower than the bounded wait
 │   └─ StoreMisconfigured            store_misconfigured     503   no     eviction policy, ACL, version, auth
 ├─ NotFound                          not_found               404   no
 │   └─ CacheMiss                     cache_miss              404   no     at the doors: in code a miss is no error
 ├─ PayloadTooLarge                   payload_too_large       413   no
 └─ SandboxError (AssertionError)     sandbox                 500   no     of observatory.testing: a test fails
     ├─ UnexpectedCall                unexpected_call         500   no     a provider was called that nobody answers for
     ├─ TimeStandsStill               time_stands_still       500   no     a call waits for a clock that nobody moves
     └─ LeakedKeys                    leaked_keys             500   no     keys without a TTL were left behind

Three codes of the doors are no class of ours: method_not_allowed 405, http (of a router, of a proxy), internal 500 (a bug).
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from . import documents
from .documents import QUOTA_EXCEEDED, REDUCED_CAPACITY, Refusal

__all__ = [
    "AnswerInterrupted",
    "BudgetExceeded",
    "CacheComputationFailed",
    "CacheError",
    "CacheMiss",
    "CircuitOpen",
    "ConfigurationError",
    "CoolingDown",
    "InvalidArgument",
    "NotEncodable",
    "NotFound",
    "NotOpen",
    "ObservatoryError",
    "PayloadTooLarge",
    "RateLimitExceeded",
    "ReservationLost",
    "RetryBudgetExceeded",
    "StoreError",
    "StoreMisconfigured",
    "StoreUnavailable",
    "UnknownLimit",
    "ValueTooLarge",
]


class ObservatoryError(Exception):
    """Something Observatory could not do."""

    code: str = "observatory"
    """Never changes for a class; of an error rebuilt from a document, what the document says."""
    status: int = 500
    title: str = "Observatory could not do this"
    retryable: bool = False

    def __init__(
        self,
        message: str | None = None,
        *,
        remedy: str | None = None,
        retry_after: float | None = None,
        context: Mapping[str, str] | None = None,
    ) -> None:
        self.message = message or self.title
        self.remedy = remedy
        self.retry_after = retry_after
        """Seconds; None = unknown or never."""
        self.context: Mapping[str, str] = MappingProxyType(dict(context or {}))
        """Ids and names only; never a secret, never content."""
        super().__init__(f"{self.message}. {remedy}" if remedy else self.message)

    def problem(self) -> dict[str, Any]:
        """The RFC 9457 members, plus `code`, `retryable`, and `retry_after` and `remedy` where known."""
        members: dict[str, Any] = {
            "type": f"urn:observatory:problem:{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.message,
            "code": self.code,
            "retryable": self.retryable,
        }
        if self.retry_after is not None:
            members["retry_after"] = self.retry_after
        if self.remedy:
            members["remedy"] = self.remedy
        if self.context:
            members["context"] = dict(self.context)
        return members

    @classmethod
    def from_problem(cls, problem: Mapping[str, Any]) -> "ObservatoryError":
        """The error a problem document speaks of. Never raises: what in it has no meaning is left out, and an error of an
        unknown code is a plain ObservatoryError that keeps code and status."""
        said = documents.read(problem)
        kind = next((kind for kind in _tree(ObservatoryError) if kind.code == said.code), None)
        error = (kind or ObservatoryError)(
            said.detail or said.title, remedy=said.remedy, retry_after=said.retry_after, context=said.context
        )
        if kind in (None, ObservatoryError):
            error.code, error.title = said.code or error.code, said.title or error.title
            error.status = error.status if said.status is None else said.status
        if said.retryable is not None:
            error.retryable = said.retryable
        return error


def _tree(root: type[ObservatoryError]) -> Iterator[type[ObservatoryError]]:
    yield root
    for kind in root.__subclasses__():
        yield from _tree(kind)


class InvalidArgument(ObservatoryError, ValueError):
    """A value that can never be right; the message names it."""

    code = "invalid_argument"
    status = 400
    title = "A value is not acceptable"


class UnknownLimit(InvalidArgument):
    """No limit of this name is defined, in code or in settings."""

    code = "unknown_limit"
    status = 404
    title = "There is no such limit"


class ConfigurationError(ObservatoryError):
    """A setting is wrong; the message names the key and the layer it came from."""

    code = "configuration"
    title = "The configuration is wrong"


class NotOpen(ObservatoryError):
    """Used before it was opened, after it was closed, or from another event loop."""

    code = "not_open"
    title = "This Observatory is not open"


class RateLimitExceeded(ObservatoryError):
    """A limit refused. `.decision` has the whole answer."""

    code = "rate_limit_exceeded"
    status = 429
    title = "Request cannot be satisfied as assigned quota has been exceeded"
    retryable = True
    decision: Refusal | None = None
    """None only when the error was rebuilt from a problem document."""

    @classmethod
    def of(cls, decision: Refusal) -> "RateLimitExceeded":
        """The error for a refused decision; BudgetExceeded when the binding limit counts usd."""
        kind = BudgetExceeded if decision.unit == "usd" else cls
        error = kind(documents.refused(decision), retry_after=decision.retry_after, context={"limit": decision.limit})
        error.decision = decision
        error.retryable = decision.retry_after is not None
        return error

    def problem(self) -> dict[str, Any]:
        members = super().problem()
        members["type"] = QUOTA_EXCEEDED
        if "limit" in self.context:
            refused = [] if self.decision is None else [part.limit for part in self.decision.parts if not part.allowed]
            members["violated-policies"] = refused or [self.context["limit"]]
        return members


class BudgetExceeded(RateLimitExceeded):
    """A limit that counts usd refused."""

    code = "budget_exceeded"


class ReservationLost(ObservatoryError):
    """A reservation that is not held any more, or was settled with other numbers."""

    code = "reservation_lost"
    status = 409
    title = "The reservation is not held"


class CircuitOpen(ObservatoryError):
    """A breaker lets nothing through now: what it guards has failed too often. `retry_after`: seconds until a call may be let
    through to see whether it works again; None where somebody has forced the breaker open."""

    code = "circuit_open"
    status = 503
    title = "The circuit is open"
    retryable = True


class CoolingDown(CircuitOpen):
    """A provider told somebody of the fleet to come again later, and that is longer than the caller waits."""

    code = "cooling_down"
    title = "The provider has asked for a pause"


class RetryBudgetExceeded(ObservatoryError):
    """A retry that is not made: in the fleet too many of the calls of that name are retries already."""

    code = "retry_budget_exceeded"
    status = 503
    title = "The fleet's retry budget is spent"


class CacheError(ObservatoryError):
    """A cache could not do this."""

    code = "cache"
    title = "The cache could not do this"


class ValueTooLarge(CacheError):
    """An entry above `cache.max_value`."""

    code = "value_too_large"
    status = 413
    title = "The value is too large for the cache"


class NotEncodable(CacheError, TypeError):
    """A value that is not of the cache's type, or a type that cannot be encoded."""

    code = "not_encodable"
    status = 422
    title = "The value is not of the cache's type"


class CacheComputationFailed(CacheError):
    """Not computed, by another process or a moment ago; `.kind` names the error there. Who computes gets the error itself."""

    code = "cache_computation"
    status = 503
    title = "The value could not be computed"
    retryable = True

    @property
    def kind(self) -> str:
        return self.context.get("error", "")


class AnswerInterrupted(CacheError):
    """A stream from another process ended in its middle, with that process or its provider. Asking again begins anew."""

    code = "answer_interrupted"
    status = 502
    retryable = True


class StoreError(ObservatoryError):
    """Redis refused or failed."""

    code = "store"
    status = 503
    title = "The store could not do this"
    retryable = True


class StoreUnavailable(StoreError):
    """Redis is away, or slower than the bounded wait. Whether a command that was sent took effect is unknown."""

    code = "store_unavailable"
    title = "The store is away"

    def problem(self) -> dict[str, Any]:
        return {**super().problem(), "type": REDUCED_CAPACITY}


class StoreMisconfigured(StoreError):
    """Redis answers, but cannot serve us until somebody changes it: authentication, rights, version, policy."""

    code = "store_misconfigured"
    title = "The store is not set up for this"
    retryable = False


class NotFound(ObservatoryError):
    """There is nothing of that name."""

    code = "not_found"
    status = 404
    title = "Not found"


class CacheMiss(NotFound):
    """A cache has no entry of that key now. Only the doors say so: `Cache.get` answers with a default."""

    code = "cache_miss"
    title = "The cache has no such entry"


class PayloadTooLarge(ObservatoryError):
    """A request body above `serve.max_body`."""

    code = "payload_too_large"
    status = 413
    title = "The request body is too large"
