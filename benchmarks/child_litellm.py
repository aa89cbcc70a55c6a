"""litellm's Router in a process of its own, since it brings forty packages (elsewhere.py).

python -m benchmarks.child_litellm URL PROVIDER     (PROVIDER: where calls go)
"""

import asyncio
import importlib
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from .elsewhere import Served, serve
from .loop import BrokenContender, Once

QUESTION = "What is the capital of France? " * 20
ASKED: dict[str, Any] = {"model": "gpt-4o", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 100}


@asynccontextmanager
async def opened(url: str, provider: str) -> AsyncIterator[Served]:
    """As its documentation has it for several instances: usage in Redis, requests and tokens a minute, retries."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    theirs: Any = importlib.import_module("litellm")  # of another interpreter: nothing here knows its types
    where = urlsplit(url)
    deployment = {"model": "openai/gpt-4o", "api_base": f"{provider}/v1", "api_key": "sk-bench", "rpm": 10**7, "tpm": 10**10}
    router = theirs.Router(
        model_list=[{"model_name": "gpt-4o", "litellm_params": deployment}],
        redis_host=where.hostname,
        redis_port=where.port,
        routing_strategy="usage-based-routing-v2",
        num_retries=2,
    )

    async def once(_: int) -> bool:
        said = await router.acompletion(**ASKED)
        return bool(said.choices[0].message.content == "Paris.")

    async def verify() -> None:
        if not await once(0):
            raise BrokenContender("its answer was not the provider's")

    def pick(_: int) -> Once:
        return once

    yield Served(pick, verify)


if __name__ == "__main__":
    asyncio.run(serve(opened(*sys.argv[1:])))
