"""Observatory: what a user holds: opening and closing, and what crosses rooms."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any, Literal, ParamSpec, Self, TypeVar, overload

import msgspec
from opentelemetry.trace import Span

from . import dimensions, health
from .errors import NotOpen
from .features.breaker import Breaker
from .features.cache import Cache
from .features.presence import Member, Presence
from .llm import Usage
from .names import INSTANCES
from .settings import Settings
from .staging import Staged
from .store.check import Health
from .store.store import Store
from .tracing import trace_id
from .types import Amount, Dimensions

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Observatory(Staged):
    """One per process, made at import time: no I/O, no event loop, until it is opened. Opening is counted (nesting is fine) and
    may be repeated.

    redis_url: redis://, redis+sentinel://, redis+cluster:// (rediss with TLS), unix:// or embedded://; None:
    OBSERVATORY_REDIS_URL, else an embedded server where that is harmless. namespace: part of every key. settings: as made by
    Settings.load; None: loaded when first needed.
    """

    @property
    def is_open(self) -> bool:
        return self._lifetime.is_open

    @property
    def store(self) -> Store:
        """The store, for the doors. NotOpen outside of `async with`, on another loop, and on a thread that has none."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise NotOpen("no event loop runs on this thread", remedy="Ask from the loop on which it was opened") from None
        return self._lifetime.store()

    # opening and closing
    async def open(self) -> None:
        """ConfigurationError and StoreMisconfigured stop it; an absent Redis does not: it opens degraded and reconnects."""
        await self._lifetime.open(self._settle)

    def _settle(self) -> Settings:
        """The settings that this opening goes by."""
        if self._fixed is None:
            self.settings = self._load()
        settings = self.settings
        self.rate_limiter.use(settings.limits, settings.layer)
        self.breakers.use(settings.breakers, settings.layer)
        self.metrics.set_gauge(INSTANCES, 1.0, {"role": self._role})
        if self._role != "client":  # whose code declares no limits: the file may be an application's
            return settings
        return msgspec.structs.replace(settings, warnings=(*settings.warnings, *self.rate_limiter.idle().values()))

    async def aclose(self) -> None:
        """Flush, say goodbye, close. Bounded by settings.shutdown_timeout, by two seconds with Redis away; completes also when
        the caller is cancelled meanwhile (the cancellation is delivered afterwards)."""
        await self._lifetime.aclose()
        if not self.is_open:
            said = [self.__dict__[name] for name in ("logger", "tracing") if name in self.__dict__]
            await asyncio.gather(*(one.aclose(self.settings.shutdown_timeout) for one in said))

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        await self.aclose()

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[Mapping[str, Any]]:
        """FastAPI(lifespan=obs.lifespan); request.state.obs."""
        async with self:
            yield {"obs": self}

    async def flush(self) -> None:
        """What was recorded here is acknowledged by Redis when it returns; StoreUnavailable otherwise (nothing is lost)."""
        self._count_up()
        await asyncio.gather(self.events.flush(), self.metrics.flush())

    async def ready(self, *, timeout: float = 5.0) -> None:
        """StoreUnavailable when Redis does not answer in time."""
        await health.ready(self.store, self._lifetime.presence, timeout)

    async def health(self) -> Health:
        """How this process is: ok, degraded (something to look at), down (the store does not answer)."""
        return await health.health(self.store, self._lifetime.presence, self.settings.redis.allow_eviction)

    async def instances(self) -> tuple[Member, ...]:
        """Every live instance of the namespace."""
        self._lifetime.store()
        presence = self._lifetime.presence
        return () if presence is None else await presence.members()

    @property
    def presence(self) -> Presence | None:
        """This process among the others, while it is open; for the doors."""
        return self._lifetime.presence

    # what crosses rooms
    @overload
    def cache(
        self,
        type: type[T],
        /,
        *,
        name: str = "default",
        ttl: float | None = None,
        stale_for: float = 0.0,
        near: bool | None = None,
        by: str | Iterable[str] | None = None,
        max_entries: int | None = None,
        max_bytes: int | None = None,
        compress_over: int | None = None,
        on_store_down: Literal["miss", "stale"] = "miss",
    ) -> Cache[T]: ...
    @overload
    def cache(
        self,
        type: Any,
        /,
        *,
        name: str = "default",
        ttl: float | None = None,
        stale_for: float = 0.0,
        near: bool | None = None,
        by: str | Iterable[str] | None = None,
        max_entries: int | None = None,
        max_bytes: int | None = None,
        compress_over: int | None = None,
        on_store_down: Literal["miss", "stale"] = "miss",
    ) -> Cache[Any]: ...
    def cache(self, type: Any, /, *, name: str = "default", **more: Any) -> Cache[Any]:  # noqa: A002
        """Shared entries of one type. Same name, same entries, in every process; another type under one name is refused.

        ttl, stale_for: seconds. by: dimensions, as "tenant": each has entries of its own, found by what is bound.
        near (cache.near): keep what is read in this process too, at most max_entries and max_bytes of it, never out of date by
        more than cache.near_bound. compress_over: bytes of an encoded value.
        on_store_down: "miss", or "stale": what was kept near before is served while the store is away (for `stale_for` beyond
        its end), out of date by as much as that lasts.
        """
        return Cache(obs=self, type=type, name=name, **more)

    def breaker(self, name: str, /) -> Breaker:
        """The fleet's circuit breaker of this name: `async with`, decorator, or `.execute`. Its thresholds: [breakers.NAME]."""
        return self.breakers.breaker(name)

    def bind(self, **dimensions_: str | None) -> None:
        """For the rest of this task: logs, spans, limits and calls carry them (None removes)."""
        dimensions.bind(**dimensions_)

    def bound(self, **dimensions_: str | None) -> AbstractContextManager[None]:
        """For a block."""
        return dimensions.bound(**dimensions_)

    @property
    def dimensions(self) -> Mapping[str, str]:
        """What is bound here and now."""
        return dimensions.current()

    def span(
        self,
        name: str,
        attributes: Mapping[str, Any] | None = None,
        *,
        kind: Literal["internal", "server", "client", "producer", "consumer"] = "internal",
        parent: Mapping[str, str] | None = None,
    ) -> AbstractContextManager[Span]:
        """An OpenTelemetry span. parent: headers with a traceparent."""
        return self.tracing.span(name, attributes, kind=kind, parent=parent)

    @overload
    def observe(self, fn: Callable[P, R], /) -> Callable[P, R]: ...
    @overload
    def observe(self, *, name: str | None = None, capture: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
    def observe(self, fn: Any = None, *, name: str | None = None, capture: bool = False) -> Any:
        """Span, duration and errors of an async function or generator. capture: arguments and result too, redacted."""
        observed = partial(self._observer.observed, name=name, capture=capture)
        return observed if fn is None else observed(fn)

    def record_request(
        self,
        provider: str,
        model: str,
        *,
        latency: float,
        tokens: int | Usage | None = None,
        cost_usd: Amount | None = None,
        success: bool = True,
        error: str | None = None,
        operation: str = "chat",
        time_to_first_token: float | None = None,
        id: str | None = None,  # noqa: A002 (the word for it)
        dimensions: Dimensions | None = None,
    ) -> str:
        """One call, everything written: requests, latency, tokens, cost, errors, and an event. Sync; returns the event's id.

        latency, time_to_first_token: seconds. cost_usd None: counted as unpriced. The same id counts once in this process.
        InvalidArgument names the field; nothing was written then. The current span carries the cost.
        """
        span = self.tracing.current()
        recorded = self._calls.record(
            provider,
            model,
            latency=latency,
            tokens=tokens,
            cost_usd=cost_usd,
            success=success,
            error=error,
            operation=operation,
            time_to_first_token=time_to_first_token,
            id=id,
            dimensions=dimensions or {},
            trace_id=None if span is None else trace_id(span),
        )
        if span is not None and cost_usd is not None:
            self.tracing.spent(span, cost_usd)
        return recorded
