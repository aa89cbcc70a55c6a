"""The answer cache: its policy, which a program makes, and its work in one open Observatory.

What a transport does with it:

    answers = Answers(obs, AnswerCache(ttl=3600))
    reply = await answers.fetch(Request(provider, method, url, headers, body), send)

`send(headers)` makes the call, with those headers instead of the request's, and answers an Upstream; it is called once, or not
at all, or again where somebody else's call came to nothing. Reserving, limits and breakers belong inside: who gets another's
answer spends nothing. The reply has status, headers and chunks, as they are on the wire, and must be closed.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, Literal, NamedTuple

from ... import dimensions, names, units
from ...clock import monotonic
from ...errors import InvalidArgument, NotOpen, StoreError
from ...features.cache import Cache
from ...features.cache.checks import milliseconds
from ...features.cache.space import Lender, Room
from ...names import ANSWERS_UNKEPT
from .answer import Answer, Headers, flaw
from .canonical import Request, encodings, key, parsed
from .log import Log
from .question import Alone, Question, Upstream
from .refusals import Reason, refusal
from .run import Reader, Run
from .source import Source

Send = Callable[[Headers], Awaitable[Upstream]]
Replay = Literal["fast", "recorded"]
OVERRIDE: Final = "observatory-cache"
"""The request header by which one call asks for something else: off, on (also where the answer is one of many), refresh."""
_NAME: Final = "llm-answers"
_COMPRESS_OVER: Final = 1024
_LARGE: Final = 2**18
"""Bytes: an answer above is looked through on a thread."""


class AnswerCache:
    """Answers of LLM providers, found again by exact match on provider, address, model and the whole request.

    ttl: seconds. by: dimensions, as "tenant" (the default), that keep answers apart; where none of them is bound, those with
    one API key share; () is everybody. nondeterministic: keep also what is one of many possible answers (a temperature above 0,
    or none said, which means 1). replay: streams come as fast as they are read, or "recorded", with the pauses that they had.
    share_streams: who asks while a stream is on its way gets it as it comes, from any process. vary: names of further request
    headers that change the answer.
    """

    def __init__(
        self,
        *,
        ttl: float = 3600.0,
        by: str | tuple[str, ...] = "tenant",
        nondeterministic: bool = False,
        replay: Replay = "fast",
        share_streams: bool = True,
        vary: Iterable[str] = (),
    ) -> None:
        milliseconds(ttl, "ttl")
        if replay not in ("fast", "recorded"):
            raise InvalidArgument(f'replay must be "fast" or "recorded", got {units.shown(replay)}')
        if isinstance(vary, str):
            raise InvalidArgument(f"vary must be several names of headers, got the string {units.shown(vary)}")
        self.ttl = ttl
        self.by = tuple(sorted(dimensions.checked(dict.fromkeys((by,) if isinstance(by, str) else by, "x"))))
        names.cache_name(_named(self.by))
        self.nondeterministic = nondeterministic
        self.replay: Replay = replay
        self.share_streams = share_streams
        self.vary = tuple(vary)

    def __eq__(self, other: object) -> bool:
        """By what they say: whoever makes a client for each request makes its policy anew too."""
        return vars(self) == vars(other) if isinstance(other, AnswerCache) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(vars(self).values()))


def _named(by: Sequence[str]) -> str:
    return ".".join((_NAME, *by))


class Reply:
    """An answer, from the provider or not. Iterate once for its chunks, and close it."""

    def __init__(
        self, status: int, headers: Headers, chunks: AsyncIterator[bytes], close: Callable[[], Awaitable[None]]
    ) -> None:
        self.status = status
        self.headers = headers
        self._chunks = chunks
        self._close = close
        self.cached: Literal["hit", "shared", "miss", "passed"] = "passed"
        """hit: it was there. shared: from a call that somebody else makes now. miss: from this one. passed: not for keeping."""
        self.reason: Reason | None = None
        """Why it was passed."""
        self.age = 0.0
        """Seconds since the provider said it; 0 for what it says now."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._chunks

    async def aclose(self) -> None:
        """At any time, more than once."""
        await self._close()

    @classmethod
    def passed(cls, upstream: Upstream, reason: Reason) -> "Reply":
        status = ("cache-status", f"observatory; fwd=bypass; detail={reason}")
        reply = cls(upstream.status, (*upstream.headers, status), aiter(upstream.chunks), upstream.aclose)
        reply.reason = reason
        return reply


