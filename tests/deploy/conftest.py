"""A front with three instances behind it."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.front import NAMES, Fleet, Front, Instance, reserved_port
from tests.servers import ROOT, Server, environment, skip_or_fail


@pytest.fixture
def haproxy() -> str:
    """The executable."""
    found = shutil.which("haproxy")
    if found is None:
        skip_or_fail("no haproxy on the PATH")
    return str(found)


@pytest.fixture
def fleet(haproxy: str, own_server: Server, namespace: str, tmp_path: Path) -> Iterator[Fleet]:
    """With the settings file of production, a shorter drain, and a store that may be slow on a busy machine."""
    env = environment(
        OBSERVATORY_CONFIG=str(ROOT / "deploy" / "observatory.toml"),
        OBSERVATORY_REDIS_URL=own_server.url,
        OBSERVATORY_NAMESPACE=namespace,
        OBSERVATORY_SERVE_DRAIN_FOR="1",
        OBSERVATORY_REDIS_MAX_WAIT="5s",
    )
    with contextlib.ExitStack() as stack:
        port, *ports = [stack.enter_context(reserved_port()) for _ in range(1 + len(NAMES))]
        instances = [Instance(name, one, env, tmp_path / f"{name}.log") for name, one in zip(NAMES, ports, strict=True)]
        for instance in instances:
            stack.callback(instance.close)
            instance.start()
        for instance in instances:
            instance.wait_ready()
        front = Front(haproxy, port, ports, tmp_path)
        stack.callback(front.close)
        front.wait_up(*NAMES)
        yield Fleet(front, instances)
