"""A provider, and clients of it."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import httpx
import pytest

from observatory import AnswerCache, Observatory
from observatory.llm.answers import Answers
from tests.llm.provider import Client, Provider, provider

Connect = Callable[..., Client]


@pytest.fixture
async def there() -> AsyncIterator[Provider]:
    async with provider() as one:
        yield one


@pytest.fixture
async def connect(there: Provider) -> AsyncIterator[Connect]:
    """A client of the provider, with an answer cache in an open Observatory."""
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(httpx.AsyncClient(trust_env=False, timeout=30))

        def made(obs: Observatory, policy: AnswerCache | None = None) -> Client:
            return Client(Answers(obs, policy or AnswerCache()), there.url, http)

        yield made


@pytest.fixture
def client(obs: Observatory, connect: Connect) -> Client:
    return connect(obs)
