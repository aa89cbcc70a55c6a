"""deploy/haproxy.cfg itself in front of real instances on one real store, while they are killed and replaced."""

import contextlib
import csv
import io
import json
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple, Self

import httpx2
import pytest

from observatory import Settings
from observatory.service.server import KEEP_ALIVE
from observatory.units import seconds
from tests.servers import ROOT, Server, die_with_parent, environment, skip_or_fail, wait_until

CONFIG = ROOT / "deploy" / "haproxy.cfg"
NAMES = ("service-1", "service-2", "service-3")
CHECK = "/v1/rate_limiter/check"
PEEK = "/v1/rate_limiter/peek"
LIMITS = "/v1/rate_limiter/limits"
READY = "/readyz"
NO_ANSWER = 0
"""In place of a status: the connection ended first."""


def said(words: str) -> str:
    """What follows these words in the file."""
    found = re.search(rf"^ +(?!#).*\b{words} (\w+)", CONFIG.read_text(), re.MULTILINE)
    assert found is not None, words
    return found[1]


@pytest.fixture
def haproxy() -> str:
    """The executable."""
    found = shutil.which("haproxy")
    if found is None:
        skip_or_fail("no haproxy on the PATH")
    return str(found)


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """A port that nobody else is given while it lasts. A bound socket that does not listen is in no server's way."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def spawn(command: list[str], env: dict[str, str], log: Path, *, output: bool) -> subprocess.Popen[bytes]:
    """A process that ends with this one, however that ends. output: its standard output is read here, else it is logged too."""
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if output else file,
            stderr=file,
            preexec_fn=die_with_parent,
        )


class Instance:
    """One `observatory serve`, which can be killed and started again on its port."""

    def __init__(self, name: str, port: int, env: dict[str, str], log: Path) -> None:
        self.name = name
        self.url = f"http://127.0.0.1:{port}"
        self._command = [sys.executable, "-m", "observatory", "serve", "--port", str(port)]
        self._env = env
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def start(self) -> None:
        self._process = spawn(self._command, self._env, self._log, output=True)

    def wait_ready(self, timeout: float = 30.0) -> None:
        """It says one line when it is ready."""
        output = self.process.stdout
        assert output is not None
        line = output.readline() if select.select([output], [], [], timeout)[0] else b""
        assert line.startswith(b"serving on "), f"{self.name} did not start: {self._log.read_text()}"

    def end(self, number: int, timeout: float = 20.0) -> int:
        """Its exit code after this signal."""
        self.process.send_signal(number)
        return self.process.wait(timeout)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None


class Row(NamedTuple):
    """What HAProxy thinks of one instance."""

    status: str
    check: str
    sessions: int


class Front:
    """HAProxy with the file as it is."""

    def __init__(self, executable: str, port: int, ports: list[int], directory: Path) -> None:
        self.port = port
        self._admin = directory / "a"
        self._log = directory / "haproxy.log"
        addresses = {f"SERVICE_{n}": f"127.0.0.1:{one}" for n, one in enumerate(ports, 1)}
        env = environment(FRONT_BIND=f"127.0.0.1:{port}", ADMIN_SOCKET=str(self._admin), **addresses)
        self.process = spawn([executable, "-db", "-f", str(CONFIG)], env, self._log, output=False)

    def log(self) -> str:
        return self._log.read_text()

    def rows(self) -> dict[str, Row]:
        """`show stat`, by instance; empty while HAProxy is not up."""
        assert self.process.poll() is None, f"HAProxy ended: {self.log()}"
        text = b""
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(str(self._admin))
            except OSError:
                return {}
            client.settimeout(5.0)
            client.sendall(b"show stat\n")
            while part := client.recv(65536):
                text += part
        table = csv.DictReader(io.StringIO(text.decode().removeprefix("# ")))
        return {
            row["svname"]: Row(row["status"], row["check_status"], int(row["stot"])) for row in table if row["svname"] in NAMES
        }

    def wait_up(self, *names: str) -> None:
        """Up because a check said so: before the first one, HAProxy believes in everybody."""

        def up() -> bool:
            rows = self.rows()
            return all(name in rows and rows[name].status == "UP" and rows[name].check == "L7OK" for name in names)

        wait_until(up, f"HAProxy finds {', '.join(names)} ready")

    def wait_down(self, name: str) -> None:
        wait_until(lambda: self.rows()[name].status.startswith("DOWN"), f"HAProxy finds {name} down")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


class Fleet(NamedTuple):
    """Three instances behind a front."""

    front: Front
    instances: list[Instance]


@pytest.fixture
def fleet(haproxy: str, own_server: Server, namespace: str, tmp_path: Path) -> Iterator[Fleet]:
    """With the settings file of production, a shorter drain, and a store that may be slow on a busy machine."""
    env = environment(
        OBSERVATORY_CONFIG=str(ROOT / "deploy" / "observatory.toml"),
        OBSERVATORY_REDIS_URL=own_server.url,
        OBSERVATORY_NAMESPACE=namespace,
        OBSERVATORY_SERVE_DRAIN_FOR="1",
        OBSERVATORY_REDIS_MAX_WAIT="5s",
    )
    with contextlib.ExitStack() as stack:
        port, *ports = [stack.enter_context(reserved_port()) for _ in range(1 + len(NAMES))]
        instances = [Instance(name, one, env, tmp_path / f"{name}.log") for name, one in zip(NAMES, ports, strict=True)]
        for instance in instances:
            stack.callback(instance.close)
            instance.start()
        for instance in instances:
            instance.wait_ready()
        front = Front(haproxy, port, ports, tmp_path)
        stack.callback(front.close)
        front.wait_up(*NAMES)
        yield Fleet(front, instances)


class Answer(NamedTuple):
    """What became of one request."""

    at: float
    status: int
    allowed: bool


def client_of(front: Front) -> httpx2.Client:
    return httpx2.Client(base_url=f"http://127.0.0.1:{front.port}", timeout=10.0, trust_env=False)


def limit_of(amount: int) -> dict[str, object]:
    """A bucket of so many, of which none grows back while a test runs: they do within a year."""
    return {"limit": {"name": "front", "amount": amount, "per": "8760h"}}


def ask(client: httpx2.Client, method: str, path: str, body: object = None) -> Answer:
    at = time.monotonic()
    try:
        answer = client.request(method, path, json=body)
    except httpx2.TransportError:
        return Answer(at, NO_ANSWER, allowed=False)
    return Answer(at, answer.status_code, path == CHECK and answer.status_code == 200 and answer.json()["allowed"])


class Callers:
    """Threads that ask one request after another."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._pool = ThreadPoolExecutor(8)
        self._stop = threading.Event()
        self._running: list[Future[None]] = []

    def start(self, method: str, path: str, body: object = None, times: int = 1_000_000) -> list[Answer]:
        """The list grows while the caller asks."""
        answers: list[Answer] = []

        def run() -> None:
            with client_of(self._front) as client:
                while len(answers) < times and not self._stop.is_set():
                    answers.append(ask(client, method, path, body))

        self._running.append(self._pool.submit(run))
        return answers

    def stop(self) -> None:
        """Each finishes the request it is at."""
        self._stop.set()
        for running in self._running:
            running.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()


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


