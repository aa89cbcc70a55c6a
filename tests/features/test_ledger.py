"""The ledger: whatever is lost, sent twice, out of order, crashed, forked or rolled back, what counts is what was recorded.

Random histories on a real server (Hypothesis shrinks those that fail). After each, three things agree to the last unit: the
sums of what every writer recorded, lifetime totals and windows; and every event lies on a stream once.
"""

import asyncio
import contextlib
import secrets
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from observatory import Observatory, StoreUnavailable
from observatory.features.metrics import read, rollup
from observatory.features.metrics.wire import Batch
from tests.conftest import _check_and_clean
from tests.proxy import Proxy, proxy
from tests.servers import Server

COUNTER, SECONDS = "test_things_total", "test_wait_seconds"
WRITERS = 3

VERBS = ["flush", "lose reply", "lose request", "again", "reorder", "fork"]
WHO = st.integers(0, WRITERS - 1)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["record", "record and flush"]), WHO, st.integers(1, 1000)),
        st.tuples(st.sampled_from(VERBS), WHO),
        st.tuples(st.sampled_from(["snapshot", "roll back", "compact", "compact"])),
    ),
    min_size=12,
    max_size=60,
)


class Life(NamedTuple):
    """One identity of a writer: where its watermark is, and what each of its batches said."""

    watermark: str
    batches: dict[int, Any]


class Writer:
    """A process behind a proxy of its own."""

    def __init__(self, between: Proxy, namespace: str) -> None:
        self.between = between
        self.namespace = namespace
        self.obs = Observatory("writer", redis_url=between.url, namespace=namespace)
        self.recorded = 0
        self.times = 0
        self.ids: list[str] = []
        self.metrics: list[Life] = []
        self.events: list[Life] = []

    async def begin(self) -> None:
        await self.obs.open()
        await self.obs.ready()
        self._follow()

    def _follow(self) -> None:
        """Remember every batch, by the number that it gets."""
        obs = self.obs
        keys, partition = obs.store.keys, obs._lifetime.partition()
        for room, lives, key in (
            (obs.metrics, self.metrics, keys.metric_writer),
            (obs.events, self.events, keys.event_writer),
        ):
            outbox: Any = room._outbox
            life = Life(key(partition, outbox.writer), {})
            lives.append(life)
            whole = type(outbox).put

            def put(batch: Any, outbox: Any = outbox, life: Life = life, whole: Any = whole) -> None:
                life.batches[outbox._next] = batch
                whole(outbox, batch)

            outbox.put = put

    async def do(self, verb: str, number: int = 0) -> None:
        match verb:
            case "record":
                self.record(number)
            case "record and flush":
                self.record(number)
                await self.flush()
            case "flush":
                await self.flush()
            case "lose reply" | "lose request":
                await self.lose(reply=verb == "lose reply")
            case "again":
                await self.again()
            case "reorder":
                await self.reorder()
            case "fork":
                self.fork()

    def record(self, number: int) -> None:
        self.obs.metrics.increment_counter(COUNTER, number)
        self.obs.metrics.record_histogram(SECONDS, number / 100)
        self.ids.append(self.obs.events.record({"type": "thing"}))
        self.recorded += number
        self.times += 1

    async def flush(self) -> None:
        with contextlib.suppress(StoreUnavailable):
            await self.obs.flush()

    async def lose(self, *, reply: bool) -> None:
        """The store hears a flush and nobody its answers; or it does not even hear it."""
        between = self.between
        between.swallow_replies, between.deaf = reply, not reply
        flushing = asyncio.ensure_future(self.flush())
        await asyncio.sleep(0.03)
        between.cut()
        between.swallow_replies = between.deaf = False
        await flushing

    async def again(self) -> None:
        """Everything acknowledged is sent once more, in any order."""
        outbox = self.obs.metrics._outbox
        for number, batch, _ in reversed(outbox._kept):
            with contextlib.suppress(StoreUnavailable):
                await self.obs.metrics._send(outbox.writer, number, batch)

    async def reorder(self) -> None:
        """A batch arrives before the one that it follows."""
        outbox = self.obs.metrics._outbox
        self.obs.metrics._freeze()
        with contextlib.suppress(StoreUnavailable):
            for number, batch in list(outbox._pending)[:0:-1]:
                await self.obs.metrics._send(outbox.writer, number, batch)

    def fork(self) -> None:
        """The process ends: what was not delivered is gone, what was sent may be added. Its child begins with nothing."""
        self.recorded = self.times = 0
        self.ids = []
        self.obs.metrics.forget()
        self.obs.events.forget()
        self._follow()


