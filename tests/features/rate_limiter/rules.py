"""What the tests of the scripts' rules share: limits, what is written at a key, and the verbs in short."""

from typing import Any

import msgspec

from observatory.features.rate_limiter.shape import Shape
from tests.features.rate_limiter.scripts import DECIDE, Scripts, shape

S = 1_000_000
HOUR_MS, MINUTE_MS = 3_720_000, 60_000
SECONDS = shape(100, 100)
"""A bucket whose unit is a second of debt."""
SLOTS = shape(3, unit="slots")


class State:
    """What is written at a key, by its fields."""

    def __init__(self, scripts: Scripts, key: str) -> None:
        text = (scripts.client.get(key) or b"").decode()
        first, rest = text.split(",")[:4], text.split(",")[4:]
        self.debt, self.second, self.third, self.moment = map(int, first)
        self.more = bool(rest)
        numbers = [int(one) for one in rest[:5]] or [0] * 5
        self.reap_at, self.line_until, self.queued, self.leased_until, self.lease = numbers
        self.held, self.share, self.era = map(int, rest[5:8]) if rest else (0, 0, 0)
        self.ttl_ms = scripts.client.pttl(key)


def put(scripts: Scripts, key: str, text: str) -> None:
    scripts.client.set(key, text, px=HOUR_MS)


def fence_at(scripts: Scripts, since_us: int) -> None:
    """This server was found to have been restarted at that moment."""
    scripts.known = 1
    history = scripts.client.info("replication")["master_replid"]
    scripts.client.set(scripts.fence, f"{history},{scripts.client.info('server')['run_id']},{since_us}")


def ask(scripts: Scripts, now_us: int, limits: list[list[Any]], requests: list[list[Any]], keys: list[str]) -> list[Any]:
    """decide, with limits as the scripts take them."""
    arguments = [now_us, scripts.known, msgspec.json.encode(limits), msgspec.json.encode(requests)]
    return list(scripts._run(DECIDE, [scripts.fence, *keys], arguments))


def look(scripts: Scripts, now_us: int, limit: Shape, key: str, cost: int = 0) -> Any:
    (_, (part,)) = scripts.decide(now_us, "look", [(limit, key, cost)])
    return part


def take(scripts: Scripts, now_us: int, limit: Shape, key: str, cost: int) -> int:
    return scripts.decide(now_us, "take", [(limit, key, cost)])[0]


def hold(scripts: Scripts, now_us: int, limit: Shape, key: str, cost: int, name: str, lease_us: int = 60 * S) -> int:
    return scripts.decide(now_us, "hold", [(limit, key, cost)], hold=name, lease_us=lease_us)[0]
