"""HTTP transports that let LLM calls in and see them go by: one body for httpx2, which today's SDKs use, and for httpx.

A request that is no LLM call passes untouched, with a span and its time. A response's bytes are handed on as they come, when
they are asked for.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from contextvars import ContextVar
from functools import cache
from time import perf_counter
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from ..clock import monotonic
from ..envelope import new_id
from ..errors import ObservatoryError, RetryBudgetExceeded
from ..names import HTTP_SECONDS
from ..types import Dimensions
from .answers import Answers, Reply, Request, Upstream
from .answers.answer import Headers
from .desk import Desk, quietly
from .exchange import Exchange
from .facts import known_of
from .library import Library, library
from .refused import Refused, refused
from .retries import ADVICE, COUNT, Habits
from .told import Turn
from .tries import Made, NotMade, Ready, Tries, Try
from .wire import Recognised

Recognise = Callable[[Any, Any], Recognised | None]
"""Of a library and a request of it: the LLM call that it is."""


def body_of(lib: Any, request: Any) -> bytes | None:
    """After a redirect it is there and was not read; what comes from elsewhere bit by bit is not waited for."""
    stream = request.stream
    return b"".join(stream) if isinstance(stream, lib.ByteStream) else None


_spared: ContextVar[bool] = ContextVar("observatory_spared", default=False)
"""Whether the last attempt of this task was refused here. An SDK tries again in the same task, and a provider has heard of
nothing yet: that is no retry as the fleet's budget counts them."""


_MOVED: Final = "observatory_moved"
"""The extension of a request that was sent elsewhere: it is the same attempt there."""
_NEARLY: Final = 0.8
"""Who has stood in line for this part of his time has stood there for all of it: the line looks a little before its end."""


class Way(NamedTuple):
    """How the calls of a client go. wait: seconds in line; None: as the settings say."""

    recognise: Recognise
    dimensions: Dimensions
    wait: float | None
    answers: Callable[[], Answers] | None
    tries: Tries | None = None


class Passing:
    """A response's bytes on their way: pulled when they are asked for."""

    _lib: Any

    def __init__(self, inner: Any, exchange: Exchange) -> None:
        self._inner = inner
        self._exchange = exchange
        self._home = asyncio.get_running_loop(), os.getpid()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        exchange = self._exchange
        try:
            async for chunk in self._inner:
                exchange.heard(chunk)
                yield chunk
        except BaseException as error:
            exchange.failed(error)
            if isinstance(error, ObservatoryError):  # a shared stream: to its reader as any other that broke
                raise self._lib.ReadError(str(error)) from error
            raise
        exchange.end()

    async def aclose(self) -> None:
        try:
            await self._inner.aclose()
        finally:
            self._exchange.closed()

    def __del__(self) -> None:
        """Thrown away without a word, by whatever thread: what it holds of the fleet's limits must not be held for ever."""
        if not self._exchange.over and os.getpid() == self._home[1]:
            with suppress(RuntimeError):  # its loop has ended, and nobody keeps what it held
                self._home[0].call_soon_threadsafe(self._exchange.closed)


class Shared:
    """An answer out of the answer cache, as a stream of the library's."""

    _lib: Any

    def __init__(self, reply: Reply) -> None:
        self._reply = reply

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._reply:
                yield chunk
        except ObservatoryError as error:
            raise self._lib.ReadError(str(error)) from error

    async def aclose(self) -> None:
        await self._reply.aclose()


