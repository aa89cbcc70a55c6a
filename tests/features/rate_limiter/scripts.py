"""The limiter's scripts by hand: a server, a moved clock, and nothing of the client between."""

import secrets
from typing import Any, NamedTuple

import msgspec
import redis

from observatory import Limit
from observatory.features.rate_limiter.shape import Shape, shape_of
from observatory.store.script import load

DECIDE, SETTLE, ADVANCE = (load(f"rate_limiter/{verb}") for verb in ("decide", "settle", "advance"))
START_US = 1_700_000_000_000_000
"""Long after the epoch, and not on the edge of any window."""


class Part(NamedTuple):
    """What decide says of one limit."""

    fits: int
    debt: int
    part: int
    wait_us: int
    plain: int


class Scripts:
    """One state after another on one server. known=2: the fence sleeps, unless a test wakes it."""

    def __init__(self, client: "redis.Redis", *, known: int = 2) -> None:
        self.client: Any = client
        self.known = known
        self.fence = f"{{r}}fence-{secrets.token_hex(6)}"

    def key(self) -> str:
        return f"{{r}}state-{secrets.token_hex(8)}"

    def read(self, key: str) -> str:
        """The state as it is kept."""
        text: Any = self.client.get(key)
        return str(text.decode())

    def _run(self, script: Any, keys: list[str], arguments: list[Any]) -> Any:
        try:
            return self.client.evalsha(script.sha, len(keys), *keys, *arguments)
        except redis.exceptions.NoScriptError:
            self.client.script_load(script.text)
            return self.client.evalsha(script.sha, len(keys), *keys, *arguments)

    def decide(
        self, now_us: int, verb: str, parts: list[tuple[Shape, str, int]], *, hold: str = "", lease_us: int = 0
    ) -> tuple[int, list[Part]]:
        """One request over (shape, key, cost in units)."""
        (answer,) = self.batch(now_us, [(verb, parts, hold, lease_us)])
        return answer

    def batch(
        self, now_us: int, requests: list[tuple[str, list[tuple[Shape, str, int]], str, int]]
    ) -> list[tuple[int, list[Part]]]:
        shapes: list[Shape] = []
        keys: list[str] = []
        asked: list[Any] = []
        for verb, parts, hold, lease_us in requests:
            request: list[Any] = [verb, hold, lease_us]
            for shape, key, cost in parts:
                if shape not in shapes:
                    shapes.append(shape)
                fits = cost <= shape.capacity
                request += [shapes.index(shape) + 1, *(shape.time_of(cost) if fits else shape.above)]
                keys.append(key)
            asked.append(request)
        limits = b"[" + b",".join(shape.wire(now_us) for shape in shapes) + b"]"
        arguments = [now_us, self.known, limits, msgspec.json.encode(asked)]
        reply = self._run(DECIDE, [self.fence, *keys], arguments)
        flat, found = iter(reply[2:]), []
        for _, parts, _, _ in requests:
            status = next(flat)
            told = [Part(*(next(flat) for _ in Part._fields)) for _ in parts] if status >= 0 else []
            found.append((status, told))
        return found

    def settle(
        self,
        now_us: int,
        verb: str,
        shape: Shape,
        key: str,
        cost: int,
        *,
        hold: str = "",
        lease_us: int = 0,
        held: int = 0,
        opened_us: int = 0,
    ) -> list[int]:
        request = [verb, hold, lease_us, 1, *shape.time_of(cost), *shape.time_of(held), opened_us]
        limits = b"[" + shape.wire(now_us) + b"]"
        arguments = [now_us, self.known, limits, msgspec.json.encode([request])]
        return list(self._run(SETTLE, [self.fence, key], arguments)[2:])

    def advance(
        self, now_us: int, shape: Shape, key: str, owner: str, joins: list[Any] | None = None, leaves: list[str] | None = None
    ) -> list[Any]:
        """joins: (ticket, cost in units, class, weight, patience_us, lease_us)."""
        spelled = [[t, *shape.time_of(cost), c, w, "back", p, lease] for t, cost, c, w, p, lease in joins or []]
        limits = b"[" + shape.wire(now_us) + b"]"
        arguments = [now_us, self.known, limits, owner, msgspec.json.encode(spelled), msgspec.json.encode(leaves or [])]
        return list(self._run(ADVANCE, [self.fence, key], arguments))


def shape(*given: Any, **more: Any) -> Shape:
    """The shape of a limit."""
    return shape_of(Limit("l", *given, **more))
