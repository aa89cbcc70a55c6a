"""Sentinel: the primary is found, checked, and left when there is another."""

import asyncio
from pathlib import Path

import pytest

from observatory.errors import ConfigurationError, StoreMisconfigured, StoreUnavailable
from observatory.store.address import address
from observatory.store.sentinel import Primary
from observatory.store.sentinel import Sentinels as SentinelsOf
from observatory.store.store import Store
from tests.servers import free_port, wait_until
from tests.store.conftest import Open
from tests.store.load import ADD, Load
from tests.topologies import PRIMARY, Member, Sentinels


async def port_of(store: Store) -> int:
    """Where its decisions are made."""
    text = (await store.command("INFO", "server")).decode()
    return int(text.partition("tcp_port:")[2].split()[0])


def switch(group: Sentinels) -> Member:
    """A planned failover; the new primary."""
    before = group.primary
    group.sentinels[0]("SENTINEL", "FAILOVER", PRIMARY)
    wait_until(lambda: group.primary is not before and group.primary.role() == "master", "there is another primary")
    return group.primary


def test_password_is_for_the_servers_and_not_shown() -> None:
    """Sentinels have credentials of their own, as options."""
    where = address(
        "rediss+sentinel://me:s3cret@h1:1,h2/main/3?sentinel_password=0ther&ssl_ca_certs=ca",
        environment="production",
        home=Path("/nowhere"),
    )
    assert where.shown == "rediss+sentinel://h1:1,h2:26379/main/3"
    assert where.options == {"username": "me", "password": "s3cret", "db": 3, "ssl_ca_certs": "ca"}
    assert where.sentinel_options == {"password": "0ther", "ssl_ca_certs": "ca"}
    with pytest.raises(ConfigurationError, match="name of the primary") as caught:
        address("redis+sentinel://:s3cret@h1", environment="production", home=Path("/nowhere"))
    assert "s3cret" not in str(caught.value)


async def test_the_primary_is_found(sentinels: Sentinels, at: Open) -> None:
    """Also when the first that is asked is away."""
    url = sentinels.url.replace("//", f"//127.0.0.1:{free_port()},")
    assert await port_of(at(url)) == sentinels.primary.port


async def test_sentinels_ask_for_credentials_of_their_own(sentinels: Sentinels, at: Open) -> None:
    """With no more rights than docs/operations.md lists; a wrong password is told as such."""
    rights = ("+sentinel|master", "+sentinel|get-master-addr-by-name", "+hello", "+auth")
    for one in sentinels.sentinels:
        one("ACL", "SETUSER", "app", "reset", "on", ">s3cret", *rights)
    options = "?sentinel_username=app&sentinel_password="
    assert await port_of(at(f"{sentinels.url}{options}s3cret")) == sentinels.primary.port
    with pytest.raises(StoreMisconfigured, match=r"WRONGPASS|password") as caught:
        await at(f"{sentinels.url}{options}wr0ng").command("PING")
    assert "wr0ng" not in str(caught.value)


async def test_unknown_name_has_a_remedy(sentinels: Sentinels, at: Open) -> None:
    """And sentinels that are away are away."""
    with pytest.raises(StoreMisconfigured, match="know no primary 'other'"):
        await at(sentinels.url.replace(f"/{PRIMARY}", "/other")).command("PING")
    with pytest.raises(StoreUnavailable, match="no sentinel answers"):
        await at(f"redis+sentinel://127.0.0.1:{free_port()}/main").command("PING")


async def test_named_server_is_asked_for_its_role(sentinels: Sentinels, at: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sentinels that are behind name a server that is a replica by now: it would answer reads for ever."""
    store, replica = at(sentinels.url), sentinels.replicas[0]

    async def behind(_: object) -> Primary:
        return Primary(0, "127.0.0.1", replica.port)

    with monkeypatch.context() as patch:
        patch.setattr(SentinelsOf, "primary", behind)
        with pytest.raises(StoreUnavailable, match="says it is slave"):
            await store.command("GET", "k")
    await asyncio.sleep(0.1)
    assert await store.command("GET", "k") is None


async def test_killed_primary_is_replaced_under_load(own_sentinels: Sentinels, at: Open) -> None:
    """Callers hear StoreUnavailable until there is another; then they are served; nothing is executed twice."""
    store = at(own_sentinels.url)
    load = Load(store, ["a", "b", "c"])
    async with load.running():
        await load.recovered(within=5)
        own_sentinels.primary.stop()
        await asyncio.sleep(0.3)
        await load.recovered(within=10)
    # Replication is asynchronous: the last moments of the primary may be gone with it.
    assert await load.check(lost=100) > 100
    assert await port_of(store) == own_sentinels.primary.port


async def test_planned_failover_is_followed(own_sentinels: Sentinels, at: Open) -> None:
    """The old primary becomes a replica and keeps its clients; they leave, also those that only read."""
    store = at(own_sentinels.url)
    assert await store.command("GET", "nothing") is None
    assert await store.command("GET", "nothing", link="values") is None
    load = Load(store, ["a"])
    async with load.running(2):
        await load.recovered(within=5)
        after = await asyncio.to_thread(switch, own_sentinels)
        async with asyncio.timeout(2.0):
            while await _where(store) != after.port:
                await asyncio.sleep(0.02)
        # Sentinel lets the old one go on for a moment: what it took then is lost, and nothing else.
        late = load.keys[0] = "b"
        load.acknowledged[late] = load.unknown[late] = 0
        await load.recovered(within=5)
    assert await load.check()
    for link in ("decisions", "values"):
        assert store.link(link).peer is None or store.link(link).peer == ("127.0.0.1", after.port)
    assert await port_of(store) == after.port


async def test_primary_that_goes_on_by_itself_is_left(own_sentinels: Sentinels, at: Open) -> None:
    """Cut off from the sentinels it accepts writes for ever; whoever follows the sentinels is gone within two seconds."""
    before = own_sentinels.primary
    for member in own_sentinels.data:
        member("ACL", "SETUSER", "app", "on", ">s3cret", "~*", "+@all")
    store = at(own_sentinels.url.replace("//", "//app:s3cret@"))
    assert await store.run(ADD, ["k"], []) == 1
    # Nobody but the application gets in there any more: neither sentinels nor replicas.
    before("ACL", "SETUSER", "default", "off")
    before("CLIENT", "KILL", "USER", "default")
    await asyncio.to_thread(wait_until, lambda: own_sentinels.primary is not before, "the sentinels have agreed on another")
    agreed_at = asyncio.get_running_loop().time()
    while await _where(store) in (None, before.port):
        assert asyncio.get_running_loop().time() - agreed_at < 2.0
        await asyncio.sleep(0.05)
    assert before.role() == "master", "it went on, and would have counted beside the other"


async def _where(store: Store) -> int | None:
    try:
        return await port_of(store)
    except StoreUnavailable:
        return None
