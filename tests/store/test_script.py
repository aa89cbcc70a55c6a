"""Scripts and their stubs: bound by name, healed when the server has forgotten them."""

from collections.abc import Awaitable, Sequence
from typing import Any

import pytest

from observatory import Limit, Observatory
from observatory.store.script import lua
from tests.conftest import Open


async def test_forgotten_script_is_loaded_again(opening_any: Open) -> None:
    """After SCRIPT FLUSH, as after a failover, the next call is answered, and executed once."""
    obs = await opening_any()
    limit = Limit("heal", 10, per="1h")
    await obs.rate_limiter.check(limit)
    await obs.store.command("SCRIPT", "FLUSH")
    assert (await obs.rate_limiter.check(limit)).remaining == 8


def test_stub_that_disagrees_does_not_import() -> None:
    """The message has both orders."""
    with pytest.raises(ImportError, match=r"promises .'lease', 'owner'., wrong takes .'owner', 'lease'."):

        @lua("leases/release")
        def wrong(store: Any, *, owner: str, lease: str) -> Awaitable[None]: ...


def test_variadic_slots_are_spread_in_header_order() -> None:
    """KEYS then ARGV, a `name...` slot item by item."""
    seen: list[Any] = []

    class Runner:
        def run(self, script: Any, keys: list[str], arguments: list[Any]) -> None:
            seen.append((script.name, keys, arguments))

    @lua("events/append")
    def append(
        store: Any,
        *,
        watermark: str,
        stream: str,
        ledger: str,
        batch: int,
        max_entries: int,
        max_bytes: int,
        events: Sequence[str],
    ) -> None: ...

    append(Runner(), ledger="l", stream="s", watermark="w", events=["i", "p"], max_entries=5, max_bytes=6, batch=1)
    assert seen == [("events/append", ["w", "s", "l"], [1, 5, 6, "i", "p"])]


async def test_error_inside_a_script_is_ours(obs: Observatory) -> None:
    """A key of another type: StoreError, not the driver's class."""
    from observatory.errors import StoreError

    key = obs.store.keys.lease("typed")
    await obs.store.command("RPUSH", key, "x")
    await obs.store.command("PEXPIRE", key, 60_000)
    with pytest.raises(StoreError, match="WRONGTYPE"):
        await obs.leases.acquire("typed", 1.0)
