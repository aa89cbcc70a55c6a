"""From layers to settings: defaults < file < environment < arguments. Every error names the key, the layer and the remedy."""

import difflib
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import msgspec

from .. import names, units
from ..errors import ConfigurationError, InvalidArgument
from ..redaction import compiled
from .named import BreakerSettings, LimitSettings
from .prices import prices
from .table import SECTIONS, TABLE, Everything, bounds, value_of
from .webhooks import webhooks

T = TypeVar("T", bound=msgspec.Struct)


class Settings(Everything, frozen=True):
    """All settings of one process, frozen. Build with `load`."""

    @classmethod
    def load(cls, file: str | None = None, *, environ: Mapping[str, str] | None = None, **values: Any) -> "Settings":
        """defaults < file < environment < values.

        file: given, else $OBSERVATORY_CONFIG, else ./observatory.toml when it exists. values: by key with `_` for `.`
        (redis_url=…); None means not given. Raises ConfigurationError.
        """
        environ = os.environ if environ is None else environ
        path: str | None = (
            file or environ.get("OBSERVATORY_CONFIG") or ("observatory.toml" if Path("observatory.toml").is_file() else None)
        )
        document, layer = ({}, "") if path is None else (_read(path), Path(path).name)
        return cls._layered(document, layer, environ, values)

    @classmethod
    def of(cls, document: Mapping[str, Any], **values: Any) -> "Settings":
        """defaults < document < values. document: what a file would say; no file is read, and no environment."""
        return cls._layered(dict(document), "settings", {}, values)

    @staticmethod
    def _layered(document: dict[str, Any], layer: str, environ: Mapping[str, str], values: Mapping[str, Any]) -> "Settings":
        found: dict[str, Any] = {}
        sources: dict[str, str] = {}
        limits = _tables(document.pop("limits", {}), layer, "limits", LimitSettings, names.limit_name)
        breakers = _tables(document.pop("breakers", {}), layer, "breakers", BreakerSettings, names.breaker_name)
        priced = prices(document.pop("prices", {}), layer)
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
        return _build(found, limits=limits, breakers=breakers, prices=priced, sources=sources, warnings=tuple(warnings))

    def replace(self, **values: Any) -> "Settings":
        """The same settings with some values changed, named as in `load`."""
        found = {key: value_of(self, key) for key in TABLE}
        for name, value in values.items():
            if name not in _ARGUMENTS:
                raise ConfigurationError(f"argument {name}: no such setting{_nearest(name, _ARGUMENTS)}")
            found[_ARGUMENTS[name]] = _parse(_ARGUMENTS[name], value, f"argument {name}")
        return _build(
            found,
            limits=self.limits,
            breakers=self.breakers,
            prices=self.prices,
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


def _flat(document: Mapping[str, Any], layer: str) -> Iterator[tuple[str, Any]]:
    for name, value in document.items():
        if name in SECTIONS:
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
            raise ConfigurationError(
                f"{layer}: {name}: unknown key{_nearest(name, {*TABLE, *SECTIONS, 'limits', 'breakers', 'prices'})}"
            )


def _tables(tables: Any, layer: str, section: str, kind: type[T], name_of: Callable[[object], str]) -> dict[str, T]:
    """What a file says by name: limits, breakers."""
    if not isinstance(tables, dict):
        raise ConfigurationError(f"{layer}: {section}: must be a table of tables")
    found: dict[str, T] = {}
    fields = set(kind.__struct_fields__)
    for name, table in tables.items():
        try:
            name_of(name)
        except InvalidArgument as error:
            raise ConfigurationError(f"{layer}: {section}: {error.message}") from error
        if not isinstance(table, dict):
            raise ConfigurationError(f"{layer}: {section}.{name}: must be a table, got {table!r:.60}")
        for field in table:
            if field not in fields:
                raise ConfigurationError(f"{layer}: {section}.{name}.{field}: unknown key{_nearest(field, fields)}")
        try:
            found[name] = msgspec.convert(table, kind)
        except msgspec.ValidationError as error:
            raise ConfigurationError(f"{layer}: {section}.{name}: {error}") from error
    return found


def _environment(environ: Mapping[str, str], warnings: list[str]) -> Iterator[tuple[str, str, str]]:
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
            yield _ENVIRONMENT[secret], name, _secret(name, value)
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


def _parse(key: str, value: Any, layer: str) -> Any:
    row, _ = TABLE[key]
    where = layer if layer.startswith(("argument ", "OBSERVATORY_", "OTEL_")) else f"{layer}: {key}"
    shown = "…" if row.kind in ("secret", "url", "webhooks") else units.shown(value, 60)
    if row.kind == "webhooks":
        return webhooks(value, where)
    found = _read_value(key, value, f"{where}={shown}")
    if key == "log.redact_patterns":
        compiled(found)
    if (row.least is not None and found < row.least) or (row.most is not None and found > row.most):
        raise ConfigurationError(
            f"{where}={shown}: must be {bounds(row)}", remedy=f"Leave it out for the default, {value_of(Everything(), key)}"
        )
    return found


def _read_value(key: str, value: Any, said: str) -> Any:
    row, hint = TABLE[key]
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
    except (ValueError, TypeError, OverflowError, msgspec.ValidationError):
        wanted = {
            "seconds": 'not a duration; write seconds or "500ms"',
            "bytes": 'not a size; write bytes or "64MiB"',
            "count": "not a whole number >= 0",
            "fraction": "not a number >= 0",
            "names": "not a list of names",
            "words": "not a list of words",
            "choice": f"not one of {', '.join(map(str, get_args(hint)))}",
        }.get(row.kind, f"must match {names._NAMESPACE.pattern}" if key == "namespace" else "not a text")  # noqa: SLF001
        raise ConfigurationError(f"{said}: {wanted}") from None


def _fraction(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError
    number = float(value)
    if not 0 <= number < float("inf"):
        raise ValueError
    return number


def _build(found: Mapping[str, Any], **rest: Any) -> Settings:
    top = {key: value for key, value in found.items() if "." not in key}
    for section, kind in SECTIONS.items():
        inner = {key.split(".", 1)[1]: value for key, value in found.items() if key.startswith(f"{section}.")}
        top[section] = kind(**inner)
    return Settings(**top, **rest)
