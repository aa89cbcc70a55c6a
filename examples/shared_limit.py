"""A limit that every process of the fleet shares: run it in two terminals at once."""

import asyncio

from observatory import Limit, Observatory

obs = Observatory("shared-limit")
obs.rate_limiter.define(Limit("per-user", 5, per="1m", by="user"))


async def main() -> None:
    async with obs:
        with obs.bound(user="ann"):
            for number in range(7):
                decision = await obs.rate_limiter.check("per-user")
                again = "" if decision else f", again in {decision.retry_after:.1f} s"
                print(f"request {number + 1}: {'allowed' if decision else 'refused'}{again}")


asyncio.run(main())
