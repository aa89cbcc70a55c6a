"""What a layer says of one setting, as the value that it means."""

from typing import Any, get_args

import msgspec

from .. import names, units
from ..errors import ConfigurationError
from ..redaction import compiled
from .table import TABLE, Everything, bounds, value_of
from .webhooks import webhooks


def parse(key: str, value: Any, layer: str) -> Any:
    """The value of a setting. ConfigurationError names the key, the layer and what would do; a secret is never shown."""
    row, _ = TABLE[key]
    where = layer if layer.startswith(("argument ", "OBSERVATORY_", "OTEL_")) else f"{layer}: {key}"
    shown = "…" if row.kind in ("secret", "url", "webhooks") else units.shown(value, 60)
    if row.kind == "webhooks":
        return webhooks(value, where)
    found = _read_value(key, value, f"{where}={shown}")
    if key == "log.redact_patterns":
        compiled(found)
    if (row.least is not None and found < row.least) or (row.most is not None and found > row.most):
        raise _out_of_bounds(key, f"{where}={shown}")
    return found


def _out_of_bounds(key: str, said: str) -> ConfigurationError:
    wanted = bounds(TABLE[key][0])
    remedy = f"Leave it out for the default, {value_of(Everything(), key)}"
    return ConfigurationError(f"{said}: must {f'be {wanted}' if wanted else 'not be negative'}", remedy=remedy)


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
        raise _refused(key, value, said) from None


def _refused(key: str, value: Any, said: str) -> ConfigurationError:
    row, hint = TABLE[key]
    if _beyond(row.kind, value):
        return _out_of_bounds(key, said)
    wanted = {
        "seconds": 'not a duration; write seconds or "500ms"',
        "bytes": 'not a size; write bytes or "64MiB"',
        "count": "not a whole number >= 0",
        "fraction": "not a number >= 0",
        "names": "not a list of names",
        "words": "not a list of words",
        "choice": f"not one of {', '.join(map(str, get_args(hint)))}",
    }.get(row.kind, f"must match {names._NAMESPACE.pattern}" if key == "namespace" else "not a text")  # noqa: SLF001
    return ConfigurationError(f"{said}: {wanted}")


def _beyond(kind: str, value: Any) -> bool:
    """Whether it is one, and only out of bounds: below 0, as text or as a number; of durations also above 142 years."""
    read = {"seconds": units.seconds, "bytes": units.size}.get(kind)
    if read is None or isinstance(value, bool):
        return False
    try:
        if isinstance(value, str):
            text = value.strip()
            read(int(text[1:]) if text[1:].isdecimal() else text[1:])
            return text.startswith("-")
        return bool(value < 0) or (kind == "seconds" and value > 1e9 and value < float("inf"))
    except (ValueError, TypeError, OverflowError):
        return False


def _fraction(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError
    number = float(value)
    if not 0 <= number < float("inf"):
        raise ValueError
    return number
