"""A household on a stage: the same rooms with other settings, another clock, and nobody's network, for observatory.testing."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from . import otlp
from .household import Household
from .llm.collecting import Block
from .settings import Settings
from .types import Clock

_PATIENCE = 5.0
"""Seconds for what calls have used, whose limits may be away."""


class Stage(NamedTuple):
    """Who answers requests to providers, who is told of every call, and who of every line of the log."""

    answering: Callable[[Any], Awaitable[Any]]
    calls: Block
    hears: Callable[[Mapping[str, Any]], object]


class Staged(Household):
    """What an Observatory is for its tests, beside what it is for everybody."""

    @property
    def given_name(self) -> str | None:
        """What code calls the service."""
        return self._given["service_name"]

    @contextmanager
    def staged(self, settings: Settings, clock: Clock | None, stage: Stage) -> Iterator[None]:
        """Only while it is closed, before and after. Rooms stay, since others hold them, and are emptied at both ends.

        What a room was made of stays too, but for limits, breakers, retries and the log's level. Limits that code defines
        meanwhile end with it.
        """
        given, fixed, before, own = self._given, self._fixed, self.__dict__.get("settings"), self._clock.given
        self._given, self._fixed = {**given, "redis_url": None, "namespace": None}, settings
        try:
            self._move(settings, clock)
            limits = self.rate_limiter.declared
            level = self.logger.level
            self.logger.level, self.logger.pen.listener = settings.log.level, stage.hears
            self._desk.answering, self._desk.everything = stage.answering, (stage.calls,)
            self.retry_budget.staged = settings.retry
            try:
                with otlp.muted():
                    yield
            finally:
                self.logger.level, self.logger.pen.listener = level, None
                self.retry_budget.staged = None
                self.rate_limiter.use({}, only=limits)
        finally:
            stage.calls.over = True
            self._desk.answering, self._desk.everything = None, ()
            self._given, self._fixed = given, fixed
            self._move(before, own)

    async def told(self) -> None:
        """What breakers have counted here, and what calls have used, is told. StoreUnavailable while the store is away."""
        await self.breakers.flush()
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await self._desk.gate.settled()

    def _move(self, settings: Settings | None, clock: Clock | None) -> None:
        """None: they are loaded when they are next asked for."""
        made = self.__dict__
        for name in ("settings", "retry"):  # values: those that were made of an older one stay
            made.pop(name, None)
        if settings is not None:
            self.settings = settings
        said = settings or Settings()
        self._lifetime.start_over()
        self._clock.use(clock)
        self._empty()
        for name in ("rate_limiter", "breakers"):
            if name in made:
                made[name].afresh()
                made[name].use(getattr(said, name.replace("rate_limiter", "limits")), said.layer)
        if "retry_budget" in made:
            self.retry_budget.use(said.retry.budget, said.retry.budget_reserve)
