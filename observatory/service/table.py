"""What a row of the table of routes is."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Literal, NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from ..client import Observatory


class State:
    """What the handlers share: the open client, and whether this instance is on its way out."""

    def __init__(self, obs: Observatory) -> None:
        self.obs = obs
        self.stopping = asyncio.Event()

    @property
    def draining(self) -> bool:
        return self.stopping.is_set()


class Answer(NamedTuple):
    """A value on its way out."""

    value: Any
    status: int = 200
    headers: dict[str, str] | None = None


Handler = Callable[[State, Request], Awaitable[Answer | Response]]


class Endpoint(NamedTuple):
    """A row of the table."""

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    handler: Handler
    summary: str
    body: Any = None
    answer: Any = None
    parameters: tuple[tuple[str, str], ...] = ()
    """What a query may say."""
    headers: tuple[tuple[str, str], ...] = ()
    """Headers that mean something here."""
    others: str = ""
    """What further parameters are; "": there are none."""
    status: int = 200
    also: tuple[tuple[int, str], ...] = ()
    """Other statuses of the same answer."""
    many: int = 0
    """So many bodies may come at once: an array, lines (NDJSON), or msgpack."""
    packed: bool = False
    """Body and answer may be msgpack as well as JSON."""
    tells: tuple[tuple[str, str], ...] = ()
    """Headers of the answer."""
