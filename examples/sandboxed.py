"""What a test of your application can do: move time, take Redis away, answer for the provider. No network, no waiting."""

import asyncio

import httpx2

from observatory import Limit, Observatory
from observatory.testing import FrozenClock, reply, sandbox

obs = Observatory("my-app")  # yours, as your modules have it
obs.rate_limiter.define(Limit("questions", 2, per="1h", by="user"))
client = obs.llm.http_client()


async def ask(user: str) -> str:
    if not await obs.rate_limiter.check("questions", user):
        return "come back later"
    asked = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Capital of France?"}]}
    answer: httpx2.Response = await client.post("https://api.openai.com/v1/chat/completions", json=asked)
    return str(answer.json()["choices"][0]["message"]["content"])


async def main() -> None:
    async with sandbox(obs, clock=FrozenClock(), provider=reply("Paris.", input_tokens=12, output_tokens=3)) as box:
        print([await ask("ann") for _ in range(3)])
        box.clock.advance(1800)
        print("half an hour later:", await ask("ann"))
        async with box.other_process() as replica:
            print("left in another replica:", (await replica.rate_limiter.peek("questions", "ann")).remaining)
        print("calls:", len(box.calls), "tokens:", sum(call.usage.total_tokens for call in box.calls if call.usage))
        await box.redis_down()
        print("without Redis, decided:", (await obs.rate_limiter.check("questions", "ann")).decided_by)


asyncio.run(main())
