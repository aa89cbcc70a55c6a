"""OpenMetrics and Prometheus' text: read back by Prometheus' own library they say what was recorded, whatever its name."""

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from observatory import Metric, Observatory
from observatory.features.metrics.export import Export, Family
from observatory.features.metrics.openmetrics import Form, exposition, wanted
from observatory.features.metrics.recorder import Recorder
from observatory.features.metrics.waiting import Window
from observatory.names import Definition
from tests.conftest import Open

READERS: dict[Form, Any] = {"text": read_text, "openmetrics": read_openmetrics}


def samples(text: str, form: Form) -> dict[str, list[tuple[dict[str, str], float]]]:
    """By name."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in READERS[form](text):
        for one in family.samples:
            found.setdefault(one.name, []).append((dict(one.labels), one.value))
    return found


def exposed(recorder: Recorder, form: Form) -> str:
    """What was recorded, as a process of its own would show it."""
    export = Export(lambda: pytest.fail("no store is needed"), recorder)
    export.begin()
    return asyncio.run(exposition(export.own(), form))


HOSTILE = ["a,b={c}", '"', "\\", "\n", "\\n", '\\"', "é\u2028\u2029", "\x00", "\r", "\t", "", " ", "}", '"} 5\n# EOF', "#"]


@pytest.mark.parametrize("form", ["text", "openmetrics"])
def test_hostile_values_survive(form: Form) -> None:
    """Every one is its own series and reads back as it was; only NUL, which ends the text for Prometheus, is replaced."""
    recorder = Recorder()
    for number, value in enumerate(HOSTILE, 1):
        recorder.add("test_total", "counter", number, {"x": value, "y": "1"})
        recorder.add("test_level", "gauge", number / 4, {"x": value})
        recorder.add("test_seconds", "histogram", number, {"x": value})
    found = samples(exposed(recorder, form), form)
    spelled = [value.replace("\0", "\ufffd") for value in HOSTILE]
    assert sorted(found["test_total"], key=lambda one: one[1]) == [
        ({"x": value, "y": "1"}, float(number)) for number, value in enumerate(spelled, 1)
    ]
    assert sorted(one[1] for one in found["test_level"]) == [number / 4 for number in range(1, len(HOSTILE) + 1)]
    assert {labels["x"] for labels, _ in found["test_seconds_sum"]} == set(spelled)
    assert len(found["test_seconds_bucket"]) == len(HOSTILE) * 40


names_ = st.from_regex(r"[a-z]{1,2}(_total|_count|_sum|_bucket|_created|_info|_seconds|_counter|)", fullmatch=True)
recordings = st.lists(
    st.tuples(
        names_,
        st.sampled_from(["counter", "gauge", "histogram"]),
        st.dictionaries(st.sampled_from(["a", "le", "__name__", "exported_le", "__x"]), st.text(max_size=6), max_size=3),
        st.integers(1, 2**40),
    ),
    max_size=12,
)


@settings(deadline=None)
@given(recordings=recordings)
def test_any_metrics_together_are_an_exposition(recordings: list[tuple[str, Any, dict[str, str], int]]) -> None:
    """Names that clash, labels that mean something to Prometheus: the text stays readable, and no value is missing."""
    recorder = Recorder()
    kinds: dict[str, str] = {}
    sums: dict[str, int] = {}
    for name, kind, labels, value in recordings:
        labels = {label: text.encode(errors="replace").decode() for label, text in labels.items()}
        if kinds.setdefault(name, kind) == kind:
            recorder.add(name, kind, value, labels)
            sums[kind] = sums.get(kind, 0) + value
    for form, read in READERS.items():
        text = exposed(recorder, form)
        list(read(text))
        assert len([line for line in text.split("\n") if line.startswith("# TYPE")]) == len(kinds)
    by_type = samples(exposed(recorder, "openmetrics"), "openmetrics")
    counted = sum(value for name, found in by_type.items() if name.endswith("_sum") for _, value in found)
    assert counted >= sums.get("histogram", 0)


def test_header_says_kind_unit_and_help() -> None:
    """A counter's family goes without _total; a unit is said only where the name ends with it; help is one line."""
    recorder = Recorder()
    recorder.describe("test_bytes_total", Definition("counter", "By", 'one "two"\nthree \\ four'))
    recorder.describe("test_things", Definition("counter", "{thing}"))
    for metric in ("test_bytes_total", "test_things", Metric.TOTAL_COST_USD, Metric.REQUESTS_TOTAL):
        recorder.add(metric, "counter", 1)
    recorder.add(Metric.REQUEST_LATENCY, "histogram", 1.5)
    families = {family.name: family for family in READERS["openmetrics"](exposed(recorder, "openmetrics"))}
    told = {name: (family.type, family.unit, [one.name for one in family.samples][-1]) for name, family in families.items()}
    assert told == {
        "test_bytes": ("counter", "bytes", "test_bytes_total"),
        "test_things": ("counter", "", "test_things_total"),
        "observatory_cost_usd": ("counter", "usd", "observatory_cost_usd_total"),
        "observatory_requests": ("counter", "", "observatory_requests_total"),
        "observatory_request_latency_seconds": ("histogram", "seconds", "observatory_request_latency_seconds_count"),
    }
    assert families["test_bytes"].documentation == 'one "two"\nthree \\ four'
    assert {one.labels["le"] for one in families[Metric.REQUEST_LATENCY].samples if "le" in one.labels} >= {
        "1.0",
        "0.5",
        "+Inf",
    }


