"""One finished LLM call: what it says, and what it means for the metrics. The one place where the two meet."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal, Protocol

import msgspec
from msgspec import Meta

from .. import dimensions as bound
from .. import names, units
from ..errors import InvalidArgument
from ..names import Metric
from ..types import Amount, Dimensions

LLM_CALL = "llm_call"
STATUSES = ("success", "error", "refused")
_EXACT_AS_DOUBLE = 10**15
"""Below, billionths that went through a double come back to the last one: two errors of 2^-53 are less than a quarter."""
MAX_METERS = 1000
"""Of how many providers, models and labels the series are remembered. Beyond, they are looked for again."""


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
        for value in msgspec.structs.astuple(self):
            if type(value) is not int or not 0 <= value <= units.MAX_EXACT:
                return self._refuse()
        return None

    def _refuse(self) -> None:
        for field in self.__struct_fields__:
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= units.MAX_EXACT:
                raise InvalidArgument(f"{field} must be a whole number from 0 to 2^52, got {units.shown(value, 40)}")

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an event of type llm_call carries; numbers are not looked at."""

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
    response_model: str | None = None
    """The model that answered, as it calls itself."""
    http_status: int | None = None
    estimated: bool = False
    """Whether the tokens were counted by us, because the provider did not say them."""
    cached: bool = False
    """Whether nobody was asked, since the answer was there: an event, and none of a provider's numbers."""
    fallback: int = 0
    """Which of the client's fallbacks was asked; 0: none."""
    hedged: bool = False
    """Whether it was sent beside one that was under way already."""

    def check_texts(self) -> None:
        """InvalidArgument names the one that is not acceptable."""
        provider, model, operation = self.provider, self.model, self.operation
        if not (
            type(provider) is type(model) is type(operation) is str
            and 0 < len(provider) <= 256
            and 0 < len(model) <= 256
            and 0 < len(operation) <= 256
        ):
            self._refuse_texts()
        if self.error is not None and not isinstance(self.error, str):
            raise InvalidArgument(
                f"error must be a text, got {units.shown(self.error, 80)}", remedy="Write the error's code, or str(error)"
            )
        if self.status not in STATUSES:
            raise InvalidArgument(f"status must be one of {', '.join(STATUSES)}, got {units.shown(self.status, 40)}")

    def _refuse_texts(self) -> None:
        for field in ("provider", "model", "operation"):
            value = getattr(self, field)
            if not isinstance(value, str) or not value or len(value) > 256:
                raise InvalidArgument(f"{field} must be a text of 1 to 256 characters, got {units.shown(value, 80)}")


class CallData(Record, frozen=True, omit_defaults=True):
    """What an event of type llm_call carries. latency and time_to_first_token: seconds. cost_usd None: price unknown."""

    def __post_init__(self) -> None:
        self.check_texts()
        for field in ("latency", "time_to_first_token"):
            if getattr(self, field) is not None:
                units.seconds(getattr(self, field), field)
        if self.cost_usd is not None:
            units.units(self.cost_usd, "usd", "cost_usd")


_Text = Annotated[str, Meta(min_length=1, max_length=256)]
_Seconds = Annotated[float, Meta(ge=0, le=4_503_599_627.0)]
_Tokens = Annotated[int, Meta(ge=0, le=units.MAX_EXACT)]


class StoredUsage(msgspec.Struct, frozen=True):
    """A Usage as it lies on a stream: its bounds are checked while it is decoded, at a third of the cost."""

    input_tokens: _Tokens = 0
    output_tokens: _Tokens = 0
    cache_read_input_tokens: _Tokens = 0
    cache_write_input_tokens: _Tokens = 0
    reasoning_output_tokens: _Tokens = 0
    audio_input_tokens: _Tokens = 0
    audio_output_tokens: _Tokens = 0


class StoredCall(msgspec.Struct, frozen=True):
    """A CallData as it lies on a stream, likewise. What the metrics do not need is passed over."""

    provider: _Text
    model: _Text
    operation: _Text = "chat"
    latency: _Seconds | None = None
    time_to_first_token: _Seconds | None = None
    usage: StoredUsage | None = None
    cost_usd: Decimal | None = None
    status: Literal["success", "error", "refused"] = "success"
    error: str | None = None
    estimated: bool = False
    cached: bool = False


def nano(cost_usd: Amount | None) -> int | None:
    """A cost in billionths of a dollar; None: unknown. InvalidArgument: it is none."""
    return None if cost_usd is None else units.units(cost_usd, "usd", "cost_usd")


class Counting(Protocol):
    """A counter with its labels."""

    def add(self, value: Any = 1) -> None: ...
    def bind(self, /, **labels: str) -> "Counting": ...


class Spreading(Protocol):
    """A histogram with its labels."""

    def record(self, value: float) -> None: ...
    def bind(self, /, **labels: str) -> "Spreading": ...


class Adding(Protocol):
    """What can count."""

    def counter(self, name: str) -> Counting: ...
    def histogram(self, name: str) -> Spreading: ...


class Exemplifying(Adding, Protocol):
    """And can keep an example."""

    def exemplify(self, metric: str, value: float, labels: Mapping[str, str] | None = None) -> None: ...


