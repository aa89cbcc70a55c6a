"""A forked child is a process of its own: it shares no identity, no unflushed number and no connection with its parent."""

from tests.conftest import Open
from tests.servers import Server, environment, process

FORKING = """
import asyncio, os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork with threads; that is what is tested here
from observatory import Limit, Observatory

obs = Observatory("fork", redis_url=sys.argv[1], namespace=sys.argv[2])
limit = Limit("forked", 1000, per="1h")

def record(times):
    for _ in range(times):
        obs.metrics.increment_counter("test_forked_total")
        obs.record_request("p", "m", latency=0.1)

async def child():
    record(10)
    async with obs:
        record(10)
        assert await obs.rate_limiter.check(limit)
        record(10)

async def parent():
    async with obs:
        record(7)
        before = obs.instance
        assert await obs.rate_limiter.check(limit)
        children = []
        for _ in range(4):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    assert obs.instance != before, "a child has a name of its own"
                    assert not obs.is_open
                    asyncio.run(child())
                    code = 0
                except BaseException as error:
                    print(repr(error), file=sys.stderr, flush=True)
                finally:
                    os._exit(code)
            children.append(pid)
        for pid in children:
            _, status = await asyncio.to_thread(os.waitpid, pid, 0)
            assert status == 0, status
        assert (await obs.rate_limiter.check(limit)).remaining == 1000 - 6
        record(3)
asyncio.run(parent())
"""


async def test_four_forked_recorders_of_thirty_count_120(opening: Open, server: Server, namespace: str) -> None:
    """Beside the parent's ten, of which a part lay unflushed when it forked; and the parent's connection still works."""
    with process(["-c", FORKING, server.url, namespace], environment()) as one:
        out, said = one.communicate(timeout=60)
    assert one.returncode == 0, out + said
    assert "Warning" not in said, said
    obs = await opening()
    assert (await obs.metrics.query("test_forked_total")).value == 4 * 30 + 10
    assert (await obs.metrics.query("observatory_requests_total")).value == 4 * 30 + 10
    assert (await obs.events.lag())["accepted"] == 4 * 30 + 10
