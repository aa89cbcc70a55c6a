"""Who answers instead of the LLM providers: requests of either library come in, and answers of the same one go out."""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArgument
from ..llm.library import library
from .errors import UnexpectedCall

if TYPE_CHECKING:
    import httpx2

Provider = Callable[["httpx2.Request"], "httpx2.Response | Awaitable[httpx2.Response]"]
"""What answers instead of the LLM provider; what it raises, the client meets as it meets a connection that breaks."""
Providers = Provider | Sequence[Provider]

AFTER = "observatory.after"
"""An extension of a response: it comes so many seconds later, on the sandbox's clock."""


class Provided:
    """The transport of every client of a sandbox. Several providers answer one call each, in their order."""

    def __init__(self, provider: "Providers | None", sleep: Callable[[float], Awaitable[None]]) -> None:
        self._answers: Provider | None = None
        self._rest: Iterator[Provider] | None = None
        if callable(provider):
            self._answers = provider
        elif provider is not None:
            several = list(provider) if isinstance(provider, Sequence) else [provider]
            if isinstance(provider, str | bytes) or not all(map(callable, several)):
                raise InvalidArgument(
                    f"provider must be a function of a request, or several, got {provider!r:.80}", remedy='provider=reply("ok")'
                )
            self._rest, self._several = iter(several), len(several)
        self._sleep = sleep
        self.unexpected: list[UnexpectedCall] = []
        """Calls that nobody answers for: SDKs make other errors of them."""

    async def __call__(self, request: Any) -> Any:
        """The answer, as a response of the request's library."""
        lib = library(type(request).__module__.partition(".")[0])
        asked = await self._asked(lib, request)
        answered: Any = self._next(asked)(asked)
        if inspect.isawaitable(answered):
            answered = await answered
        if not hasattr(answered, "status_code"):
            raise InvalidArgument(f"a provider returns an httpx2.Response, got {answered!r:.80}")
        if after := answered.extensions.get(AFTER):
            await self._sleep(after)
        stream = answered.stream
        return lib.Response(
            answered.status_code,
            headers=list(answered.headers.multi_items()),
            stream=_stream(lib, stream),
            extensions={name: value for name, value in answered.extensions.items() if name != AFTER},
        )

    def _next(self, request: Any) -> Provider:
        if self._answers is not None:
            return self._answers
        found = None if self._rest is None else next(self._rest, None)
        if found is not None:
            return found
        why = "no provider answers in this sandbox" if self._rest is None else f"all {self._several} answers were given"
        error = UnexpectedCall(
            f"{request.method} {request.url.copy_with(query=None)}: {why}, and the network is not touched",
            remedy='sandbox(obs, provider=reply("ok"))',
        )
        self.unexpected.append(error)
        raise error

    @staticmethod
    async def _asked(lib: Any, request: Any) -> Any:
        """The request, read, as httpx2 has it."""
        await request.aread()
        own = library("httpx2")
        if lib is own:
            return request
        return own.Request(
            request.method, str(request.url), headers=list(request.headers.multi_items()), content=request.content
        )


async def _each(stream: Any) -> AsyncIterator[bytes]:
    if hasattr(stream, "__aiter__"):
        async for chunk in stream:
            yield chunk
    else:
        for chunk in stream:
            yield chunk


def _stream(lib: Any, stream: Any) -> Any:
    """The bytes of a stream of any library, as one of this. Like a connection's: who reads anew reads on."""

    class Passed(lib.AsyncByteStream):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            self._chunks = _each(stream)

        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for chunk in self._chunks:
                yield chunk

        async def aclose(self) -> None:
            if hasattr(stream, "aclose"):
                await stream.aclose()

    return Passed()
