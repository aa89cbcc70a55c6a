"""`obs.llm`: clients and transports for any SDK, the calls of a block, prices."""

import difflib
import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final, Literal, overload

from .. import dimensions as bound
from .. import units
from ..errors import InvalidArgument
from ..types import Dimensions
from .answers import AnswerCache, Answers
from .collecting import Call, collecting
from .desk import Desk
from .fallback import Fallback, checked
from .guarded import Guard, local
from .library import Library, library, library_of
from .prices import Prices
from .transport import Way, body_of, transport_class
from .tries import Tries
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
        fallbacks: Sequence[Fallback] = (),
        hedge_after: float | None = None,
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
        fallbacks: Sequence[Fallback] = (),
        hedge_after: float | None = None,
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
        fallbacks: Sequence[Fallback] = (),
        hedge_after: float | None = None,
        provider: str | None = None,
        tokenizer: Tokenizer = approximately,
        dimensions: Dimensions = _NOWHERE,
        transport: Any = None,
        **options: Any,
    ) -> Any:
        """A client for any SDK's http_client=. httpx2: openai 3, anthropic 2, mistralai 3. httpx: groq 1, and older majors.

        wait: seconds that a call may stand in line before it is refused; None: as `llm.wait` says. cache: answers are kept for
        the fleet; True: by AnswerCache's defaults. fallbacks: who is asked instead, in order, where a call is not let in or
        fails before its answer begins. hedge_after: seconds without an answer, after which it is sent once more, out of the
        fleet's retry budget; the first answer wins. provider: who answers, where the address does not say (a gateway of
        yours, vLLM). tokenizer: counts what a provider does not say. dimensions: of all calls, beside what is bound. options:
        those of AsyncClient; proxies, the environment's too, TLS and HTTP/2 work as there. Timeouts, pool and redirects are the
        SDKs' own, unless given.
        """
        lib = _library(library)
        known = inspect.signature(lib.AsyncClient).parameters
        for name in options:
            if name not in known:
                close = difflib.get_close_matches(name, {*known, *inspect.signature(self.http_client).parameters}, n=1)
                raise InvalidArgument(f"http_client has no option {name}{f', did you mean {close[0]}?' if close else ''}")
        read, connect = _TIMEOUT
        options.setdefault("timeout", lib.Timeout(read, connect=connect))
        options.setdefault("limits", lib.Limits(max_connections=_CONNECTIONS[0], max_keepalive_connections=_CONNECTIONS[1]))
        options.setdefault("follow_redirects", True)
        around = self._around(lib, provider, tokenizer, dimensions, wait, cache, fallbacks, hedge_after)
        client = lib.AsyncClient(transport=transport, **options)
        # What a client makes of proxy=, of the environment's and of mounts= are transports beside its own: all are ours to see.
        # Given to AsyncClient, ours would switch them off. Held by tests/llm/test_transport_contract.py.
        client._transport = around(client._transport)  # noqa: SLF001
        client._mounts = {  # noqa: SLF001
            pattern: None if inner is None else around(inner)
            for pattern, inner in client._mounts.items()  # noqa: SLF001
        }
        for one in (client._transport, *client._mounts.values()):  # noqa: SLF001
            if one is not None:  # a fallback's address may have another proxy
                one.route = client._transport_for_url  # noqa: SLF001
        return client

    @overload
    def transport(
        self,
        inner: "httpx2.AsyncBaseTransport",
        *,
        wait: float | None = None,
        cache: bool | AnswerCache = False,
        fallbacks: Sequence[Fallback] = (),
        hedge_after: float | None = None,
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
        fallbacks: Sequence[Fallback] = (),
        hedge_after: float | None = None,
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
        fallbacks: Sequence[Fallback] = (),
        hedge_after: float | None = None,
        provider: str | None = None,
        tokenizer: Tokenizer = approximately,
        dimensions: Dimensions = _NOWHERE,
    ) -> Any:
        """Around a transport of yours; the rest as for `http_client`."""
        return self._around(library_of(inner), provider, tokenizer, dimensions, wait, cache, fallbacks, hedge_after)(inner)

    def guard(
        self,
        provider: str,
        model: str,
        *,
        tokens: int = 0,
        output_tokens: int | None = None,
        operation: str = "chat",
        wait: float | None = None,
        dimensions: Dimensions = _NOWHERE,
    ) -> Guard:
        """The same steps for a call that is not HTTP: `async with obs.llm.guard("vllm", "qwen3", tokens=900) as call:`, or
        around an async function, of which each call is one.

        tokens: an estimate of the input. output_tokens: at most in the answer; None: as much as others had. operation: chat,
        text_completion, embeddings, or a word of yours. wait: as for `http_client`.

        RateLimitExceeded, BudgetExceeded, CircuitOpen, CoolingDown, StoreUnavailable (of a `closed` limit), InvalidArgument (a
        dimension is missing): it must not be made, and nothing is held. Left without `used`, also by an exception or a
        cancellation, it is charged as it was estimated.
        """
        call = local(provider, model, operation, tokens, output_tokens)
        seconds = None if wait is None else units.seconds(wait, "wait")
        return Guard(self._desk, call, seconds, bound.checked(dimensions))

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
        fallbacks: Sequence[Fallback],
        hedge_after: float | None,
    ) -> Callable[[Any], Any]:
        if provider is not None and (not isinstance(provider, str) or not 0 < len(provider) <= 256):
            raise InvalidArgument(f"provider must be a text of 1 to 256 characters, got {provider!r:.80}")
        if not callable(tokenizer):
            raise InvalidArgument(f"tokenizer must count the tokens of a text, got {tokenizer!r:.80}")
        if not isinstance(cache, bool | AnswerCache):
            raise InvalidArgument(f"cache must be True, False or an AnswerCache, got {cache!r:.80}")
        others = checked(fallbacks, provider)
        hedge = None if hedge_after is None else units.seconds(hedge_after, "hedge_after")
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
            Tries(others, hedge, self._desk.retries, self._desk.gate.aside) if others or hedge is not None else None,
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
