"""`obs.llm`: clients and transports for any SDK, the calls of a block, prices."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final, Literal, overload

from .. import dimensions as bound
from .. import units
from ..errors import InvalidArgument
from ..types import Dimensions
from .answers import AnswerCache, Answers
from .collecting import Call, collecting
from .desk import Desk
from .prices import Prices
from .transport import Library, Way, body_of, library, library_of, transport_class
from .wire import Recognised, Tokenizer, approximately, recognise

if TYPE_CHECKING:
    import httpx
    import httpx2

_TIMEOUT: Final = (600.0, 5.0)
"""Seconds for reading, and for connecting: as the SDKs have it."""
_CONNECTIONS: Final = (1000, 100)
_NOWHERE: Final[Dimensions] = {}


class LLM:
    """Made by an Observatory. Making clients does no I/O and needs no loop."""

    def __init__(self, desk: Desk, prices: Callable[[], Prices], answers: Callable[[AnswerCache], Answers]) -> None:
        self._desk = desk
        self._prices = prices
        self._made = answers
        self._policy = AnswerCache()
        self._answers: dict[AnswerCache, Answers] = {}

    @property
    def prices(self) -> Prices:
        """What calls cost: `prices.set("openai/gpt-4o", Price(...))`."""
        return self._prices()

    @overload
    def http_client(
        self,
        library: Literal["httpx2"] = "httpx2",
        *,
        wait: float | None = None,
        cache: bool | AnswerCache = False,
        provider: str | None = None,
        tokenizer: Tokenizer = approximately,
        dimensions: Dimensions = _NOWHERE,
        transport: "httpx2.AsyncBaseTransport | None" = None,
        **options: Any,
    ) -> "httpx2.AsyncClient": ...
    @overload
    def http_client(
        self,
        library: Literal["httpx"],
        *,
        wait: float | None = None,
        cache: bool | AnswerCache = False,
        provider: str | None = None,
        tokenizer: Tokenizer = approximately,
        dimensions: Dimensions = _NOWHERE,
        transport: "httpx.AsyncBaseTransport | None" = None,
        **options: Any,
    ) -> "httpx.AsyncClient": ...
    def http_client(
        self,
        library: Library = "httpx2",
        *,
        wait: float | None = None,
        cache: bool | AnswerCache = False,
        provider: str | None = None,
        tokenizer: Tokenizer = approximately,
        dimensions: Dimensions = _NOWHERE,
        transport: Any = None,
        **options: Any,
    ) -> Any:
        """A client for any SDK's http_client=. httpx2: openai 3, anthropic 2, mistralai 3. httpx: groq 1, and older majors.

        wait: seconds that a call may stand in line before it is refused; None: as `llm.wait` says. cache: answers are kept for
        the fleet; True: by AnswerCache's defaults. provider: who answers, where the address does not say (a gateway of yours,
        vLLM). tokenizer: counts what a provider does not say. dimensions: of all calls, beside what is bound. options: those of
        AsyncClient; proxies, the environment's too, TLS and HTTP/2 work as there. Timeouts, pool and redirects are the SDKs'
        own, unless given.
        """
        lib = _library(library)
        read, connect = _TIMEOUT
        options.setdefault("timeout", lib.Timeout(read, connect=connect))
        options.setdefault("limits", lib.Limits(max_connections=_CONNECTIONS[0], max_keepalive_connections=_CONNECTIONS[1]))
        options.setdefault("follow_redirects", True)
        around = self._around(lib, provider, tokenizer, dimensions, wait, cache)
        client = lib.AsyncClient(transport=transport, **options)
        # What a client makes of proxy=, of the environment's and of mounts= are transports beside its own: all are ours to see.
        # Given to AsyncClient, ours would switch them off. Held by tests/llm/test_transport_contract.py.
        client._transport = around(client._transport)  # noqa: SLF001
        client._mounts = {  # noqa: SLF001
            pattern: None if inner is None else around(inner)
            for pattern, inner in client._mounts.items()  # noqa: SLF001
        }
        return client

    @overload
    def transport(
        self,
        inner: "httpx2.AsyncBaseTransport",
        *,
        wait: float | None = None,
        cache: bool | AnswerCache = False,
        provider: str | None = None,
        tokenizer: Tokenizer = approximately,
        dimensions: Dimensions = _NOWHERE,
    ) -> "httpx2.AsyncBaseTransport": ...
    @overload
    def transport(
        self,
        inner: "httpx.AsyncBaseTransport",
        *,
        wait: float | None = None,
        cache: bool | AnswerCache = False,
        provider: str | None = None,
        tokenizer: Tokenizer = approximately,
        dimensions: Dimensions = _NOWHERE,
    ) -> "httpx.AsyncBaseTransport": ...
    def transport(
        self,
        inner: Any,
        *,
        wait: float | None = None,
        cache: bool | AnswerCache = False,
        provider: str | None = None,
        tokenizer: Tokenizer = approximately,
        dimensions: Dimensions = _NOWHERE,
    ) -> Any:
        """Around a transport of yours; the rest as for `http_client`."""
        return self._around(library_of(inner), provider, tokenizer, dimensions, wait, cache)(inner)

    def collect(self) -> AbstractContextManager[list[Call]]:
        """The calls that begin and finish inside this block, in this task and those it starts."""
        return collecting()

    async def settled(self) -> None:
        """What the calls that are over have held is settled: with what they used, in the limits' eyes too."""
        await self._desk.gate.settled()

    def _around(
        self,
        lib: Any,
        provider: str | None,
        tokenizer: Tokenizer,
        dimensions: Dimensions,
        wait: float | None,
        cache: bool | AnswerCache,
    ) -> Callable[[Any], Any]:
        if provider is not None and (not isinstance(provider, str) or not 0 < len(provider) <= 256):
            raise InvalidArgument(f"provider must be a text of 1 to 256 characters, got {provider!r:.80}")
        if not callable(tokenizer):
            raise InvalidArgument(f"tokenizer must count the tokens of a text, got {tokenizer!r:.80}")
        if not isinstance(cache, bool | AnswerCache):
            raise InvalidArgument(f"cache must be True, False or an AnswerCache, got {cache!r:.80}")
        policy = self._policy if cache is True else cache
        self._prices().prepare()

        def recognised(lib: Any, request: Any) -> Recognised | None:
            return recognise(
                request.method,
                str(request.url),
                request.headers.items(),
                lambda: body_of(lib, request),
                provider=provider,
                tokenizer=tokenizer,
            )

        way = Way(
            recognised,
            bound.checked(dimensions),
            None if wait is None else units.seconds(wait, "wait"),
            (lambda: self._kept(policy)) if policy else None,
        )
        made = transport_class(lib.__name__)
        return lambda inner: made(inner, self._desk, way)

    def _kept(self, policy: AnswerCache) -> Answers:
        found = self._answers.get(policy)
        if found is None:
            found = self._answers[policy] = self._made(policy)
        return found


_library = library
"""Where `library` is the name of an argument."""
