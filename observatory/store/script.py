"""One Lua file, one typed stub. The header names the slots; a stub that disagrees does not import.

    @lua("leases/release")
    def _release(store: Store, *, lease: Key, owner: str) -> Awaitable[list[int]]: ...

A slot named `name...` takes a sequence; only the last of KEYS and the last of ARGV may. What several verbs of a room share
stands in files that begin with `_`; a header's USES names them, and they are put before the body. `python -m
observatory.store.script rate_limiter/decide` prints what runs.
"""

import inspect
import re
from collections.abc import Callable
from functools import cache
from hashlib import sha1
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")

SECTIONS = ("KEYS", "ARGV", "RETURNS", "COMPLEXITY", "ATOMICITY", "EXPIRY", "RETRY")
_SLOT = re.compile(r"  ([a-z][a-z0-9_]*(?:\.\.\.)?)\s{2,}\S")


class Script(NamedTuple):
    """A file's text and what its header promises."""

    name: str
    text: str
    sha: str
    keys: tuple[str, ...]
    arguments: tuple[str, ...]
    flags: frozenset[str]
    """What follows RETRY: safe or unsafe."""


class Runner(Protocol):
    """Whatever can run a script: the Store."""

    def run(self, script: Script, keys: list[str], arguments: list[Any], /) -> Any: ...


def root() -> Traversable:
    """The folder of the scripts: inside an installed package, beside it in a checkout."""
    packaged = files("observatory") / "lua"
    if packaged.is_dir():
        return packaged
    checkout = Path(__file__).resolve().parents[2] / "lua"
    if checkout.is_dir():
        return checkout
    raise FileNotFoundError("observatory was built without its lua/ folder")


def _read(name: str) -> str:
    return (root() / f"{name}.lua").read_text(encoding="utf-8")


@cache
def load(name: str) -> Script:
    """Read lua/<name>.lua and its header. ImportError when the header is not whole."""
    text = _read(name)
    found = re.match(r"(?:#!lua[^\n]*\n)?--\[\[\n(.*?)\n\]\]\n", text, re.DOTALL)
    if found is None:
        raise ImportError(f"lua/{name}.lua has no header")
    sections: dict[str, list[str]] = {}
    current: list[str] = []
    for line in found[1].splitlines():
        word = line.split(" ", 1)[0]
        if word in (*SECTIONS, "USES"):
            current = sections.setdefault(word, [])
        current.append(line)
    missing = [word for word in SECTIONS if word not in sections]
    if missing:
        raise ImportError(f"lua/{name}.lua does not say {', '.join(missing)}")
    if not found[1].startswith(f"{name}: "):
        raise ImportError(f'lua/{name}.lua must begin with "{name}: " and a sentence')

    def slots(word: str) -> tuple[str, ...]:
        return tuple(match[1] for line in sections[word] if (match := _SLOT.match(line)))

    retry = sections["RETRY"][0].split()
    if "USES" in sections:
        shared = "".join(_read(part) for part in " ".join(sections["USES"]).split()[1:])
        text = text[: found.end()] + shared + text[found.end() :]
    return Script(
        name=name,
        text=text,
        sha=sha1(text.encode(), usedforsecurity=False).hexdigest(),
        keys=slots("KEYS"),
        arguments=slots("ARGV"),
        flags=frozenset(retry[1:2]),
    )


def lua(name: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Bind a script to the stub that describes its call."""
    script = load(name)

    def bind(stub: Callable[P, T]) -> Callable[P, T]:
        taken = tuple(inspect.signature(stub).parameters)[1:]
        promised = tuple(slot.removesuffix("...") for slot in script.keys + script.arguments)
        label = getattr(stub, "__name__", "the stub")
        if taken != promised:
            raise ImportError(f"lua/{name}.lua promises {promised}, {label} takes {taken}")
        keys, arguments = script.keys, script.arguments
        if not any(slot.endswith("...") for slot in keys + arguments):

            def run(store: Runner, **slots: Any) -> Any:
                return store.run(script, [slots[slot] for slot in keys], [slots[slot] for slot in arguments])

        else:

            def run(store: Runner, **slots: Any) -> Any:
                return store.run(script, _spread(keys, slots), _spread(arguments, slots))

        run.__name__, run.__doc__ = label, script.text.partition("\n\n")[0]
        return cast(Callable[P, T], run)

    return bind


def _spread(names: tuple[str, ...], slots: dict[str, Any]) -> list[Any]:
    values: list[Any] = []
    for name in names:
        if name.endswith("..."):
            values.extend(slots[name.removesuffix("...")])
        else:
            values.append(slots[name])
    return values


if __name__ == "__main__":
    import sys

    sys.stdout.write(load(sys.argv[1]).text)
