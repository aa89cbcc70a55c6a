"""The door in an ASGI application of yours: Starlette, FastAPI, Litestar, Quart … It imports none of them.

    app.add_middleware(ObservatoryMiddleware, obs=obs)

Let the framework add it, as above: what is wrapped around the whole application from outside comes too late for errors, since
frameworks answer those themselves. Litestar does so inside of every middleware: give it `exception_handlers={ObservatoryError:
hand_over}` too.
"""

import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from functools import cached_property
from hashlib import sha256
from math import ceil
from typing import Any, NoReturn
from urllib.parse import quote

import msgspec
from opentelemetry import propagate
from opentelemetry.trace import Span, StatusCode

from . import dimensions, notes
from .client import Observatory
from .errors import ObservatoryError
from .features.rate_limiter import Decision
from .features.rate_limiter.decision import together
from .names import Metric
from .tracing import ids

__all__ = ["Door", "ObservatoryMiddleware", "hand_over", "problem"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

MEDIA_TYPE = "application/problem+json"
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_LONGEST_PATH = 1024
"""What of a path becomes the dimension `route`."""


def problem(error: ObservatoryError, path: str) -> tuple[int, dict[str, str], bytes]:
    """The answer for an error of ours (RFC 9457): status, headers, body."""
    members = {**error.problem(), "instance": quote(path, safe="/:@!$&'()*+,;=~")}
    if "trace_id" in (known := ids()):
        members["trace_id"] = known["trace_id"]
    headers = {"content-type": MEDIA_TYPE}
    if error.retry_after is not None:
        headers["retry-after"] = str(max(ceil(error.retry_after), 1))
    elif error.retryable and error.status == 503:
        headers["retry-after"] = "1"
    return error.status, headers, msgspec.json.encode(members)


def hand_over(request: Any, error: Exception) -> NoReturn:
    """An exception handler for frameworks that answer errors inside of their middleware: the middleware shall."""
    raise error


class Reply:
    """The way out of one request: the answer gets its id, and what the limits said."""

    __slots__ = ("_request_id", "_send", "notes", "status")

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.notes: Mapping[str, Decision] = {}
        self.status = 0
        """0: not begun."""

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", ()))
            known = {bytes(name).lower() for name, _ in headers}
            # What the application says itself stands.
            more = [(name.lower().encode(), text.encode()) for name, text in self._more().items()]
            message = {**message, "headers": [*headers, *(pair for pair in more if pair[0] not in known)]}
        await self._send(message)

    def _more(self) -> dict[str, str]:
        said = {"x-request-id": self._request_id}
        # Where no limit applied, there is nothing to tell.
        told = [decision for decision in self.notes.values() if decision.capacity]
        if told:
            said |= (told[0] if len(told) == 1 else together(told)).headers()
            if self.status not in (429, 503):
                said.pop("Retry-After", None)
        return said

    async def problem(self, error: ObservatoryError, path: str) -> None:
        status, headers, body = problem(error, path)
        headers["content-length"] = str(len(body))
        raw = [(name.encode(), text.encode()) for name, text in headers.items()]
        await self({"type": "http.response.start", "status": status, "headers": raw})
        await self({"type": "http.response.body", "body": body})


class Door:
    """Around every HTTP request: its id, the trace that it belongs to, and that it is open; errors of ours become problem
    documents. Websockets and the lifespan pass untouched."""

    def __init__(self, app: Any, *, obs: Observatory) -> None:
        self._app = app
        self._obs = obs

    @cached_property
    def _connections(self) -> Any:
        return self._obs.metrics.gauge(Metric.ACTIVE_CONNECTIONS).bind(kind="http")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = _header(scope, b"x-request-id")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        if request_id != given:
            # The application sees the same id as the caller.
            others = [pair for pair in scope["headers"] if pair[0] != b"x-request-id"]
            scope["headers"] = [*others, (b"x-request-id", request_id.encode())]
        reply = Reply(send, request_id)
        said = {"http.request.method": scope["method"], "url.path": scope["path"]}
        connections = self._connections
        connections.add(1)
        bound = dimensions.request_id.set(request_id)
        try:
            with self._obs.tracing.serving(scope["method"], _trace_context(scope), said) as span:
                try:
                    await self._serve(scope, receive, reply)
                except ObservatoryError as error:
                    if reply.status:
                        raise
                    await reply.problem(error, scope["path"])
                finally:
                    if span is not None:
                        _describe(span, scope, reply.status)
        finally:
            dimensions.request_id.reset(bound)
            connections.add(-1)

    async def _serve(self, scope: Scope, receive: Receive, reply: Reply) -> None:
        await self._app(scope, receive, reply)


class ObservatoryMiddleware(Door):
    """Per request: trace context in, x-request-id, open connections counted; the limits that match at the door; errors of ours
    as problem documents; RateLimit headers of the request's decisions, those of `requires` and `check` inside of it too.

    identify: the dimensions that are known before the application runs, from the ASGI scope; default: `key`, the first 12 hex
    of the bearer token's SHA-256. `route` (the path), `method` and `ip` are always known. What is None or "" is not known. All
    of them are bound for the request. enforce: ask, before the application runs, every limit whose `match` fits. exclude: paths
    that pass untouched.
    """

    def __init__(
        self,
        app: Any,
        *,
        obs: Observatory,
        identify: Callable[[Scope], Mapping[str, str]] | None = None,
        enforce: bool = True,
        exclude: tuple[str, ...] = ("/healthz", "/readyz", "/livez", "/metrics"),
    ) -> None:
        super().__init__(app, obs=obs)
        self._identify = _key if identify is None else identify
        self._enforce = enforce
        self._exclude = frozenset(exclude)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] in self._exclude:
            await self._app(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, reply: Reply) -> None:
        with notes.taking() as reply.notes, dimensions.request(**self._known(scope)):
            limiter = self._obs.rate_limiter
            if self._enforce and limiter.match():
                (await limiter.check("*")).raise_if_denied()
            await super()._serve(scope, receive, reply)

    def _known(self, scope: Scope) -> dict[str, str]:
        client = scope.get("client")
        found = {
            "route": scope["path"][:_LONGEST_PATH],
            "method": scope["method"],
            "ip": client[0] if client else None,
            **self._identify(scope),
        }
        return {name: value for name, value in found.items() if value}


def _header(scope: Scope, name: bytes) -> str:
    """All values of a header, as one; "" when there is none."""
    return ",".join([value.decode("latin-1") for found, value in scope["headers"] if found == name])


def _key(scope: Scope) -> dict[str, str]:
    """Whose key it is, without the key."""
    scheme, _, token = _header(scope, b"authorization").strip().partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        return {}
    return {"key": sha256(token.strip().encode("latin-1")).hexdigest()[:12]}


def _trace_context(scope: Scope) -> dict[str, str]:
    wanted = propagate.get_global_textmap().fields
    return {name: said for name in wanted if (said := _header(scope, name.encode()))}


def _describe(span: Span, scope: Scope, status: int) -> None:
    """What is known only after the application has run: which route it was, and how it went."""
    template = scope.get("path_template") or getattr(scope.get("route"), "path", None)
    if isinstance(template, str):
        span.update_name(f"{scope['method']} {template}")
        span.set_attribute("http.route", template)
    if status:
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_status(StatusCode.ERROR)
