"""A limit per user in FastAPI: what is refused, and what to send then, is the middleware's. `uvicorn fastapi_app:app`."""

from typing import Annotated

from fastapi import Depends, FastAPI, Header

from observatory import Limit, Observatory
from observatory.asgi import ObservatoryMiddleware

obs = Observatory("chat-api")  # made at import time: no I/O until the lifespan opens it
obs.rate_limiter.define(
    Limit("user-requests", 60, per="1m", burst=10, by="user"),  # asked by its name, below
    Limit("per-address", 600, per="1m", by="ip", match="*"),  # asked at the door, before the application runs
)
app = FastAPI(lifespan=obs.lifespan)
app.add_middleware(ObservatoryMiddleware, obs=obs)


async def user(x_user_id: Annotated[str, Header()]) -> None:
    obs.bind(user=x_user_id)  # limits, logs and spans of this request carry it


@app.get("/chat", dependencies=[Depends(user), Depends(obs.rate_limiter.requires("user-requests"))])
async def chat() -> dict[str, str]:
    obs.logger.info("chatting")
    return {"answer": "Paris."}


if __name__ == "__main__":
    import asyncio

    import httpx2

    async def try_it() -> None:
        transport = httpx2.ASGITransport(app)
        async with obs, httpx2.AsyncClient(transport=transport, base_url="http://test", headers={"x-user-id": "ann"}) as client:
            for _ in range(11):
                answer = await client.get("/chat")
                print(answer.status_code, answer.headers["ratelimit"], answer.headers.get("retry-after", "-"), answer.json())

    asyncio.run(try_it())