class GuardedTransport:
    """Around another transport. route: the one of its client for another address."""

    _lib: Any
    passing: Any
    shared: Any

    def __init__(self, inner: Any, desk: Desk, way: Way) -> None:
        self.inner = inner
        self._desk = desk
        self._way = way
        self.route: Callable[[Any], GuardedTransport] | None = None
        self.closing = False
        """Its client has ended: what breaks now, the client has broken."""
        self._habits = Habits()

    async def handle_async_request(self, request: Any) -> Any:
        call: Recognised | None = None
        with quietly:
            call = self._way.recognise(self._lib, request)
        if call is None:
            return await self._plain(request)
        spared = _spared.get() and call.attempt > 0
        _spared.set(False)
        answers = self._way.answers
        try:
            # Who would not be let in gets nothing out of the cache either.
            if answers is None or self._desk.gate.missing(known_of(call, self._way.dimensions)) is not None:
                return (await self._made(call, request, spared)).response
            return await self._kept(call, request, answers(), spared)
        except NotMade as instead:
            _spared.set(not isinstance(instead.__cause__, RetryBudgetExceeded))
            return instead.response

    # by way of the answer cache
    async def _kept(self, call: Recognised, request: Any, answers: Answers, spared: bool) -> Any:
        ours, asked_at = False, monotonic()

        async def send(headers: Headers) -> Upstream:
            nonlocal ours
            ours = True
            again = self._lib.Request(
                request.method, request.url, headers=list(headers), stream=request.stream, extensions=request.extensions
            )
            response, fallback = await self._made(call, again, spared)
            stream = response.stream
            return Upstream(response.status_code, response.headers.multi_items(), stream, stream.aclose, same=not fallback)

        asked = Request(
            call.provider, request.method, str(request.url), request.headers.multi_items(), body_of(self._lib, request) or b""
        )
        try:
            reply = await answers.fetch(asked, send)
        except NotMade:
            if ours:
                raise
            return (await self._made(call, request, spared)).response  # what somebody else may not, we may
        except ObservatoryError as error:
            return self._response(refused(error, call.endpoint, waited=False))
        if reply.cached in ("hit", "shared"):
            exchange = Exchange(self._desk, call, self._way.dimensions, ago=monotonic() - asked_at)
            exchange.cached = True
            headers = self._lib.Headers(reply.headers)
            exchange.answering(reply.status, headers)
            return self._lib.Response(reply.status, headers=headers, stream=self.passing(reply, exchange))
        return self._lib.Response(reply.status, headers=list(reply.headers), stream=self.shared(reply))

    # by way of the gate
    async def _made(self, call: Recognised, request: Any, spared: bool) -> Made:
        """The response that is handed on. NotMade: the call was not let in. spared: it comes again since it was not before."""
        way, first = self._way, Try(call, request, Turn(spared=spared))
        wait = self._desk.gate.wait if way.wait is None else way.wait
        if way.tries is None or call.unread is not None:
            made = Made(await self._once(first, wait), 0)
        else:
            made = await way.tries.made(self._lib, first, wait, self._once)
        if made.response.status_code >= 400 and COUNT in request.headers:
            await self._advise(call, made.response)
        return made

    async def _once(self, one: Try, wait: float, ready: Ready | None = None) -> Any:
        """One try. See Once."""
        desk, (call, request, turn) = self._desk, one
        exchange = Exchange(desk, call, self._way.dimensions, turn)
        with exchange.current():
            try:
                # What an SDK tries again is a first attempt for whoever it was not sent to before.
                attempt = 0 if turn.fallback else exchange.attempt
                counted = not (turn.hedged or turn.spared or _MOVED in request.extensions)
                if counted and not await desk.retries.begin(exchange.where, attempt, self._habits):
                    raise RetryBudgetExceeded(context={"provider": exchange.provider})
                await exchange.enter(wait)
            except ObservatoryError as error:
                exchange.id = new_id()
                said = refused(error, call.endpoint, waited=0 < wait * _NEARLY <= exchange.waited, call=exchange.id)
                exchange.refused(error, said.status)
                raise NotMade(self._response(said), error) from error
            if ready is not None:
                await ready()
            if counted and not attempt:
                desk.retries.sent(exchange.where)
            via = exchange.via = self.route(request.url) if turn.fallback and self.route is not None else self
            response = await via.send(request)
            if turn.fallback:
                await self._foreign(response)
        status = response.status_code
        if 300 <= status < 400:
            exchange.moved(status)
            request.extensions[_MOVED] = True
            return response
        exchange.answering(status, response.headers)
        passing = self.passing(response.stream, exchange)
        if not response.is_closed:
            response.stream = passing
            return response
        # It was read before it came here: a new one is read on its way.
        return self._lib.Response(status, headers=response.headers, stream=passing, extensions=response.extensions)

    async def _foreign(self, response: Any) -> None:
        """Of a fallback, of which the client knows nothing: it would take its cookies for the first provider's, and follow a
        redirect with the first provider's key."""
        response.headers.pop("set-cookie", None)
        if 300 <= response.status_code < 400:
            await response.aclose()
            raise self._lib.RemoteProtocolError("a fallback answers with a redirect, which is not followed")

    async def send(self, request: Any) -> Any:
        return await (self._desk.answering or self.inner.handle_async_request)(request)

    async def _advise(self, call: Recognised, response: Any) -> None:
        """Whether an SDK may try again, is the fleet's to say."""
        try:
            said = {name.lower(): value for name, value in response.headers.items()}
            retries, about = self._desk.retries, (call.where, call.attempt, response.status_code, said)
            if not await retries.advise(*about, self._habits):
                response.headers[ADVICE] = "false"
        except BaseException:
            await response.stream.aclose()  # nobody else will: the pool would miss its connection
            raise

    def _response(self, said: Refused) -> Any:
        # As one that comes from outside: with content= a reader of raw bytes would be told that it was read already.
        headers = [*said.headers, ("content-length", str(len(said.body)))]
        return self._lib.Response(said.status, headers=headers, stream=self._lib.ByteStream(said.body))

    async def _plain(self, request: Any) -> Any:
        host, method = request.url.host, request.method
        said = {"http.request.method": method, "server.address": host, "url.path": request.url.path}
        with self._desk.tracing().span(method, said, kind="client") as span:
            began = perf_counter()
            response = await self.send(request)
            with quietly:
                labels = {"host": host[:200], "method": method[:16], "status": str(response.status_code)}
                self._desk.metrics().histogram(HTTP_SECONDS).bind(**labels).record(perf_counter() - began)
                span.set_attribute("http.response.status_code", response.status_code)
        return response

    async def __aenter__(self) -> Self:
        self.closing = False
        await self.inner.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        self.closing = True
        await self.inner.__aexit__(kind, error, trace)

    async def aclose(self) -> None:
        self.closing = True
        await self.inner.aclose()


@cache
def transport_class(name: Library) -> Any:
    """The transport, as a subclass of the library's."""
    lib = library(name)
    streams = {
        kind.__name__.lower(): type(kind.__name__, (kind, lib.AsyncByteStream), {"_lib": lib}) for kind in (Passing, Shared)
    }
    return type("GuardedTransport", (GuardedTransport, lib.AsyncBaseTransport), {"_lib": lib, **streams})
