"""What a row of the table says, and how what holds rows shows itself: all but its secrets."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgspec


class Row(NamedTuple):
    """What the table says of one setting, beside its name, type and default."""

    kind: Literal[
        "text", "url", "secret", "seconds", "bytes", "count", "fraction", "names", "words", "choice", "path", "webhooks"
    ]
    meaning: str
    unit: str = ""
    live: bool = False
    least: float | None = None
    most: float | None = None


class Discreet(msgspec.Struct, frozen=True):
    """What says all of itself but its secrets, wherever it is printed or logged."""

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        kinds = {name: row.kind for name, row, _ in rows(type(self))}
        return [(name, _discreet(kinds.get(name), getattr(self, name))) for name in self.__struct_fields__]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"


def _discreet(kind: str | None, value: Any) -> Any:
    if value is None:
        return None
    if kind == "url":
        scheme, _, rest = str(value).partition("://")
        # A password may have any character, also the slash that would end it.
        rest = f"…@{rest.rpartition('@')[2]}" if "@" in rest else rest
        return re.sub(r"([?&](?:user(?:name)?|password)=)[^&#]*", r"\1…", f"{scheme}://{rest}")
    return "…" if kind == "secret" else value


class Section(Discreet, frozen=True):
    """Settings that belong together; `section` is the table's name in the file and the middle of the environment's."""

    section: ClassVar[str] = ""


def rows(kind: type[Any]) -> Iterator[tuple[str, Row, Any]]:
    for name, hint in get_type_hints(kind, include_extras=True).items():
        if get_origin(hint) is Annotated and isinstance(get_args(hint)[1], Row):
            yield name, get_args(hint)[1], get_args(hint)[0]