def test_names_that_clash_in_openmetrics_alone_stay_as_they_are() -> None:
    """jobs and jobs_total are two families in one, there: the samples have the same names in both forms all the same."""
    recorder = Recorder()
    recorder.add("jobs", "gauge", 2)
    recorder.add("jobs_total", "counter", 5)
    for form in READERS:
        found = samples(exposed(recorder, form), form)
        assert (found["jobs"], found["jobs_total"]) == ([({}, 2.0)], [({}, 5.0)])


def test_own_totals_are_cumulative_through_freezing() -> None:
    """What is frozen goes to the store, and is not forgotten here; what comes before `begin` is not this export's."""
    recorder = Recorder()
    export = Export(lambda: pytest.fail("no store is needed"), recorder)
    recorder.add("early_total", "counter", 1)
    export.took(recorder.windows(0))
    export.begin()
    for _ in range(3):
        recorder.add("test_total", "counter", 0.1)
        recorder.add("test_seconds", "histogram", 3)
        export.took(recorder.windows(0))
    recorder.add("test_total", "counter", 0.1)
    for _ in range(2):
        own: dict[str, Family] = {family.name: family for family in export.own()}
        assert set(own) == {"test_total", "test_seconds"}
        assert own["test_total"].table[""].nano == 400_000_000
        assert own["test_seconds"].table[""].count == 3
    windows: list[Window] = recorder.windows(0)
    assert sum(number for window in windows for group in window.groups for _, number in group.additions) == 100_000_000
    export.forget()
    assert export.own() == []


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", "text"),
        ("text/html", "text"),
        ("application/openmetrics-text", "openmetrics"),
        ('application/openmetrics-text; version="1.0.0"; charset=utf-8', "openmetrics"),
        ("application/openmetrics-text;q=0", "text"),
        ("application/openmetrics-text;q=0.5,text/plain;q=0.5", "openmetrics"),
        ("text/plain,application/openmetrics-text;q=0.9", "text"),
        (";;,,=;q", "text"),
    ],
)
def test_accept(accept: str, form: Form) -> None:
    """The better quality wins, OpenMetrics a tie; nonsense is text."""
    assert wanted(accept) == form


async def test_the_fleets_numbers_in_openmetrics(obs: Observatory, opening: Open) -> None:
    """Two processes, one series; gauges are summed; sums have every digit."""
    other = await opening()
    for one, value in ((obs, "0.000000001"), (other, "1000000.5")):
        from decimal import Decimal

        one.metrics.increment_counter(Metric.TOTAL_COST_USD, Decimal(value), {"model": "m"})
        one.metrics.set_gauge("test_level", 1.25)
        one.metrics.record_histogram(Metric.REQUEST_LATENCY, 0.5)
        await one.flush()
    text = await obs.metrics.exposition(form="openmetrics")
    assert 'observatory_cost_usd_total{model="m"} 1000000.500000001\n' in text
    found = samples(text, "openmetrics")
    assert found["test_level"] == [({}, 2.5)]
    assert found["observatory_request_latency_seconds_count"] == [({}, 2.0)]
    assert text == await other.metrics.exposition(form="openmetrics")
