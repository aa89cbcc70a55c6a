"""A receiver of spans and lines, and clients whose Redis is nowhere."""

import io
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from observatory import Observatory
from tests.receiver import Receiver
from tests.servers import wait_until

NOWHERE = "redis://127.0.0.1:1"


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    one = Receiver(tmp_path, "traces", "logs")
    with one.running():
        yield one


@pytest.fixture
def http(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Receiver:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.http)
    return receiver


Made = Callable[..., Observatory]


@pytest.fixture
async def made() -> AsyncIterator[Made]:
    all_of_them = []

    def make(service: str = "chat") -> Observatory:
        obs = Observatory(service, redis_url=NOWHERE)
        obs.logger.to(io.StringIO())
        all_of_them.append(obs)
        return obs

    yield make
    for obs in all_of_them:
        await sent(obs)
    wait_until(nobody_is_closing, "exporters have given up")


def nobody_is_closing() -> bool:
    """An exporter that waits for a collector in vain outlives the bound of closing, on a thread of its own."""
    return not any("closing" in thread.name or "RecordProcessor" in thread.name for thread in threading.enumerate())


async def sent(obs: Observatory) -> None:
    await obs.tracing.aclose(5)
    await obs.logger.pen.aclose(5)
