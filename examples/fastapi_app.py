"""A limit per user in FastAPI: obs is made at import time and opened by the lifespan. Serve with `uvicorn fastapi_app:app`."""

from typing import Annotated

from fastapi import Depends, FastAPI, Header

from observatory import Limit, Observatory, RateLimitExceeded

obs = Observatory("chat-api")
obs.rate_limiter.define(Limit("user-requests", 60, per="1m", burst=10, by="user"))
app = FastAPI(lifespan=obs.lifespan)


async def user(x_user_id: Annotated[str, Header()]) -> None:
    obs.bind(user=x_user_id)  # limits, logs and spans of this request carry it
    (await obs.rate_limiter.check("user-requests")).raise_if_denied()


@app.get("/chat", dependencies=[Depends(user)])
async def chat() -> dict[str, str]:
    obs.logger.info("chatting")
    return {"answer": "Paris."}


if __name__ == "__main__":
    import asyncio

    import httpx2

    async def try_it() -> None:
        transport = httpx2.ASGITransport(app)
        async with obs, httpx2.AsyncClient(transport=transport, base_url="http://test", headers={"x-user-id": "ann"}) as client:
            for _ in range(10):
                print((await client.get("/chat")).json())
            try:
                await client.get("/chat")
            except RateLimitExceeded as refused:
                print("refused:", refused)

    asyncio.run(try_it())