def added(client: redis.Redis, life: Life) -> Iterator[Any]:
    """What a dead identity got into the store, as far as its watermark says."""
    last = int(client.get(life.watermark) or 0)
    return (batch for number, batch in life.batches.items() if number <= last)


def whole(batch: Batch, metric: str, part: str) -> int:
    return sum(
        number
        for group in batch.groups
        if group.metric == metric
        for field, number in group.additions
        if field.startswith(part)
    )


class Snapshot:
    """What a replica had when it was promoted."""

    def __init__(self, client: redis.Redis, namespace: str) -> None:
        self._found = {
            key: (max(client.pttl(key), 0), client.dump(key)) for key in client.keys(f"obs1:{namespace}:[me][ev]*:*")
        }

    def restore(self, client: redis.Redis, namespace: str) -> None:
        with client.pipeline(transaction=True) as pipe:
            for key in client.keys(f"obs1:{namespace}:[me][ev]*:*"):
                pipe.delete(key)
            for key, (ttl, dump) in self._found.items():
                pipe.restore(key, ttl, dump or b"")
            pipe.execute()


async def history(server: Server, tmp_path: Path, steps: list[tuple[Any, ...]]) -> None:
    namespace = f"t{secrets.token_hex(6)}"
    async with AsyncExitStack() as stack:
        client = stack.enter_context(redis.Redis(unix_socket_path=str(server.path)))
        writers = []
        for number in range(WRITERS):
            between = await stack.enter_async_context(proxy(server.path, tmp_path / f"{namespace}-{number}"))
            writers.append(Writer(between, namespace))
            await writers[-1].begin()
            stack.push_async_callback(writers[-1].obs.aclose)
        snapshot = Snapshot(client, namespace)
        for verb, *told in steps:
            if verb == "snapshot":
                snapshot = Snapshot(client, namespace)
            elif verb == "roll back":
                snapshot.restore(client, namespace)
            elif verb == "compact":
                with contextlib.suppress(StoreUnavailable):
                    await writers[0].obs.metrics.compact()
            else:
                await writers[told[0]].do(verb, *told[1:])
        await agree(client, writers)
    _check_and_clean(server.url, namespace)


async def agree(client: redis.Redis, writers: list[Writer]) -> None:
    """Everything living is delivered; then the books are compared."""
    for writer in writers:
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(StoreUnavailable):
                    # One more, since a gap is heard of only with the next batch.
                    writer.record(1)
                    await writer.obs.flush()
                    break
                await asyncio.sleep(0.02)
        assert writer.obs.metrics._outbox.lost == writer.obs.events._outbox.lost == 0
    dead = [batch for writer in writers for life in writer.metrics[:-1] for batch in added(client, life)]
    total = sum(writer.recorded for writer in writers) + sum(whole(batch, COUNTER, "w") for batch in dead)
    buckets = sum(whole(batch, SECONDS, "b") for batch in dead)
    times = sum(writer.times for writer in writers) + buckets
    obs = writers[0].obs
    for ask in ("totals", "windows", "blocks"):
        if ask == "totals":
            tables = await read.totals(obs.store, [COUNTER, SECONDS])
            assert tables[COUNTER][""].nano == total * 10**9
            assert tables[SECONDS][""].count == times
        else:
            assert (await obs.metrics.query(COUNTER, since="10m")).value == total, ask
            assert (await obs.metrics.query(SECONDS, "count", since="10m")).value == times, ask
            await obs.metrics.compact()
    on_streams = []
    for partition in range(obs.store.keys.partitions):
        for _, entry in await obs.store.command("XRANGE", obs.store.keys.stream(partition), "-", "+"):
            on_streams += [name.decode() for name in entry[::2]]
    lived = [name for writer in writers for name in writer.ids]
    batches = [batch for writer in writers for life in writer.events[:-1] for batch in added(client, life)]
    died = [name for batch in batches for name in batch[::2]]
    assert sorted(on_streams) == sorted(lived + died)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
def test_any_history_is_what_was_recorded(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[tuple[Any, ...]]
) -> None:
    """Drop, duplicate, reorder, crash, fork, failover and roll-up, in any order."""
    monkeypatch.setenv("OBSERVATORY_METRICS_FLUSH_EVERY", "3600")
    # On a slow machine a history takes longer than batches are kept for; it is their order that is tried here.
    monkeypatch.setattr("observatory.store.outbox.KEEP_FOR", 600.0)
    # Windows are sealed while they are written to: everything comes late.
    monkeypatch.setattr(rollup, "SETTLE_US", -120_000_000)
    asyncio.run(history(server, tmp_path, steps))
