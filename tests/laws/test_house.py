"""The house itself: imports go down, one room knows Redis, the face is a list of names, no file is a tower."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import observatory
from tests.servers import ROOT

HOUSE = ROOT / "observatory"
FLOORS = {
    "documents": -0.1,
    "errors": 0,
    "types": 0,
    "version": 0,
    "clock": 0.1,  # the ground has steps: errors first, then what may raise them
    "units": 0.1,
    "names": 0.1,
    "keys": 0.1,
    "dimensions": 0.1,
    "lifeline": 0.1,
    "notes": 0.1,
    "rooms": 0,
    "redaction": 0.1,
    "replies": 0,
    "otlp": 0.2,
    "envelope": 0.2,
    "settings": 1,
    "tracing": 1.05,
    "logs": 1.1,  # a line carries the span's ids
    "background": 1.2,
    "store": 2,
    "features": 3,
    "llm": 4,
    "lifetime": 4,
    "duties": 4,
    "observed": 4,
    "health": 4,
    "costs": 4.2,
    "household": 4.5,
    "staging": 4.7,
    "client": 5,
    "overview": 5.5,
    "asgi": 5.5,  # a door in somebody else's application; the service's own is made of the same wood
    "testing": 6,
    "worker": 6,
    "service": 6,
    "cli": 7,
    "__main__": 8,
    "__init__": 9,
}
NEIGHBOURS = {"store", "llm", "costs", "testing", "worker", "service", "cli", "settings", "logs", "tracing"}
"""Rooms whose files may import each other."""
LONGEST = 320


def files() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(HOUSE.rglob("*.py")):
        yield path, ast.parse(path.read_text())


def imports(path: Path, tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, absolute, and the line; lazy ones too."""
    package = ["observatory", *path.relative_to(HOUSE).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                yield node.module or "", node.lineno
                continue
            base = package[: len(package) - node.level + 1]
            if node.module:
                yield ".".join([*base, node.module]), node.lineno
            else:
                yield from ((".".join([*base, alias.name]), node.lineno) for alias in node.names)


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def test_imports_go_down() -> None:
    """From a floor only to floors below, or to neighbours where that is allowed; features never meet."""
    faults = []
    for path, tree in files():
        relative = path.relative_to(HOUSE)
        own = relative.parts[0].removesuffix(".py")
        for module, line in imports(path, tree):
            if not module.startswith("observatory"):
                continue
            theirs = room(module)
            same_feature = own == theirs == "features" and len(relative.parts) > 2 and module.split(".")[2] == relative.parts[1]
            face = own == "features" and relative.name == "__init__.py"
            neighbours = own == theirs and (own in NEIGHBOURS or same_feature or face)
            if not neighbours and FLOORS[theirs] >= FLOORS[own]:
                faults.append(f"{relative}:{line} imports {module}, which is not below it")
    assert not faults, "\n".join(faults)


def test_no_circles() -> None:
    """Not between files either."""
    graph: dict[str, set[str]] = {}
    names = {}
    for path, tree in files():
        parts = path.relative_to(HOUSE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        names[name] = path
        graph[name] = {module for module, _ in imports(path, tree) if module.startswith("observatory.")}
    state: dict[str, int] = {}

    def visit(name: str, trail: list[str]) -> None:
        assert state.get(name) != 1, " -> ".join([*trail, name])
        if state.get(name) == 2 or name not in graph:
            return
        state[name] = 1
        for other in graph[name]:
            if other != name:
                visit(other, [*trail, name])
        state[name] = 2

    for name in list(graph):
        visit(name, [])


def test_only_the_store_knows_redis() -> None:
    """redis and hiredis are imported in store/ alone."""
    for path, tree in files():
        if path.relative_to(HOUSE).parts[0] != "store":
            for module, line in imports(path, tree):
                assert module.split(".")[0] not in ("redis", "hiredis"), f"{path}:{line}"


def test_nothing_of_ours_is_imported_for_types_only() -> None:
    """A value that needs it knows its manager. Types of libraries that may not be there are another matter."""
    for path, tree in files():
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                for inner in ast.walk(node):
                    assert not (isinstance(inner, ast.ImportFrom) and inner.level), f"{path}:{inner.lineno}"
                    if isinstance(inner, ast.Import | ast.ImportFrom):
                        said = [alias.name for alias in inner.names] if isinstance(inner, ast.Import) else [inner.module or ""]
                        assert not [one for one in said if room_of_ours(one)], f"{path}:{inner.lineno}"


def room_of_ours(module: str) -> bool:
    return module.split(".", maxsplit=1)[0] == "observatory"


def test_face_is_a_list_of_names() -> None:
    """__all__ is sorted, and all that there is; nobody inside imports it."""
    face = ast.parse((HOUSE / "__init__.py").read_text())
    assert all(isinstance(node, ast.Expr | ast.ImportFrom | ast.Assign) for node in face.body)
    imported = {alias.asname or alias.name for node in face.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert imported == set(observatory.__all__)
    assert sorted(observatory.__all__, key=str.lower) == sorted(observatory.__all__, key=str.lower)
    errors = importlib.import_module("observatory.errors")
    assert set(errors.__all__) <= set(observatory.__all__)


def test_no_file_is_a_tower() -> None:
    """Longer than this, it is two rooms."""
    for path in [*HOUSE.rglob("*.py"), *(ROOT / "lua").rglob("*.lua")]:
        assert len(path.read_text().splitlines()) <= LONGEST, path


def test_every_module_and_public_class_says_what_it_is() -> None:
    """A docstring each."""
    for path, tree in files():
        assert ast.get_docstring(tree), path
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node) or path.match("cli/*.py"), f"{path}: {node.name}"