class _Meter:
    """The counters and histograms that calls of one provider, model and labels go to."""

    __slots__ = ("cost", "estimated", "first_token", "input", "latency", "output", "requests", "unpriced")

    def __init__(self, into: Adding, base: Mapping[str, str]) -> None:
        requests, tokens = into.counter(Metric.REQUESTS_TOTAL), into.counter(Metric.TOKENS_PROCESSED)
        self.requests = {status: requests.bind(**{**base, "status": status}) for status in STATUSES}
        self.input, self.output = (tokens.bind(**{**base, "type": kind}) for kind in ("input", "output"))
        self.latency = into.histogram(Metric.REQUEST_LATENCY).bind(**base)
        self.first_token = into.histogram(names.FIRST_TOKEN).bind(**base)
        self.cost = into.counter(Metric.TOTAL_COST_USD).bind(**base)
        self.unpriced = into.counter(names.UNPRICED_CALLS).bind(**base)
        self.estimated = into.counter(names.ESTIMATED_CALLS).bind(**base)


class Meters:
    """What a call means for the metrics. labels: the dimensions that become labels, beside provider and model."""

    def __init__(self, into: Adding, labels: tuple[str, ...]) -> None:
        self._into = into
        self._labels = labels
        self._meters: dict[tuple[str | None, ...], _Meter] = {}

    def _meter(self, call: Record | StoredCall, dimensions: Dimensions) -> _Meter:
        key: tuple[str | None, ...] = (call.provider, call.model)
        if self._labels:
            key += tuple([dimensions.get(name) for name in self._labels])
        found = self._meters.get(key)
        if found is None:
            if len(self._meters) >= MAX_METERS:
                self._meters.clear()
            found = self._meters[key] = _Meter(self._into, self.labels(call, dimensions))
        return found

    def labels(self, call: Record | StoredCall, dimensions: Dimensions) -> dict[str, str]:
        """Those that all metrics of a call have."""
        base = {"provider": call.provider, "model": call.model}
        base.update((name, dimensions[name]) for name in self._labels if name in dimensions)
        return base

    def measure(self, call: Record | StoredCall, dimensions: Dimensions, nano_usd: int | None) -> None:
        """Write every metric of one call. nano_usd: its cost, as `nano` has it."""
        if call.cached:
            return
        meter = self._meter(call, dimensions)
        meter.requests[call.status].add(1)
        if call.status == "error":
            self._into.counter(Metric.ERRORS_TOTAL).bind(code=(call.error or "unknown")[:200], module="llm").add(1)
        if call.status == "refused":
            return
        if call.estimated:
            meter.estimated.add(1)
        self._times(meter, call)
        if (usage := call.usage) is not None:
            if usage.input_tokens:
                meter.input.add(usage.input_tokens)
            if usage.output_tokens:
                meter.output.add(usage.output_tokens)
        if nano_usd is not None:
            meter.cost.add(nano_usd / 1e9 if nano_usd < _EXACT_AS_DOUBLE else call.cost_usd)
        elif usage is not None:
            meter.unpriced.add(1)

    @staticmethod
    def _times(meter: _Meter, call: Record | StoredCall) -> None:
        if call.latency is not None:
            meter.latency.record(call.latency)
        if call.time_to_first_token is not None:
            meter.first_token.record(call.time_to_first_token)


class Recording(Protocol):
    """What recording a call needs of the events."""

    def put(self, kind: str, data: Any, about: Mapping[str, str], *, id: str | None, counted: bool) -> tuple[str, bool]: ...  # noqa: A002


class Calls:
    """Records the calls of this process: metrics here and now, and an event for whoever wants more."""

    def __init__(self, metrics: Exemplifying, events: Recording, labels: tuple[str, ...]) -> None:
        self._metrics = metrics
        self._meters = Meters(metrics, labels)
        self._events = events

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
        nano_usd = nano(cost_usd)
        call = Record(
            provider,
            model,
            operation,
            units.seconds(latency, "latency"),
            None if time_to_first_token is None else units.seconds(time_to_first_token, "time_to_first_token"),
            usage,
            None if nano_usd is None else Decimal(nano_usd).scaleb(-9),
            "success" if success else "error",
            error,
            trace_id,
        )
        known = bound.current()
        if dimensions:
            known = {**known, **bound.checked(dimensions)}
        return self.put(call, nano_usd, known, id)

    def put(self, call: Record, nano_usd: int | None, known: Dimensions, id: str | None = None) -> str:  # noqa: A002
        """A call whose numbers are known to be good. known: all of its dimensions. Returns the event's id."""
        call.check_texts()
        claimed, is_new = self._events.put(LLM_CALL, call, known, id=id, counted=True)
        if is_new:
            self._meters.measure(call, known, nano_usd)
            if call.trace_id is not None and call.latency is not None:
                base = self._meters.labels(call, known)
                self._metrics.exemplify(Metric.REQUEST_LATENCY, call.latency, base)
                if call.time_to_first_token is not None:
                    self._metrics.exemplify(names.FIRST_TOKEN, call.time_to_first_token, base)
        return claimed
