"""What a server's or the driver's error means to us. Every one has a home; none reaches a user as it came."""

import ssl

import redis.exceptions as driver

from ..errors import ConfigurationError, ObservatoryError, StoreError, StoreMisconfigured, StoreUnavailable

AWAY = frozenset(
    {"OOM", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "BUSY", "TRYAGAIN", "READONLY", "MISCONF", "NOREPLICAS", "UNBLOCKED"}
)
"""Refusals that end by themselves: the server is up, but cannot take this now. Nothing was executed."""

_DENIED_WITHIN = ("ERR ACL failure in script", "ERR The user executing the script can't ")
"""How a refusal of what a script does begins: of Valkey and newer Redis; of Redis 7.0."""
_REMEDY = {
    "NOAUTH": "Set OBSERVATORY_REDIS_PASSWORD, or put user and password into the URL",
    "WRONGPASS": "Check OBSERVATORY_REDIS_PASSWORD and the user in the URL",
    "NOPERM": "Grant the client's ACL user the commands and keys that docs/operations.md lists",
    "NOPROTO": "Use Redis 7.0 or Valkey 7.2, or newer",
    "DENIED": "The server runs in protected mode: set a password or bind it to a private address",
    "MOVED": "This is a Redis Cluster: write redis+cluster://HOST:PORT (rediss+cluster:// with TLS)",
    "ASK": "This is a Redis Cluster: write redis+cluster://HOST:PORT (rediss+cluster:// with TLS)",
    "CROSSSLOT": "This is a Redis Cluster: write redis+cluster://HOST:PORT (rediss+cluster:// with TLS)",
}


class ServerError(Exception):
    """An error reply, as the parser hands it over. Never leaves the store."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.code = text.split(" ", 1)[0]


def from_server(error: ServerError) -> ObservatoryError:
    """Our error for an error reply."""
    text = str(error)[:300]
    if error.code in AWAY:
        return StoreUnavailable(f"the store cannot take this now: {text}")
    code = "NOPERM" if text.startswith(_DENIED_WITHIN) else error.code
    if code in _REMEDY:
        return StoreMisconfigured(f"the store refuses us: {text}", remedy=_REMEDY[code])
    if "unknown command" in text:
        return StoreMisconfigured(f"the store is too old: {text}", remedy="Use Redis 7.0 or Valkey 7.2, or newer")
    return StoreError(f"the store answered: {text}")


def from_driver(error: BaseException) -> ObservatoryError:
    """Our error for whatever the driver or the system raised while connecting."""
    if isinstance(error, ObservatoryError):
        return error
    behind = error.__cause__ or error.__context__
    if isinstance(error, driver.ConnectionError) and isinstance(behind, driver.RedisError | ssl.SSLCertVerificationError):
        # The driver wraps what the handshake raised.
        return from_driver(behind)
    text = f"{type(error).__name__}: {error}"[:300]
    if isinstance(error, driver.AuthenticationError | driver.AuthorizationError | driver.NoPermissionError):
        code = "NOPERM" if isinstance(error, driver.NoPermissionError) else "WRONGPASS"
        return StoreMisconfigured(f"the store refuses us: {text}", remedy=_REMEDY[code])
    if isinstance(error, driver.AuthenticationWrongNumberOfArgsError):
        return StoreMisconfigured(f"the store refuses us: {text}", remedy=_REMEDY["WRONGPASS"])
    if isinstance(error, ssl.SSLCertVerificationError):
        return StoreMisconfigured(f"the store's certificate is not accepted: {text}", remedy="Add its CA: ?ssl_ca_certs=FILE")
    if isinstance(error, driver.BusyLoadingError | driver.ConnectionError | driver.TimeoutError | OSError | EOFError):
        return StoreUnavailable(f"the store cannot be reached: {text}")
    if isinstance(error, driver.ResponseError):
        return from_server(ServerError(str(error)))
    if isinstance(error, driver.DataError | ValueError):
        return ConfigurationError(f"the store's address is not acceptable: {text}")
    # Some CPython releases raise AttributeError from a connection that was reset while it was being written to.
    return StoreUnavailable(f"the connection to the store broke: {text}")


def fresh(fault: ObservatoryError) -> ObservatoryError:
    """One exception object per caller: a traceback grows with every raise of the same one."""
    return type(fault)(fault.message, remedy=fault.remedy, retry_after=fault.retry_after, context=fault.context)
