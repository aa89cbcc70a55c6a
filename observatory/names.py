"""The words that other systems see: metric names, their kinds and units, and what a name may look like."""

import re
from enum import StrEnum
from typing import Final, Literal

import msgspec

from .errors import InvalidArgument

Kind = Literal["counter", "gauge", "histogram"]


class Metric(StrEnum):
    """The ten metrics whose names and kinds are fixed."""

    REQUESTS_TOTAL = "observatory_requests_total"
    REQUEST_LATENCY = "observatory_request_latency_seconds"
    ACTIVE_CONNECTIONS = "observatory_active_connections"
    TOKENS_PROCESSED = "observatory_tokens_processed_total"
    TOTAL_COST_USD = "observatory_cost_usd_total"
    ERRORS_TOTAL = "observatory_errors_total"
    CACHE_HITS = "observatory_cache_hits_total"
    CACHE_MISSES = "observatory_cache_misses_total"
    RATE_LIMIT_REJECTIONS = "observatory_rate_limit_rejections_total"
    RETRY_ATTEMPTS = "observatory_retry_attempts_total"


class Definition(msgspec.Struct, frozen=True):
    """What a metric is."""

    kind: Kind
    unit: str = ""
    description: str = ""


EVENTS_APPLIED: Final = "observatory_events_applied_total"
UNPRICED_CALLS: Final = "observatory_unpriced_calls_total"
FIRST_TOKEN: Final = "observatory_time_to_first_token_seconds"  # noqa: S105 (of a language model)
INTER_TOKEN: Final = "observatory_inter_token_seconds"  # noqa: S105 (likewise)
ESTIMATED_CALLS: Final = "observatory_estimated_calls_total"
HTTP_SECONDS: Final = "observatory_http_client_seconds"
SERIES_FOLDED: Final = "observatory_series_folded_total"
VALUES_REFUSED: Final = "observatory_values_refused_total"
RESERVATIONS_REAPED: Final = "observatory_reservations_reaped_total"
LIMIT_ALERTS: Final = "observatory_limit_alerts_total"
ALERTS_SENT: Final = "observatory_alerts_sent_total"
ALERTS_DROPPED: Final = "observatory_alerts_dropped_total"
LIMIT_UTILIZATION: Final = "observatory_limit_utilization_ratio"
WAIT_SECONDS: Final = "observatory_wait_seconds"
INSTANCES: Final = "observatory_instances"
LIMIT_CONFLICTS: Final = "observatory_limit_conflicts_total"
BATCHES_LOST: Final = "observatory_batches_lost_total"
ADDITIONS_REFUSED: Final = "observatory_additions_refused_total"
ADDITIONS_LATE: Final = "observatory_additions_late_total"
IDS_FORGOTTEN: Final = "observatory_ids_forgotten_total"
WINDOWS_FOLDED: Final = "observatory_windows_folded_total"
EVENTS_DROPPED: Final = "observatory_events_dropped_total"
EVENTS_SAVED: Final = "observatory_events_saved_total"
STREAM_LAG: Final = "observatory_stream_lag_seconds"
DEAD_LETTERS: Final = "observatory_dead_letters"
RESERVATIONS_OPEN: Final = "observatory_reservations_open"
CONSERVATION_DRIFT: Final = "observatory_conservation_drift"
AUDITED_PARTITIONS: Final = "observatory_audited_partitions"
EXPORTS_FAILED: Final = "observatory_exports_failed_total"
OBSERVED: Final = "observatory_observed_seconds"
CACHE_COALESCED: Final = "observatory_cache_coalesced_total"
CACHE_COMPUTATIONS: Final = "observatory_cache_computations_total"
CACHE_CORRUPT: Final = "observatory_cache_corrupt_total"
CACHE_ERRORS: Final = "observatory_cache_errors_total"
CACHE_NEAR_BYTES: Final = "observatory_cache_near_bytes"
CACHE_NEAR_CHECKS: Final = "observatory_cache_near_checks_total"
CACHE_NEAR_ENTRIES: Final = "observatory_cache_near_entries"
CACHE_NEAR_EVICTIONS: Final = "observatory_cache_near_evictions_total"
CACHE_NEAR_MISMATCHES: Final = "observatory_cache_near_mismatches_total"
BREAKER_OPEN: Final = "observatory_breaker_open"
BREAKER_REFUSALS: Final = "observatory_breaker_refusals_total"
PAUSES: Final = "observatory_pauses_total"
ANSWERS_UNKEPT: Final = "observatory_answers_unkept_total"
LINES_REPEATED: Final = "observatory_log_lines_repeated_total"

