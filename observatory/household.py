"""The rooms of one process: each made when first used, of the settings, and what opening and closing ask of them."""

import asyncio
from collections.abc import Awaitable
from functools import partial
from typing import Any

from .background import Job
from .clock import RoomClock
from .costs import Costs
from .duties import COMPACT_EVERY, duty
from .features.alerts import Alerts
from .features.breaker import Breakers, Pauses
from .features.cache import Bounds, CacheSpace, UntypedCaches
from .features.dead_letters import DeadLetters
from .features.events import Events, Room
from .features.leases import Leases
from .features.metrics import Metrics, OtlpExport
from .features.rate_limiter import RateLimiter
from .features.retry import Retry, RetryBudget
from .features.traces import Traces
from .lifetime import Lifetime
from .llm import LLM, Answers, Calls, Catalogue, Desk, Gate, Prices, Retries
from .logs import Logger
from .names import LINES_REPEATED
from .observed import Observer
from .redaction import Redactor
from .rooms import room
from .settings import Settings
from .tracing import Tracing
from .types import Clock


class Household:
    """Lends the store to the rooms, and has no thought of its own."""

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
        self._fixed = settings
        self._role = role
        self._clock = RoomClock(clock)
        self._lifetime = Lifetime(
            role,
            flush=self._last_flush,
            flush_regularly=self._flush_regularly,
            forget=self._forget,
            duties=self._duties,
            logger=lambda: self.logger,
        )

    @room
    def settings(self) -> Settings:
        """As read when first needed, and anew at each opening."""
        return self._load()

    def _load(self) -> Settings:
        given: dict[str, Any] = {name: value for name, value in self._given.items() if value is not None}
        return Settings.load(None, **given) if self._fixed is None else self._fixed.replace(**given)

    @room
    def metrics(self) -> Metrics:
        lifetime = self._lifetime
        return Metrics(
            lifetime.store,
            max_series=self.settings.metrics.max_series,
            flush_every=self.settings.metrics.flush_every,
            partition=lifetime.partition,
        )

    @room
    def events(self) -> Events:
        lifetime, settings = self._lifetime, self.settings.events
        return Events(
            lifetime.store,
            self.metrics,
            now_us=lifetime.now_us,
            partition=lifetime.partition,
            room=Room(settings.max_entries, settings.max_bytes),
            max_buffered=settings.max_buffered,
        )

    @room
    def dead_letters(self) -> DeadLetters:
        return DeadLetters(self._lifetime.store, *self.events.room, self.events.count_dropped)

    @room
    def rate_limiter(self) -> RateLimiter:
        lifetime, settings = self._lifetime, self.settings
        return RateLimiter(
            *(lifetime.store, self._clock, self.metrics, settings.limits),
            layer=settings.layer,
            alerts=Alerts(lifetime.store, self.metrics, lambda: self.events),
            replicas=settings.redis.replicas,
            owner=lambda: lifetime.identity,
            instances=lifetime.most_live,
            pauses=self.pauses,
        )

    @room
    def retry(self) -> Retry:
        return Retry.of(self.metrics, self.retry_budget, self.settings.retry)

    @room
    def retry_budget(self) -> RetryBudget:
        lifetime, settings = self._lifetime, self.settings.retry
        return RetryBudget(
            lifetime.store,
            share=settings.budget,
            reserve=settings.budget_reserve,
            instances=lifetime.most_live,
            clock=self._clock,
        )

    @room
    def breakers(self) -> Breakers:
        """All of them; `obs.breaker(name)` is one."""
        return Breakers(self._lifetime.store, self.metrics, self.settings.breakers, self._clock, self.settings.layer)

    @property
    def pauses(self) -> Pauses:
        """Whom the fleet leaves alone for a while, since they asked for it."""
        return self.breakers.pauses

    @room
    def leases(self) -> Leases:
        return Leases(self._lifetime.store, lambda: self._lifetime.identity)

    @room
    def otlp(self) -> OtlpExport:
        return OtlpExport(self._lifetime.store, self.metrics, self.leases)

    @room
    def logger(self) -> Logger:
        return Logger.of(self.service_name, self.instance, self.settings.log, self._redactor)

    @room
    def tracing(self) -> Tracing:
        return Tracing.of(self.service_name, self.instance, self.settings.tracing, self._redactor)

    @room
    def _traces(self) -> Traces:
        return Traces(self._lifetime.store, lambda: self.tracing.tail)

    @room
    def _redactor(self) -> Redactor:
        return Redactor(self.settings.log.redact, self.settings.log.redact_patterns)

    @room
    def _observer(self) -> Observer:
        return Observer(lambda: self.tracing, lambda: self.metrics, lambda: self._redactor)

    @room
    def _calls(self) -> Calls:
        return Calls(self.metrics, self.events, self.settings.metrics.dimensions)

    @room
    def _prices(self) -> Prices:
        return Prices(self.settings.prices, Catalogue())

    @room
    def costs(self) -> Costs:
        """What calls have cost, and how far budgets are spent."""
        return Costs(
            *(self._lifetime.store, self._clock),
            dimensions=lambda: self.settings.metrics.dimensions,
            limits=self.rate_limiter.limits,
            prices=lambda: self._prices,
        )

    @room
    def _desk(self) -> Desk:
        return Desk(
            calls=lambda: self._calls,
            metrics=lambda: self.metrics,
            tracing=lambda: self.tracing,
            prices=lambda: self._prices,
            now_us=self._lifetime.now_us,
            gate=Gate(lambda: self.rate_limiter, lambda: self.breakers, lambda: self.settings.llm, self._clock),
            retries=Retries(lambda: self.retry_budget, lambda: self.metrics, self._clock),
            output_tokens=lambda: self.settings.llm.output_tokens,
            captures=lambda: self.settings.llm.capture_content == "on",
        )

    @room
    def llm(self) -> LLM:
        """LLM calls: a client for any SDK, the calls of a block, prices."""
        return LLM(self._desk, lambda: self._prices, partial(Answers, self))

    @room
    def caches(self) -> CacheSpace:
        """What `Cache(obs=...)` is made from; `obs.cache(T)` is the usual way."""
        cache, lifetime = self.settings.cache, self._lifetime
        return CacheSpace(
            *(lifetime.cache_store, self.metrics, lambda: lifetime.now_us() + self._clock.ahead_us()),
            ttl=cache.ttl,
            jitter=cache.jitter,
            max_value=cache.max_value,
            compress_over=cache.compress_over,
            is_near=cache.near == "on",
            near=Bounds(cache.near_entries, cache.near_bytes),
            near_bound=cache.near_bound,
        )

    @room
    def untyped_caches(self) -> UntypedCaches:
        """Caches by their names alone, for the doors."""
        return UntypedCaches(self.caches)

    @property
    def service_name(self) -> str:
        return self.settings.service_name or "observatory"

    @property
    def instance(self) -> str:
        """This process's name; a forked child has another."""
        return self.settings.instance or self._lifetime.identity

    async def _last_flush(self) -> None:
        """One room that fails keeps no other from its last words; the first error is raised behind them all."""
        failed = await _each(self._desk.aclose()) if "_desk" in self.__dict__ else []
        failed += await _each(
            *(self.rate_limiter.aclose(), self.breakers.flush(), self.retry_budget.report()),
            *([self.caches.aclose()] if "caches" in self.__dict__ else []),
        )
        failed += await _each(self.events.flush(), self.metrics.retire(), self._traces.exchange())
        failed += await _each(self.otlp.aclose())
        if failed:
            raise failed[0]

    def _count_up(self) -> None:
        """What is counted beside the metrics, where a count of theirs would cost too much, is handed to them."""
        if "logger" in self.__dict__ and (held := self.logger.pen.settle()):
            self.metrics.increment_counter(LINES_REPEATED, held)
        if "caches" in self.__dict__:
            self.caches.settle()

    async def _flush_regularly(self) -> None:
        self._count_up()
        if failed := await _each(self.events.flush(), self.metrics.flush_regularly(), *self._told()):
            raise failed[0]

    def _told(self) -> tuple[Awaitable[object], ...]:
        return self._traces.exchange(), self.retry_budget.report()

    def _duties(self) -> tuple[Job, ...]:
        """A command is over too soon for them, and a worker has roles."""
        if self._role in ("cli", "worker", "leader"):
            return self.breakers.jobs
        compaction = duty("compaction", COMPACT_EVERY, self.leases.acquire, self.metrics.compact)
        return (*self.breakers.jobs, compaction, *self.otlp.jobs)

    def _forget(self) -> None:
        """A forked child keeps the rooms, and nothing that was in them."""
        self._empty()
        for name in ("logger", "tracing"):
            if name in self.__dict__:
                self.__dict__[name].forget(self.instance)

    def _empty(self) -> None:
        for name in (
            "metrics",
            "events",
            "otlp",
            "rate_limiter",
            "breakers",
            "retry_budget",
            "caches",
            "untyped_caches",
            "_desk",
        ):
            if name in self.__dict__:
                self.__dict__[name].forget()


async def _each(*work: Awaitable[object]) -> list[BaseException]:
    """All of it, whatever becomes of the others; and what went wrong."""
    return [done for done in await asyncio.gather(*work, return_exceptions=True) if isinstance(done, BaseException)]
