"""The ASGI application: lifespan, routes, problem documents, request ids, connections counted."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..asgi import Door
from ..client import Observatory
from ..errors import ObservatoryError
from . import openapi, problems
from .body import ClientDisconnect
from .routes import TABLE
from .table import Endpoint, State


def build(obs: Observatory) -> tuple[Any, State]:
    """The application and what its handlers share."""
    state = State(obs)
    obs.metrics.expose()

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
    return Door(app, obs=obs), state


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
