"""Interpreters for peers that cannot live beside ours: environments in the user's cache, made when they are not there."""

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from shutil import which

from platformdirs import user_cache_path


def _all(newer_than: tuple[int, int]) -> list[str]:
    """This one where it will do; else by name on PATH, else where pyenv puts them."""
    if sys.version_info >= newer_than:
        return [sys.executable]
    minors = [minor for minor in (14, 13, 12, 11) if minor >= newer_than[1]]
    found = [path for minor in minors if (path := which(f"python3.{minor}")) is not None]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    return found + [os.fspath(path) for minor in minors for path in pyenv.glob(f"3.{minor}.*/bin/python")]


def _said(*command: str) -> str | None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


@cache
def having(module: str, packages: Sequence[str], *, newer_than: tuple[int, int] = (3, 11)) -> str | None:
    """An interpreter that has the packages, of which the first brings the module; None: it cannot be had here."""
    home = user_cache_path("observatory-benchmarks") / packages[0].replace("==", "-")
    python = os.fspath(home / "bin" / "python")
    if home.exists() and _said(python, "-c", f"import {module}") is not None:
        return python
    install = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    for one in _all(newer_than):
        made = _said(one, "-m", "venv", "--clear", os.fspath(home)) is not None
        if made and _said(python, *install, *packages) is not None:
            return python
    return None


def drivers() -> tuple[str, ...]:
    """The driver of Redis, as it is here."""
    return tuple(f"{name}=={importlib.metadata.version(name)}" for name in ("redis", "hiredis"))


def version(python: str) -> str:
    """What it calls itself."""
    return _said(python, "-c", "import platform; print(platform.python_version())") or "unknown"
