"""Who is here, and who owns what."""

import asyncio

from observatory import keys
from observatory.clock import monotonic
from tests.conftest import Open


async def test_instances_see_each_other_come_and_go(opening_any: Open) -> None:
    """Two are two; one that leaves in order is gone at once."""
    first, second = await opening_any(), await opening_any(role="worker")
    await first._lifetime.presence.beat()  # type: ignore[union-attr]
    assert {member.says.role for member in await first.instances()} == {"client", "worker"}
    assert first.presence is not None
    assert first.presence.live_peers == 1
    await second.aclose()
    assert (await first._lifetime.presence.beat()).live == 1  # type: ignore[union-attr]
    assert [member.instance for member in await first.instances()] == [first.instance]


async def test_silent_instance_is_gone_after_three_beats(opening: Open) -> None:
    """A process that was killed says no goodbye."""
    first, second = await opening(), await opening()
    second._lifetime._background._supervisor.cancel()  # type: ignore[union-attr]
    await asyncio.sleep(3.3)
    assert [member.instance for member in await first.instances()] == [first.instance]
    await first._lifetime.presence.beat()  # type: ignore[union-attr]
    assert first._lifetime.presence.live == 1  # type: ignore[union-attr]
    assert await first.store.command("HLEN", keys.instances(first.store.namespace)) == 1, "what it said of itself is gone too"


async def test_namespaces_partitions_come_from_its_record(opening: Open) -> None:
    """Who comes later with another setting goes by the record."""
    first = await opening()
    second = await opening(settings=first.settings.replace(events_partitions=9))
    assert second.store.keys.partitions == first.store.keys.partitions == 4
    assert first.store.keys.bucket("l", "i") == second.store.keys.bucket("l", "i"), "one salt, one bucket"


async def test_writers_are_dealt_evenly_to_partitions(opening: Open) -> None:
    """Four processes, four partitions, one each."""
    assert sorted([(await opening())._lifetime.partition() for _ in range(4)]) == [0, 1, 2, 3]


async def test_lease_has_one_owner_and_a_growing_fence(opening_any: Open) -> None:
    """Others are refused until it is released or has run out; each new owner has a higher fence."""
    first, second = await opening_any(), await opening_any()
    mine = await first.leases.acquire("job", 0.3)
    assert mine is not None
    assert await second.leases.acquire("job", 0.3) is None
    again = await first.leases.acquire("job", 0.3)
    assert again is not None
    assert again.fence == mine.fence
    await second.leases.release("job")
    assert await second.leases.acquire("job", 0.3) is None, "only the owner lets go"
    await first.leases.release("job")
    theirs = await second.leases.acquire("job", 0.2)
    assert theirs is not None
    assert theirs.fence == mine.fence + 1
    assert theirs.ends_at <= monotonic() + 0.2
    await asyncio.sleep(0.25)
    assert not theirs.is_live
    last = await first.leases.acquire("job", 1)
    assert last is not None
    assert last.fence == theirs.fence + 1
    await first.leases.release("job")
