"""Every setting in one table: name, kind, default, unit, sentence.

Layers, lowest first: defaults < file < environment < arguments.

`observatory config docs` prints the table. Every error names the key, the layer and the remedy.
"""

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgspec

from . import names, units
from .errors import ConfigurationError, InvalidArgument


class Row(NamedTuple):
    """What the table says of one setting, beside its name, type and default."""

    kind: Literal["text", "secret", "seconds", "bytes", "count", "fraction", "names", "words", "choice", "path"]
    meaning: str
    unit: str = ""
    live: bool = False


class Section(msgspec.Struct, frozen=True):
    """Settings that belong together; `section` is the table's name in the file and the middle of the environment's."""

    section: ClassVar[str] = ""


class Redis(Section, frozen=True):
    section = "redis"
    url: Annotated[str | None, Row("text", "where the store is; also OBSERVATORY_REDIS_URL")] = None
    password: Annotated[str | None, Row("secret", "kept out of URLs and logs; also OBSERVATORY_REDIS_PASSWORD_FILE")] = None
    allow_eviction: Annotated[tuple[str, ...], Row("words", "eviction policies accepted on coordination data")] = ()
    max_wait: Annotated[float, Row("seconds", "latency that one shared decision may add; slower counts as away", "s")] = 0.25
    connect_timeout: Annotated[float, Row("seconds", "how long a connection may take to be made", "s")] = 2.0
    socket_timeout: Annotated[float, Row("seconds", "an unanswered call older than this drops the connection", "s")] = 2.0


class Cache(Section, frozen=True):
    section = "cache"
    redis_url: Annotated[str | None, Row("text", "a store that may evict, for entries only; default: redis.url")] = None
    ttl: Annotated[float, Row("seconds", "how long an entry lives when nothing else is said", "s")] = 300.0
    jitter: Annotated[float, Row("fraction", "up to this fraction is taken off each time to live")] = 0.1
    max_value: Annotated[int, Row("bytes", "largest encoded value", "bytes")] = 8 * 2**20


class RetrySettings(Section, frozen=True):
    section = "retry"
    attempts: Annotated[int, Row("count", "calls in all")] = 3
    timeout: Annotated[float, Row("seconds", "deadline over all attempts, waits included", "s")] = 30.0
    wait_initial: Annotated[float, Row("seconds", "first wait", "s")] = 0.1
    wait_max: Annotated[float, Row("seconds", "longest wait, after jitter", "s")] = 10.0
    wait_jitter: Annotated[float, Row("seconds", "most that is added at random", "s")] = 1.0
    wait_exp_base: Annotated[float, Row("fraction", "each wait is the one before times this")] = 2.0


class MetricsSettings(Section, frozen=True):
    section = "metrics"
    flush_every: Annotated[float, Row("seconds", "what a SIGKILL may lose", "s")] = 1.0
    dimensions: Annotated[tuple[str, ...], Row("names", "bound dimensions that become labels, beside provider and model")] = ()
    max_series: Annotated[int, Row("count", "series per metric and process; the rest fold into one and are counted")] = 2000


class EventsSettings(Section, frozen=True):
    section = "events"
    partitions: Annotated[int, Row("count", "streams the namespace's telemetry is divided into; fixed when it is made")] = 4
    max_entries: Annotated[
        int, Row("count", "stream entries kept per partition; beyond, the oldest are dropped and counted")
    ] = 10_000
    max_buffered: Annotated[int, Row("count", "events a process keeps while the store is away")] = 100_000


class Log(Section, frozen=True):
    section = "log"
    level: Annotated[Literal["debug", "info", "warning", "error", "critical"], Row("choice", "lowest level written")] = "info"
    format: Annotated[Literal["auto", "json", "text"], Row("choice", "auto: text on a terminal, else JSON")] = "auto"


class TracingSettings(Section, frozen=True):
    section = "tracing"
    sample_ratio: Annotated[float, Row("fraction", "share of traces recorded when nobody upstream has decided")] = 1.0


