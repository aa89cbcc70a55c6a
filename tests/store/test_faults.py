"""Every error of the driver and of the server has a home."""

import ssl
from collections.abc import Iterator

import pytest
import redis.exceptions as driver

from observatory import Observatory
from observatory.errors import ConfigurationError, ObservatoryError, StoreError, StoreMisconfigured, StoreUnavailable
from observatory.store.faults import ServerError, from_driver, from_server
from tests.servers import Server


def _all(kind: type[BaseException]) -> Iterator[type[BaseException]]:
    for one in kind.__subclasses__():
        yield one
        yield from _all(one)


@pytest.mark.parametrize("kind", sorted(set(_all(driver.RedisError)), key=repr))
def test_no_driver_error_reaches_a_user(kind: type[driver.RedisError]) -> None:
    """Each class of the driver becomes one of ours."""
    error = kind.__new__(kind)
    Exception.__init__(error, "text")
    assert isinstance(from_driver(error), ObservatoryError)


@pytest.mark.parametrize(
    ("error", "home"),
    [
        (driver.ConnectionError("x"), StoreUnavailable),
        (driver.TimeoutError("x"), StoreUnavailable),
        (driver.BusyLoadingError("x"), StoreUnavailable),
        (driver.AuthenticationError("x"), StoreMisconfigured),
        (driver.NoPermissionError("x"), StoreMisconfigured),
        (driver.DataError("x"), ConfigurationError),
        (OSError("x"), StoreUnavailable),
        (ssl.SSLCertVerificationError("x"), StoreMisconfigured),
        (AttributeError("'NoneType' object has no attribute '_add_writer'"), StoreUnavailable),
        (driver.ResponseError("NOPERM x"), StoreMisconfigured),
    ],
)
def test_driver_errors_find_the_right_home(error: Exception, home: type[ObservatoryError]) -> None:
    """Away is away, misconfigured is misconfigured."""
    assert type(from_driver(error)) is home


@pytest.mark.parametrize(
    ("text", "home"),
    [
        *((f"{code} x", StoreUnavailable) for code in ("OOM", "LOADING", "BUSY", "READONLY", "MISCONF", "CLUSTERDOWN")),
        *((f"{code} x", StoreMisconfigured) for code in ("NOAUTH", "NOPERM", "WRONGPASS", "MOVED", "CROSSSLOT", "NOPROTO")),
        ("ERR unknown command 'X'", StoreMisconfigured),
        ("ERR ACL failure in script: User x has no permissions to run the 'set' command", StoreMisconfigured),
        ("ERR The user executing the script can't access at least one of the keys", StoreMisconfigured),
        ("ERR x, said of: ERR ACL failure in script", StoreError),
        ("ERR anything else", StoreError),
        ("WRONGTYPE x", StoreError),
    ],
)
def test_server_errors_find_the_right_home(text: str, home: type[ObservatoryError]) -> None:
    """By the first word, which both servers share; the tail differs between them."""
    error = from_server(ServerError(text))
    assert type(error) is home
    assert error.retryable == (home in (StoreUnavailable, StoreError))


async def test_what_a_script_may_not_do_has_a_remedy(any_server: Server, namespace: str) -> None:
    """The server says it by another word than where a client may not."""
    async with Observatory("admin", redis_url=any_server.url, namespace=namespace) as admin:
        await admin.store.command("ACL", "SETUSER", "narrow", "on", ">p", "~*", "&*", "+@all")
        url = any_server.url.replace("unix://", "unix://narrow:p@")
        async with Observatory("narrow", redis_url=url, namespace=namespace) as obs:
            cache = obs.cache(int)
            assert await cache.set("k", 1)
            await admin.store.command("ACL", "SETUSER", "narrow", "-set")
            with pytest.raises(StoreMisconfigured, match="ACL"):
                await cache.set("k", 2)
            await admin.store.command("ACL", "SETUSER", "narrow", "+set")
            assert await cache.set("k", 3)
        await admin.store.command("ACL", "DELUSER", "narrow")
