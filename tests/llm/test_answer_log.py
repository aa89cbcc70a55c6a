"""The log of a stream: fenced by the lease of the entry that it becomes, and written once however often it is sent."""

import pytest

from observatory import Observatory
from observatory.features.cache.lease import Lease
from observatory.features.cache.shelf import Place
from observatory.llm.answers.log import END, Log
from tests.conftest import Open


@pytest.fixture
async def held(opening_any: Open) -> tuple[Observatory, Place, Lease, Log]:
    """An entry that somebody computes."""
    obs = await opening_any()
    room = obs.caches.room(str, "answers", None, None)
    place = room.place("k")
    lease = Lease(obs.store, place)
    await lease.claim(b"")
    return obs, place, lease, Log(obs.caches.store, lambda: place)


async def test_the_same_parts_are_written_once(held: tuple[Observatory, Place, Lease, Log]) -> None:
    """Whoever does not know whether they arrived sends them again."""
    _, _, lease, log = held
    for _ in range(3):
        assert await log.append(lease.token, 0, [b"head", b"a"]) == (True, False)
    for _ in range(2):
        assert await log.append(lease.token, 2, [b"b", END]) == (True, False)
    assert await log.read("", 0) == (lease.token, [b"head", b"a", b"b", END])
    assert await log.read(lease.token, 2) == (lease.token, [b"b", END])
    assert await log.append(lease.token, 4, []) == (True, True)


async def test_who_lost_the_lease_writes_no_more(held: tuple[Observatory, Place, Lease, Log]) -> None:
    """Not behind what is there, and not in the place of a successor's."""
    obs, place, lease, log = held
    await log.append(lease.token, 0, [b"old"])
    await obs.store.command("DEL", place.lease)
    assert (await log.append(lease.token, 1, [b"more"]))[0] is False
    other = Lease(obs.store, place)
    await other.claim(b"")
    assert (await log.append(other.token, 0, [b"new"]))[0] is True
    for at in (0, 1):
        assert (await log.append(lease.token, at, [b"zombie"]))[0] is False
    assert await log.read(lease.token, 1) == (other.token, [b"new"])


async def test_what_was_begun_before_a_delete_is_read_by_nobody(held: tuple[Observatory, Place, Lease, Log]) -> None:
    """Though it still stands; but by those who were told that it is whole and not for keeping."""
    obs, place, lease, log = held
    await log.append(lease.token, 0, [b"old", END])
    assert await log.stands(lease.token)
    await obs.store.command("DEL", place.lease)
    assert await log.read("", 0) == ("", [])
    await Lease(obs.store, place).claim(b"")
    assert await log.read("", 0) == ("", [])
    assert not await log.stands(lease.token)
    assert await log.read("", 0, given_up=True) == (lease.token, [b"old", END])


async def test_nothing_of_a_log_stays(held: tuple[Observatory, Place, Lease, Log]) -> None:
    """It goes soon after its writer; its slot and the entry's are one."""
    obs, place, lease, log = held
    await log.append(lease.token, 0, [b"a"])
    await log.read("", 0)
    for key in obs.store.keys.answer_log(place.entry):
        assert 0 < await obs.store.command("PTTL", key) <= 6_000
        assert key.split("{")[1].split("}")[0] == place.entry.split("{")[1].split("}")[0]
