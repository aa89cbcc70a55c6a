"""From layers to settings: defaults < file < environment < arguments. Every error names the key, the layer and the remedy."""

import difflib
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from .. import names
from ..errors import ConfigurationError, InvalidArgument
from .named import BreakerSettings, LimitSettings, spoken
from .prices import prices
from .table import SECTIONS, TABLE, Everything, value_of
from .values import parse

T = TypeVar("T", bound=msgspec.Struct)


class Settings(Everything, frozen=True):
    """All settings of one process, frozen. Build with `load`."""

    @classmethod
    def load(cls, file: str | None = None, *, environ: Mapping[str, str] | None = None, **values: Any) -> "Settings":
        """defaults < file < environment < values.

        file: given, else $OBSERVATORY_CONFIG, else ./observatory.toml when it exists. values: by key with `_` for `.`
        (redis_url=…); None means not given. Raises ConfigurationError.
        """
        return cls._loaded(file, environ, values)

    @classmethod
    def examine(
        cls, file: str | None = None, *, environ: Mapping[str, str] | None = None, **values: Any
    ) -> tuple["Settings", tuple[ConfigurationError, ...]]:
        """As `load`, with the mistakes of every table and setting in place of the first, and the settings without them.
        ConfigurationError: the file cannot be read."""
        faults: list[ConfigurationError] = []
        return cls._loaded(file, environ, values, faults), tuple(faults)

    @classmethod
    def _loaded(
        cls,
        file: str | None,
        environ: Mapping[str, str] | None,
        values: Mapping[str, Any],
        faults: list[ConfigurationError] | None = None,
    ) -> "Settings":
        environ = os.environ if environ is None else environ
        path: str | None = (
            file or environ.get("OBSERVATORY_CONFIG") or ("observatory.toml" if Path("observatory.toml").is_file() else None)
        )
        document, layer = ({}, "") if path is None else (_read(path), Path(path).name)
        return cls._layered(document, layer, environ, values, faults)

    @classmethod
    def of(cls, document: Mapping[str, Any], **values: Any) -> "Settings":
        """defaults < document < values. document: what a file would say; no file is read, and no environment."""
        return cls._layered(dict(document), "settings", {}, values)

    @staticmethod
    def _layered(
        document: dict[str, Any],
        layer: str,
        environ: Mapping[str, str],
        values: Mapping[str, Any],
        faults: list[ConfigurationError] | None = None,
    ) -> "Settings":
        """faults: where mistakes are put, instead of being raised."""
        found: dict[str, Any] = {}
        sources: dict[str, str] = {}
        named = {
            "limits": _tables(document.pop("limits", {}), layer, "limits", LimitSettings, names.limit_name, faults),
            "breakers": _tables(document.pop("breakers", {}), layer, "breakers", BreakerSettings, names.breaker_name, faults),
            "prices": {},
        }
        with _caught(faults):
            named["prices"] = prices(document.pop("prices", {}), layer)
        for key, value in _flat(document, layer, faults):
            with _caught(faults):
                found[key], sources[key] = parse(key, value, layer), layer
        warnings: list[str] = []
        for key, name, value in _environment(environ, warnings):
            with _caught(faults):
                told = value if name in _ENVIRONMENT or not name.endswith("_FILE") else _secret(name, value)
                found[key], sources[key] = parse(key, told, name), "environment"
        for name, value in values.items():
            if value is None:
                continue
            with _caught(faults):
                if name not in _ARGUMENTS:
                    raise ConfigurationError(f"argument {name}: no such setting{_nearest(name, _ARGUMENTS)}")
                key = _ARGUMENTS[name]
                found[key], sources[key] = parse(key, value, f"argument {name}"), "arguments"
        return _build(found, **named, layer=layer, sources=sources, warnings=tuple(warnings))

    def replace(self, **values: Any) -> "Settings":
        """The same settings with some values changed, named as in `load`."""
        found = {key: value_of(self, key) for key in TABLE}
        for name, value in values.items():
            if name not in _ARGUMENTS:
                raise ConfigurationError(f"argument {name}: no such setting{_nearest(name, _ARGUMENTS)}")
            found[_ARGUMENTS[name]] = parse(_ARGUMENTS[name], value, f"argument {name}")
        return _build(
            found,
            limits=self.limits,
            breakers=self.breakers,
            prices=self.prices,
            layer=self.layer,
            sources=self.sources,
            warnings=self.warnings,
        )


_TABLES = ("limits", "breakers", "prices")
"""What a file says by name."""
_ARGUMENTS = {key.replace(".", "_"): key for key in TABLE}
_ENVIRONMENT = {f"OBSERVATORY_{name.upper()}": key for name, key in _ARGUMENTS.items()}
_STANDARD = {"OTEL_SERVICE_NAME": "service_name", "OTEL_TRACES_SAMPLER_ARG": "tracing.sample_ratio"}
_BY_RATIO = ("", "traceidratio", "parentbased_traceidratio")
"""Samplers whose argument is a ratio. Other ones are not ours."""
_CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
_CAPTURED = ("true", "span_only", "span_and_event")
_OTHERS = {"OBSERVATORY_CONFIG"}
_URLS = {"OBSERVATORY_REDIS_URL", "OBSERVATORY_CACHE_REDIS_URL"}


