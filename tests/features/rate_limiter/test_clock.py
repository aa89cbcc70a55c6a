"""A real server whose clock jumps by an hour, forward and back, while it is asked."""

import asyncio
import glob
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from observatory import Limit
from tests.conftest import Open
from tests.servers import Server, find, skip_or_fail, wait_until

HOUR = 3600


@pytest.fixture
def jumping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, Callable[[int], None]]]:
    """A Valkey under faketime, and what has set its clock off when it returns. Its own timers go by a clock that stays."""
    library = glob.glob("/usr/lib/*/faketime/libfaketime.so.1")
    if not library:
        skip_or_fail("no libfaketime (Debian: faketime)")
    offset = tmp_path / "offset"
    offset.write_text("+0\n")
    (tmp_path / "jumping").mkdir()
    env = {
        "LD_PRELOAD": library[0],
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    server = Server(find("valkey"), tmp_path / "jumping", env=env)
    server.start()
    # What a busy machine answers too late would be decided here, and that is another test's.
    monkeypatch.setenv("OBSERVATORY_REDIS_MAX_WAIT", "1.5")

    def jump(seconds: int) -> None:
        # Replaced whole: who reads a file that is being written finds no offset in it.
        following = tmp_path / "following"
        following.write_text(f"{seconds:+d}\n")
        os.replace(following, offset)
        wait_until(lambda: abs(client.time()[0] - time.time() - seconds) < 60, f"the server's clock is off by {seconds} s")

    with redis.Redis.from_url(server.url) as client:
        yield server, jump
    server.stop()


async def test_jumps_of_an_hour(opening: Open, jumping: tuple[Server, Callable[[int], None]]) -> None:
    """Forward: one more burst at most, since an hour has passed for the server. Back: nobody waits for it to come again."""
    server, jump = jumping
    obs = await opening(server)
    bucket = Limit("bucket", 60, per=30, burst=20, on_store_down="closed")
    slots = Limit("slots", 2, unit="slots", on_store_down="closed")

    async def admitted() -> int:
        count = 0
        for _ in range(40):
            obs.rate_limiter.define(bucket)  # nothing is answered from memory
            count += bool(await obs.rate_limiter.check("bucket"))
        return count

    began = time.monotonic()
    total = await admitted()
    assert 20 <= total <= 20 + 2 * (time.monotonic() - began)
    held = await obs.rate_limiter.reserve(slots, lease=30)
    jump(HOUR)
    total += await admitted()
    assert total <= 2 * 20 + 2 * (time.monotonic() - began) + 1, "one burst more for the jump"
    jump(0)
    back = time.monotonic()
    first_back = await admitted()
    assert first_back <= 2 * (time.monotonic() - back) + 2
    await asyncio.sleep(2.0)
    again = await admitted()
    assert 3 <= again + first_back <= 2 * (time.monotonic() - began) + 1, "it goes on at the rate, not in an hour"
    refused = await obs.rate_limiter.check(bucket, None, 20)
    assert refused.retry_after is not None
    assert refused.retry_after <= 2 * 10
    await held.settle()
    taken = [await obs.rate_limiter.reserve(slots) for _ in range(2)]
    for one in taken:
        await one.settle()


async def test_jump_back_does_not_lengthen_a_hold(opening: Open, jumping: tuple[Server, Callable[[int], None]]) -> None:
    """A dead owner's slot comes back after its lease, though the deadline was written an hour ahead."""
    server, jump = jumping
    obs = await opening(server)
    slots = Limit("slots", 1, unit="slots", on_store_down="closed")
    jump(HOUR)
    await obs.rate_limiter.reserve(slots, lease=1.0)
    jump(0)
    async with asyncio.timeout(10):
        while (await obs.rate_limiter.peek(slots)).decided_by != "redis":
            await asyncio.sleep(0.05)
    await asyncio.sleep(1.3)
    await (await obs.rate_limiter.reserve(slots)).settle()
