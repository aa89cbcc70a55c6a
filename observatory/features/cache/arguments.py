"""Keys made of a call's arguments: different calls never share one, however their arguments look when printed."""

import inspect
import string
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import partial
from hashlib import blake2b
from typing import Any
from urllib.parse import quote
from uuid import UUID

import msgspec

from ... import units
from ...errors import InvalidArgument

_PRINTED = (Decimal, UUID, datetime, date, time, timedelta)
_DEEPEST = 32
_PLAIN = frozenset((str, int))
_FIXED = frozenset((str, int, bool, float, bytes, type(None), type))
_SHORT = 256
_MOST_KNOWN = 1000


def _named(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def canonical(  # noqa: C901, PLR0912 (a table of types)
    value: object, what: str, depth: int = 0
) -> Any:
    """The value as nested lists that say its type: 1, "1", 1.0 and True differ. InvalidArgument when it has no such form."""
    kind = type(value)
    if depth > _DEEPEST:
        raise InvalidArgument(f"{what} is nested deeper than {_DEEPEST}", remedy="Give key=")
    if value is None or kind is bool or kind is str or kind is bytes:
        # A surrogate is no UTF-8, and a key all the same.
        return ["str", value.encode("utf-8", "surrogatepass")] if isinstance(value, str) else [kind.__name__, value]
    if kind is int:
        return ["int", hex(value)]  # type: ignore[arg-type]  # hex, since Python refuses to print long ones in tens
    if kind is float:
        return ["float", repr(value)]
    if isinstance(value, Enum):
        return [_named(kind), value.name]
    if isinstance(value, type):
        return ["type", _named(value)]
    if kind in _PRINTED:
        return [kind.__name__, repr(value)]
    if kind is list or kind is tuple:
        return [kind.__name__, [canonical(item, what, depth + 1) for item in value]]  # type: ignore[attr-defined]
    if kind is set or kind is frozenset:
        return [kind.__name__, sorted(_bytes(canonical(item, what, depth + 1)) for item in value)]  # type: ignore[attr-defined]
    if isinstance(value, Mapping):
        pairs = ((canonical(key, what, depth + 1), canonical(item, what, depth + 1)) for key, item in value.items())
        return [_named(kind), sorted(_bytes(list(pair)) for pair in pairs)]
    if isinstance(value, msgspec.Struct):
        names = value.__struct_fields__
    elif is_dataclass(value):
        names = tuple(field.name for field in fields(value))
    else:
        raise InvalidArgument(f"{what} is a {kind.__name__}, of which no key can be made", remedy="Give key=")
    return [_named(kind), [canonical(getattr(value, name), what, depth + 1) for name in names]]


def _bytes(form: Any) -> bytes:
    return msgspec.msgpack.encode(form)


Keyed = Callable[..., str]


def key_of(fn: Callable[..., Any], given: str | Keyed | None) -> Keyed:
    """What makes the key of a call of `fn`. given: a template over its arguments, a function of them, or None: all of them."""
    if given is not None and not isinstance(given, str):
        if not callable(given):
            raise InvalidArgument(f"key must be a template, a function or None, got {units.shown(given)}")
        return given
    inner = fn.func if isinstance(fn, partial) else fn
    signature = inspect.signature(fn)
    if given is not None:
        made = _template(given, signature)
        return _remembering(made) if _is_fixed(inner, fn, signature) else made
    name = f"{getattr(inner, '__module__', '')}.{getattr(inner, '__qualname__', type(inner).__name__)}"

    def key(*args: Any, **kwargs: Any) -> str:
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        owner = getattr(inner, "__self__", None)
        bound = (fn.args, fn.keywords) if isinstance(fn, partial) else ()
        forms = [[argument, canonical(value, f"argument {argument}")] for argument, value in call.arguments.items()]
        whole = [canonical(owner, "the method's object"), canonical(bound, "a bound argument"), forms]
        return f"{name}:{blake2b(_bytes(whole), digest_size=16).hexdigest()}"

    return _remembering(key) if _is_fixed(inner, fn, signature) else key


def _is_fixed(inner: Any, fn: Any, signature: inspect.Signature) -> bool:
    """Whether a call's key depends on nothing but the arguments that it brings."""
    defaults = (one.default for one in signature.parameters.values())
    return inner is fn and getattr(inner, "__self__", None) is None and all(type(one) in _FIXED for one in defaults)


def _remembering(key: Keyed) -> Keyed:
    """Binding arguments takes longer than a near hit may: the keys of short texts and numbers are remembered, of nothing else:
    what is changed has another key then, and 1.0 and True are equal to 1."""
    known: dict[tuple[Any, ...], str] = {}

    def call(*args: Any, **kwargs: Any) -> str:
        for value in args:
            if type(value) not in _PLAIN:
                return key(*args, **kwargs)
        if kwargs:
            return key(*args, **kwargs)
        made = known.get(args)
        if made is None:
            made = key(*args)
            if all(type(value) is int or len(value) <= _SHORT for value in args):
                if len(known) >= _MOST_KNOWN:
                    known.clear()
                known[args] = made
        return made

    return call


def _template(template: str, signature: inspect.Signature) -> Keyed:  # noqa: C901
    """Values are written so that none can look like the text between two of them."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise InvalidArgument(f"key template {template!r:.80}: {error}") from error
    literal = "".join(text for text, *_ in parts)
    for number, (text, field, form, conversion) in enumerate(parts):
        if field is None:
            continue
        name = field.partition(".")[0].partition("[")[0]
        if name not in signature.parameters or form or conversion:
            raise InvalidArgument(f"key template {template!r:.80}: {{{field}}} is not an argument by its name")
        if number and all(sign.isascii() and (sign.isalnum() or sign in "_.-~%") for sign in text):
            raise InvalidArgument(f"key template {template!r:.80}: a sign like : or / must stand between two arguments")
    safe = "".join(sign for sign in string.punctuation + " " if sign not in literal and sign != "%")
    fields_of = string.Formatter()

    def written(value: object, field: str) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int | UUID | date):
            raise InvalidArgument(
                f"a key of {{{field}}} cannot be made of a {type(value).__name__}", remedy="Give a function as key, or None"
            )
        return quote(str(value), safe=safe, errors="surrogatepass")

    def key(*args: Any, **kwargs: Any) -> str:
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        made = []
        for text, field, *_ in parts:
            made.append(text)
            if field is not None:
                made.append(written(fields_of.get_field(field, (), call.arguments)[0], field))
        return "".join(made)

    return key
