"""Eight processes, random costs, and everything that may go wrong with a client: what was admitted is checked call by call."""

import asyncio
import json
import random
import signal
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from observatory import Limit, Observatory
from tests.servers import Server, process

PROCESSES = 8
SECONDS = 8.0

CALLER = """
import asyncio, json, os, random, sys, time
from observatory import Limit, Observatory, RateLimitExceeded, StoreError

url, namespace, path, seed, ends = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), 0.0
random.seed(seed)
out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
LIMITS = [Limit(**{**one, "on_store_down": "closed"}) for one in json.loads(sys.argv[5])]


def note(kind, limit, cost, before, **more):
    line = {"kind": kind, "limit": limit, "cost": cost, "before": before, "after": time.monotonic(), **more}
    os.write(out, json.dumps(line).encode() + b"\\n")


async def once(obs, limit):
    cost = 1 if limit.unit == "slots" else random.randint(1, 9)
    verb = random.choice(["check", "check", "acquire", "reserve"]) if limit.unit != "slots" else "reserve"
    before = time.monotonic()
    note("asked", limit.name, cost, before)
    try:
        if verb == "check":
            decision = await obs.rate_limiter.check(limit, None, cost)
            note("yes" if decision else "no", limit.name, cost, before)
        elif verb == "acquire":
            await obs.rate_limiter.acquire(limit, None, cost, timeout=0.3)
            note("yes", limit.name, cost, before)
        else:
            held = await obs.rate_limiter.reserve(limit, None, cost, lease=1.0)
            if limit.unit == "slots":
                note("held", limit.name, cost, before)
                await asyncio.sleep(random.random() * 0.1)
                note("freed", limit.name, cost, before)
                await held.settle()
            else:
                await asyncio.sleep(random.random() * 0.02)
                used = random.randint(0, cost)
                # Nobody may see it before it is told, so that a loss in between is counted as one.
                await held.settle(used)
                note("yes" if used else "no", limit.name, used, before)
    except RateLimitExceeded:
        note("no", limit.name, cost, before)
    except StoreError:
        note("unknown", limit.name, cost, before)


async def caller(obs):
    while time.monotonic() < ends:
        work = asyncio.create_task(once(obs, random.choice(LIMITS)))
        if random.random() < 0.1:
            await asyncio.sleep(random.random() * 0.003)
            work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await asyncio.sleep(random.random() * 0.01)


async def main():
    global ends
    async with Observatory("chaos", redis_url=url, namespace=namespace) as obs:
        await obs.ready()
        print("ready", flush=True)
        ends = float(await asyncio.to_thread(sys.stdin.readline))
        await asyncio.gather(*[caller(obs) for _ in range(8)])

asyncio.run(main())
"""

FAST = {"name": "fast", "amount": 300, "per": 1, "burst": 50, "unit": "units"}
WINDOW = {"name": "window", "amount": 150, "per": 1, "unit": "units", "algorithm": "sliding_window"}
BUDGET = {"name": "budget", "amount": 5000, "per": "10000d", "unit": "units"}
SLOTS = {"name": "slots", "amount": 5, "unit": "slots"}


