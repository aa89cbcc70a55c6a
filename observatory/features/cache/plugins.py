"""aiocache's plugins: they hear of every verb before and after, where there are any; where there are none it costs nothing."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, TypeVar, cast

M = TypeVar("M", bound=Callable[..., Awaitable[Any]])


def told(method: M) -> M:
    """pre_<verb> and post_<verb> of every plugin around a method; the verb is the method's name."""
    verb = method.__name__

    @wraps(method)
    def call(cache: Any, *args: Any, **kwargs: Any) -> Awaitable[Any]:
        if cache.plugins:
            return heard(cache, *args, **kwargs)
        return method(cache, *args, **kwargs)

    async def heard(cache: Any, *args: Any, **kwargs: Any) -> Any:
        began = asyncio.get_running_loop().time()
        for plugin in cache.plugins:
            await getattr(plugin, f"pre_{verb}")(cache, *args, **kwargs)
        answer = await method(cache, *args, **kwargs)
        took = asyncio.get_running_loop().time() - began
        for plugin in cache.plugins:
            await getattr(plugin, f"post_{verb}")(cache, *args, took=took, ret=answer, **kwargs)
        return answer

    return cast(M, call)
