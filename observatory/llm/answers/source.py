"""Where an answer comes from, for everybody in this process who asks for it at the same time: the cache, a call to the provider
that is made here, or the log of one that is made elsewhere.

Who makes the call is who computes the entry (`Cache.get_or_compute`): one in the fleet, replaced within its lease when it dies.
So an answer is decided by the cache alone; the log brings it sooner. What holds:

- Consumers never pull: the call goes at the provider's pace, whoever reads slowly, up to what may be kept.
- A consumer is bound to a run when it is handed its head. If that run ends early (its process was killed, cancelled, or met an
  error), a bound one gets AnswerInterrupted, and who is not bound yet has the next run, made here if need be.
- The call goes on while anybody here reads, or anybody elsewhere does (asked of the store, at most _ORPHANED_FOR); then it is
  cancelled, and the lease given back.
"""

import asyncio
import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import msgspec

from ...clock import monotonic
from ...errors import AnswerInterrupted, CacheComputationFailed, CacheError, NotOpen, ObservatoryError, StoreError
from ...features.cache import Cache
from ...features.cache.lease import held
from .answer import Answer, forbids, header, nearly_over, replayed
from .log import Log, Tale, Writer, whole
from .question import Alone, NotKept, Question
from .refusals import Reason
from .run import Head, Pulse, Run, interrupted

_ORPHANED_FOR: Final = 600.0
"""Seconds that a call goes on for others after the last of this process has left."""
_LOOK_EVERY: Final = 0.5
_GRACE: Final = 1.0
"""Seconds for a call whose reader has left at its last event: some clients do not read to the very end."""
_HIT_WITHIN: Final = 0.005
"""Seconds: an entry that is there has come by then; else its log is looked for."""
_CLOSE_WITHIN: Final = 1.0


