"""How an open Observatory is: whether its store answers, and what is to be said of it."""

import asyncio

from .errors import ObservatoryError, StoreUnavailable
from .features.presence import Presence
from .store.check import Health, describe, findings
from .store.store import Store


async def ready(store: Store, presence: Presence | None, timeout: float) -> None:
    """StoreUnavailable when Redis does not answer in time."""
    deadline = asyncio.get_running_loop().time() + timeout
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                await store.ping()
                if not store.joined and presence is not None:
                    await presence.beat()
                return
        except TimeoutError:
            raise StoreUnavailable(f"the store did not answer within {timeout:g} s") from None
        except StoreUnavailable:
            if asyncio.get_running_loop().time() + 0.1 >= deadline:
                raise
            await asyncio.sleep(0.1)


async def health(store: Store, presence: Presence | None, allow_eviction: tuple[str, ...]) -> Health:
    """ok, degraded (something to look at), down (the store does not answer)."""
    try:
        await store.ping()
        checks = tuple(await findings(store, allow_eviction))
    except ObservatoryError as error:
        return Health("down", 0, (describe(error),))
    degraded = any(finding.status in ("bad", "warn") for finding in checks)
    return Health("degraded" if degraded else "ok", 0 if presence is None else presence.live, checks)
