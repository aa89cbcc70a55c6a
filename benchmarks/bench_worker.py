"""How many events a second one worker process applies from full streams, and what that costs it and the server.

python -m benchmarks.bench_worker [--rounds 7] [--seconds 0.2] [--quick] [--write]
"""

import asyncio
import os
import random
import resource
import signal
import subprocess
import sys
import time
from statistics import median

from observatory.envelope import Envelope, encoded, new_id, packed
from observatory.keys import Keys
from observatory.llm import CallData, Usage

from .contest import Server
from .harness import Benchmark, Plan, Study, main, reached, spread
from .limiters import opened

EVENTS, EVENTS_QUICK = 400_000, 20_000
PER_ENTRY = 100
MODELS = ("gpt-4o-2024-11-20", "gpt-4o-mini", "claude-sonnet-4-5", "claude-haiku-4-5")
GOAL = 50_000


def _event(now_us: int, *, counted: bool) -> bytes:
    call = CallData(
        "openai",
        random.choice(MODELS),
        latency=round(random.lognormvariate(0, 0.6), 6),
        time_to_first_token=round(random.lognormvariate(-1, 0.5), 6),
        usage=Usage(random.randrange(1, 4000), random.randrange(1, 800)),
        trace_id=f"{random.getrandbits(128):032x}",
    )
    return encoded(Envelope("llm_call", now_us - random.randrange(10_000_000), packed(call), {"team": "search"}, counted))


def _fill(server: Server, keys: Keys, payloads: list[bytes], events: int) -> None:
    """As accept and append leave it: entries of a hundred, and a ledger that says so."""
    pipe = server.admin.pipeline(transaction=False)
    for number in range(events // PER_ENTRY):
        partition = number % keys.partitions
        fields: list[object] = []
        for _ in range(PER_ENTRY):
            fields += (new_id(), random.choice(payloads))
        pipe.execute_command("XADD", keys.stream(partition), "*", *fields)
        pipe.hincrby(keys.ledger(partition), "accepted", PER_ENTRY)
        if number % 100 == 99:
            pipe.execute()
    pipe.execute()


def _waiting(server: Server, keys: Keys) -> int:
    return sum(int(server.admin.xlen(keys.stream(partition))) for partition in range(keys.partitions)) * PER_ENTRY


async def _rate(server: Server, events: int, *, counted: bool) -> tuple[float, float, float, float]:
    """Events/s from the first that is gone to the last; client and server µs per event; the worker's largest memory, MiB."""
    server.empty()
    async with opened(server.tcp_url) as obs:
        keys, now_us = obs.store.keys, obs.store.server_us() or 0
        payloads = [_event(now_us, counted=counted) for _ in range(2_000)]
        await asyncio.to_thread(_fill, server, keys, payloads, events)
        environment = {**os.environ, "OBSERVATORY_REDIS_URL": server.tcp_url, "OBSERVATORY_NAMESPACE": "bench"}
        environment["OBSERVATORY_LOG_LEVEL"] = "error"
        cpu = server.cpu()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "observatory", "worker", "--roles", "events"]
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as worker:  # noqa: ASYNC220 (nothing waits)
            try:
                start, gone, left = 0.0, 0, events
                while left:
                    await asyncio.sleep(0.005)
                    now, left = time.perf_counter(), _waiting(server, keys)
                    # What the process needs to start is not what is asked for.
                    if not start and left < events:
                        start, gone = now, events - left
                seconds = time.perf_counter() - start
            finally:
                worker.send_signal(signal.SIGTERM)
                worker.wait(30)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = await obs.events.lag()
    if found["applied"] != events:
        raise RuntimeError(f"applied {found['applied']:,} of {events:,}")
    client = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return (events - gone) / seconds, client / events * 1e6, (server.cpu() - cpu) / events * 1e6, after.ru_maxrss / 1024


async def _throughput(server: Server, plan: Plan) -> list[str]:
    events = EVENTS_QUICK if plan.quick else EVENTS
    size = median(len(_event(1_763_890_000_000_000, counted=False)) for _ in range(100))
    lines = [
        f"{events:,} events of {size:.0f} bytes on 4 partitions, one worker process, default settings.",
        "",
        "| events | events/s | worker CPU µs/event | server CPU µs/event | worker's memory at most, MiB |",
        "|---|---:|---:|---:|---:|",
    ]
    goals: list[str] = []
    for name, counted in (
        ("LLM calls of strangers: the ten metrics are made of them", False),
        ("calls that their process has counted: only applied", True),
    ):
        found = [await _rate(server, events, counted=counted) for _ in range(plan.rounds)]
        rates, client, busy, memory = (list(column) for column in zip(*found, strict=True))
        lines.append(f"| {name} | {spread(rates, ',.0f')} | {median(client):.1f} | {median(busy):.1f} | {median(memory):.0f} |")
        goals += ["", reached(f"events/s of a process, {name}", rates, GOAL, form=",.0f")]
    return [*lines, *goals]


BENCHMARK = Benchmark(
    name="bench_worker",
    title="Events applied",
    about="How fast one worker process empties full streams.",
    parts=(
        Study(
            "From full streams",
            """\
The streams are filled first, then a worker process is started; timed from the first run that is gone from the streams to the
last, without the start of the process. Its CPU includes that. 4 models, one team,
times over ten seconds, log-normal latencies.""",
            _throughput,
        ),
    ),
    libraries=("observatory-fleet", "redis", "hiredis", "msgspec"),
)

if __name__ == "__main__":
    sys.exit(main(BENCHMARK))
