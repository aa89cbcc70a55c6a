"""What is asked of a provider, what it says, and why that is not for everybody."""

from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from typing import NamedTuple

from .answer import Headers
from .refusals import Reason


class Upstream(NamedTuple):
    """What the provider answers. chunks: as they arrive. aclose: ends it, also in the middle. same: it is the one that was
    asked, and no fallback."""

    status: int
    headers: Headers
    chunks: AsyncIterable[bytes]
    aclose: Callable[[], Awaitable[None]]
    same: bool = True


class Alone(Exception):
    """Everybody asks for themselves."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason: Reason = reason


class NotKept(Exception):
    """The answer is whole, and not for keeping. Told to the fleet by the name of its class, and the run whose log has it."""


class Question(NamedTuple):
    """What is asked, and what is known of the answer beforehand. judge: why an answer may not be kept."""

    key: str
    streamed: bool
    sharing: bool
    send: Callable[[], Awaitable[Upstream]]
    judge: Callable[[int, Headers, Sequence[bytes]], Awaitable[Reason | None]]
