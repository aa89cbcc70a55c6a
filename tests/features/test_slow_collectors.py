"""A collector that takes its time: no request outlasts its timeout, and so none its lease."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from observatory import Observatory, names
from observatory.clock import monotonic
from observatory.features.leases import Lease
from observatory.features.metrics import OtlpExport, otlp
from observatory.features.metrics.blocks import Value
from observatory.features.metrics.collector import THREAD, Collector, Destination
from observatory.features.metrics.export import Family
from observatory.names import Definition

EVERY = 0.2
"""Seconds between two bytes: less than the timeout for one read."""
TIMEOUT = 1.0


def drip(connection: socket.socket, text: bytes) -> None:
    for number in range(len(text)):
        connection.sendall(text[number : number + 1])
        time.sleep(EVERY)


def body(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 60\r\n\r\n")
    drip(connection, b" " * 60)


def headers(connection: socket.socket) -> None:
    drip(connection, b"HTTP/1.1 200 OK\r\n" + b"X-More: 1\r\n" * 20)


def silence(connection: socket.socket) -> None:
    time.sleep(60)


Behaviour = Callable[[socket.socket], None]


@pytest.fixture
def behaving() -> Iterator[Callable[[Behaviour], str]]:
    """Starts a collector that answers so, and returns its endpoint."""
    listening = socket.create_server(("127.0.0.1", 0))

    def answer(connection: socket.socket, behaviour: Behaviour) -> None:
        with connection:
            try:
                connection.recv(65536)
                behaviour(connection)
            except OSError:
                pass

    def run(behaviour: Behaviour) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection, behaviour), daemon=True).start()

    def start(behaviour: Behaviour) -> str:
        threading.Thread(target=run, args=(behaviour,), daemon=True).start()
        return f"http://127.0.0.1:{listening.getsockname()[1]}"

    yield start
    listening.close()


def families() -> list[Family]:
    value = Value()
    value.add("w", 1)
    return [Family("test_total", Definition("counter"), {"": value}, {})]


async def sent(collector: Collector) -> tuple[str | None, float]:
    """Why not, and how long it took."""
    found: list[tuple[str | None, float]] = []

    def run() -> None:
        began = time.monotonic()
        found.append((collector.send(families(), 1, 2, "n"), time.monotonic() - began))

    thread = threading.Thread(target=run, daemon=True, name=THREAD)
    thread.start()
    await asyncio.to_thread(thread.join, 10 * TIMEOUT)
    assert not thread.is_alive(), "it is still sending"
    return found[0]


@pytest.mark.parametrize("behaviour", [body, headers, silence])
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
async def test_a_request_ends_with_its_timeout(
    behaving: Callable[[Behaviour], str], monkeypatch: pytest.MonkeyPatch, behaviour: Behaviour, protocol: str
) -> None:
    """However the bytes come. The next one has a connection of its own."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", behaving(behaviour))
    collector = Collector(Destination(protocol, 60, TIMEOUT))
    await sent(Collector(Destination(protocol, 60, TIMEOUT)))  # which loads the libraries
    for _ in range(2):
        why, took = await sent(collector)
        assert why is not None
        assert took < TIMEOUT + otlp.GRACE
    collector.close()


async def test_closing_ends_a_request(behaving: Callable[[Behaviour], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """From another thread, in its middle."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", behaving(body))
    collector = Collector(Destination("http/protobuf", 60, 30))
    sending = asyncio.ensure_future(sent(collector))
    await asyncio.sleep(1)
    began = time.monotonic()
    collector.close()
    why, _ = await sending
    assert why is not None
    assert time.monotonic() - began < 1


class Counting:
    """Gives the lease to whoever asks, and counts."""

    def __init__(self) -> None:
        self.asked = 0

    async def acquire(self, name: str, lease: float) -> Lease:
        self.asked += 1
        return Lease(name, 1, monotonic() + lease)

    async def release(self, name: str) -> None:
        return


async def test_what_cannot_be_cut_keeps_the_lease(obs: Observatory, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is counted as failed and others go on; nothing else is sent, and nobody else may send, until it ends."""
    ends, begun = threading.Event(), []

    def send(self: Collector, *_: object) -> None:
        begun.append(self)
        ends.wait(30)

    monkeypatch.setattr(Collector, "send", send)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "0.3")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "100")
    obs.metrics.increment_counter("test_total", 5)
    await obs.metrics.flush()
    leases = Counting()
    one = OtlpExport(lambda: obs.store, obs.metrics, leases)
    began = time.monotonic()
    await one.step()
    assert 0.3 < time.monotonic() - began < 0.3 + otlp.GRACE + 1
    await obs.metrics.flush()
    assert (await obs.metrics.query(names.EXPORTS_FAILED)).value == 1
    for number in range(2, 4):
        await asyncio.sleep(0.35)
        await one.step()
        assert (leases.asked, len(begun), one.leads) == (number + 1, 1, True)
    ends.set()
    await asyncio.sleep(0.2)
    await one.step()
    assert len(begun) == 2
    await one.aclose()
