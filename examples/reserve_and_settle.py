"""Hold an estimate before the call, settle what it really used; wait in line when there is none left."""

import asyncio

from observatory import Limit, Observatory, RateLimitExceeded

obs = Observatory("reserve-and-settle")
obs.rate_limiter.define(
    Limit("tokens", 1_000, per="1m", unit="tokens", match="*"),
    Limit("parallel", 2, unit="slots", match="*"),
)


async def call(number: int) -> None:
    try:
        async with obs.rate_limiter.reserve("*", {"user": "ann"}, {"tokens": 400}, timeout=2) as held:
            await asyncio.sleep(0.05)
            done = await held.settle({"tokens": 50 * number})
            print(f"call {number}: waited {held.decision.waited:.1f} s, gave back {done.returned.get('tokens', 0)} tokens")
    except RateLimitExceeded as refused:
        print(f"call {number}: {refused}")


async def main() -> None:
    async with obs:
        await asyncio.gather(*(call(number) for number in range(1, 6)))
        left = await obs.rate_limiter.peek("tokens")
        print(f"{left.remaining} tokens left")


asyncio.run(main())
