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


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """Debian's Redis with a certificate of our own authority: its port, and the authority's file."""
    place = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(place / "ca.pem"))
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    certificate.private_key_pem.write_to_path(str(place / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(place / "cert.pem"))
    port = free_port()
    options = {
        "--port": "0",
        "--tls-port": str(port),
        "--tls-cert-file": "cert.pem",
        "--tls-key-file": "key.pem",
        "--tls-ca-cert-file": "ca.pem",
        "--tls-auth-clients": "no",
        "--save": "",
        "--dir": str(place),
    }
    words = [find("redis"), *(word for pair in options.items() for word in pair)]
    running = subprocess.Popen(words, cwd=place, preexec_fn=die_with_parent, stdout=subprocess.DEVNULL)

    def answers() -> bool:
        try:
            with redis.Redis(port=port, ssl=True, ssl_ca_certs=str(place / "ca.pem")) as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False

    wait_until(answers, "the server answers over TLS")
    yield port, place / "ca.pem"
    running.kill()
    running.wait()


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
