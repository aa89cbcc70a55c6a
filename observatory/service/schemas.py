"""Bodies: what comes in, checked by its type, and what goes out beside the values themselves."""

from datetime import datetime
from typing import Any, Literal

import msgspec

from .. import units
from ..dimensions import checked
from ..envelope import Envelope, checked_id, checked_type, encoded, new_id, packed
from ..errors import InvalidArgument
from ..features.rate_limiter import Decision, Limit, LimitRef, Override
from ..llm.call import LLM_CALL, CallData, Usage
from ..types import Identity

Number = int | float | str
"""An amount; a string keeps the digits of money."""


class LimitBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A limit as code would declare it. A limit of that name in the service's settings wins, field by field."""

    name: str
    amount: Number
    per: int | float | str | None = None
    burst: Number | None = None
    unit: str = "requests"
    algorithm: str | None = None
    by: str | tuple[str, ...] = ()
    match: dict[str, str] | str | None = None
    on_store_down: str = "local"
    after_failover: str | None = None
    durability: str = "fast"
    shadow: bool = False
    leases: bool | str = False
    fair_by: str | None = None
    weights: dict[str, int] = {}
    overrides: dict[str, Override] = {}
    alert_at: tuple[float, ...] = ()
    timezone: str = "UTC"

    def limit(self) -> Limit:
        return Limit(**{name: getattr(self, name) for name in self.__struct_fields__})


class CheckBody(msgspec.Struct, forbid_unknown_fields=True):
    """One question. limit: one, several (all or nothing), or "*": every limit whose `match` fits the identity."""

    limit: str | LimitBody | list[str | LimitBody]
    identity: str | dict[str, str] | None = None
    cost: Number | dict[str, Number] = 1

    def asked(self) -> LimitRef:
        if isinstance(self.limit, list):
            return [_limit(one) for one in self.limit]
        return _limit(self.limit)

    def who(self) -> Identity:
        """Over HTTP nothing is bound: an identity that is not given is the limit's one bucket, or an error that names `by`."""
        return {} if self.identity is None else self.identity

    def dimensions(self) -> dict[str, str]:
        return self.identity if isinstance(self.identity, dict) else {}

    def costs(self) -> Any:
        return _costs(self.cost, "cost")


class AcquireBody(CheckBody):
    """One that waits."""

    timeout: float = 30.0

    def patience(self) -> float:
        return _patience(self.timeout)


class ReserveBody(CheckBody):
    """An estimate to be held."""

    timeout: float = 0.0
    lease: float = 60.0

    def patience(self) -> float:
        return _patience(self.timeout)


class ReserveAnswer(msgspec.Struct):
    """What is held, or why nothing is: then `id` is null."""

    allowed: bool
    decision: Decision
    id: str | None = None
    expires_at: datetime | None = None
    fence: int = 0


class HoldBody(msgspec.Struct, forbid_unknown_fields=True):
    """A reservation, by the id that reserve gave out."""

    id: str


class SettleBody(HoldBody):
    """What was really used; null: the estimate."""

    actual: Number | dict[str, Number] | None = None

    def costs(self) -> Any:
        return None if self.actual is None else _costs(self.actual, "actual")


class RenewBody(HoldBody):
    """For how many seconds from now; null: as many as before."""

    lease: float | None = None


class RenewAnswer(msgspec.Struct):
    """Until when it is held now; null where nothing was to be held."""

    id: str
    expires_at: datetime | None


class ResetBody(msgspec.Struct, forbid_unknown_fields=True):
    """Whose use is to be forgotten."""

    limit: str
    identity: str | dict[str, str] | None = None


LONGEST_WAIT = 60.0
"""Seconds for which one request stands in line; who wants to wait longer asks again."""


def _limit(said: str | LimitBody) -> str | Limit:
    return said if isinstance(said, str) else said.limit()


def _costs(said: Any, what: str) -> Any:
    if isinstance(said, dict):
        return {unit: units.parsed(amount, f"{what}.{unit}") for unit, amount in said.items()}
    return units.parsed(said, what)


def _patience(seconds: float) -> float:
    if not 0 <= seconds <= LONGEST_WAIT:
        raise InvalidArgument(f"timeout must be from 0 to {LONGEST_WAIT:g} seconds, got {seconds:g}")
    return seconds


class EventBody(msgspec.Struct, omit_defaults=True):
    """One event. What else it says is its data. From `provider` on: what an event of type llm_call has, or may have."""

    type: str
    id: str | None = None
    at: str | None = None
    dimensions: dict[str, str] | None = None
    provider: str | None = None
    model: str | None = None
    operation: str = "chat"
    latency: float | None = None
    time_to_first_token: float | None = None
    usage: Usage | None = None
    cost_usd: Number | None = None
    success: bool = True
    status: Literal["success", "error", "refused"] | None = None
    error: str | None = None
    trace_id: str | None = None


class Rejected(msgspec.Struct):
    """An event that was not accepted, by its place in the body."""

    index: int
    code: str
    detail: str


class EventsAnswer(msgspec.Struct):
    """What became of the events: accepted ones are durable and will be counted once."""

    accepted: int
    duplicates: int
    rejected: list[Rejected]


class CheckAnswer(msgspec.Struct):
    """One thing that readiness looks at."""

    name: str
    status: str
    message: str = ""


class ReadyAnswer(msgspec.Struct):
    """Whether a balancer should send requests here."""

    status: str
    checks: list[CheckAnswer]


def event(item: Any, now_us: int) -> tuple[str, bytes]:
    """One posted event as id and payload. InvalidArgument names the field.

    {"id", "type", "at", "dimensions", …}: what else there is, is the event's data; an llm_call's is checked here.
    """
    if not isinstance(item, dict):
        raise InvalidArgument(f"an event must be an object, got {type(item).__name__}")
    data = dict(item)
    id_ = checked_id(data.pop("id")) if "id" in data else new_id()
    kind = checked_type(data.pop("type", None))
    at = data.pop("at", None)
    if at is not None and not isinstance(at, str):
        raise InvalidArgument(f"at must be RFC 3339, got {at!r:.60}")
    dimensions = data.pop("dimensions", None) or {}
    if not isinstance(dimensions, dict):
        raise InvalidArgument("dimensions must be an object of strings")
    content: Any = data
    if kind == LLM_CALL:
        success = data.pop("success", True)
        if not isinstance(success, bool):
            raise InvalidArgument(f"success must be true or false, got {success!r:.60}")
        data.setdefault("status", "success" if success else "error")
        try:
            content = msgspec.convert(data, CallData)
        except msgspec.ValidationError as error:
            raise InvalidArgument(str(error)) from None
    at_us = now_us if at is None else units.moment_us(at, now_us, "at")
    if at_us < 0:
        raise InvalidArgument("at must not be before 1970")
    return id_, encoded(Envelope(type=kind, at_us=at_us, data=packed(content), dimensions=checked(dimensions)))