class Dying(ThreadingHTTPServer):
    """An instance that is ready, takes every request in, and then ends the connection as if it had died."""

    daemon_threads = True

    def __init__(self, port: int, taken: list[str]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == READY:
                    self.send_response(200)
                    self.send_header("content-length", "0")
                    self.end_headers()
                else:
                    self.take()

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                self.take()

            def take(self) -> None:
                taken.append(f"{self.command} {self.path}")
                self.close_connection = True

            def log_message(self, *_: object) -> None:
                return

        super().__init__(("127.0.0.1", port), Handler)


@contextlib.contextmanager
def dying(port: int, taken: list[str]) -> Iterator[Callable[[], None]]:
    """Yields what ends it."""
    server = Dying(port, taken)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()

    def end() -> None:
        server.shutdown()
        thread.join()
        server.server_close()

    try:
        yield end
    finally:
        end()


def told(front: Front, method: str, path: str, body: bytes = b"") -> tuple[bytes, bytes]:
    """Header and body of the answer to a request that is sent in one piece: HAProxy can only send again what it has whole."""
    head = f"{method} {path} HTTP/1.1\r\nhost: front\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", front.port), timeout=10.0) as client:
        client.sendall(head.encode() + body)
        parts = iter(lambda: client.recv(65536), b"")
        answer, _, rest = b"".join(parts).partition(b"\r\n\r\n")
    return answer.lower(), rest


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
