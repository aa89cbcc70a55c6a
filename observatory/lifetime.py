"""From open to closed: the store, presence and background of one process, counted opens, an orderly end, and forks."""

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import time
import weakref
from collections.abc import Awaitable, Callable

from .background import Background, Job
from .errors import NotOpen, StoreError, StoreMisconfigured, StoreUnavailable
from .features.presence import BEAT_EVERY, Presence, Says
from .logs import INTERNAL, Logger
from .settings import Settings
from .store.address import Address, address, home
from .store.check import refuse_unfit
from .store.store import Store
from .version import __version__

_CLOSE_ATTEMPT = 2.0
"""Seconds that closing may spend on a store that does not answer."""
_EMBEDDED_START = 15.0
"""Seconds that an embedded server may need to load its state."""

_alive: "weakref.WeakSet[Lifetime]" = weakref.WeakSet()


class Lifetime:
    """What is there between opening and closing. Rooms ask it for the store; nobody else holds one.

    flush: deliver all that was recorded, for the last time. flush_regularly: what is due, as the background does it.
    forget: drop what a forked child must not share with its parent. duties: what else the background does. logger: whose pen
    writes our own lines too.
    """

    def __init__(
        self,
        role: str,
        *,
        flush: Callable[[], Awaitable[None]],
        flush_regularly: Callable[[], Awaitable[None]],
        forget: Callable[[], None],
        duties: Callable[[], tuple[Job, ...]],
        logger: Callable[[], Logger],
    ) -> None:
        self._role = role
        self._flush = flush
        self._flush_regularly = flush_regularly
        self._forget = forget
        self._duties = duties
        self._logger = logger
        self.identity = _new_identity()
        self._reset()
        _alive.add(self)

    def _reset(self) -> None:
        self._opens = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changing: asyncio.Lock | None = None
        self._store: Store | None = None
        self._cache_store: Store | None = None
        self._background: Background | None = None
        self._shown: logging.Handler | None = None
        self._settings: Settings | None = None
        self.presence: Presence | None = None
        self._examined = False
        self._unfit: StoreMisconfigured | None = None
        self._number: int | None = None

    @property
    def is_open(self) -> bool:
        return self._opens > 0 and not self._outlived()

    # for the rooms
    def store(self) -> Store:
        """The coordination store. NotOpen says what to do about it; StoreMisconfigured while it is not fit."""
        if self._store is None or self._outlived():
            raise NotOpen(
                "this Observatory is not open", remedy="Use it inside `async with obs:`, or give your app lifespan=obs.lifespan"
            )
        if asyncio.get_running_loop() is not self._loop:
            raise NotOpen(
                "this Observatory was opened on another event loop",
                remedy="Open it on the loop that uses it; one Observatory belongs to one loop at a time",
            )
        if self._unfit is not None:
            raise StoreMisconfigured(self._unfit.message, remedy=self._unfit.remedy)
        return self._store

    def cache_store(self) -> Store:
        """Where cache entries are: the coordination store, unless cache.redis_url names another."""
        coordination = self.store()
        if self._cache_store is None:
            return coordination
        self._cache_store.join(coordination.keys.partitions, coordination.proposed_salt)
        return self._cache_store

    def partition(self) -> int:
        """Where this process's telemetry goes."""
        number = 0 if self.presence is None else self.presence.number
        return number % self.store().keys.partitions

    def most_live(self) -> int:
        """The most instances seen in the last minute; 0 before the first beat."""
        return 0 if self.presence is None else self.presence.most_live

    def now_us(self) -> int:
        """The server's time as far as it is known, else ours."""
        now_us = self._store.server_us() if self._store is not None else None
        return time.time_ns() // 1000 if now_us is None else now_us

    def start_over(self) -> None:
        """While it is closed: the next opening is somewhere else, where nobody knows this process."""
        self._bury()
        self._number = None

    # opening
    async def open(self, load: Callable[[], Settings]) -> None:
        """The first one opens; the others are counted."""
        loop = asyncio.get_running_loop()
        self._bury()
        if self._loop is not loop:
            if self._opens:
                raise NotOpen("this Observatory is open on another event loop")
            self._loop, self._changing = loop, asyncio.Lock()
        async with self._changing or asyncio.Lock():
            if self._opens == 0:
                await self._start(load())
            self._opens += 1

    async def _start(self, settings: Settings) -> None:
        name = settings.service_name or "observatory"
        self._settings = settings
        self._shown = _show_own_lines(self._logger())
        try:
            for warning in settings.warnings:
                INTERNAL.warning("%s", warning)
            store = self._connect(settings.redis.url)
            self._store = store
            if settings.cache.redis_url is not None:
                self._cache_store = self._connect(settings.cache.redis_url, "cache.redis_url")
            says = Says(service=name, role=self._role, version=__version__)
            # The number stays over openings: with it goes the partition that knows this writer's watermarks.
            self.presence = Presence(store, settings.instance or self.identity, says, settings.events.partitions, self._number)
            self._background = Background(
                (
                    Job("beat", BEAT_EVERY, self._beat),
                    Job("flush", settings.metrics.flush_every, self._flush_regularly),
                    *self._duties(),
                )
            )
            await self._meet(store, self.presence, settings)
            self._background.start()
        except BaseException:
            await self._stop(orderly=False)
            raise

    async def _meet(self, store: Store, presence: Presence, settings: Settings) -> None:
        """First contact. A store that is away is one log line; one that is not fit is an error."""
        patience = settings.redis.connect_timeout + (_EMBEDDED_START if store.address.embedded is not None else 0.0)
        try:
            # The connection may take longer than the bound of a single decision.
            await store.connected(patience)
            await self._beat()
        except StoreUnavailable as error:
            INTERNAL.error("%s opens without its store", settings.service_name)
            if self._background is not None:
                self._background.note("beat", error)
        else:
            others = f"{presence.live} instance{'' if presence.live == 1 else 's'}"
            where = (store.address.shown, settings.namespace, others)
            INTERNAL.info("%s open: %s, namespace %s, %s", settings.service_name, *where)

    async def _beat(self) -> None:
        """A beat; and a look at the server until it was found fit, since it may come after us."""
        if self.presence is None or self._store is None or self._settings is None:
            return
        await self.presence.beat()
        self._number = self.presence.number
        if self._role != "cli":  # which has its own way of saying things
            self._logger().follow(self.presence.log_level)
        if not self._examined:
            try:
                await refuse_unfit(self._store, self._settings.redis.allow_eviction)
            except StoreMisconfigured as error:
                self._unfit = error
                raise
            self._examined, self._unfit = True, None

    def _connect(self, url: str | None, setting: str = "redis.url") -> Store:
        settings = self._settings or Settings()
        redis = settings.redis
        where: Address = address(
            url, password=redis.password, environment=settings.environment, home=home(settings.home), setting=setting
        )
        if url is None:
            INTERNAL.warning(
                "no OBSERVATORY_REDIS_URL: using an embedded Valkey of this machine (%s). Not for production.", where.embedded
            )
        return Store(
            where,
            settings.namespace,
            max_wait=redis.max_wait,
            connect_timeout=redis.connect_timeout,
            socket_timeout=redis.socket_timeout,
        )

    # closing
    async def aclose(self) -> None:
        """The last one closes. Completes also when the caller is cancelled meanwhile, who hears of it afterwards."""
        self._bury()
        if self._changing is None or self._opens == 0:
            return
        async with self._changing:
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
            closing.result()
            if cancelled:
                raise asyncio.CancelledError

    async def _stop(self, *, orderly: bool) -> None:
        try:
            if self._background is not None:
                await self._background.stop()
            if orderly:
                await self._last_words()
        finally:
            for store in (self._store, self._cache_store):
                if store is not None:
                    store.close()
            self._store = self._cache_store = self._background = self.presence = self._unfit = None
            self._examined = False
            self._hide_own_lines()

    async def _last_words(self) -> None:
        settings = self._settings or Settings()
        patience = settings.shutdown_timeout
        if self._background is not None and self._background.store_is_away:
            patience = min(patience, _CLOSE_ATTEMPT)
        try:
            async with asyncio.timeout(patience):
                if self.presence is not None:
                    if not self.store().joined:
                        await self._beat()
                    await self._flush()
                    await self.presence.leave()
        except (TimeoutError, StoreError) as error:
            INTERNAL.error("%s closes without its last flush: %s", settings.service_name, error or "out of time")

    def _outlived(self) -> bool:
        """The loop was closed without closing us."""
        return self._loop is not None and self._loop.is_closed()

    def _bury(self) -> None:
        """What belonged to a loop that is closed cannot be closed any more; what was recorded stays, for the next opening."""
        if not self._outlived():
            return
        number = self._number
        self._let_go()
        self._number = number

    def _let_go(self) -> None:
        for store in (self._store, self._cache_store):
            if store is not None:
                store.abandon()
        self._hide_own_lines()
        self._reset()

    def _hide_own_lines(self) -> None:
        if self._shown is not None:
            INTERNAL.removeHandler(self._shown)
            INTERNAL.setLevel(logging.NOTSET)
            self._shown = None

    def after_fork(self) -> None:
        """In a forked child: a process of its own. What was recorded, held or connected before is its parent's."""
        self.identity = _new_identity()
        self._let_go()
        self._forget()


def _new_identity() -> str:
    return f"{socket.gethostname().split('.', 1)[0]}-{os.getpid()}-{secrets.token_hex(2)}"


def _show_own_lines(logger: Logger) -> logging.Handler | None:
    """Our own lines on stderr, unless the application has handlers: then they go there."""
    logger.pen.begin()
    # A NullHandler is all that we ever add at import.
    if logging.getLogger().handlers or len(INTERNAL.handlers) > 1:
        return None
    INTERNAL.addHandler(logger.pen)
    INTERNAL.setLevel(logger.level.upper())
    return logger.pen


def _after_fork_in_child() -> None:
    for lifetime in list(_alive):
        # Whatever goes wrong here must not break the child's own work.
        with contextlib.suppress(Exception):
            lifetime.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