class Source:
    """One question's, in one process, while anybody asks it."""

    def __init__(
        self,
        question: Question,
        cache: Cache[Answer],
        log: Log,
        *,
        limit: int,
        now_us: Callable[[], int],
        unkept: Callable[[Reason], None],
        over: Callable[["Source"], None],
    ) -> None:
        self._question = question
        self._cache = cache
        self._log = log
        self._limit = limit
        self._now_us = now_us
        self._unkept = unkept
        self._over = over
        self._asked_us = now_us()
        self._pulse = Pulse()
        self._run: Run | None = None
        self._consumers = 0
        self._writer: Writer | None = None
        self._led = False
        self._token = ""
        self._stopping = False
        self._finished = False
        self._failed: Exception | None = None
        self._following: asyncio.Task[None] | None = None
        self._orphaned: asyncio.Task[None] | None = None
        self._task = asyncio.get_running_loop().create_task(self._main(), name="observatory answer")

    @property
    def open(self) -> bool:
        """Whether others may join: it is on its way, and for them too."""
        run = self._run
        ready = run is None or (run.kept and run.private is None and not run.ended)
        return ready and not (self._finished or self._stopping)

    async def stands(self) -> bool:
        """Whether it is still what the cache waits for: nobody has cleared that, or deleted the entry, since it began."""
        try:
            return not self._token or await self._log.stands(self._token)
        except (StoreError, NotOpen):
            return True

    # consumers
    async def join(self, *, first: bool) -> Run:
        """The run to read, once its head may be handed out. Alone; or what the call to the provider met. Each `join` that is
        begun is ended by one `leave`."""
        self._consumers += 1
        whole = not self._question.streamed
        while True:
            run = self._run
            if run is not None and run.error is None:
                if run.private is not None and not first:
                    raise Alone(run.private)
                if run.ended or (not whole and run.head is not None and (run.own or run.chunks)):
                    return run
            if run is not None and run.own and run.error is not None and not isinstance(run.error, AnswerInterrupted):
                raise run.error
            if self._finished:
                raise self._failed or Alone("failed")
            await self._pulse.next()

    def leave(self) -> None:
        self._consumers -= 1
        if self._consumers or self._finished or self._whole:
            return
        if self._led and self._orphaned is None:
            self._orphaned = asyncio.get_running_loop().create_task(self._orphan(), name="observatory answer's end")
        elif not self._led:
            self._stop()

    @property
    def _whole(self) -> bool:
        """Nothing is left but to store it."""
        return self._run is not None and self._run.ended

    def _stop(self) -> None:
        self._stopping = True
        self._task.cancel()

    async def _orphan(self) -> None:
        """Nobody here reads. Others may."""
        run = self._run
        until = monotonic() + _ORPHANED_FOR
        if run is not None and run.head is not None and nearly_over(run.chunks, bool(header(run.head.own, "content-encoding"))):
            with suppress(TimeoutError):
                async with asyncio.timeout(_GRACE):
                    while not (self._consumers or self._finished or self._whole):
                        await self._pulse.next()
        while not (self._consumers or self._finished or self._whole):
            followed = self._question.streamed and self._writer is not None and await self._writer.followed()
            if self._consumers or self._finished or self._whole:
                break
            if not followed or monotonic() > until or (run is not None and not run.kept):
                self._stop()
                break
            await asyncio.sleep(_LOOK_EVERY)
        self._orphaned = None

    # where it comes from
    async def _main(self) -> None:
        try:
            await (self._shared() if self._question.sharing else self._own())
        except Exception as error:
            self._failed = error if isinstance(error, Alone) else Alone("failed")
        finally:
            self._finished = True
            if self._following is not None:
                self._following.cancel()
            if self._run is not None:
                self._run.end(interrupted("nobody goes on with it"))
            self._over(self)
            self._pulse.tell()

    async def _shared(self) -> None:
        fetching = asyncio.ensure_future(self._cache.get_or_compute(self._question.key, self._lead))
        try:
            await asyncio.wait({fetching}, timeout=_HIT_WITHIN)
            if not fetching.done() and not self._led and self._question.streamed:
                self._following = asyncio.get_running_loop().create_task(self._follow(), name="observatory answer's log")
            await asyncio.wait({fetching})
            self._landed(await fetching)
        except (CacheComputationFailed, NotKept) as error:
            if not self._led:
                await self._last_look(str(error))
        except ObservatoryError:  # the store is not set up for this, or closed: the call needs none
            raise Alone("store") from None
        finally:
            fetching.cancel()

    async def _own(self) -> None:
        """Kept, and not shared while it is on its way."""
        found = await self._cache.get(self._question.key)
        if found is not None:
            self._landed(found)
            return
        with suppress(NotKept):
            answer = await self._lead()
            with suppress(StoreError, NotOpen, CacheError):
                await self._cache.set(self._question.key, answer)

    def _take(self, run: Run) -> Run:
        """Whatever was read before is from another call."""
        former, self._run = self._run, run
        if former is not None:
            former.end(interrupted("the process that made the call has lost it"))
        self._pulse.tell()
        return run

    def _begun(self, run: str, *, own: bool) -> Run:
        return self._take(Run(run, self._pulse, limit=self._limit, bounded=self._question.streamed, own=own))

    def _landed(self, answer: Answer) -> None:
        """The entry, as somebody has stored it."""
        run = self._run
        if run is not None and (self._led or run.ended):
            return
        if run is None or run.broken or run.id != answer.run:
            run = self._begun(answer.run, own=False)
            run.found = answer.made_us <= self._asked_us
        if run.head is None:
            run.begin(Head(answer.status, answer.headers, answer.headers))
        run.made_us = answer.made_us
        run.fill(answer.chunks, answer.gaps_us)

    # as the one who calls
    async def _lead(self) -> Answer:
        if self._finished:  # a refresh before its time: nobody asks, and a call costs money
            raise asyncio.CancelledError
        self._led = True
        if self._following is not None:
            self._following.cancel()
        token = held.get()
        self._token = token
        run = self._begun(token or secrets.token_hex(16), own=True)
        if token and self._question.streamed and self._question.sharing:
            self._writer = Writer(self._log, run)
        try:
            await self._call(run)
            return await self._kept(run, bool(token))
        except Exception as error:
            run.end(error)
            raise
        except asyncio.CancelledError:
            run.end(interrupted("the process that made the call has given it up"))
            raise
        finally:
            if self._writer is not None:
                await self._writer.close()

    async def _call(self, run: Run) -> None:
        upstream = await self._question.send()
        try:
            run.private = "no_store" if forbids(upstream.headers) else None if upstream.same else "other"
            if run.private is not None and self._writer is not None:
                self._writer.drop()
            run.begin(Head(upstream.status, upstream.headers, replayed(upstream.status, upstream.headers)))
            before = monotonic()
            async for chunk in upstream.chunks:
                if chunk:
                    now = monotonic()
                    run.add(chunk, int((now - before) * 1e6))
                    before = now
                    await run.room()
        finally:
            closing = asyncio.ensure_future(upstream.aclose())
            with suppress(Exception):
                await asyncio.wait({closing}, timeout=_CLOSE_WITHIN)
                closing.cancelled() or closing.exception()
        run.made_us = self._now_us()
        run.end()

    async def _kept(self, run: Run, leased: bool) -> Answer:
        """The entry; NotKept where it must be none."""
        head = run.head
        assert head is not None  # noqa: S101 (the call has begun it)
        reason: Reason | None = "too_large"
        if run.size + 16 * len(run.chunks) + 4096 <= self._limit:
            reason = run.private or await self._question.judge(head.status, head.own, run.chunks)
        if reason is None:
            return Answer(run.id, run.made_us, head.status, head.shared, tuple(run.chunks), tuple(run.gaps_us))
        self._unkept(reason)
        if leased and not self._question.streamed and self._question.sharing and run.private is None:
            self._writer = Writer(self._log, run)  # those who wait elsewhere get it as it is
        if self._writer is not None:
            await self._writer.close()
        raise NotKept(f"{reason} {run.id}")

    # as one who follows
    async def _follow(self) -> None:
        tale = Tale(self._log)
        with suppress(NotOpen, StoreError), self._log.watching() as watch:
            while not tale.over:
                try:
                    if await self._read(tale):
                        continue
                except StoreError:
                    pass
                except (ValueError, msgspec.MsgspecError):  # not ours: the entry will say
                    return
                await watch.heard(_LOOK_EVERY)
        if tale.too_long and self._run is not None:
            self._run.end(interrupted("it is longer than what may be kept"))
            self._failed = Alone("too_large")
            self._stop()

    async def _read(self, tale: Tale) -> bool:
        """Whether there was anything."""
        other, parts = await tale.more()
        if other:
            self._token = tale.id
            self._begun(tale.id, own=False)
        if parts and self._run is not None:
            tale.apply(self._run, parts)
        return bool(parts)

    async def _last_look(self, said: str) -> None:
        """Whoever made the call will not store it. Perhaps it is there in full all the same."""
        if self._following is not None:
            self._following.cancel()
        run = self._run
        if run is not None and run.ended:
            return
        with suppress(StoreError, NotOpen, ValueError, msgspec.MsgspecError):
            found = await whole(self._log, said, Run("", self._pulse, limit=self._limit, bounded=False, own=False))
            if found is not None:
                if run is not None and run.id == found.id and run.head is not None:
                    run.fill(found.chunks, found.gaps_us)
                else:
                    self._take(found)
                return
        raise Alone("failed")
