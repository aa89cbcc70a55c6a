"""Observatory: what a user holds. It opens the store, lends it to the rooms below, and closes it."""

import asyncio
import os
import secrets
import socket
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from functools import cached_property
from types import TracebackType
from typing import Any, Literal, ParamSpec, Self, TypeVar, overload

import msgspec
from opentelemetry.trace import Span

from . import dimensions
from .background import Background, Job
from .clock import ServerClock
from .errors import NotOpen, ObservatoryError, StoreError, StoreUnavailable
from .features.cache import Cache, CacheSpace
from .features.events import Events
from .features.leases import Leases
from .features.metrics import Metrics
from .features.presence import BEAT_EVERY, Member, Presence, Says
from .features.rate_limiter import RateLimiter
from .features.retry import Retry
from .llm import Calls, Usage
from .logs import INTERNAL, Logger, handler
from .settings import Settings
from .store.address import Address, address, home
from .store.check import Finding, describe, findings, refuse_unfit
from .store.store import Store
from .tracing import Tracing
from .types import Amount, Clock, Dimensions
from .version import __version__

P = ParamSpec("P")
T = TypeVar("T")

_alive: "weakref.WeakSet[Observatory]" = weakref.WeakSet()
_CLOSE_ATTEMPT = 2.0
"""Seconds that closing may spend on a store that does not answer."""


class Health(msgspec.Struct, frozen=True):
    """How this process is. Truthy unless down."""

    status: Literal["ok", "degraded", "down"]
    instances: int
    checks: tuple[Finding, ...]

    def __bool__(self) -> bool:
        return self.status != "down"