@contextmanager
def _caught(faults: list[ConfigurationError] | None) -> Iterator[None]:
    """Of several mistakes each is put down, where somebody wants them all; else the first is raised."""
    try:
        yield
    except ConfigurationError as error:
        if faults is None:
            raise
        faults.append(error)


def _nearest(word: str, known: Mapping[str, Any] | set[str], quote: str = '"') -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f", did you mean {quote}{close[0]}{quote}?" if close else ""


def _read(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:  # TOML's own, a wrong encoding, a number of thousands of digits, a deep nest
        raise ConfigurationError(f"{path}: not TOML ({error})") from error


def _flat(document: Mapping[str, Any], layer: str, faults: list[ConfigurationError] | None) -> Iterator[tuple[str, Any]]:
    for name, value in document.items():
        if name in TABLE:
            yield name, value
        elif name in SECTIONS and isinstance(value, dict):
            for inner, inner_value in value.items():
                key = f"{name}.{inner}"
                if key in TABLE:
                    yield key, inner_value
                else:
                    known = {other.split(".", 1)[1] for other in TABLE if other.startswith(f"{name}.")}
                    with _caught(faults):
                        raise ConfigurationError(f"{layer}: {key}: unknown key{_nearest(inner, known)}")
        else:
            known = {*TABLE, *SECTIONS, *_TABLES}
            wrong = f"must be a table, got {value!r:.60}" if name in SECTIONS else f"unknown key{_nearest(name, known)}"
            with _caught(faults):
                raise ConfigurationError(f"{layer}: {name}: {wrong}")


def _tables(
    tables: Any,
    layer: str,
    section: str,
    kind: type[T],
    name_of: Callable[[object], str],
    faults: list[ConfigurationError] | None,
) -> dict[str, T]:
    """What a file says by name: limits, breakers."""
    found: dict[str, T] = {}
    with _caught(faults):
        if not isinstance(tables, dict):
            raise ConfigurationError(f"{layer}: {section}: must be a table of tables")
        for name, table in tables.items():
            with _caught(faults):
                found[name] = _table(table, layer, section, kind, name, name_of)
    return found


def _table(table: Any, layer: str, section: str, kind: type[T], name: str, name_of: Callable[[object], str]) -> T:
    try:
        name_of(name)
    except InvalidArgument as error:
        raise ConfigurationError(f"{layer}: {section}: {error.message}") from error
    if not isinstance(table, dict):
        raise ConfigurationError(f"{layer}: {section}.{name}: must be a table, got {table!r:.60}")
    fields = set(kind.__struct_fields__)
    for field in table:
        if field not in fields:
            raise ConfigurationError(f"{layer}: {section}.{name}.{field}: unknown key{_nearest(field, fields)}")
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        raise ConfigurationError(spoken(f"{layer}: {section}.{name}", error)) from error


def _environment(environ: Mapping[str, str], warnings: list[str]) -> Iterator[tuple[str, str, str]]:
    """Key, variable, and what it says; of a secret's file its path."""
    for name, key in _STANDARD.items():
        ours = name != "OTEL_TRACES_SAMPLER_ARG" or environ.get("OTEL_TRACES_SAMPLER", "") in _BY_RATIO
        if environ.get(name) and ours:
            yield key, name, environ[name]
    if environ.get(_CAPTURE, "").strip().lower() in _CAPTURED:
        yield "llm.capture_content", _CAPTURE, "on"
    for name in sorted(environ):
        value = environ[name]
        # Kubernetes writes service links such as OBSERVATORY_PORT=tcp://… and …_SERVICE_HOST for a Service of our name.
        if not name.startswith("OBSERVATORY_") or name in _OTHERS or value.startswith("tcp://"):
            continue
        if name.startswith(("OBSERVATORY_SERVICE_HOST", "OBSERVATORY_SERVICE_PORT", "OBSERVATORY_PORT", "OBSERVATORY_TEST_")):
            continue
        secret = name.removesuffix("_FILE")
        if name in _URLS and not value:
            continue  # as `docker compose` hands on a variable that is not set
        if name in _ENVIRONMENT:
            yield _ENVIRONMENT[name], name, value
        elif secret in _ENVIRONMENT and TABLE[_ENVIRONMENT[secret]][0].kind == "secret":
            yield _ENVIRONMENT[secret], name, value
        else:
            warnings.append(f"{name}: no such setting{_nearest(name, _ENVIRONMENT, '')}")


def _secret(name: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigurationError(f"{name}: {path}: cannot be read ({error.strerror})") from error
    except ValueError:  # without its cause, which would show what is in the file
        raise ConfigurationError(
            f"{name}: {path}: is not text in UTF-8", remedy="Write the secret itself into the file, as text"
        ) from None


def _build(found: Mapping[str, Any], **rest: Any) -> Settings:
    top = {key: value for key, value in found.items() if "." not in key}
    for section, kind in SECTIONS.items():
        inner = {key.split(".", 1)[1]: value for key, value in found.items() if key.startswith(f"{section}.")}
        top[section] = kind(**inner)
    return Settings(**top, **rest)
