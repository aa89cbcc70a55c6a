"""One finished LLM call: what it says, and what it means for the metrics. The one place where the two meet."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Protocol

import msgspec

from .. import dimensions as bound
from .. import names, units
from ..errors import InvalidArgument
from ..names import Metric
from ..types import Amount, Dimensions

LLM_CALL = "llm_call"
STATUSES = ("success", "error", "refused")


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Tokens of one call, in OpenTelemetry's GenAI words. input includes cached, output includes reasoning."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_write_input_tokens: int = 0
    reasoning_output_tokens: int = 0
    audio_input_tokens: int = 0
    audio_output_tokens: int = 0

    def __post_init__(self) -> None:
        for field in self.__struct_fields__:
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= units.MAX_EXACT:
                raise InvalidArgument(f"{field} must be a whole number from 0 to 2^52, got {units.shown(value, 40)}")

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens


class CallData(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an event of type llm_call carries. latency and time_to_first_token: seconds. cost_usd None: price unknown."""

    provider: str
    model: str
    operation: str = "chat"
    latency: float | None = None
    time_to_first_token: float | None = None
    usage: Usage | None = None
    cost_usd: Decimal | None = None
    status: str = "success"
    error: str | None = None
    trace_id: str | None = None

    def __post_init__(self) -> None:
        for field in ("provider", "model", "operation"):
            value = getattr(self, field)
            if not isinstance(value, str) or not value or len(value) > 256:
                raise InvalidArgument(f"{field} must be a text of 1 to 256 characters, got {units.shown(value, 80)}")
        if self.error is not None and not isinstance(self.error, str):
            raise InvalidArgument(
                f"error must be a text, got {units.shown(self.error, 80)}", remedy="Write the error's code, or str(error)"
            )
        if self.status not in STATUSES:
            raise InvalidArgument(f"status must be one of {', '.join(STATUSES)}, got {units.shown(self.status, 40)}")
        for field in ("latency", "time_to_first_token"):
            if getattr(self, field) is not None:
                units.seconds(getattr(self, field), field)
        if self.cost_usd is not None:
            units.units(self.cost_usd, "usd", "cost_usd")


class Adding(Protocol):
    """What can count: a recorder."""

    def increment_counter(self, metric: str, value: Any = 1, labels: Mapping[str, str] | None = None) -> None: ...
    def record_histogram(self, metric: str, value: float, labels: Mapping[str, str] | None = None) -> None: ...


def measure(into: Adding, call: CallData, dimensions: Dimensions, labels: tuple[str, ...]) -> None:
    """Write every metric of one call. labels: the dimensions that become labels, beside provider and model."""
    base = {"provider": call.provider, "model": call.model}
    base.update((name, dimensions[name]) for name in labels if name in dimensions)
    into.increment_counter(Metric.REQUESTS_TOTAL, 1, {**base, "status": call.status})
    if call.status == "error":
        into.increment_counter(Metric.ERRORS_TOTAL, 1, {"code": (call.error or "unknown")[:200], "module": "llm"})
    if call.status == "refused":
        return
    if call.latency is not None:
        into.record_histogram(Metric.REQUEST_LATENCY, call.latency, base)
    if call.time_to_first_token is not None:
        into.record_histogram(names.FIRST_TOKEN, call.time_to_first_token, base)
    if call.usage is not None:
        for kind, tokens in (("input", call.usage.input_tokens), ("output", call.usage.output_tokens)):
            if tokens:
                into.increment_counter(Metric.TOKENS_PROCESSED, tokens, {**base, "type": kind})
    if call.cost_usd is not None:
        into.increment_counter(Metric.TOTAL_COST_USD, call.cost_usd, base)
    elif call.usage is not None:
        into.increment_counter(names.UNPRICED_CALLS, 1, base)


class Claim(Protocol):
    """The id that an event got, and whether it is this caller's."""

    @property
    def id(self) -> str: ...
    @property
    def new(self) -> bool: ...


class Recording(Protocol):
    """What recording a call needs of the events."""

    def put(self, kind: str, data: Any, *, id: str | None, counted: bool, about: Mapping[str, str] | None = None) -> Claim: ...  # noqa: A002


class Calls:
    """Records the calls of this process: metrics here and now, and an event for whoever wants more."""

    def __init__(self, metrics: Adding, events: Recording, labels: tuple[str, ...]) -> None:
        self._metrics = metrics
        self._events = events
        self._labels = labels

    def record(
        self,
        provider: str,
        model: str,
        *,
        latency: float,
        tokens: int | Usage | None,
        cost_usd: Amount | None,
        success: bool,
        error: str | None,
        operation: str,
        time_to_first_token: float | None,
        id: str | None,  # noqa: A002
        dimensions: Dimensions,
        trace_id: str | None,
    ) -> str:
        """See Observatory.record_request."""
        usage = Usage(input_tokens=tokens) if isinstance(tokens, int) else tokens
        if usage is not None and not isinstance(usage, Usage):
            raise InvalidArgument(f"tokens must be a whole number or a Usage, got {units.shown(tokens, 80)}")
        if cost_usd is not None:
            cost_usd = Decimal(units.units(cost_usd, "usd", "cost_usd")).scaleb(-9)
        call = CallData(
            provider=provider,
            model=model,
            operation=operation,
            latency=units.seconds(latency, "latency"),
            time_to_first_token=time_to_first_token,
            usage=usage,
            cost_usd=cost_usd,
            status="success" if success else "error",
            error=error,
            trace_id=trace_id,
        )
        about = bound.checked(dimensions)
        claim = self._events.put(LLM_CALL, call, id=id, counted=True, about=about)
        if claim.new:
            measure(self._metrics, call, {**bound.current(), **about}, self._labels)
        return claim.id