class Serve(Section, frozen=True):
    section = "serve"
    host: Annotated[str, Row("text", "address to listen on; a public one needs --allow-anonymous")] = "127.0.0.1"
    port: Annotated[int, Row("count", "port to listen on; 0: any free one")] = 8484
    processes: Annotated[int, Row("count", "processes that share the port")] = 1
    drain_for: Annotated[float, Row("seconds", "readyz answers 503 this long before the listener closes", "s")] = 5.0
    max_body: Annotated[int, Row("bytes", "largest request body", "bytes")] = 4 * 2**20


class Worker(Section, frozen=True):
    section = "worker"
    drain_timeout: Annotated[float, Row("seconds", "how long a stopping worker may finish what it holds", "s")] = 30.0
    lease: Annotated[float, Row("seconds", "a partition is taken over this long after its worker fell silent", "s")] = 5.0


class LimitSettings(msgspec.Struct, frozen=True):
    """A limit as a file says it; fields left out come from the limit that code declares."""

    amount: int | float | str | None = None
    per: int | float | str | None = None
    burst: int | float | str | None = None
    unit: str | None = None
    by: str | tuple[str, ...] | None = None


class Settings(msgspec.Struct, frozen=True):
    """All settings of one process, frozen. Build with `load`."""

    section: ClassVar[str] = ""
    service_name: Annotated[str | None, Row("text", "also OTEL_SERVICE_NAME")] = None
    namespace: Annotated[str, Row("text", "part of every key")] = "default"
    environment: Annotated[str, Row("text", "only `development` may start an embedded server unasked")] = "development"
    instance: Annotated[str | None, Row("text", "this process's name; default: host-pid-4hex")] = None
    home: Annotated[
        str | None, Row("path", "where the embedded server keeps its state; default: the user's data directory")
    ] = None
    shutdown_timeout: Annotated[float, Row("seconds", "bound of closing", "s")] = 10.0
    redis: Redis = Redis()
    cache: Cache = Cache()
    retry: RetrySettings = RetrySettings()
    metrics: MetricsSettings = MetricsSettings()
    events: EventsSettings = EventsSettings()
    log: Log = Log()
    tracing: TracingSettings = TracingSettings()
    serve: Serve = Serve()
    worker: Worker = Worker()
    limits: Mapping[str, LimitSettings] = {}
    sources: Mapping[str, str] = {}
    """Which layer each setting that is not a default came from."""
    warnings: tuple[str, ...] = ()
    """What looked like a mistake in the environment; logged once when opening."""

    @classmethod
    def load(cls, file: str | None = None, *, environ: Mapping[str, str] | None = None, **values: Any) -> "Settings":
        """defaults < file < environment < values.

        file: given, else $OBSERVATORY_CONFIG, else ./observatory.toml when it exists. values: by key with `_` for `.`
        (redis_url=…); None means not given. Raises ConfigurationError.
        """
        environ = os.environ if environ is None else environ
        found: dict[str, Any] = {}
        sources: dict[str, str] = {}
        limits: dict[str, LimitSettings] = {}
        path: str | None = (
            file or environ.get("OBSERVATORY_CONFIG") or ("observatory.toml" if Path("observatory.toml").is_file() else None)
        )
        if path is not None:
            layer = Path(path).name
            document = _read(path)
            limits = _limits(document.pop("limits", {}), layer)
            for key, value in _flat(document, layer):
                found[key], sources[key] = _parse(key, value, layer), layer
        warnings: list[str] = []
        for key, name, value in _environment(environ, warnings):
            found[key], sources[key] = _parse(key, value, name), "environment"
        for name, value in values.items():
            if value is None:
                continue
            if name not in _ARGUMENTS:
                raise ConfigurationError(f"argument {name}: no such setting{_nearest(name, _ARGUMENTS)}")
            key = _ARGUMENTS[name]
            found[key], sources[key] = _parse(key, value, f"argument {name}"), "arguments"
        return _build(found, limits=limits, sources=sources, warnings=tuple(warnings))

    def replace(self, **values: Any) -> "Settings":
        """The same settings with some values changed, named as in `load`."""
        found = {key: _value(self, key) for key in TABLE}
        for name, value in values.items():
            if name not in _ARGUMENTS:
                raise ConfigurationError(f"argument {name}: no such setting{_nearest(name, _ARGUMENTS)}")
            found[_ARGUMENTS[name]] = _parse(_ARGUMENTS[name], value, f"argument {name}")
        return _build(found, limits=self.limits, sources=self.sources, warnings=self.warnings)