class Observatory:
    """One per process, made at import time: no I/O, no event loop, until it is opened. Opening is counted (nesting is fine) and
    may be repeated.

    redis_url: redis://, rediss://, unix:// or embedded://; None: OBSERVATORY_REDIS_URL, else an embedded server where that is
    harmless. namespace: part of every key. settings: as made by Settings.load; None: loaded when first needed.
    """

    def __init__(
        self,
        service_name: str | None = None,
        *,
        redis_url: str | None = None,
        namespace: str | None = None,
        settings: Settings | None = None,
        role: str = "client",
        clock: Clock | None = None,
    ) -> None:
        self._given = {"service_name": service_name, "redis_url": redis_url, "namespace": namespace}
        self._fixed_settings = settings
        self._role = role
        self._clock: Clock = clock or ServerClock()
        self._identity = _new_instance()
        self._opens = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._live: Store | None = None
        self._cache_store: Store | None = None
        self._presence: Presence | None = None
        self._background: Background | None = None
        self._log_handler: Any = None
        self._changing: asyncio.Lock | None = None
        _alive.add(self)

    # the rooms, made when first used
    @cached_property
    def settings(self) -> Settings:
        """As read when first needed; where the store is, is read again when opening."""
        return self._load()

    def _load(self) -> Settings:
        given: dict[str, Any] = {name: value for name, value in self._given.items() if value is not None}
        if self._fixed_settings is not None:
            return self._fixed_settings.replace(**given)
        return Settings.load(None, **given)

    @cached_property
    def metrics(self) -> Metrics:
        return Metrics(self._store, max_series=self.settings.metrics.max_series, partition=self._partition)

    @cached_property
    def events(self) -> Events:
        settings = self.settings.events
        return Events(
            self._store,
            now_us=self._now_us,
            partition=self._partition,
            max_entries=settings.max_entries,
            max_buffered=settings.max_buffered,
        )

    @cached_property
    def rate_limiter(self) -> RateLimiter:
        return RateLimiter(self._store, self._clock, self.metrics, self.settings.limits)

    @cached_property
    def retry(self) -> Retry:
        return Retry.of(self.metrics, self.settings.retry)

    @cached_property
    def leases(self) -> Leases:
        return Leases(self._store, self._identity)

    @cached_property
    def logger(self) -> Logger:
        log = self.settings.log
        return Logger(self.service_name, self.instance, level=log.level, format=log.format)

    @cached_property
    def tracing(self) -> Tracing:
        return Tracing(self.service_name, self.instance, self.settings.tracing.sample_ratio)

    @cached_property
    def _calls(self) -> Calls:
        return Calls(self.metrics, self.events, self.settings.metrics.dimensions)

    @cached_property
    def _caches(self) -> CacheSpace:
        settings = self.settings.cache
        return CacheSpace(
            self._store_of_cache, self.metrics, ttl=settings.ttl, jitter=settings.jitter, max_value=settings.max_value
        )

    @property
    def service_name(self) -> str:
        return self.settings.service_name or "observatory"

    @property
    def instance(self) -> str:
        return self.settings.instance or self._identity

    @property
    def is_open(self) -> bool:
        return self._opens > 0

    # the store, for the rooms
    def _store(self) -> Store:
        if self._live is None:
            raise NotOpen(
                f"Observatory({self.service_name!r}) is not open",
                remedy="Use it inside `async with obs:`, or give your app lifespan=obs.lifespan",
            )
        if asyncio.get_running_loop() is not self._loop:
            raise NotOpen(
                f"Observatory({self.service_name!r}) was opened on another event loop",
                remedy="Open it on the loop that uses it; one Observatory belongs to one loop at a time",
            )
        return self._live

    @property
    def store(self) -> Store:
        """The store, for the doors. NotOpen outside of `async with`, and on another loop."""
        return self._store()

    def _store_of_cache(self) -> Store:
        coordination = self._store()
        if self._cache_store is None:
            return coordination
        if not self._cache_store.joined:
            keys = coordination.keys
            self._cache_store.join(keys.partitions, coordination.proposed_salt)
        return self._cache_store

    def _partition(self) -> int:
        presence = self._presence
        return 0 if presence is None else presence.number % self._store().keys.partitions

    def _now_us(self) -> int:
        now_us = self._live.server_us() if self._live is not None else None
        return time.time_ns() // 1000 if now_us is None else now_us

    # opening and closing
    async def open(self) -> None:
        """ConfigurationError and StoreMisconfigured stop it; an absent Redis does not: it opens degraded and reconnects."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop and self._opens:
            raise NotOpen(f"Observatory({self.service_name!r}) is open on another event loop")
        if self._changing is None or self._loop is not loop:
            self._changing, self._loop = asyncio.Lock(), loop
        async with self._changing:
            if self._opens == 0:
                await self._start()
            self._opens += 1

    async def _start(self) -> None:
        if self._fixed_settings is None and "settings" in self.__dict__:
            self.settings = self._load()
            self.rate_limiter.use(self.settings.limits)
        settings = self.settings
        self._log_handler = _show_own_lines(settings)
        for warning in settings.warnings:
            INTERNAL.warning("%s", warning)
        where = self._address(settings.redis.url)
        store = self._live = self._connect(where)
        if settings.cache.redis_url is not None:
            self._cache_store = self._connect(self._address(settings.cache.redis_url))
        says = Says(service=self.service_name, role=self._role, version=__version__)
        self._presence = Presence(store, self.instance, says, settings.events.partitions)
        self._background = Background(
            (
                Job("beat", BEAT_EVERY, self._presence.beat),
                Job("flush", settings.metrics.flush_every, self._flush_regularly),
            )
        )
        try:
            # The first contact may have to wait for a connection, which the bound of a single decision need not cover.
            await store.link("decisions").connected(settings.redis.connect_timeout + embedded_patience(where))
            await self._presence.beat()
            await refuse_unfit(store, settings.redis.allow_eviction)
        except StoreUnavailable as error:
            self._background.store_is_away = True
            INTERNAL.error("%s opens without its store: %s", self.service_name, error)
        except BaseException:
            await self._stop(orderly=False)
            raise
        else:
            limits = ", ".join(limit.name for limit in self.rate_limiter.limits())
            INTERNAL.info(
                "%s open: %s, namespace %s, %d instance%s, limits %s",
                *(self.service_name, where.shown, settings.namespace, self._presence.live),
                *("" if self._presence.live == 1 else "s", limits),
            )
        self._background.start()

    def _address(self, url: str | None) -> Address:
        settings = self.settings
        found = address(url, password=settings.redis.password, environment=settings.environment, home=home(settings.home))
        if url is None:
            INTERNAL.warning(
                "no OBSERVATORY_REDIS_URL: using an embedded Valkey of this machine (%s). Not for production.", found.embedded
            )
        return found

    def _connect(self, where: Address) -> Store:
        redis = self.settings.redis
        return Store(
            where,
            self.settings.namespace,
            max_wait=redis.max_wait,
            connect_timeout=redis.connect_timeout,
            socket_timeout=redis.socket_timeout,
        )

    async def aclose(self) -> None:
        """Flush, say goodbye, close. Bounded by settings.shutdown_timeout, by two seconds with Redis away; completes also when
        the caller is cancelled meanwhile (the cancellation is delivered afterwards)."""
        if self._changing is None:
            return
        async with self._changing:
            if self._opens == 0:
                return
            self._opens -= 1
            if self._opens:
                return
            closing = asyncio.ensure_future(self._stop(orderly=True))
            cancelled = False
            while not closing.done():
                try:
                    await asyncio.shield(closing)
                except asyncio.CancelledError:
                    cancelled = True
            if cancelled:
                raise asyncio.CancelledError

    async def _stop(self, *, orderly: bool) -> None:
        background, self._background = self._background, None
        store, presence = self._live, self._presence
        try:
            if background is not None:
                await background.stop()
            if orderly and store is not None and presence is not None:
                patience = self.settings.shutdown_timeout
                if background is not None and background.store_is_away:
                    patience = min(patience, _CLOSE_ATTEMPT)
                try:
                    async with asyncio.timeout(patience):
                        if not store.joined:
                            await presence.beat()
                        await self.flush()
                        await presence.leave()
                except (TimeoutError, StoreError) as error:
                    INTERNAL.error("%s closes without its last flush: %s", self.service_name, error or "out of time")
        finally:
            self._live = self._presence = None
            for one in (store, self._cache_store):
                if one is not None:
                    one.close()
            self._cache_store = None
            if "tracing" in self.__dict__:
                await asyncio.to_thread(self.tracing.close)
            if self._log_handler is not None:
                INTERNAL.removeHandler(self._log_handler)
                self._log_handler = None

    async def _flush_regularly(self) -> None:
        await asyncio.gather(self.events.flush(), self.metrics.flush_regularly())

    async def flush(self) -> None:
        """What was recorded here is acknowledged by Redis when it returns; StoreUnavailable otherwise (nothing is lost)."""
        await asyncio.gather(self.events.flush(), self.metrics.flush())

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

    async def ready(self, *, timeout: float = 5.0) -> None:
        """StoreUnavailable when Redis does not answer in time."""
        store = self._store()
        deadline = asyncio.get_running_loop().time() + timeout
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    await store.command("PING")
                    if not store.joined and self._presence is not None:
                        await self._presence.beat()
                    return
            except TimeoutError:
                raise StoreUnavailable(f"the store did not answer within {timeout:g} s") from None
            except StoreUnavailable:
                if asyncio.get_running_loop().time() + 0.1 >= deadline:
                    raise
                await asyncio.sleep(0.1)

    async def health(self) -> Health:
        """How this process is: ok, degraded (something to look at), down (the store does not answer)."""
        try:
            store = self._store()
            await store.command("PING")
            checks = tuple(await findings(store, self.settings.redis.allow_eviction))
        except ObservatoryError as error:
            return Health("down", 0, (describe(error),))
        live = self._presence.live if self._presence is not None else 0
        worst = {finding.status for finding in checks}
        return Health("degraded" if worst & {"bad", "warn"} else "ok", live, checks)

    async def instances(self) -> tuple[Member, ...]:
        """Every live instance of the namespace."""
        self._store()
        if self._presence is None:
            return ()
        return await self._presence.members()

    @property
    def live_peers(self) -> int:
        """Live instances of this one's role, as of the last beat."""
        return self._presence.live_peers if self._presence is not None else 0

    # what crosses rooms
    @overload
    def cache(self, type: type[T], /, *, name: str = "default", ttl: float | None = None) -> Cache[T]: ...
    @overload
    def cache(self, type: Any, /, *, name: str = "default", ttl: float | None = None) -> Cache[Any]: ...
    def cache(self, type: Any, /, *, name: str = "default", ttl: float | None = None) -> Cache[Any]:  # noqa: A002
        """Shared entries of one type. Same name, same entries, in every process; another type under one name is refused."""
        return self._caches.cache(type, name, ttl)

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
        InvalidArgument names the field; nothing was written then.
        """
        return self._calls.record(
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
            trace_id=self.tracing.trace_id,
        )

    def observe(self, fn: Callable[P, Awaitable[T]], /) -> Callable[P, Awaitable[T]]:
        """Span and errors of an async function."""
        from functools import wraps

        @wraps(fn)
        async def observed(*args: P.args, **kwargs: P.kwargs) -> T:
            with self.span(getattr(fn, "__qualname__", "call")):
                return await fn(*args, **kwargs)

        return observed

    def _forked(self) -> None:
        """In a forked child: a process of its own. What was recorded, held or connected before is its parent's."""
        self._identity = _new_instance()
        for store in (self._live, self._cache_store):
            if store is not None:
                store.abandon()
        self._opens, self._loop, self._changing = 0, None, None
        self._live = self._cache_store = self._presence = self._background = None
        if self._log_handler is not None:
            INTERNAL.removeHandler(self._log_handler)
            self._log_handler = None
        rooms = self.__dict__
        rooms.pop("leases", None)
        for room in ("metrics", "events", "tracing"):
            if room in rooms:
                rooms[room].forget()
        if "logger" in rooms:
            self.logger.rename(self.instance)


def embedded_patience(where: Address) -> float:
    """Seconds that an embedded server may need to load its state."""
    return 15.0 if where.embedded is not None else 0.0


def _new_instance() -> str:
    return f"{socket.gethostname().split('.', 1)[0]}-{os.getpid()}-{secrets.token_hex(2)}"


def _show_own_lines(settings: Settings) -> Any:
    """Our own lines on stderr, unless the application has handlers: then they go there."""
    import logging

    # A NullHandler is all that we ever add at import.
    if logging.getLogger().handlers or len(INTERNAL.handlers) > 1:
        return None
    shown = handler(settings.log.format)
    INTERNAL.addHandler(shown)
    INTERNAL.setLevel(settings.log.level.upper())
    return shown


def _after_fork_in_child() -> None:
    for observatory in list(_alive):
        observatory._forked()  # noqa: SLF001


os.register_at_fork(after_in_child=_after_fork_in_child)
