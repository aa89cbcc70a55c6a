"""HTTP transports that see the LLM calls go by: one body for httpx2, which today's SDKs use, and httpx, which others still do.

A request that is no LLM call passes untouched, with a span and its time. A response's bytes are handed on as they come, when
they are asked for.
"""

import importlib
from collections.abc import AsyncIterator, Callable
from functools import cache
from time import perf_counter
from types import TracebackType
from typing import Any, Final, Literal, Self

from ..errors import ConfigurationError, InvalidArgument
from ..names import HTTP_SECONDS
from ..types import Dimensions
from .exchange import Desk, Exchange, quietly
from .wire import Recognised

Library = Literal["httpx2", "httpx"]
_EXTRA: Final = {"httpx2": "llm", "httpx": "llm-httpx"}
Recognise = Callable[[Any, Any], Recognised | None]
"""Of a library and a request of it: the LLM call that it is."""


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


class Passing:
    """A response's bytes on their way: pulled when they are asked for."""

    def __init__(self, inner: Any, exchange: Exchange) -> None:
        self._inner = inner
        self._exchange = exchange

    async def __aiter__(self) -> AsyncIterator[bytes]:
        exchange = self._exchange
        try:
            async for chunk in self._inner:
                exchange.heard(chunk)
                yield chunk
        except BaseException as error:
            exchange.failed(error)
            raise
        exchange.end()

    async def aclose(self) -> None:
        try:
            await self._inner.aclose()
        finally:
            self._exchange.closed()


class ObservedTransport:
    """Around another transport."""

    _lib: Any
    passing: Any

    def __init__(self, inner: Any, desk: Desk, recognise: Recognise, dimensions: Dimensions) -> None:
        self.inner = inner
        self._desk = desk
        self._recognise = recognise
        self._dimensions = dimensions

    async def handle_async_request(self, request: Any) -> Any:
        call: Recognised | None = None
        with quietly():
            call = self._recognise(self._lib, request)
        if call is None:
            return await self._plain(request)
        exchange = self._desk.begin(call, self._dimensions)
        del call  # and with it the request, decoded
        with exchange.sending():
            response = await (self._desk.answering or self.inner.handle_async_request)(request)
        if 300 <= response.status_code < 400:
            exchange.moved(response.status_code)
            return response
        exchange.answering(response.status_code, response.headers)
        passing = type(self).passing(response.stream, exchange)
        if not response.is_closed:
            response.stream = passing
            return response
        # It was read before it came here: a new one is read on its way.
        return self._lib.Response(
            response.status_code, headers=response.headers, stream=passing, extensions=response.extensions
        )

    async def _plain(self, request: Any) -> Any:
        host, method = request.url.host, request.method
        said = {"http.request.method": method, "server.address": host, "url.path": request.url.path}
        with self._desk.tracing().span(method, said, kind="client") as span:
            began = perf_counter()
            response = await (self._desk.answering or self.inner.handle_async_request)(request)
            with quietly():
                labels = {"host": host[:200], "method": method[:16], "status": str(response.status_code)}
                self._desk.metrics().histogram(HTTP_SECONDS).bind(**labels).record(perf_counter() - began)
                span.set_attribute("http.response.status_code", response.status_code)
        return response

    async def __aenter__(self) -> Self:
        await self.inner.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        await self.inner.__aexit__(kind, error, trace)

    async def aclose(self) -> None:
        await self.inner.aclose()


@cache
def transport_class(name: Library) -> Any:
    """The transport, as a subclass of the library's."""
    lib = library(name)
    passing = type("Passing", (Passing, lib.AsyncByteStream), {})
    return type("ObservedTransport", (ObservedTransport, lib.AsyncBaseTransport), {"_lib": lib, "passing": passing})
