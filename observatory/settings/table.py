"""Every setting: name, kind, default, unit, bounds, sentence. `observatory config docs` prints this table."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, get_type_hints

from ..types import LogLevel
from .named import BreakerSettings, LimitSettings
from .prices import Price
from .row import Discreet, Row, Section, rows
from .webhooks import Webhook


class Redis(Section, frozen=True):
    """Where the store is, and how long it may take."""

    section = "redis"
    url: Annotated[str | None, Row("url", "where the store is; also OBSERVATORY_REDIS_URL")] = None
    password: Annotated[str | None, Row("secret", "kept out of URLs and logs; also OBSERVATORY_REDIS_PASSWORD_FILE")] = None
    allow_eviction: Annotated[tuple[str, ...], Row("words", "eviction policies accepted on coordination data")] = ()
    replicas: Annotated[
        int, Row("count", "replicas that must have what is written with durability=strict", least=1, most=100)
    ] = 1
    max_wait: Annotated[
        float, Row("seconds", "latency that one shared decision may add; slower counts as away", "s", least=0.001, most=60)
    ] = 0.25
    connect_timeout: Annotated[
        float, Row("seconds", "how long a connection may take to be made", "s", least=0.001, most=300)
    ] = 2.0
    socket_timeout: Annotated[
        float, Row("seconds", "an unanswered call older than this drops the connection", "s", least=0.001, most=300)
    ] = 2.0


class Cache(Section, frozen=True):
    """Shared entries."""

    section = "cache"
    redis_url: Annotated[str | None, Row("url", "a store that may evict, for entries only; default: redis.url")] = None
    ttl: Annotated[float, Row("seconds", "how long an entry lives when nothing else is said", "s", least=0.001)] = 300.0
    jitter: Annotated[float, Row("fraction", "up to this fraction is taken off each time to live", least=0, most=1)] = 0.1
    max_value: Annotated[int, Row("bytes", "largest encoded value", "bytes", least=1, most=512 * 2**20)] = 8 * 2**20
    compress_over: Annotated[
        int, Row("bytes", "encoded values above this are compressed, where that makes them smaller", "bytes", least=0)
    ] = 4096
    near: Annotated[Literal["on", "off"], Row("choice", "keep what is read in the process too, if nothing is said")] = "on"
    near_bound: Annotated[
        float, Row("seconds", "a value kept near may be out of date by so much at most", "s", least=0.1, most=60)
    ] = 1.0
    near_entries: Annotated[int, Row("count", "entries of one cache that are kept near, per process", least=1)] = 10_000
    near_bytes: Annotated[int, Row("bytes", "and how large all of them may be", "bytes", least=1)] = 64 * 2**20


class RetrySettings(Section, frozen=True):
    """The policy of `obs.retry`."""

    section = "retry"
    attempts: Annotated[int, Row("count", "calls in all", least=1, most=1_000_000)] = 3
    timeout: Annotated[float, Row("seconds", "deadline over all attempts, waits included", "s")] = 30.0
    wait_initial: Annotated[float, Row("seconds", "first wait", "s")] = 0.1
    wait_max: Annotated[float, Row("seconds", "longest wait, after jitter", "s")] = 10.0
    wait_jitter: Annotated[float, Row("seconds", "most that is added at random", "s")] = 1.0
    wait_exp_base: Annotated[float, Row("fraction", "each wait is the one before times this", least=1, most=1000)] = 2.0
    budget: Annotated[
        float, Row("fraction", "share of a name's calls that may be retries, in the whole fleet", least=0, most=1)
    ] = 0.1
    budget_reserve: Annotated[
        int, Row("count", "retries of a name in 10 s, in the whole fleet, that need no calls", most=1_000_000)
    ] = 10


class LlmSettings(Section, frozen=True):
    """Calls of LLM providers."""

    section = "llm"
    wait: Annotated[
        float,
        Row("seconds", "how long a call may stand in line, unless its client says", "s", least=0, most=86_400),
    ] = 0.0
    require: Annotated[tuple[str, ...], Row("names", "dimensions without which a call is refused")] = ()
    unpriced: Annotated[
        Literal["allow", "refuse"], Row("choice", "what becomes of calls that a budget in usd meets and no price is known of")
    ] = "allow"
    output_tokens: Annotated[
        int,
        Row(
            "count",
            "held for an answer whose request has no max_tokens, by a model that has not answered yet",
            "tokens",
            most=10**9,
        ),
    ] = 512
    capture_content: Annotated[
        Literal["off", "on"],
        Row("choice", "prompts and answers on spans, redacted; also OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"),
    ] = "off"
    breaker: Annotated[Literal["on", "off"], Row("choice", "a breaker for each provider and model, opened by its failures")] = (
        "on"
    )


class MetricsSettings(Section, frozen=True):
    """Recording and flushing."""

    section = "metrics"
    flush_every: Annotated[float, Row("seconds", "what a SIGKILL may lose", "s", least=0.01, most=3600)] = 1.0
    dimensions: Annotated[tuple[str, ...], Row("names", "bound dimensions that become labels, beside provider and model")] = ()
    max_series: Annotated[
        int, Row("count", "series of a metric, in a process and in the fleet; the rest share one", least=1, most=1_000_000)
    ] = 2000


class EventsSettings(Section, frozen=True):
    """The event streams."""

    section = "events"
    partitions: Annotated[
        int, Row("count", "streams the namespace's telemetry is divided into; fixed when it is made", least=1, most=1024)
    ] = 4
    max_entries: Annotated[
        int,
        Row("count", "stream entries kept per partition; beyond, the oldest are dropped and counted", least=1, most=10_000_000),
    ] = 10_000
    max_bytes: Annotated[
        int,
        Row(
            "bytes",
            "payload kept on a stream per partition; beyond, likewise",
            "bytes",
            least=1_000_000,
            most=1_000_000_000_000,
        ),
    ] = 268_435_456
    max_buffered: Annotated[int, Row("count", "events a process keeps while the store is away", least=1, most=10_000_000)] = (
        100_000
    )


class Log(Section, frozen=True):
    """Log lines."""

    section = "log"
    level: Annotated[LogLevel, Row("choice", "lowest level written", live=True)] = "info"
    format: Annotated[Literal["auto", "json", "text"], Row("choice", "auto: text on a terminal, else JSON")] = "auto"
    redact: Annotated[
        tuple[str, ...], Row("words", "fields whose value is hidden, beside password, token, secret, cookie and the like")
    ] = ()
    redact_patterns: Annotated[
        tuple[str, ...], Row("words", "what is hidden in any text, beside keys and tokens of a known shape; RE2, in the file")
    ] = ()
    max_repeats: Annotated[
        int,
        Row("count", "the same line is written so often in 10 s, further ones are counted and told; 0: all", most=1_000_000),
    ] = 20


class TracingSettings(Section, frozen=True):
    """Spans. Endpoints come by the standard OTEL_* variables."""

    section = "tracing"
    sample_ratio: Annotated[
        float,
        Row("fraction", "share of traces sent when nobody upstream has decided; also OTEL_TRACES_SAMPLER_ARG", least=0, most=1),
    ] = 1.0
    slow_after: Annotated[
        float, Row("seconds", "an unsampled trace is sent all the same when one of its spans took this long", "s", least=0)
    ] = 10.0
    expensive_usd: Annotated[
        float, Row("fraction", "an unsampled trace is sent all the same when one of its spans cost this much", "usd", least=0)
    ] = 1.0


class Serve(Section, frozen=True):
    """The HTTP service."""

    section = "serve"
    host: Annotated[str, Row("text", "address to listen on; a public one needs --allow-anonymous")] = "127.0.0.1"
    port: Annotated[int, Row("count", "port to listen on; 0: any free one", least=0, most=65_535)] = 8484
    processes: Annotated[int, Row("count", "processes that share the port", least=1, most=1024)] = 1
    drain_for: Annotated[
        float, Row("seconds", "readyz answers 503 this long before the listener closes", "s", least=0, most=3600)
    ] = 5.0
    max_body: Annotated[int, Row("bytes", "largest request body", "bytes", least=1, most=2**30)] = 4 * 2**20


class Worker(Section, frozen=True):
    """The workers."""

    section = "worker"
    roles: Annotated[tuple[str, ...], Row("words", "what it does: all, or some of events, alerts, audit, compaction, otlp")] = (
        "all",
    )
    concurrency: Annotated[
        int, Row("count", "stream entries (up to 100 events each) in hand at once; bounds its memory", least=2, most=10_000)
    ] = 64
    health_port: Annotated[
        int | None, Row("count", "port of /livez and /readyz; none unless given; 0: any free one", least=0, most=65_535)
    ] = None
    health_host: Annotated[str, Row("text", "address that the probes listen on")] = "127.0.0.1"
    drain_timeout: Annotated[
        float, Row("seconds", "how long a stopping worker may finish what it holds", "s", least=0, most=3600)
    ] = 30.0
    lease: Annotated[
        float, Row("seconds", "a partition is taken over this long after its worker fell silent", "s", least=1, most=3600)
    ] = 5.0


class AlertsSettings(Section, frozen=True):
    """Who is told."""

    section = "alerts"
    webhooks: Annotated[
        tuple[Webhook, ...],
        Row("webhooks", "receivers of alerts: url, secret_file (or secret), events; in the file, or as JSON"),
    ] = ()


class Everything(Discreet, frozen=True):
    """All settings of one process, by section."""

    section: ClassVar[str] = ""
    service_name: Annotated[str | None, Row("text", "also OTEL_SERVICE_NAME")] = None
    namespace: Annotated[str, Row("text", "part of every key")] = "default"
    environment: Annotated[str, Row("text", "only `development` may start an embedded server unasked")] = "development"
    instance: Annotated[str | None, Row("text", "this process's name; default: host-pid-4hex")] = None
    home: Annotated[
        str | None, Row("path", "where the embedded server keeps its state; default: the user's data directory")
    ] = None
    shutdown_timeout: Annotated[float, Row("seconds", "bound of closing", "s", least=0, most=3600)] = 10.0
    redis: Redis = Redis()
    cache: Cache = Cache()
    retry: RetrySettings = RetrySettings()
    llm: LlmSettings = LlmSettings()
    metrics: MetricsSettings = MetricsSettings()
    events: EventsSettings = EventsSettings()
    log: Log = Log()
    tracing: TracingSettings = TracingSettings()
    serve: Serve = Serve()
    worker: Worker = Worker()
    alerts: AlertsSettings = AlertsSettings()
    limits: Mapping[str, LimitSettings] = {}
    breakers: Mapping[str, BreakerSettings] = {}
    prices: Mapping[str, tuple[Price, ...]] = {}
    """By PROVIDER/MODEL: those that go before the catalogue's."""
    sources: Mapping[str, str] = {}
    """Which layer each setting that is not a default came from."""
    layer: str = ""
    """Where what is said by name was read: the file's name; empty where nothing is."""
    warnings: tuple[str, ...] = ()
    """What looked like a mistake in the environment; logged once when opening."""


SECTIONS: dict[str, type[Section]] = {
    name: hint for name, hint in get_type_hints(Everything).items() if isinstance(hint, type) and issubclass(hint, Section)
}
TABLE: dict[str, tuple[Row, Any]] = {
    **{name: (row, hint) for name, row, hint in rows(Everything)},
    **{f"{section}.{name}": (row, hint) for section, kind in SECTIONS.items() for name, row, hint in rows(kind)},
}


def value_of(settings: Everything, key: str) -> Any:
    """The value at a dotted key."""
    section, _, name = key.rpartition(".")
    return getattr(getattr(settings, section) if section else settings, name)


def bounds(row: Row) -> str:
    """What a person reads: "at least 1", "0 to 1"; empty where there are none."""
    unit = f" {row.unit}" if row.unit else ""
    if row.least is not None and row.most is not None:
        return f"{row.least:,} to {row.most:,}{unit}"
    return f"at least {row.least:,}{unit}" if row.least is not None else ""


def defaults() -> dict[str, Any]:
    """The default of every setting, by key."""
    return {key: value_of(Everything(), key) for key in TABLE}


def environment_name(key: str) -> str:
    return f"OBSERVATORY_{key.replace('.', '_').upper()}"