def _rows(kind: type[Any]) -> Iterator[tuple[str, Row, Any]]:
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if get_origin(hint) is Annotated and isinstance(get_args(hint)[1], Row):
            yield name, get_args(hint)[1], get_args(hint)[0]


_SECTIONS: dict[str, type[Section]] = {
    name: hint for name, hint in get_type_hints(Settings).items() if isinstance(hint, type) and issubclass(hint, Section)
}
TABLE: dict[str, tuple[Row, Any]] = {
    **{name: (row, hint) for name, row, hint in _rows(Settings)},
    **{f"{section}.{name}": (row, hint) for section, kind in _SECTIONS.items() for name, row, hint in _rows(kind)},
}
_ARGUMENTS = {key.replace(".", "_"): key for key in TABLE}
_ENVIRONMENT = {f"OBSERVATORY_{name.upper()}": key for name, key in _ARGUMENTS.items()}
_STANDARD = {"OTEL_SERVICE_NAME": "service_name"}
_OTHERS = {"OBSERVATORY_CONFIG"}


def defaults() -> dict[str, Any]:
    """The default of every setting, by key."""
    return {key: _value(Settings(), key) for key in TABLE}


def environment_name(key: str) -> str:
    return f"OBSERVATORY_{key.replace('.', '_').upper()}"


def _value(settings: Settings, key: str) -> Any:
    section, _, name = key.rpartition(".")
    return getattr(getattr(settings, section) if section else settings, name)


def _nearest(word: str, known: Mapping[str, Any] | set[str], quote: str = '"') -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f", did you mean {quote}{close[0]}{quote}?" if close else ""


