"""What a response says of itself."""

from ..call import Usage
from .used import Used


class Reading:
    """What is known of a response so far."""

    __slots__ = (
        "deltas",
        "error",
        "estimated",
        "finish_reasons",
        "first_token_at",
        "response_id",
        "response_model",
        "service_tier",
        "terminated",
        "unread",
        "used",
    )

    def __init__(self) -> None:
        self.used: Used | None = None
        self.estimated = False
        """Whether the tokens were counted here, because the provider did not say them."""
        self.response_id: str | None = None
        self.response_model: str | None = None
        self.service_tier: str | None = None
        self.finish_reasons: list[str] = []
        self.error: str | None = None
        """The code of what went wrong: the provider's, or truncated, invalid_response, unreadable, or a status."""
        self.first_token_at: float | None = None
        self.deltas = 0
        """Events that brought something of the answer."""
        self.terminated = False
        """Whether a stream has said that it is over."""
        self.unread = False
        """Whether its content encoding cannot be read here."""

    @property
    def usage(self) -> Usage | None:
        return None if self.used is None else self.used.usage

    @property
    def over(self) -> bool:
        """Whether there is nothing more to come that matters."""
        return self.terminated or bool(self.finish_reasons)