SPAN_COST: Final = "observatory.cost_usd"
"""The attribute by which a span says what it cost."""

OURS: Final[dict[str, Definition]] = {
    Metric.REQUESTS_TOTAL: Definition("counter", "{request}", "LLM calls, by provider, model and status"),
    Metric.REQUEST_LATENCY: Definition("histogram", "s", "Latency of LLM calls"),
    Metric.ACTIVE_CONNECTIONS: Definition("gauge", "", "Connections open now, by kind"),
    Metric.TOKENS_PROCESSED: Definition("counter", "{token}", "Tokens processed, by provider, model and type"),
    Metric.TOTAL_COST_USD: Definition("counter", "{USD}", "Cost of LLM calls"),
    Metric.ERRORS_TOTAL: Definition("counter", "", "Errors, by code and module"),
    Metric.CACHE_HITS: Definition("counter", "", "Cache hits, by cache and tier"),
    Metric.CACHE_MISSES: Definition("counter", "", "Cache misses, by cache"),
    Metric.RATE_LIMIT_REJECTIONS: Definition("counter", "", "Refusals, by limit"),
    Metric.RETRY_ATTEMPTS: Definition("counter", "", "Retries, by name and outcome"),
    FIRST_TOKEN: Definition("histogram", "s", "Time to the first token of a streamed LLM call"),
    UNPRICED_CALLS: Definition("counter", "{request}", "LLM calls whose price is unknown"),
    INTER_TOKEN: Definition("histogram", "s", "Time between arrivals that bring output of a streamed LLM call"),
    ESTIMATED_CALLS: Definition(
        "counter", "{request}", "LLM calls whose tokens were counted here: the provider did not say them"
    ),
    HTTP_SECONDS: Definition(
        "histogram", "s", "Time to the head of a response that is no LLM call's, by host, method and status"
    ),
    EVENTS_APPLIED: Definition("counter", "{event}", "Events that workers have applied, by type"),
    SERIES_FOLDED: Definition("counter", "", "Recordings folded into the overflow series, by metric"),
    VALUES_REFUSED: Definition("counter", "", "Recordings refused because their value was not acceptable, by metric"),
    RESERVATIONS_REAPED: Definition("counter", "", "Reservations settled after they had run out"),
    LIMIT_ALERTS: Definition("counter", "", "Limits of which a fraction was used, by limit and fraction"),
    ALERTS_SENT: Definition("counter", "", "Alerts carried to a webhook, by outcome: delivered, failed (it is tried again)"),
    ALERTS_DROPPED: Definition("counter", "", "Alerts that left the outbox unsent, by reason: full, expired (a day old)"),
    LIMIT_UTILIZATION: Definition("gauge", "1", "The most used of a limit seen here in 10 s, to within 0.01: ask for max"),
    WAIT_SECONDS: Definition("histogram", "s", "Time stood in line, by limit and outcome"),
    INSTANCES: Definition("gauge", "{instance}", "Open processes, by role"),
    LIMIT_CONFLICTS: Definition("counter", "", "Names that mean two limits in one fleet, by limit"),
    BATCHES_LOST: Definition("counter", "", "Batches that could not be delivered, by feature"),
    ADDITIONS_REFUSED: Definition("counter", "", "Additions that the store refused: overflow, a foreign key, another kind"),
    ADDITIONS_LATE: Definition("counter", "", "Additions that reached the totals alone: their window was more than a day ago"),
    IDS_FORGOTTEN: Definition("counter", "", "Ids of events forgotten before their time, since too many came"),
    OBSERVED: Definition("histogram", "s", "Duration of observed functions, by function, status and error"),
    LINES_REPEATED: Definition("counter", "{line}", "Log lines that were counted instead of written, since they said the same"),
    EVENTS_DROPPED: Definition("counter", "{event}", "Events that had to make room or were thrown away, by reason"),
    EVENTS_SAVED: Definition("counter", "{event}", "Events applied after all, that made room while a worker had them in hand"),
    STREAM_LAG: Definition("gauge", "s", "Age of the oldest event that waits for a worker"),
    DEAD_LETTERS: Definition("gauge", "{event}", "Events that could not be applied and are kept with their reason"),
    RESERVATIONS_OPEN: Definition("gauge", "", "Reservations that are held and not yet settled, cancelled or reaped"),
    CONSERVATION_DRIFT: Definition("gauge", "", "What a ledger says less what is there, by ledger: 0, or something was lost"),
    AUDITED_PARTITIONS: Definition(
        "gauge", "{partition}", "Partitions that the audit has counted lately: of the others it knows nothing"
    ),
    CACHE_COALESCED: Definition("counter", "", "Misses that waited for somebody else's computation, by cache"),
    CACHE_COMPUTATIONS: Definition(
        "counter", "", "Computations of entries, by cache and outcome: ok, failed, fenced, cancelled"
    ),
    CACHE_CORRUPT: Definition("counter", "", "Entries whose bytes were not what was written, by cache: misses"),
    CACHE_ERRORS: Definition("counter", "", "Reads that the store did not answer in time, by cache: misses"),
    CACHE_NEAR_BYTES: Definition("gauge", "By", "Size of what processes keep near, by cache"),
    CACHE_NEAR_CHECKS: Definition("counter", "", "Near hits that were compared with the store, by cache: one in a thousand"),
    CACHE_NEAR_ENTRIES: Definition("gauge", "", "Entries that processes keep near, by cache"),
    CACHE_NEAR_EVICTIONS: Definition("counter", "", "Entries that left a near cache for others, by cache"),
    CACHE_NEAR_MISMATCHES: Definition(
        "counter", "", "Near hits that were older than cache.near_bound, by cache: never, or something is broken"
    ),
    BREAKER_OPEN: Definition("gauge", "", "1 while a breaker is open or half open, as processes know it: ask for max"),
    BREAKER_REFUSALS: Definition("counter", "", "Calls that an open breaker did not let through, by name"),
    PAUSES: Definition("counter", "", "Pauses of the fleet that a provider asked for, by provider"),
    ANSWERS_UNKEPT: Definition("counter", "", "LLM calls whose answer the answer cache did not give to others, by reason"),
    WINDOWS_FOLDED: Definition("counter", "", "10 s windows that became part of a longer one while the store was away"),
    EXPORTS_FAILED: Definition("counter", "", "Exports of metrics that were not received, by exporter"),
}

OVERFLOW: Final = "observatory_overflow"
"""The label of the series into which a metric's further series are folded when it has too many."""

_LIMIT = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_METRIC = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,127}")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,63}")
_BREAKER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./:-]{0,127}")
_CACHE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def _checked(pattern: re.Pattern[str], value: object, what: str) -> str:
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise InvalidArgument(f"{what} {value!r:.90} must match {pattern.pattern}")
    return value


def limit_name(value: object) -> str:
    return _checked(_LIMIT, value, "limit name")


def namespace(value: object) -> str:
    return _checked(_NAMESPACE, value, "namespace")


def metric_name(value: object) -> str:
    return _checked(_METRIC, value, "metric name")


def label_name(value: object) -> str:
    return _checked(_LABEL, value, "label name")


def unit(value: object, what: str) -> str:
    return _checked(_LABEL, value, what)


def cache_name(value: object) -> str:
    return _checked(_CACHE, value, "cache name")


def breaker_name(value: object) -> str:
    return _checked(_BREAKER, value, "breaker name")
