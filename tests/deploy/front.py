"""HAProxy with deploy/haproxy.cfg as it is, instances behind it that can be killed, and callers in front."""

import contextlib
import csv
import io
import re
import select
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

from tests.servers import ROOT, die_with_parent, environment, wait_until

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
