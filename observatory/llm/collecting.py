"""The finished calls of a block of code, handed to whoever asks."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from decimal import Decimal

import msgspec

from .call import Usage


class Call(msgspec.Struct, frozen=True):
    """One finished LLM call: what its event and its span say. Seconds, dollars."""

    id: str
    provider: str
    model: str
    operation: str
    started_at: datetime
    latency: float
    time_to_first_token: float | None
    usage: Usage | None
    cost_usd: Decimal | None
    """None: its price is unknown."""
    attempts: int
    """1, and one more for each retry of the client before this one."""
    status: int | None
    """Of HTTP; None: no response came."""
    error: str | None
    dimensions: Mapping[str, str]
    trace_id: str | None
    response_model: str | None = None
    finish_reasons: tuple[str, ...] = ()
    estimated: bool = False
    """Whether the tokens were counted here, because the provider did not say them."""
    cached: bool = False
    """Whether the answer came out of the answer cache, or from a call that somebody else made. It costs nothing then."""
    refused_by: str | None = None
    """The limit, or the code of what else did not let it in."""
    waited: float = 0.0
    """Seconds that it stood in line; latency begins afterwards."""


class Block:
    """What has finished inside of it. Later, nobody listens."""

    __slots__ = ("calls", "over")

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.over = False


Blocks = tuple[Block, ...]
_blocks: ContextVar[Blocks] = ContextVar("observatory_collecting", default=())


def blocks() -> Blocks:
    """Those around the code that runs: taken when a call begins."""
    return _blocks.get()


def hand(call: Call, around: Blocks) -> None:
    for block in around:
        if not block.over:
            block.calls.append(call)


@contextmanager
def collecting() -> Iterator[list[Call]]:
    """The calls that begin and finish inside of it, in this task and those it starts, in the order in which they finish."""
    block = Block()
    token = _blocks.set((*_blocks.get(), block))
    try:
        yield block.calls
    finally:
        block.over = True
        _blocks.reset(token)
