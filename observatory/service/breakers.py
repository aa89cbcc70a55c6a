"""Handlers of the breakers: list them, look at one, hold one by hand."""

from typing import Literal

import msgspec
from starlette.requests import Request

from ..errors import InvalidArgument
from ..features.breaker import BreakerReport
from . import body
from .table import Answer, Endpoint, State


class ForceBody(msgspec.Struct, forbid_unknown_fields=True):
    """closed, open, or auto: let go, which needs no reason. reason: kept with it, and told to whoever is refused."""

    name: str
    state: Literal["closed", "open", "auto"]
    reason: str | None = None


async def list_breakers(state: State, request: Request) -> Answer:
    if unknown := request.query_params.keys() - {"name"}:
        raise InvalidArgument(f"unknown parameter {min(unknown)!r:.40}", remedy="There is name")
    name = request.query_params.get("name")
    if name is not None:
        return Answer([await state.obs.breakers.show(name)])
    return Answer(await state.obs.breakers.list())


async def force(state: State, request: Request) -> Answer:
    raw = await body.read(request, state.obs.settings.serve.max_body)
    wanted = body.decode(raw, ForceBody)
    return Answer(await state.obs.breakers.hold(wanted.name, wanted.state, reason=wanted.reason))


_NAME = (("name", "of one breaker; none: all that were used in the last week"),)

TABLE: tuple[Endpoint, ...] = (
    Endpoint(
        *("GET", "/v1/breaker", list_breakers, "The fleet's circuit breakers"),
        answer=list[BreakerReport],
        parameters=_NAME,
    ),
    Endpoint(
        *("POST", "/v1/breaker/force", force, "Hold a breaker open or closed, or let it go (auto)"),
        body=ForceBody,
        answer=BreakerReport,
    ),
)
