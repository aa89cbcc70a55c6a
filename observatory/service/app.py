"""The ASGI application: lifespan, routes, problem documents, request ids, connections counted."""

import re
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..client import Observatory
from ..errors import ObservatoryError
from ..names import Metric
from . import openapi, problems
from .body import ClientDisconnect
from .routes import TABLE, Endpoint, State

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


def build(obs: Observatory) -> tuple[Any, State]:
    """The application and what its handlers share."""
    state = State(obs)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with obs:
            yield

    async def description(request: Request) -> Response:
        return Response(msgspec.json.encode(openapi.document()), media_type="application/json")

    # A path with two verbs would be two routes, of which the first would refuse the other's method.
    routes = [Route(endpoint.path, _handler(state, endpoint), methods=[endpoint.method]) for endpoint in TABLE]
    app = Starlette(
        routes=[*routes, Route("/openapi.json", description)],
        lifespan=lifespan,
        exception_handlers={
            ObservatoryError: problems.on_ours,
            HTTPException: problems.on_http,
            Exception: problems.on_bug,
        },
    )
    return _Door(app, obs), state


def _handler(state: State, endpoint: Endpoint) -> Callable[[Request], Any]:
    async def handle(request: Request) -> Response:
        try:
            answer = await endpoint.handler(state, request)
        except ClientDisconnect:
            return Response(status_code=499)
        if isinstance(answer, Response):
            return answer
        return Response(msgspec.json.encode(answer.value), answer.status, answer.headers, "application/json")

    return handle


class _Door:
    """Around every request: its id, and that it is open."""

    def __init__(self, app: Any, obs: Observatory) -> None:
        self._app = app
        self._connections = obs.metrics.gauge(Metric.ACTIVE_CONNECTIONS).bind(kind="http")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"), "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)

        async def send_with_id(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (b"x-request-id", request_id.encode())]}
            await send(message)

        self._connections.add(1)
        try:
            await self._app(scope, receive, send_with_id)
        finally:
            self._connections.add(-1)
