"""`observatory up`: a fleet in the foreground that leaves nothing behind, whatever way it ends."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import httpx2
import pytest

from tests.servers import Server, command, environment, free_port, process, wait_until
from tests.store.test_embedded import servers_of


def children_of(pid: int) -> list[int]:
    """Processes whose parent this is."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                found.append(int(entry.name))
    return found


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def urls(running: subprocess.Popen[str]) -> list[str]:
    """What `up` prints until it is ready."""
    found = []
    assert running.stdout
    for line in running.stdout:
        if line.startswith("service"):
            found.append(line.split()[1])
        if line.startswith("Ctrl-C"):
            return found
    raise AssertionError(running.communicate()[1])


UP = ["-m", "observatory", "up", "--services", "2", "--workers", "2", "--port", "0", "--data-dir"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_orphan_is_left(tmp_path: Path, number: int) -> None:
    """Ctrl-C and SIGTERM end it in order with 0; after SIGKILL services, workers, keeper and server go by themselves."""
    directory = tmp_path / "state"
    with process([*UP, str(directory)], environment()) as up:
        both = urls(up)
        assert [httpx2.get(f"{url}/readyz", trust_env=False).status_code for url in both] == [200, 200]
        children = children_of(up.pid)
        assert len(children) == 4
        others = servers_of(directory)
        up.send_signal(number)
        assert up.wait(30) == (0 if number != signal.SIGKILL else -signal.SIGKILL)
        if number != signal.SIGKILL:
            assert not any(map(is_alive, [*children, *others])), "all of it has ended when the command has"
        wait_until(lambda: not any(map(is_alive, [*children, *others])), "no process is left")
        assert not servers_of(directory)


def test_second_up_and_scripts_share_the_server(tmp_path: Path) -> None:
    """One machine, one server: what one door takes, another misses; it ends with the last."""
    env = environment(OBSERVATORY_HOME=str(tmp_path))
    small = ["-m", "observatory", "up", "--port", "0"]
    with process(small, env) as first, process(small, env) as second:
        one, other = urls(first)[0], urls(second)[0]
        body = {"limit": {"name": "shared", "amount": 3, "per": "1h"}}
        for url, left in ((one, 2), (other, 1), (one, 0)):
            assert httpx2.post(f"{url}/v1/rate_limiter/check", json=body, trust_env=False).json()["remaining"] == left
        roles = [one["says"]["role"] for one in json.loads(command("--json", "instances", env=env).stdout)]
        assert sorted(roles) == ["cli", "service", "service", "up", "up", "worker", "worker"]
        first.send_signal(signal.SIGINT)
        assert first.wait(20) == 0
        assert httpx2.get(f"{other}/readyz", trust_env=False).status_code == 200, "the other one still has its server"
        second.send_signal(signal.SIGINT)
        assert second.wait(20) == 0
    assert not servers_of(tmp_path / "embedded")


def test_dead_service_and_worker_are_started_again(tmp_path: Path) -> None:
    """SIGKILL of a child: callers wait for a moment, and are answered."""
    with process([*UP, str(tmp_path / "state")], environment()) as up:
        both = urls(up)
        before = children_of(up.pid)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
        with httpx2.Client(trust_env=False, timeout=20) as client:
            assert all(client.post(f"{url}/v1/rate_limiter/check", json={"limit": "api"}).json()["allowed"] for url in both)
        wait_until(lambda: len([pid for pid in children_of(up.pid) if is_alive(pid)]) == 4, "four children again")
        up.send_signal(signal.SIGINT)
        assert up.wait(30) == 0


def test_taken_port_is_said(tmp_path: Path) -> None:
    """Before anything else is started, and nothing is left."""
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = command("up", "--port", port, "--data-dir", str(tmp_path / "state"))
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    wait_until(lambda: not servers_of(tmp_path / "state"), "no process is left")


def test_listens_where_the_file_says(tmp_path: Path) -> None:
    """[serve] host and port are the defaults of --host and --port; a public address is refused all the same."""
    port = free_port()
    config = tmp_path / "up.toml"
    config.write_text(f'[serve]\nhost = "localhost"\nport = {port}\n')
    up = ["-m", "observatory", "--config", str(config), "up", "--data-dir", str(tmp_path / "state")]
    with process(up, environment()) as running:
        assert urls(running) == [f"http://localhost:{port}"]
        assert httpx2.get(f"http://localhost:{port}/livez", trust_env=False).status_code == 200
        running.send_signal(signal.SIGINT)
        assert running.wait(30) == 0
    with process([*up, "--host", "127.0.0.1", "--port", "0"], environment()) as running:
        (url,) = urls(running)
        assert url.startswith("http://127.0.0.1:")
        assert url != f"http://127.0.0.1:{port}"
        running.send_signal(signal.SIGINT)
        assert running.wait(30) == 0
    config.write_text('[serve]\nhost = "0.0.0.0"\n')
    done = command("--config", str(config), "up", "--data-dir", str(tmp_path / "state"))
    assert (done.returncode, "serve.host is 0.0.0.0" in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize("kind", ["serve", "worker"])
def test_several_processes_of_one_door(server: Server, namespace: str, kind: str) -> None:
    """--processes 2: two children behind one command; a dead one is replaced; SIGTERM ends all of them with 0."""
    env = environment(OBSERVATORY_REDIS_URL=server.url, OBSERVATORY_NAMESPACE=namespace, OBSERVATORY_SERVE_DRAIN_FOR="0")
    words = [kind, "--processes", "2", *(["--port", "0"] if kind == "serve" else [])]
    with process(["-m", "observatory", *words], env) as parent:
        assert parent.stdout
        ready = parent.stdout.readline()
        children = children_of(parent.pid)
        assert len(children) == 2
        os.kill(children[0], signal.SIGKILL)
        wait_until(lambda: len([pid for pid in children_of(parent.pid) if is_alive(pid)]) == 2, "two children again")
        if kind == "serve":
            url = ready.split()[-1]
            assert httpx2.get(f"{url}/readyz", trust_env=False, timeout=20).status_code == 200
        children = children_of(parent.pid)
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(30) == 0
        assert not any(map(is_alive, children))
