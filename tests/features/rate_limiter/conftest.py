"""The scripts by hand, on both servers."""

from collections.abc import Callable, Iterator

import pytest
import redis

from tests.features.rate_limiter.scripts import Scripts
from tests.servers import Server


@pytest.fixture(params=["valkey", "redis"])
def scripts(request: pytest.FixtureRequest, servers: Callable[[str], Server]) -> Iterator[Scripts]:
    with redis.Redis.from_url(servers(request.param).url) as client:
        yield Scripts(client)
        client.flushall()
