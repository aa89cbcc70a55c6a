"""What a worker adds up is what `measure` would have added, call by call."""

from collections import defaultdict
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from observatory import names
from observatory.features.metrics import series
from observatory.llm import CallData, Usage
from observatory.llm.call import measure
from observatory.worker.tally import Call, Tally, Used

TEXT = st.sampled_from(["a", 'b"', "c,d=", "e\n"])
SECONDS = st.none() | st.just(0.0) | st.decimals(0, 4000, places=6, allow_nan=False).map(float)
TOKENS = st.integers(0, 2**40)
CALLS = st.builds(
    CallData,
    provider=TEXT,
    model=TEXT,
    latency=SECONDS,
    time_to_first_token=SECONDS,
    usage=st.none() | st.builds(Usage, input_tokens=TOKENS, output_tokens=TOKENS),
    cost_usd=st.none() | st.decimals(0, 1000, places=9),
    status=st.sampled_from(["success", "error", "refused"]),
    error=st.none() | TEXT,
)
DIMENSIONS = st.dictionaries(st.sampled_from(["team", "user"]), TEXT)
Fields = dict[str, dict[str, int]]


class OneByOne:
    """The plain way."""

    def __init__(self) -> None:
        self.fields: Fields = defaultdict(lambda: defaultdict(int))

    def increment_counter(self, metric: str, value: Any = 1, labels: Mapping[str, str] | None = None) -> None:
        self._add(metric, series.text(labels or {}), "wn", int(Decimal(value) * 10**9))

    def record_histogram(self, metric: str, value: float, labels: Mapping[str, str] | None = None) -> None:
        text, nano = series.text(labels or {}), round(Decimal(str(value)) * 10**9)
        self.fields[metric][f"c|{text}"] += 1
        self.fields[metric][f"b{series.bucket(value)}|{text}" if nano else f"z|{text}"] += 1
        self._add(metric, text, "st", nano)

    def _add(self, metric: str, text: str, parts: str, nano: int) -> None:
        whole, rest = parts[0], parts[1]
        self.fields[metric][f"{whole}|{text}"] += nano // 10**9
        self.fields[metric][f"{rest}|{text}"] += nano % 10**9


def added(fields: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    """Without zeros, and with whole parts and billionths taken together: how a sum is split between them means nothing."""
    found: dict[str, dict[str, int]] = {}
    for metric, sums in fields.items():
        into = found.setdefault(metric, defaultdict(int))
        for field, number in sums.items():
            part, _, text = field.partition("|")
            match part:
                case "w" | "s":
                    into[f"sum|{text}"] += number * 10**9
                case "n" | "t":
                    into[f"sum|{text}"] += number
                case _:
                    into[field] += number
    return {
        metric: left for metric, sums in found.items() if (left := {field: number for field, number in sums.items() if number})
    }


def lean(one: CallData) -> Call:
    usage = None if one.usage is None else Used(one.usage.input_tokens, one.usage.output_tokens)
    return Call(
        one.provider,
        one.model,
        latency=one.latency,
        time_to_first_token=one.time_to_first_token,
        usage=usage,
        cost_usd=one.cost_usd,
        status=one.status,  # type: ignore[arg-type]
        error=one.error,
    )


@given(st.lists(st.tuples(CALLS, DIMENSIONS), max_size=30))
def test_tally_adds_what_measure_adds(calls: list[tuple[CallData, dict[str, str]]]) -> None:
    """Every field of every metric."""
    plain, tally = OneByOne(), Tally(("team",), 1000)
    for one, dimensions in calls:
        measure(plain, one, dimensions, ("team",))
        tally.call(lean(one), dimensions)
    assert added({group.metric: dict(group.additions) for group in tally.groups()}) == added(plain.fields)


def test_further_series_fold_into_one_and_are_counted() -> None:
    """The bound is of series; what is counted is recordings. Sums stay whole."""
    tally = Tally((), 3)
    for number in range(10):
        for _ in range(2):
            tally.call(Call("p", f"m{number}", latency=1.0), {})
    found = {group.metric: dict(group.additions) for group in tally.groups()}
    requests = found["observatory_requests_total"]
    assert len(requests) == 4
    assert requests[f'w|{names.OVERFLOW}="true"'] == 14
    assert sum(requests.values()) == 20
    latency = found["observatory_request_latency_seconds"]
    assert sum(number for field, number in latency.items() if field.startswith("c|")) == 20
    assert found[names.SERIES_FOLDED]['w|metric="observatory_requests_total"'] == 14
