"""The fingerprint of a type: of what it would be written as, and of nothing that differs between two processes.

Objects have other addresses in each process, and sets another order; either of them in a fingerprint would keep processes from
sharing, and begin a generation of the cache with every start.
"""

from collections.abc import Iterator, Mapping
from hashlib import blake2b
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from ...errors import NotEncodable

_UNSHAPED = frozenset({"default", "title", "description", "examples"})
"""What a schema says of a type that changes nothing in what is written."""
_BY_NAME = frozenset({"properties", "$defs", "mapping"})
"""Where a schema has names of the user's."""
_WITHOUT_ORDER = frozenset({"anyOf", "enum", "required"})
_REFERENCE = "#/$defs/"


def fingerprint(kind: Any) -> str:
    """Of a type's name and shape. NotEncodable when msgspec does not know the type."""
    try:
        schema = msgspec.json.schema(kind)
        omitted = sorted(_omitted(msgspec.inspect.type_info(kind), set()))
    except (TypeError, NotImplementedError) as error:
        raise NotEncodable(f"a cache of {kind!r:.120} is not possible: {error}") from error
    inner = schema.pop("$defs", {})
    # A definition's name may hold an address too: each is called by what it looks like, and what it refers to looks like.
    digests: dict[str, str] = dict.fromkeys(inner, "")
    for _ in range(2):
        digests = {name: _digest(_canonical(one, digests)) for name, one in inner.items()}
    return _digest([_named(kind), _canonical(schema, digests), sorted(digests.values()), omitted])


def _digest(value: Any) -> str:
    return blake2b(_encoded(value), digest_size=6).hexdigest()


def _encoded(value: Any) -> bytes:
    return msgspec.json.encode(value, order="deterministic")


def _canonical(schema: Any, digests: Mapping[str, str]) -> Any:
    if isinstance(schema, str) and schema.startswith(_REFERENCE):
        return digests.get(schema.removeprefix(_REFERENCE), schema)
    if isinstance(schema, list):
        return [_canonical(one, digests) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found: dict[str, Any] = {}
    for name, value in schema.items():
        if name in _BY_NAME and isinstance(value, dict):
            found[name] = {each: _canonical(one, digests) for each, one in value.items()}
        elif name in _WITHOUT_ORDER and isinstance(value, list):
            found[name] = sorted((_canonical(one, digests) for one in value), key=_encoded)
        elif name not in _UNSHAPED:
            found[name] = _canonical(value, digests)
    return found


def _named(kind: Any) -> str:
    """A type by its modules and names. What is annotated beyond its shape says nothing."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _named(arguments[0])
    if origin is Literal:
        return f"Literal[{', '.join(sorted(map(repr, arguments)))}]"
    if origin is Union or origin is UnionType:
        return " | ".join(sorted(map(_named, arguments)))
    if origin is not None:
        return f"{_named(origin)}[{', '.join(map(_named, arguments))}]"
    name = getattr(kind, "__qualname__", None) or getattr(kind, "__name__", None)
    if name is None:
        return repr(kind) if kind is None or kind is ... or isinstance(kind, str) else type(kind).__qualname__
    return f"{getattr(kind, '__module__', '')}.{name}"


def _omitted(kind: Any, seen: set[int]) -> Iterator[str]:
    """The defaults that are not written, which a reader must have as the writer had them."""
    if isinstance(kind, tuple | list):
        for one in kind:
            yield from _omitted(one, seen)
    elif isinstance(kind, msgspec.inspect.Type | msgspec.inspect.Field) and id(kind) not in seen:
        seen.add(id(kind))
        if isinstance(kind, msgspec.inspect.StructType) and (get_origin(kind.cls) or kind.cls).__struct_config__.omit_defaults:
            for field in kind.fields:
                if field.default is not msgspec.NODEFAULT:
                    yield f"{_named(kind.cls)}.{field.encode_name}={_default(field.default)}"
        for name in kind.__struct_fields__:
            if name not in ("cls", "default", "default_factory"):
                yield from _omitted(getattr(kind, name), seen)


def _default(value: Any) -> str:
    try:
        plain = msgspec.to_builtins(value, str_keys=True)
    except (TypeError, ValueError):
        return type(value).__qualname__
    return _encoded(_ordered(plain)).decode()


def _ordered(value: Any) -> Any:
    """Of a set there is only a list left, whose order says nothing."""
    if isinstance(value, list | tuple):
        return sorted(map(_ordered, value), key=_encoded)
    return {name: _ordered(one) for name, one in value.items()} if isinstance(value, dict) else value
