"""Bodies: what comes in, checked by its type, and what goes out beside the values themselves."""

from typing import Any, Literal

import msgspec

from .. import units
from ..dimensions import checked
from ..errors import InvalidArgument
from ..features.events import Envelope, checked_id, checked_type, encoded, new_id, packed
from ..features.rate_limiter import Limit, Override
from ..llm.call import LLM_CALL, CallData, Usage

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
    """One question to the limiter."""

    limit: str | LimitBody
    identity: str | dict[str, str] | None = None
    cost: Number | dict[str, Number] = 1

    def asked(self) -> str | Limit:
        return self.limit if isinstance(self.limit, str) else self.limit.limit()

    def costs(self) -> Any:
        if isinstance(self.cost, dict):
            return {unit: units.parsed(amount, f"cost.{unit}") for unit, amount in self.cost.items()}
        return units.parsed(self.cost, "cost")


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
