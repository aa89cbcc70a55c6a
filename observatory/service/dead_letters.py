"""Handlers of dead letters: list, show, replay, drop."""

import msgspec
from starlette.requests import Request

from ..errors import InvalidArgument
from ..features.dead_letters import MOST_PER_PAGE, DeadLetter, Moved, Page
from . import body
from .table import Answer, Endpoint, State

MOST_IDS = 1000
"""Letters named in one request."""


class LettersBody(msgspec.Struct, forbid_unknown_fields=True):
    """Which letters: these, or every one that is there now."""

    ids: list[str] = []
    all: bool = False

    def __post_init__(self) -> None:
        if bool(self.ids) == self.all:
            raise ValueError('say which: {"ids": [...]} or {"all": true}')
        if len(self.ids) > MOST_IDS:
            raise ValueError(f"at most {MOST_IDS} ids at once, got {len(self.ids)}")


async def list_letters(state: State, request: Request) -> Answer:
    wanted = request.query_params
    unknown = set(wanted) - {"page_size", "cursor"}
    if unknown:
        raise InvalidArgument(f"unknown parameter {min(unknown)!r:.40}")
    size = wanted.get("page_size", "100")
    if not size.isdecimal() or len(size) > 9:
        raise InvalidArgument(f"page_size must be a whole number, got {size!r:.20}")
    return Answer(await state.obs.dead_letters.list(page_size=int(size), cursor=wanted.get("cursor")))


async def show(state: State, request: Request) -> Answer:
    return Answer(await state.obs.dead_letters.show(request.path_params["id"]))


async def replay(state: State, request: Request) -> Answer:
    asked = await _asked(state, request)
    room = state.obs.dead_letters
    return Answer(await (room.replay_all() if asked.all else room.replay(*asked.ids)))


async def drop(state: State, request: Request) -> Answer:
    asked = await _asked(state, request)
    room = state.obs.dead_letters
    return Answer(await (room.drop_all() if asked.all else room.drop(*asked.ids)))


async def _asked(state: State, request: Request) -> LettersBody:
    return body.decode(await body.read(request, state.obs.settings.serve.max_body), LettersBody)


_PAGE = (("page_size", f"letters in a page, 1 to {MOST_PER_PAGE}; 100"), ("cursor", "where the last page ended"))

TABLE: tuple[Endpoint, ...] = (
    Endpoint("GET", "/v1/dead_letters", list_letters, "Events that could not be applied", answer=Page, parameters=_PAGE),
    Endpoint("GET", "/v1/dead_letters/{id}", show, "One of them, and what it says", answer=DeadLetter),
    Endpoint(
        *("POST", "/v1/dead_letters/replay", replay, "Put letters back on their streams, each once"),
        body=LettersBody,
        answer=Moved,
    ),
    Endpoint(
        *("POST", "/v1/dead_letters/drop", drop, "Throw letters away, and count them as dropped"),
        body=LettersBody,
        answer=Moved,
    ),
)
