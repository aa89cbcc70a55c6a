"""Charts on a terminal: what is known is drawn where it belongs, what is not is a gap."""

import asyncio
import subprocess
import time

from observatory import Observatory
from observatory.features.metrics.waiting import Group
from observatory.features.metrics.wire import Batch
from observatory.keys import WINDOW_US
from observatory.names import Definition
from tests.conftest import Open
from tests.servers import Server, command, environment


async def test_points_are_drawn_in_their_place(opening: Open, server: Server, namespace: str) -> None:
    """Ten minutes: a rise, a gap of three, a value below; one line in the table, eight with --plot."""
    obs: Observatory = await opening()
    minute = time.time_ns() // 1000 // WINDOW_US // 6
    for ago, number in ((9, 1), (8, 4), (7, 8), (3, 8), (2, 2)):
        group = Group("test_total", Definition("counter"), [('w|model="m"', number)])
        obs.metrics._outbox.put(Batch((minute - ago) * 6 * WINDOW_US, (group,), None))
    await obs.flush()
    env = environment(OBSERVATORY_REDIS_URL=server.url, OBSERVATORY_NAMESPACE=namespace, COLUMNS="200")
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime((minute - 9) * 60))
    until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime((minute - 1) * 60))
    asked = ["metrics", "query", "test_total", "--by", "model", "--step", "1m", "--since", since, "--until", until]

    def shown(*more: str) -> subprocess.CompletedProcess[str]:
        return command(*asked, *more, env=env)

    table = (await asyncio.to_thread(shown)).stdout.splitlines()
    assert table[0].split() == ["MODEL", "TOTAL"]
    assert table[1].endswith("▂▅█   █▃ 2")
    plot = (await asyncio.to_thread(shown, "--plot")).stdout.splitlines()
    assert plot[0] == "test_total total model=m"
    assert plot[1].rstrip() == "8 ┤  █   █"
    assert plot[8].rstrip() == "0 ┤███   ██"
    assert plot[9].split() == [f"└{since[5:10]}", since[11:19], until[5:10], until[11:19]]
    pointless = await asyncio.to_thread(lambda: command(*asked[:5], "--plot", env=env))
    assert pointless.returncode == 2
    assert "--step 1m" in pointless.stderr
