"""Opened on a loop that ended without closing it."""

import asyncio

import pytest

from observatory import Limit, NotOpen, Observatory
from tests.servers import Server


def test_a_closed_loop_is_not_open(server: Server, namespace: str) -> None:
    """The next loop opens it anew, what was recorded before is counted, and closing it late is no error."""
    obs = Observatory("x", redis_url=server.url, namespace=namespace)

    async def opened() -> None:
        await obs.open()
        await obs.rate_limiter.check(Limit("loops", 10, per="1h"), "a")
        obs.metrics.increment_counter("loops_total", 3)

    asyncio.run(opened())
    assert not obs.is_open

    async def late() -> None:
        await obs.aclose()
        with pytest.raises(NotOpen, match="is not open"):
            await obs.flush()

    asyncio.run(late())
    asyncio.run(opened())

    async def again() -> None:
        async with obs:
            assert obs.is_open
            assert (await obs.rate_limiter.check(Limit("loops", 10, per="1h"), "a")).remaining == 7
            await obs.flush()
            assert (await obs.metrics.query("loops_total", "sum", since="1h")).value == 6
        assert not obs.is_open

    asyncio.run(again())
