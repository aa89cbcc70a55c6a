"""Stores on whatever the fixtures of servers have started."""

from collections.abc import AsyncIterator, Callable

import pytest

from observatory.store.store import Store
from tests.store.load import store_at

Open = Callable[..., Store]
"""Opens a store at a URL; closed at the end of the test."""


@pytest.fixture
async def at() -> AsyncIterator[Open]:
    """Stores, closed at the end."""
    stores: list[Store] = []

    def open_(url: str, **more: float) -> Store:
        stores.append(store_at(url, **more))
        return stores[-1]

    yield open_
    for store in stores:
        store.close()