async def test_histories_of_eight_processes_under_fire(
    obs: Observatory, server: Server, namespace: str, tmp_path: Path
) -> None:
    """SCRIPT FLUSH, CLIENT KILL, SIGSTOP, SIGKILL, cancelled tasks: never one more than the limit; what is lost is counted."""
    limits = json.dumps([FAST, WINDOW, BUDGET, SLOTS])
    paths = [tmp_path / f"history-{number}" for number in range(PROCESSES)]
    running = [
        process(["-c", CALLER, server.url, namespace, str(path), str(number), limits]) for number, path in enumerate(paths)
    ]
    callers = [one.__enter__() for one in running]
    try:
        for one in callers:
            assert one.stdout is not None
            assert await asyncio.to_thread(one.stdout.readline) == "ready\n"
        ends = time.monotonic() + SECONDS
        for one in callers:
            assert one.stdin is not None
            one.stdin.write(f"{ends}\n")
            one.stdin.flush()
        killed = await stir(obs, callers, ends)
        for one in callers[killed:]:
            assert await asyncio.to_thread(one.wait, 20) == 0, one.stderr.read() if one.stderr else ""
    finally:
        for context in running:
            context.__exit__(None, None, None)
    history = [json.loads(line) for path in paths for line in path.read_text().splitlines() if line.endswith("}")]
    assert killed
    by_limit: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in history:
        by_limit[line["limit"]].append(line)
    assert_within(by_limit["fast"], capacity=50, rate=300)
    assert_within(by_limit["window"], capacity=300, rate=150)
    assert_slots(by_limit["slots"], 5)
    await assert_conserved(obs, by_limit["budget"])


async def stir(obs: Observatory, callers: list[Any], ends: float) -> int:
    """What may go wrong, goes wrong. Returns how many were killed: the first ones."""
    chance = random.Random(7)
    killed = 0
    while time.monotonic() < ends:
        await asyncio.sleep(0.4)
        match chance.randrange(4):
            case 0:
                await obs.store.command("SCRIPT", "FLUSH")
            case 1:
                await obs.store.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            case 2:
                victim = chance.choice(callers)
                victim.send_signal(signal.SIGSTOP)
                await asyncio.sleep(0.15)
                victim.send_signal(signal.SIGCONT)
            case 3 if killed < 3:
                callers[killed].send_signal(signal.SIGKILL)
                killed += 1
    return killed


def assert_within(history: list[dict[str, Any]], *, capacity: int, rate: int) -> None:
    """Over every interval: what was certainly admitted inside it is at most capacity + rate * its length.

    What was held and settled is counted with what it used in the end. Of a sliding window of two counters the capacity is twice
    its amount: that is what the weighted count of the window before can let through.
    """
    admitted = sorted((line for line in history if line["kind"] == "yes"), key=lambda line: line["after"])
    assert len(admitted) > 200
    for first in sorted(admitted, key=lambda line: line["before"])[::5]:
        begins, total = first["before"], 0
        for line in admitted:
            if line["before"] >= begins:
                total += line["cost"]
                assert total <= capacity + rate * (line["after"] - begins) + 1


def assert_slots(history: list[dict[str, Any]], slots: int) -> None:
    """Never more holders at once than slots, each counted from when it knew until before it let go, or its lease was over."""
    ends = {(line["before"], line["cost"]): line["after"] for line in history if line["kind"] == "freed"}
    moments = []
    for line in history:
        if line["kind"] == "held":
            over = min(ends.get((line["before"], line["cost"]), line["after"]), line["before"] + 1.0)
            if over > line["after"]:
                moments += [(line["after"], 1), (over, -1)]
    holders = 0
    assert len(moments) > 50
    for _, change in sorted(moments):
        holders += change
        assert holders <= slots


async def assert_conserved(obs: Observatory, history: list[dict[str, Any]]) -> None:
    """What is gone from a budget that does not grow back is what was admitted, and at most what was asked without an answer."""
    await asyncio.sleep(1.2)
    limit = Limit(**BUDGET, on_store_down="closed")  # type: ignore[arg-type]
    gone = 0
    for _ in range(20):
        gone = 5000 - int((await obs.rate_limiter.peek(limit)).remaining)
    answered = {(line["before"], line["cost"]) for line in history if line["kind"] in ("yes", "no")}
    yes = sum(line["cost"] for line in history if line["kind"] == "yes")
    told = {line["before"] for line in history if line["kind"] in ("yes", "no")}
    unanswered = sum(line["cost"] for line in history if line["kind"] == "asked" and line["before"] not in told)
    assert answered
    assert yes <= gone <= yes + unanswered, (yes, gone, unanswered)
    assert gone < 5000 or yes + unanswered >= 5000
