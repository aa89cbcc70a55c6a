"""Two clients of one namespace, wherever it may be."""

from collections.abc import AsyncIterator

import pytest

from observatory import Observatory
from tests.features.caching import FAR


@pytest.fixture
async def fleet(place: str, namespace: str) -> AsyncIterator[tuple[Observatory, Observatory]]:
    """What one of them writes the other reads at once."""
    first, second = (Observatory("test", redis_url=place, namespace=namespace, settings=FAR) for _ in range(2))
    async with first, second:
        yield first, second
