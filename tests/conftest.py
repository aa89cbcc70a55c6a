"""One server per pytest worker and kind, one namespace per test, and no key left without a TTL."""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from observatory import Observatory
from observatory.keys import PERMANENT
from tests.servers import Server, find
from tests.topologies import Cluster, Sentinels, running


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Six servers are started once, not once per worker."""
    for item in items:
        if "topologies" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("topologies"))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _own_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the machine reaches a test, and no test reaches the user's data directory."""
    import os

    for name in os.environ:
        if name.startswith(("OBSERVATORY_", "OTEL_")) and not name.startswith("OBSERVATORY_TEST_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("OBSERVATORY_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Server]]:
    running: dict[str, Server] = {}

    def server(kind: str) -> Server:
        if kind not in running:
            running[kind] = Server(find(kind), tmp_path_factory.mktemp(kind))
            running[kind].start()
        return running[kind]

    yield server
    for one in running.values():
        one.stop()


@pytest.fixture
def server(servers: Callable[[str], Server]) -> Server:
    """The Valkey that this pytest worker's tests share."""
    return servers("valkey")


@pytest.fixture(params=["valkey", "redis"])
def any_server(request: pytest.FixtureRequest, servers: Callable[[str], Server]) -> Server:
    """Valkey 9, and Redis 7 where it is installed."""
    return servers(request.param)


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A server that this test may stop, kill and configure."""
    (tmp_path / "own").mkdir()
    one = Server(find("valkey"), tmp_path / "own")
    one.start()
    yield one
    one.stop()


@pytest.fixture(scope="session")
def topologies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], Sentinels | Cluster]]:
    """ "sentinel" or "cluster" of a kind of server, started when first asked for."""
    running_: dict[tuple[str, str], Sentinels | Cluster] = {}
    with ExitStack() as stack:

        def topology(shape: str, kind: str) -> Sentinels | Cluster:
            if (shape, kind) not in running_:
                made = (Sentinels if shape == "sentinel" else Cluster)(kind, tmp_path_factory.mktemp(shape))
                stack.enter_context(running(made))
                running_[shape, kind] = made
            return running_[shape, kind]

        yield topology


@pytest.fixture
def cluster(topologies: Callable[[str, str], Sentinels | Cluster]) -> Cluster:
    """Three masters and their replicas, shared by tests that leave them as they are."""
    shared = topologies("cluster", "valkey")
    assert isinstance(shared, Cluster)
    return shared


@pytest.fixture
def sentinels(topologies: Callable[[str, str], Sentinels | Cluster]) -> Sentinels:
    """A primary, its replicas and sentinels, shared by tests that leave them as they are."""
    shared = topologies("sentinel", "valkey")
    assert isinstance(shared, Sentinels)
    return shared


@pytest.fixture(params=["valkey", "redis"])
def own_cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    """A cluster that this test may take apart."""
    one = Cluster(request.param, tmp_path / "cluster")
    with running(one):
        yield one


@pytest.fixture(params=["valkey", "redis"])
def own_sentinels(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Sentinels]:
    """Sentinels whose primary this test may take away."""
    one = Sentinels(request.param, tmp_path / "sentinels")
    with running(one):
        yield one


@pytest.fixture
def namespace() -> str:
    return f"t{secrets.token_hex(6)}"


def _check_and_clean(url: str, namespace: str) -> None:
    with redis.Redis.from_url(url) as client:
        immortal = []
        for key in client.scan_iter(match=f"obs1:{namespace}:*", count=1000):
            if client.pttl(key) == -1 and not PERMANENT.fullmatch(key.decode()):
                immortal.append(key.decode())
            client.unlink(key)
    assert not immortal, f"keys without a TTL: {immortal}"


Open = Callable[..., Awaitable[Observatory]]
"""Opens a client on a server; closed at the end of the test."""


async def _opening(url: str, namespace: str) -> AsyncIterator[Open]:
    async with AsyncExitStack() as stack:

        async def open_(server: Server | None = None, **given: Any) -> Observatory:
            settings = {"service_name": "test", "redis_url": server.url if server else url, "namespace": namespace}
            obs = Observatory(**{**settings, **given})
            return await stack.enter_async_context(obs)

        yield open_
    _check_and_clean(url, namespace)


@pytest.fixture
async def opening(server: Server, namespace: str) -> AsyncIterator[Open]:
    """Open clients on the shared Valkey; each is another process's, as far as the store can tell."""
    async for one in _opening(server.url, namespace):
        yield one


@pytest.fixture
async def opening_any(any_server: Server, namespace: str) -> AsyncIterator[Open]:
    """The same, on every kind of server."""
    async for one in _opening(any_server.url, namespace):
        yield one


@pytest.fixture
async def obs(opening: Open) -> Observatory:
    """An open client on the shared Valkey."""
    return await opening()


@pytest.fixture(params=["valkey", "redis", "cluster"])
def place(request: pytest.FixtureRequest) -> str:
    """The URL of every kind of store, one after the other."""
    if request.param == "cluster":
        cluster: Cluster = request.getfixturevalue("cluster")
        return cluster.url
    server: Server = request.getfixturevalue("servers")(request.param)
    return server.url