class _Kept(NamedTuple):
    """The answers of those who have bound the same dimensions."""

    cache: Cache[Answer]
    room: Room


class Answers:
    """The answer cache of one open Observatory."""

    def __init__(self, obs: Lender, policy: AnswerCache) -> None:
        self._obs = obs
        self._policy = policy
        self._caches: dict[tuple[str, ...], _Kept] = {}
        self._sources: dict[tuple[str, str, str], Source] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    async def fetch(self, request: Request, send: Send) -> Reply:
        """The answer. Raises what `send` raises; its stream, AnswerInterrupted where another process made the call and lost
        it. With Redis away: after one bounded wait, as if there were no cache."""
        override = request.header(OVERRIDE).strip().lower()
        headers = [(name, value) for name, value in request.headers if name.lower() != OVERRIDE]
        document, reason = self._examined(request, override)
        if document is None or reason is not None:
            return await self._passed(reason or "body", headers, send)
        said = {one.strip().lower() for one in request.header("cache-control").split(",")}
        bound = self._bound()
        kept = self._cache(bound)
        entry = key(request, document, vary=self._policy.vary, credentials=bool(self._policy.by) and not bound)
        streamed = document.get("stream") is True
        asked = [(name, value) for name, value in headers if name.lower() != "accept-encoding"]
        asked.append(("accept-encoding", encodings(request)))
        question = Question(
            entry,
            streamed,
            self._policy.share_streams or not streamed,
            lambda: send(asked),
            lambda *answer: self._judged(request.endpoint, streamed, *answer),
        )
        oldest = _max_age(said)
        if override == "refresh" or "no-cache" in said or oldest == 0:
            await self._forget(kept, entry)
        reply = await self._fetched(kept, question)
        if reply.cached == "hit" and oldest is not None and reply.age > oldest:
            await reply.aclose()
            await self._forget(kept, entry)
            reply = await self._fetched(kept, question)
        return reply

    async def clear(self) -> None:
        """No answer of whoever is bound here and now counts any more. StoreUnavailable: unknown, and safe to repeat."""
        await self._cache(self._bound()).cache.clear()

    def _bound(self) -> tuple[str, ...]:
        return tuple(name for name in self._policy.by if name in dimensions.current())

    def _examined(self, request: Request, override: str) -> tuple[dict[str, Any] | None, Reason | None]:
        if override not in ("", "on", "off", "refresh"):
            raise InvalidArgument(f"header {OVERRIDE} must be on, off or refresh, got {units.shown(override)}")
        said = {one.strip().lower() for one in request.header("cache-control").split(",")}
        if override == "off" or "no-store" in said:
            return None, "asked"
        if not request.endpoint:
            return None, "endpoint"
        if request.header("content-encoding").lower() not in ("", "identity"):
            return None, "body"
        try:
            document = parsed(request.body)
        except ValueError:
            return None, "body"
        nondeterministic = self._policy.nondeterministic or override == "on"
        return document, refusal(request, document, nondeterministic=nondeterministic)

    async def _passed(self, reason: Reason, headers: Headers, send: Send) -> Reply:
        self._unkept(reason)
        return Reply.passed(await send(headers), reason)

    async def _fetched(self, kept: _Kept, question: Question) -> "Reply":
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # a forked child, or opened anew: those of before are on no loop that runs
            self._loop, self._sources = loop, {}
        cache, room = kept
        where = (cache.name, room.scope(), question.key)
        self._obs.caches.store()  # NotOpen says which line to add
        source = await self._joinable(where) if question.sharing else None
        first = source is None
        if source is None:
            source = Source(
                question,
                cache,
                Log(self._obs.caches.store, lambda: room.place(question.key)),
                limit=self._obs.caches.max_value,
                now_us=self._obs.caches.now_us,
                unkept=self._unkept,
                over=lambda one: self._left(where, one),
            )
            if question.sharing:
                self._sources[where] = source
        else:
            room.counts.miss()
        try:
            run = await source.join(first=first)
        except Alone as alone:
            source.leave()
            self._unkept(alone.reason)
            return Reply.passed(await question.send(), alone.reason)
        except BaseException:
            source.leave()
            raise
        if not first:
            room.counts.coalesced()
        return _Shared(source, run, self._obs.caches.now_us, own=first and run.own, replay=self._policy.replay)

    async def _joinable(self, where: tuple[str, str, str]) -> Source | None:
        """The source of this answer, where it is on its way. A caller who comes later than a delete is not given what was begun
        before it."""
        while (source := self._sources.get(where)) is not None and source.open:
            stands = await source.stands()
            if self._sources.get(where) is source and source.open:
                if stands:
                    return source
                del self._sources[where]
        return None

    def _left(self, where: tuple[str, str, str], source: Source) -> None:
        if self._sources.get(where) is source:
            del self._sources[where]

    async def _judged(
        self, endpoint: str, streamed: bool, status: int, headers: Headers, chunks: Sequence[bytes]
    ) -> Reason | None:
        facts = (endpoint, streamed, status, headers, chunks, self._obs.caches.max_value)
        return await asyncio.to_thread(flaw, *facts) if sum(map(len, chunks)) > _LARGE else flaw(*facts)

    async def _forget(self, kept: _Kept, entry: str) -> None:
        """What stands, and what is on its way, does not count for this caller and later ones."""
        cache, room = kept
        try:
            await cache.delete(entry)
        except (StoreError, NotOpen):
            return
        self._sources.pop((cache.name, room.scope(), entry), None)

    def _unkept(self, reason: Reason) -> None:
        self._obs.caches.metrics.increment_counter(ANSWERS_UNKEPT, 1, {"reason": reason})

    def _cache(self, bound: tuple[str, ...]) -> _Kept:
        """Whose answers: those who have bound the same of the policy's dimensions, with the same values. Who has bound fewer
        is in a cache of its own, so nobody reads what a tenant has by having none."""
        kept = self._caches.get(bound)
        if kept is None:
            name = _named(bound if self._policy.by else ("everybody",))
            cache: Cache[Answer] = Cache(
                obs=self._obs, type=Answer, name=name, ttl=self._policy.ttl, by=bound, near=False, compress_over=_COMPRESS_OVER
            )
            kept = self._caches[bound] = _Kept(cache, self._obs.caches.room(Answer, name, bound, None))
        return kept


