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

    # One route a path: of two, the first would tell who comes with a third method of its own method alone.
    paths: dict[str, dict[str, Endpoint]] = {}
    for endpoint in TABLE:
        paths.setdefault(endpoint.path, {})[endpoint.method] = endpoint
    routes = [Route(path, _handler(state, verbs), methods=[*verbs]) for path, verbs in paths.items()]
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


def _handler(state: State, verbs: dict[str, Endpoint]) -> Callable[[Request], Any]:
    async def handle(request: Request) -> Response:
        endpoint = verbs["GET" if request.method == "HEAD" else request.method]
        try:
            answer = await endpoint.handler(state, request)
        except ClientDisconnect:
            return Response(status_code=499)
        if isinstance(answer, Response):
            return answer
        return Response(msgspec.json.encode(answer.value), answer.status, answer.headers, "application/json")

    return handle
