"""The client inside an application: a module-level obs in FastAPI's lifespan, bound dimensions per request, opened twice."""

import asyncio
from typing import Annotated, Any

import httpx2
from fastapi import Depends, FastAPI, Header, Request

from observatory import Limit, Observatory
from tests.servers import Server


async def test_module_level_obs_in_fastapi(server: Server, namespace: str) -> None:
    """Made before the loop, opened by the lifespan, dimensions of two users at once do not mix, and it opens again."""
    obs = Observatory("app", redis_url=server.url, namespace=namespace)
    obs.rate_limiter.define(Limit("per-user", 2, per="1h", by="user"))
    app = FastAPI(lifespan=obs.lifespan)

    async def user(x_user: Annotated[str, Header()]) -> None:
        obs.bind(user=x_user)

    @app.get("/", dependencies=[Depends(user)])
    async def index(request: Request) -> dict[str, object]:
        await asyncio.sleep(0.01)
        decision = await obs.rate_limiter.check("per-user")
        assert request.state.obs is obs
        return {"who": decision.identity, "allowed": decision.allowed}

    for expected in (True, False):
        async with app.router.lifespan_context(app) as state:

            class WithState:
                def __init__(self, inner: Any, state: Any) -> None:
                    self.inner, self.state = inner, state

                async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
                    await self.inner({**scope, "state": dict(self.state)}, receive, send)

            transport = httpx2.ASGITransport(WithState(app, state))
            async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
                answers = await asyncio.gather(
                    *(client.get("/", headers={"x-user": name}) for name in ("ann", "bob") for _ in range(2))
                )
        assert sorted((one.json()["who"], one.json()["allowed"]) for one in answers) == sorted(
            (name, expected) for name in ("ann", "bob") for _ in range(2)
        )
        assert not obs.is_open


async def test_opening_is_counted(server: Server, namespace: str) -> None:
    """Nested opens are one; the last close closes."""
    obs = Observatory("app", redis_url=server.url, namespace=namespace)
    async with obs:
        async with obs:
            assert await obs.rate_limiter.check("api")
        assert await obs.rate_limiter.check("api")
    assert not obs.is_open
    await obs.aclose()


def test_another_loop_is_named(server: Server, namespace: str) -> None:
    """One Observatory belongs to one loop at a time; afterwards to another."""
    import pytest

    from observatory import NotOpen

    obs = Observatory("app", redis_url=server.url, namespace=namespace)

    async def use() -> None:
        async with obs:
            for _ in range(20):
                obs.metrics.increment_counter("test_total")
            # Everything that waits for a turn, on this loop as on the one before.
            await asyncio.gather(*(flush() for flush in (obs.metrics.commit, obs.flush) for _ in range(20)))
            assert await obs.rate_limiter.check("api")
            with pytest.raises(NotOpen, match="another event loop"):
                await asyncio.to_thread(asyncio.run, _check(obs))

    asyncio.run(use())
    asyncio.run(use())


async def _check(obs: Observatory) -> None:
    await obs.rate_limiter.check("api")