class _Shared(Reply):
    """By way of a source."""

    def __init__(self, source: Source, run: Run, now_us: Callable[[], int], *, own: bool, replay: Replay) -> None:
        head = run.head
        assert head is not None  # noqa: S101 (a run is joined when it has begun)
        age = max(now_us() - run.made_us, 0) / 1e6 if run.found else 0.0
        self._source: Source | None = source
        self._reader = Reader(run)
        self._recorded = replay == "recorded" and run.found
        headers: list[tuple[str, str]] = list(head.own if own else head.shared)
        if run.found:
            headers += [("age", str(int(age))), ("cache-status", "observatory; hit")]
        else:
            headers.append(("cache-status", "observatory; fwd=miss" if own else "observatory; fwd=miss; collapsed"))
        super().__init__(head.status, headers, self._read(), self._left)
        self.age = age
        self.cached = "hit" if run.found else "miss" if own else "shared"

    async def _read(self) -> AsyncIterator[bytes]:
        due = monotonic()
        while (chunk := await self._reader.next()) is not None:
            if self._recorded:
                due += self._reader.run.gaps_us[self._reader.at - 1] / 1e6
                if (pause := due - monotonic()) > 0:
                    await asyncio.sleep(pause)
            yield chunk

    async def _left(self) -> None:
        if self._source is not None:
            source, self._source = self._source, None
            self._reader.close()
            source.leave()


def _max_age(said: Iterable[str]) -> float | None:
    for one in said:
        name, _, seconds = one.partition("=")
        if name == "max-age" and seconds.isdecimal():
            return float(seconds)
    return None
