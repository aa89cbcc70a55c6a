"""The two libraries that SDKs send by: httpx2, which today's use, and httpx, which others still do."""

import importlib
from typing import Any, Final, Literal

from ..errors import ConfigurationError, InvalidArgument

Library = Literal["httpx2", "httpx"]
_EXTRA: Final = {"httpx2": "llm", "httpx": "llm-httpx"}


def library(name: object) -> Any:
    """The module. ConfigurationError says what to install."""
    if name not in _EXTRA:
        raise InvalidArgument(f'library must be "httpx2" or "httpx", got {name!r:.40}')
    try:
        return importlib.import_module(str(name))
    except ImportError as error:
        raise ConfigurationError(
            f"{name} is not installed", remedy=f"pip install observatory-fleet[{_EXTRA[str(name)]}]"
        ) from error


def library_of(transport: object) -> Any:
    """The one whose asynchronous transport it is."""
    for kind in type(transport).__mro__:
        name = kind.__module__.partition(".")[0]
        if name in _EXTRA and kind.__name__ == "AsyncBaseTransport":
            return library(name)
    raise InvalidArgument(f"an asynchronous transport of httpx2 or httpx is needed, got a {type(transport).__name__}")
