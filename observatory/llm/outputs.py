"""How many tokens an answer will have, before there is one."""

from collections.abc import Callable
from typing import Final

_SHARE: Final = 0.1
"""What the newest answer counts for in the mean."""
_ABOVE: Final = 1.5
"""Times the mean: a hold that is too small lets others in who do not fit."""
_MOST: Final = 1000
LARGEST: Final = 10**9
"""Tokens: a request that allows more is the provider's to refuse, and must not fail because we cannot count so far."""


class Outputs:
    """Means of this process, by provider and model. first: tokens, of a model that has not answered here."""

    def __init__(self, first: Callable[[], int]) -> None:
        self._first = first
        self._means: dict[tuple[str, str], float] = {}
        self._names: dict[tuple[str, str], str] = {}

    def expected(self, provider: str, model: str, most: int | None) -> int:
        """What to hold. most: what the request allows; that much may come, so it is held."""
        if most is not None:
            return min(most, LARGEST)
        mean = self._means.get((provider, model))
        return self._first() if mean is None else int(mean * _ABOVE) + 1

    def name(self, where: str, model: str) -> str | None:
        """What the one that answers to a name calls itself; None: it has not answered here."""
        return self._names.get((where, model))

    def called(self, where: str, model: str, name: str | None) -> None:
        if name is not None:
            if len(self._names) >= _MOST:
                self._names.clear()
            self._names[where, model] = name

    def learn(self, provider: str, model: str, tokens: int) -> None:
        mean = self._means.get((provider, model))
        if mean is None and len(self._means) >= _MOST:
            self._means.clear()
        self._means[provider, model] = float(tokens) if mean is None else mean + _SHARE * (tokens - mean)
