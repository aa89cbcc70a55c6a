"""Processes that a command starts: each has a name of its own, is made of our own files, and ends with its starter."""

import json
import os
import signal
from pathlib import Path

from tests.cli.test_up import UP, children_of, is_alive, urls
from tests.servers import Server, command, environment, process, wait_until


def test_a_name_that_was_given_is_the_beginning_of_each_childs(server: Server, namespace: str, tmp_path: Path) -> None:
    """`up` with OBSERVATORY_INSTANCE: four children and the starter are five instances, not one."""
    env = environment(OBSERVATORY_REDIS_URL=server.url, OBSERVATORY_NAMESPACE=namespace, OBSERVATORY_HOME=str(tmp_path))
    with process(UP[:-1], {**env, "OBSERVATORY_INSTANCE": "box"}) as up:
        urls(up)

        def names() -> list[str]:
            found = json.loads(command("--json", "instances", env={**env, "OBSERVATORY_INSTANCE": "eye"}).stdout)
            return sorted(one["instance"] for one in found if one["instance"] != "eye")

        assert names() == ["box", "box-service-1", "box-service-2", "box-worker-1", "box-worker-2"]


def test_processes_that_share_a_port_have_names_of_their_own(server: Server, namespace: str) -> None:
    """`worker --processes 2`, likewise."""
    env = environment(OBSERVATORY_REDIS_URL=server.url, OBSERVATORY_NAMESPACE=namespace)
    with process(["-m", "observatory", "worker", "--processes", "2"], {**env, "OBSERVATORY_INSTANCE": "box"}) as workers:
        assert workers.stdout
        assert workers.stdout.readline() == "2 workers\n"
        found = json.loads(command("--json", "instances", env=env).stdout)
        assert {"box-worker-1", "box-worker-2"} <= {one["instance"] for one in found}


def test_nothing_is_imported_from_where_a_command_is_started(server: Server, namespace: str, tmp_path: Path) -> None:
    """A directory with a file that is called like a module of ours."""
    (tmp_path / "msgspec.py").write_text("raise SystemExit('this is not msgspec')")
    (tmp_path / "trace.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00,5,5\n2023-11-16 18:00:01,5,5\n"
    )
    env = environment(OBSERVATORY_REDIS_URL=server.url, OBSERVATORY_NAMESPACE=namespace)
    os.chdir(tmp_path)
    with process(["-P", "-m", "observatory", "worker", "--processes", "2"], env) as workers:
        assert workers.stdout
        assert workers.stdout.readline() == "2 workers\n"
    replay = ["replay", "trace.csv", "--tokens-per-minute", "100", "--processes", "2"]
    with process(["-P", "-m", "observatory", *replay], env) as running:
        out, said = running.communicate(timeout=60)
    assert running.returncode == 0, out + said


def test_replaying_processes_end_with_their_starter(server: Server, namespace: str, tmp_path: Path) -> None:
    """Asleep until a call that is an hour away, when the starter is killed."""
    path = tmp_path / "trace.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "2023-11-16 18:00:00,5,5\n2023-11-16 18:59:59,5,5\n" * 2)
    env = environment(OBSERVATORY_REDIS_URL=server.url, OBSERVATORY_NAMESPACE=namespace)
    arguments = ["replay", str(path), "--tokens-per-minute", "100", "--processes", "2"]
    with process(["-m", "observatory", *arguments], env) as replay:

        def asleep() -> bool:
            shown = command("metrics", "query", "observatory_requests_total", env=env).stdout.split()
            return shown[-1:] in (["1"], ["2"])

        wait_until(asleep, "the first calls are made", timeout=30)
        children = children_of(replay.pid)
        assert len(children) == 2
        replay.send_signal(signal.SIGKILL)
        replay.wait()
        wait_until(lambda: not any(map(is_alive, children)), "they are gone", timeout=10)
