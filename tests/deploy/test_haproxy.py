"""deploy/haproxy.cfg itself in front of real instances on one real store, while they are killed and replaced."""

import contextlib
import json
import re
import signal
import subprocess
import time
from pathlib import Path

from observatory import Settings
from observatory.service.server import KEEP_ALIVE
from observatory.units import seconds
from tests.deploy.front import (
    CHECK,
    CONFIG,
    LIMITS,
    NAMES,
    NO_ANSWER,
    PEEK,
    READY,
    Callers,
    Fleet,
    Front,
    client_of,
    dying,
    limit_of,
    reserved_port,
    said,
    told,
)
from tests.servers import ROOT, environment, wait_until


def test_the_file_is_accepted_without_a_warning(haproxy: str) -> None:
    """The oldest HAProxy that is meant, Debian's 2.6, has no remark on it."""
    addresses = {f"SERVICE_{n}": f"127.0.0.1:{n}" for n in (1, 2, 3)}
    done = subprocess.run(
        [haproxy, "-c", "-f", str(CONFIG)],
        env=environment(**addresses),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stdout + done.stderr


def test_an_idle_connection_is_closed_by_the_front_first() -> None:
    """A request that is sent into a connection which the service is closing would be lost."""
    assert seconds(said("timeout server")) < KEEP_ALIVE


def test_an_instance_is_out_before_it_closes() -> None:
    """With the drain of production, however the checks and the signal fall."""
    settings = Settings.load(str(ROOT / "deploy" / "observatory.toml"), environ={})
    notice = seconds(said("inter")) + (int(said("fall")) - 1) * seconds(said("fastinter"))
    assert notice + seconds(said("timeout check")) < settings.serve.drain_for


def test_one_limit_holds_over_three_instances(fleet: Fleet) -> None:
    """Of 60 checks through the front 30 are admitted, and every instance had its part in it."""
    body = limit_of(30)
    with Callers(fleet.front) as callers:
        asked = [callers.start("POST", CHECK, body, times=10) for _ in range(6)]
        wait_until(lambda: sum(map(len, asked)) == 60, "60 answers")
        callers.stop()
    answers = [answer for one in asked for answer in one]
    assert {answer.status for answer in answers} == {200}
    assert sum(answer.allowed for answer in answers) == 30
    assert all(row.sessions > 0 for row in fleet.front.rows().values()), fleet.front.rows()
    # The last one left answers for all of them.
    for instance in fleet.instances[:2]:
        instance.end(signal.SIGKILL)
        fleet.front.wait_down(instance.name)
    with client_of(fleet.front) as client:
        left = client.post(PEEK, json=body)
    assert left.status_code == 200
    assert left.json()["remaining"] == 0


def test_a_killed_instance_takes_only_what_it_held(fleet: Fleet) -> None:
    """Whoever asks afterwards is answered, nobody is admitted above the limit, and no check is carried out twice."""
    burst, times, posting = 120, 100, 2
    victim = fleet.instances[1]
    with Callers(fleet.front) as callers:
        gets = callers.start("GET", READY)
        posts = [callers.start("POST", CHECK, limit_of(burst), times) for _ in range(posting)]
        wait_until(lambda: sum(map(len, posts)) >= 60, "60 checks are answered")
        killed_at = time.monotonic()
        victim.end(signal.SIGKILL)
        wait_until(lambda: sum(map(len, posts)) == posting * times, "all checks are answered")
        fleet.front.wait_down(victim.name)
        wait_until(lambda: gets[-1].at > killed_at + 2 * seconds(said("inter")), "reading goes on")
        callers.stop()

    checks = [answer for one in posts for answer in one]
    lost = [answer for answer in (*gets, *checks) if answer.status != 200]
    assert [answer for answer in lost if answer.at > killed_at + seconds(said("inter"))] == []
    # What each caller had asked it when it died, and once more while the system was still closing its door.
    assert len(lost) <= 2 * (posting + 1), lost
    assert all(answer.status in (502, NO_ANSWER) for answer in lost), lost
    # A check that was carried out twice, for one answer, would be missing here.
    unknown = sum(answer.status != 200 for answer in checks)
    assert burst - unknown <= sum(answer.allowed for answer in checks) <= burst


def test_a_rolling_restart_loses_no_request(fleet: Fleet) -> None:
    """Every instance in turn gets SIGTERM and is started again: only 200s, and each check was counted once."""
    amount = 100_000
    with Callers(fleet.front) as callers:
        answers = [callers.start("GET", LIMITS), *(callers.start("POST", CHECK, limit_of(amount)) for _ in range(2))]
        for instance in fleet.instances:
            assert instance.end(signal.SIGTERM) == 0
            instance.close()
            instance.start()
            instance.wait_ready()
            fleet.front.wait_up(instance.name)
        callers.stop()

    assert all(len(one) > 50 for one in answers), "there was load all the time"
    assert [answer for one in answers for answer in one if answer.status != 200] == []
    with client_of(fleet.front) as client:
        remaining = client.post(PEEK, json=limit_of(amount)).json()["remaining"]
    assert amount - remaining == sum(answer.allowed for one in answers for answer in one)
    # HAProxy was told by readyz, while the listener was open; it did not have to find a closed door.
    reasons = dict(re.findall(r"Server observatory/(service-\d) is DOWN, reason: (.+?), info", fleet.front.log()))
    assert reasons == dict.fromkeys(NAMES, "Layer7 wrong status, code: 503"), fleet.front.log()


def test_only_reading_is_sent_again_after_it_may_have_been_executed(haproxy: str, tmp_path: Path) -> None:
    """A check that an instance took in and did not answer reaches no other one; a GET does. Callers get problem documents."""
    taken: list[str] = []
    body = json.dumps(limit_of(1)).encode()
    with contextlib.ExitStack() as stack:
        port, *ports = [stack.enter_context(reserved_port()) for _ in range(1 + len(NAMES))]
        ends = [stack.enter_context(dying(one, taken)) for one in ports]
        front = Front(haproxy, port, ports, tmp_path)
        stack.callback(front.close)
        front.wait_up(*NAMES)

        head, problem = told(front, "POST", CHECK, body)
        assert taken == [f"POST {CHECK}"]
        assert head.startswith(b"http/1.1 502 ")
        assert b"content-type: application/problem+json" in head
        assert (json.loads(problem)["status"], json.loads(problem)["retryable"]) == (502, False)

        taken.clear()
        head, _ = told(front, "GET", LIMITS)
        assert taken == [f"GET {LIMITS}"] * 3
        assert head.startswith(b"http/1.1 502 ")

        # Nobody is there at all: not executed, so trying again is right.
        for end in ends:
            end()
        taken.clear()
        head, problem = told(front, "POST", CHECK, body)
        assert taken == []
        assert head.startswith(b"http/1.1 503 ")
        assert b"retry-after: 1" in head
        assert (json.loads(problem)["status"], json.loads(problem)["retryable"]) == (503, True)


def test_no_statistics_page_is_open() -> None:
    """What HAProxy knows is asked on a socket, and there is a socket only where one is named."""
    lines = re.findall(r"^ *(stats\b.*|\.if.*|\.endif)$", CONFIG.read_text(), re.MULTILINE)
    assert lines == [".if defined(ADMIN_SOCKET)", 'stats socket "${ADMIN_SOCKET}" mode 600 level user', ".endif"]