def _read(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not TOML ({error})") from error


def _flat(document: Mapping[str, Any], layer: str) -> Iterator[tuple[str, Any]]:
    for name, value in document.items():
        if name in _SECTIONS:
            if not isinstance(value, dict):
                raise ConfigurationError(f"{layer}: {name}: must be a table, got {value!r:.60}")
            for inner, inner_value in value.items():
                key = f"{name}.{inner}"
                if key not in TABLE:
                    known = {other.split(".", 1)[1] for other in TABLE if other.startswith(f"{name}.")}
                    raise ConfigurationError(f"{layer}: {key}: unknown key{_nearest(inner, known)}")
                yield key, inner_value
        elif name in TABLE:
            yield name, value
        else:
            raise ConfigurationError(f"{layer}: {name}: unknown key{_nearest(name, {*TABLE, *_SECTIONS, 'limits'})}")


def _limits(tables: Any, layer: str) -> dict[str, LimitSettings]:
    if not isinstance(tables, dict):
        raise ConfigurationError(f"{layer}: limits: must be a table of tables")
    found: dict[str, LimitSettings] = {}
    for name, table in tables.items():
        try:
            names.limit_name(name)
        except InvalidArgument as error:
            raise ConfigurationError(f"{layer}: limits: {error.message}") from error
        if not isinstance(table, dict):
            raise ConfigurationError(f"{layer}: limits.{name}: must be a table, got {table!r:.60}")
        for field in table:
            if field not in LimitSettings.__struct_fields__:
                nearest = _nearest(field, set(LimitSettings.__struct_fields__))
                raise ConfigurationError(f"{layer}: limits.{name}.{field}: unknown key{nearest}")
        try:
            found[name] = msgspec.convert(table, LimitSettings)
        except msgspec.ValidationError as error:
            raise ConfigurationError(f"{layer}: limits.{name}: {error}") from error
    return found


def _environment(environ: Mapping[str, str], warnings: list[str]) -> Iterator[tuple[str, str, str]]:
    for name, key in _STANDARD.items():
        if environ.get(name):
            yield key, name, environ[name]
    for name in sorted(environ):
        value = environ[name]
        # Kubernetes writes service links such as OBSERVATORY_PORT=tcp://… and …_SERVICE_HOST for a Service of our name.
        if not name.startswith("OBSERVATORY_") or name in _OTHERS or value.startswith("tcp://"):
            continue
        if name.startswith(("OBSERVATORY_SERVICE_HOST", "OBSERVATORY_SERVICE_PORT", "OBSERVATORY_PORT", "OBSERVATORY_TEST_")):
            continue
        secret = name.removesuffix("_FILE")
        if name in _ENVIRONMENT:
            yield _ENVIRONMENT[name], name, value
        elif secret in _ENVIRONMENT and TABLE[_ENVIRONMENT[secret]][0].kind == "secret":
            try:
                yield _ENVIRONMENT[secret], name, Path(value).read_text(encoding="utf-8").strip()
            except OSError as error:
                raise ConfigurationError(f"{name}: {value}: cannot be read ({error.strerror})") from error
        else:
            warnings.append(f"{name}: no such setting{_nearest(name, _ENVIRONMENT, '')}")


def _parse(key: str, value: Any, layer: str) -> Any:
    row, hint = TABLE[key]
    where = layer if layer.startswith(("argument ", "OBSERVATORY_", "OTEL_")) else f"{layer}: {key}"
    shown = "…" if row.kind == "secret" else f"{value!r:.60}"
    try:
        match row.kind:
            case "seconds":
                return units.seconds(value if not isinstance(value, str) or value[-1:].isalpha() else float(value))
            case "bytes":
                return units.size(int(value) if isinstance(value, str) and value.isdigit() else value)
            case "count":
                number = int(value) if isinstance(value, str) else value
                if isinstance(number, bool) or not isinstance(number, int) or number < 0:
                    raise ValueError
                return number
            case "fraction":
                return _fraction(value)
            case "names" | "words":
                listed = [word.strip() for word in value.split(",")] if isinstance(value, str) else list(value)
                return tuple(names.label_name(word) if row.kind == "names" else str(word) for word in listed if word)
            case "choice":
                return msgspec.convert(value, hint)
            case _:
                if not isinstance(value, str):
                    raise TypeError
                return names.namespace(value) if key == "namespace" else value
    except (ValueError, TypeError, msgspec.ValidationError):
        wanted = {
            "seconds": 'not a duration; write seconds or "500ms"',
            "bytes": 'not a size; write bytes or "64MiB"',
            "count": "not a whole number >= 0",
            "fraction": "not a number >= 0",
            "names": "not a list of names",
            "words": "not a list of words",
            "choice": f"not one of {', '.join(map(str, get_args(hint)))}",
        }.get(row.kind, f"must match {names._NAMESPACE.pattern}" if key == "namespace" else "not a text")  # noqa: SLF001
        raise ConfigurationError(f"{where}={shown}: {wanted}") from None


def _fraction(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError
    number = float(value)
    if not 0 <= number < float("inf"):
        raise ValueError
    return number


def _build(found: Mapping[str, Any], **rest: Any) -> Settings:
    top = {key: value for key, value in found.items() if "." not in key}
    for section, kind in _SECTIONS.items():
        inner = {key.split(".", 1)[1]: value for key, value in found.items() if key.startswith(f"{section}.")}
        top[section] = kind(**inner)
    settings = Settings(**top, **rest)
    if settings.events.partitions < 1:
        raise ConfigurationError("events.partitions: must be at least 1")
    if settings.metrics.flush_every <= 0:
        raise ConfigurationError("metrics.flush_every: must be above 0")
    return settings
