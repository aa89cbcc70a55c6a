"""Somebody's application: twelve replicas, one law. All of it made at import time."""

from typing import Annotated

from fastapi import Depends, FastAPI, Header
from openai import AsyncOpenAI
from pydantic import BaseModel

from observatory import Limit, Observatory
from observatory.asgi import ObservatoryMiddleware

obs = Observatory("chat-api")  # no I/O yet; OBSERVATORY_REDIS_URL is read when it opens
obs.rate_limiter.define(
    Limit("user-requests", 60, per="1m", burst=10, by="user"),
    Limit("openai-tokens", 2_000_000, per="1m", unit="tokens", match={"provider": "openai"}),
)
openai = AsyncOpenAI(
    http_client=obs.llm.http_client(wait=30), api_key="sk-of-the-app"
)  # stands in the fleet's line, up to 30 s

app = FastAPI(lifespan=obs.lifespan)
app.add_middleware(ObservatoryMiddleware, obs=obs)  # 429 + RateLimit headers, traces, latency, problem+json


async def user(x_user_id: Annotated[str, Header()]) -> str:
    obs.bind(user=x_user_id)  # limits, logs, spans and costs of this request carry it
    return x_user_id


class Question(BaseModel):
    text: str


@app.post("/chat", dependencies=[Depends(user), Depends(obs.rate_limiter.requires("user-requests"))])
async def chat(question: Question) -> dict[str, str | None]:
    reply = await openai.chat.completions.create(
        model="gpt-4o-mini", messages=[{"role": "user", "content": question.text}], max_tokens=300
    )
    return {"answer": reply.choices[0].message.content}
