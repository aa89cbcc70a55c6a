"""An SDK whose calls are the fleet's: a limit of tokens, a budget, costs. Here a sandbox answers; without it, OpenAI does."""

import asyncio

from openai import AsyncOpenAI, RateLimitError

from observatory import Limit, Observatory
from observatory.testing import reply, sandbox

obs = Observatory("guarded-sdk")
obs.rate_limiter.define(
    Limit("openai-tokens", 2_000, per="1m", unit="tokens", match={"provider": "openai"}),
    Limit("team-budget", 5, per="month", unit="usd", by="team", match="*", alert_at=(0.8, 1.0)),
)
openai = AsyncOpenAI(api_key="sk-...", max_retries=0, http_client=obs.llm.http_client())


async def ask(question: str) -> str:
    said = await openai.chat.completions.create(
        model="gpt-4o", max_tokens=300, messages=[{"role": "user", "content": question}]
    )
    return str(said.choices[0].message.content)


async def main() -> None:
    async with sandbox(obs, provider=reply("Paris.", input_tokens=700, output_tokens=100)):
        with obs.bound(team="search"), obs.llm.collect() as calls:
            try:
                while True:
                    print(await ask("Capital of France?"))
                    await obs.llm.settled()
            except RateLimitError as refused:  # the SDK's own error
                print("refused by", refused.response.headers["observatory-limit"])
        for call in calls:
            print(call.provider, call.model, call.usage and call.usage.total_tokens, call.cost_usd, call.refused_by or "")


asyncio.run(main())
