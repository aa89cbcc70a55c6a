"""Which series a question is about: labels to group by, and matchers as PromQL has them."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import re2

from ... import names, units
from ...errors import InvalidArgument

_MATCHER = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"\s*(?:,|$)')

_BARE = re.compile(r"\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*(=~|!~|!=|=)\s*'?([^\s\"',\\]{1,100})'?\s*(?:,|$)")
"""A value without its quotes, or in those of another language."""

_REGULAR = 'Write it as RE2 has it: model=~"gpt-.*"; for a sign itself put it in brackets: "[(]"'

Labels = Mapping[str, str]
Matcher = Callable[[Labels], bool]


def matchers(where: Mapping[str, str | Sequence[str]] | str) -> Matcher:
    """A mapping (a value, or several of which one must fit) or PromQL matchers: 'model=~"gpt-.*",tenant!="acme"'."""
    tests = _tests(where)
    return lambda labels: all(fits(labels.get(name, "")) for name, fits in tests)


def named(where: Mapping[str, str | Sequence[str]] | str) -> tuple[str, ...]:
    """The labels that it looks at."""
    return tuple(dict.fromkeys(name for name, _ in _tests(where)))


def _tests(where: Mapping[str, str | Sequence[str]] | str) -> list[tuple[str, Callable[[str], bool]]]:
    if not isinstance(where, str):
        if not isinstance(where, Mapping):
            raise InvalidArgument(
                f"where must be a mapping or a text, got {units.shown(where)}", remedy='Write {"model": "gpt-4o"}'
            )
        wanted = {names.label_name(name): _texts(values, f"where: {name}") for name, values in where.items()}
        return [(name, values.__contains__) for name, values in wanted.items()]
    tests: list[tuple[str, Callable[[str], bool]]] = []
    text, at = where.strip().removeprefix("{").removesuffix("}").strip(), 0
    while at < len(text):
        found = _MATCHER.match(text, at)
        if found is None:
            raise InvalidArgument(f"where: {text[at : at + 40]!r} is not a matcher", remedy=_quoted(text[at:]))
        name, operator, value = found[1], found[2], re.sub(r"\\(.)", r"\1", found[3])
        tests.append((name, _fits(operator, value)))
        at = found.end()
    return tests


def _quoted(text: str) -> str:
    """What somebody has most likely meant, in their own words: a shell eats the quotes of a value."""
    bare = _BARE.match(text)
    if bare is None:
        return 'Write model="gpt-4o"'
    meant = f'{bare[1]}{bare[2]}"{bare[3]}"'
    return f"Write {meant}, in a shell '{meant}'"


def _texts(values: str | Sequence[str], what: str) -> frozenset[str]:
    """One text, or several. InvalidArgument names what is neither."""
    if isinstance(values, str):
        return frozenset((values,))
    several = tuple(values) if isinstance(values, Iterable) else (values,)
    if not all(isinstance(value, str) for value in several):
        raise InvalidArgument(f"{what} must be a text or several, got {units.shown(values)}")
    return frozenset(several)


def grouped_by(by: str | Sequence[str]) -> tuple[str, ...]:
    """The labels to group by, in order: several names, or a text with commas between them."""
    if isinstance(by, str):
        by = [name.strip() for name in by.split(",") if name.strip()]
    elif not isinstance(by, Iterable):
        raise InvalidArgument(f"by must be a label or several, got {units.shown(by)}", remedy='Write by="model,provider"')
    return tuple(dict.fromkeys(names.label_name(name) for name in by))


def _fits(operator: str, value: str) -> Callable[[str], bool]:
    """RE2, as Prometheus has it: in linear time, whatever a stranger writes."""
    if operator in ("=", "!="):
        return lambda label: (label == value) == (operator == "=")
    options = re2.Options()
    options.log_errors = False
    try:
        pattern = re2.compile(value, options=options)
    except re2.error as error:
        why = error.args[0].decode(errors="replace") if error.args and isinstance(error.args[0], bytes) else error
        raise InvalidArgument(f"where: {value!r:.60} is not a regular expression ({why!s:.80})", remedy=_REGULAR) from None
    return lambda label: bool(pattern.fullmatch(label)) == (operator == "=~")
