"""The test suite of somebody's application, as docs/testing.md shows it."""

from collections.abc import AsyncIterator

import httpx2
import pytest

from observatory import Metric
from observatory.testing import FrozenClock, Sandbox, reply, sandbox
from tests.testing.app import app, obs


@pytest.fixture
async def box() -> AsyncIterator[Sandbox]:
    async with sandbox(obs, clock=FrozenClock(), provider=reply("Paris.", input_tokens=12, output_tokens=3)) as box:
        yield box  # their obs, an embedded server, a namespace of its own, no network


@pytest.fixture
async def web(box: Sandbox) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://test", headers={"x-user-id": "ann"}) as client:
        yield client


async def test_the_eleventh_request_is_refused_and_the_next_second_admits_one(box: Sandbox, web: httpx2.AsyncClient) -> None:
    for _ in range(10):
        assert (await web.post("/chat", json={"text": "Capital of France?"})).status_code == 200
    refused = await web.post("/chat", json={"text": "hi"})
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert refused.json()["violated-policies"] == ["user-requests"]
    box.clock.advance(1)
    assert (await web.post("/chat", json={"text": "hi"})).status_code == 200
    assert await box.total(Metric.RATE_LIMIT_REJECTIONS, limit="user-requests") == 1
    assert box.calls[0].usage
    assert box.calls[0].usage.total_tokens == 15


async def test_replicas_share_one_bucket(box: Sandbox) -> None:
    async with box.other_process() as replica:
        for _ in range(10):
            assert await replica.rate_limiter.check("user-requests", "ann")
        assert not await obs.rate_limiter.check("user-requests", "ann")


async def test_without_redis_each_replica_keeps_its_share(box: Sandbox) -> None:
    await box.redis_down()
    decision = await obs.rate_limiter.check("user-requests", "ann")
    assert decision
    assert decision.decided_by == "local"
