"""A limit per user in FastAPI: obs is made at import time and opened by the lifespan. Serve with `uvicorn fastapi_app:app`."""

import math
from typing import Annotated

from fastapi import Depends, FastAPI, Header, Request
from fastapi.responses import JSONResponse

from observatory import Limit, Observatory, ObservatoryError

obs = Observatory("chat-api")
obs.rate_limiter.define(Limit("user-requests", 60, per="1m", burst=10, by="user"))
app = FastAPI(lifespan=obs.lifespan)


@app.exception_handler(ObservatoryError)
async def problem(request: Request, error: ObservatoryError) -> JSONResponse:
    """A refusal is a 429 that says when, a store that is away a 503: every error of ours knows how HTTP says it."""
    wait = {} if error.retry_after is None else {"retry-after": str(max(math.ceil(error.retry_after), 1))}
    return JSONResponse(error.problem(), error.status, headers=wait, media_type="application/problem+json")


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
            for _ in range(11):
                answer = await client.get("/chat")
                print(answer.status_code, answer.headers.get("retry-after", "-"), answer.json())

    asyncio.run(try_it())
