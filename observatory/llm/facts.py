"""What is known of a call by itself, and what it has used, as limits count."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Final, Protocol

from .. import dimensions
from ..types import Amount, Dimensions, Unit
from .call import Usage
from .wire import Recognised
from .wire.used import Used


class Via(Protocol):
    """A transport."""

    closing: bool


class Facts(Protocol):
    """What a call is by itself."""

    @property
    def provider(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def operation(self) -> str: ...


def facts(call: Facts) -> dict[str, str]:
    """The dimensions that every call has."""
    return {"provider": call.provider, "model": call.model, "operation": call.operation, "kind": "llm"}


def bound_to(call: Recognised, extra: Dimensions) -> dict[str, str]:
    """The dimensions that are said of a call, and its key's."""
    key = {"key": call.key} if call.key else {}
    return {**key, **dimensions.current(), **extra}


def known_of(call: Recognised, extra: Dimensions) -> dict[str, str]:
    """All that is known of a call before it begins."""
    return {**bound_to(call, extra), **facts(call)}


def spent_of(used: Used, nano_usd: int | None) -> dict[Unit, Amount]:
    """By unit, as limits count."""
    usage = used.usage
    return {
        "tokens": usage.total_tokens,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "usd": Decimal(nano_usd or 0).scaleb(-9),
    }


NOTHING: Final[Mapping[Unit, Amount]] = spent_of(Used(Usage()), 0)
