"""The limiter's verbs over HTTP. A refusal is an answer: 429 is only ever about the caller's own limit."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from hashlib import sha256
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from .. import dimensions
from ..errors import InvalidArgument, RateLimitExceeded, StoreError
from ..features.rate_limiter import Decision, Reservation, Settlement
from ..overview import Explanation, explain, look
from . import body, settled
from .body import ClientDisconnect
from .schemas import (
    AcquireBody,
    CheckBody,
    HoldBody,
    LimitBody,
    RenewAnswer,
    RenewBody,
    ReserveAnswer,
    ReserveBody,
    ResetBody,
    SettleBody,
)
from .table import Answer, Endpoint, State

T = TypeVar("T")

NOTHING = "res_nothing"
"""The id of a reservation for which no limit applied: there is nothing to settle."""


async def check(state: State, request: Request) -> Answer:
    status = _deny_status(request)
    asked = await _read(state, request, CheckBody)
    return await _told(state, await state.obs.rate_limiter.check(asked.asked(), asked.who(), asked.costs()), status)


async def peek(state: State, request: Request) -> Answer:
    asked = await _read(state, request, CheckBody)
    cost = asked.costs()
    decision = await look(state.obs.rate_limiter, asked.asked(), asked.who(), tuple(cost) if isinstance(cost, dict) else ())
    return Answer(decision, 200, decision.headers())


async def acquire(state: State, request: Request) -> Answer:
    status = _deny_status(request)
    asked = await _read(state, request, AcquireBody)

    def work(timeout: float) -> Coroutine[Any, Any, Decision]:
        return state.obs.rate_limiter.acquire(asked.asked(), asked.who(), asked.costs(), timeout=timeout)

    try:
        decision = await _waited(state, request, asked, work)
    except RateLimitExceeded as error:
        return await _told(state, _refusal(error), status)
    return Answer(decision, 200, decision.headers())


async def reserve(state: State, request: Request) -> Answer:
    status = _deny_status(request)
    asked = await _read(state, request, ReserveBody)

    async def hold(timeout: float) -> Reservation:
        return await state.obs.rate_limiter.reserve(
            *(asked.asked(), asked.who(), asked.costs()), timeout=timeout, lease=asked.lease, id=_idempotency(request)
        )

    try:
        held = await _waited(state, request, asked, hold)
    except RateLimitExceeded as error:
        told = await _told(state, _refusal(error), status)
        return told._replace(value=ReserveAnswer(False, told.value))
    answer = ReserveAnswer(True, held.decision, held.id if held.wanted else NOTHING, held.expires_at, held.fence)
    return Answer(answer, 201, held.decision.headers())


async def settle(state: State, request: Request) -> Answer:
    asked = await _read(state, request, SettleBody)
    return Answer(await _ended(state, asked.id, asked.costs()))


async def cancel(state: State, request: Request) -> Answer:
    asked = await _read(state, request, HoldBody)
    return Answer(await _ended(state, asked.id, settled.CANCELLED))


async def _ended(state: State, token: str, actual: Any) -> Any:
    if token == NOTHING:
        return Settlement()
    return await settled.once(state.obs.store, token, state.obs.rate_limiter.reservation(token), actual)


async def renew(state: State, request: Request) -> Answer:
    asked = await _read(state, request, RenewBody)
    if asked.id == NOTHING:
        return Answer(RenewAnswer(asked.id, None))
    held = state.obs.rate_limiter.reservation(asked.id)
    await held.renew(asked.lease)
    return Answer(RenewAnswer(asked.id, held.expires_at))


async def reset(state: State, request: Request) -> Response:
    asked = await _read(state, request, ResetBody)
    await state.obs.rate_limiter.reset(asked.limit, {} if asked.identity is None else asked.identity)
    return Response(status_code=204)


async def limits(state: State, request: Request) -> Answer:
    return Answer([LimitBody(**msgspec.structs.asdict(limit)) for limit in state.obs.rate_limiter.limits()])


async def explained(state: State, request: Request) -> Answer:
    given = request.query_params
    units = [unit for said in given.getlist("unit") for unit in said.split(",") if unit]
    known = {name: value for name, value in given.multi_items() if name != "unit"}
    if len(known) + len(given.getlist("unit")) != len(given.multi_items()):
        raise InvalidArgument("a dimension is said twice")
    return Answer(explain(state.obs.rate_limiter.limits(), known, units))


# what the verbs share
async def _read(state: State, request: Request, kind: type[T]) -> T:
    return body.decode(await body.read(request, state.obs.settings.serve.max_body), kind)


def _deny_status(request: Request) -> int:
    said = request.query_params.get("deny_status", "200")
    if said not in ("200", "429"):
        raise InvalidArgument(f"deny_status must be 200 or 429, got {said!r:.20}")
    return int(said)


def _idempotency(request: Request) -> str | None:
    """The name of a hold: the same key, the same hold. Keys of any form are taken, as the draft has them or bare."""
    said = request.headers.get("idempotency-key")
    if said is None:
        return None
    key = said.strip().removeprefix('"').removesuffix('"')
    if not key or len(key) > 255:
        raise InvalidArgument(f"Idempotency-Key must have 1 to 255 characters, got {len(key)}")
    return "key-" + sha256(key.encode("latin-1", "replace")).hexdigest()[:40]


def _refusal(error: RateLimitExceeded) -> Decision:
    if not isinstance(error.decision, Decision):
        raise error
    return error.decision


async def _told(state: State, decision: Decision, denied: int) -> Answer:
    if not decision.allowed:
        # Counted before it is told: an instance that is killed in the next moment takes no refusal with it.
        with contextlib.suppress(StoreError):
            await state.obs.metrics.commit()
    return Answer(decision, 200 if decision.allowed else denied, decision.headers())


async def _waited(
    state: State, request: Request, asked: AcquireBody | ReserveBody, ask: Callable[[float], Coroutine[Any, Any, T]]
) -> T:
    """Wait in line among whom the identity belongs to.

    Who hangs up gives up: nothing is taken for who is not there. An instance on its way out lets nobody wait.
    """
    with dimensions.bound(**asked.dimensions()):
        working = asyncio.ensure_future(ask(0.0 if state.draining else asked.patience()))
        leaving = asyncio.ensure_future(request.receive())
        stopping = asyncio.ensure_future(state.stopping.wait())
        tasks = [working, leaving, *([] if state.draining else [stopping])]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            if leaving.done():
                raise ClientDisconnect
            working.cancel()
            await asyncio.wait({working})
            # It may have been admitted in that moment.
            return await ask(0.0) if working.cancelled() else working.result()
        finally:
            for task in (working, leaving, stopping):
                task.cancel()
            await asyncio.gather(working, leaving, stopping, return_exceptions=True)


_DENY = (("deny_status", "429: answer a refusal with this status"),)
_REFUSED = ((200, "refused: allowed=false"),)
_KEY = (("Idempotency-Key", "the same key is the same hold, and is taken once; 1 to 255 characters"),)
_ROOM = "/v1/rate_limiter"

TABLE: tuple[Endpoint, ...] = (
    Endpoint(
        *("POST", f"{_ROOM}/check", check, "Take now or be told when; a refusal is 200 with allowed=false"),
        body=CheckBody,
        answer=Decision,
        parameters=_DENY,
    ),
    Endpoint("POST", f"{_ROOM}/peek", peek, "Look without taking", body=CheckBody, answer=Decision),
    Endpoint(
        *("POST", f"{_ROOM}/acquire", acquire, "Stand in the fleet's line, at most a minute; then 200 with allowed=false"),
        body=AcquireBody,
        answer=Decision,
        parameters=_DENY,
    ),
    Endpoint(
        *("POST", f"{_ROOM}/reserve", reserve, "Hold an estimate until it is settled; a refusal is 200 with allowed=false"),
        body=ReserveBody,
        answer=ReserveAnswer,
        parameters=_DENY,
        headers=_KEY,
        status=201,
        also=_REFUSED,
    ),
    Endpoint("POST", f"{_ROOM}/settle", settle, "Record what was really used", body=SettleBody, answer=Settlement),
    Endpoint("POST", f"{_ROOM}/renew", renew, "Hold it longer, from now", body=RenewBody, answer=RenewAnswer),
    Endpoint("POST", f"{_ROOM}/cancel", cancel, "Nothing was used: give all back", body=HoldBody, answer=Settlement),
    Endpoint("POST", f"{_ROOM}/reset", reset, "Forget what an identity has taken", body=ResetBody, status=204),
    Endpoint("GET", f"{_ROOM}/limits", limits, "The limits as they stand", answer=list[LimitBody]),
    Endpoint(
        *("GET", f"{_ROOM}/explain", explained, "Which limits a call of these dimensions meets, and why"),
        answer=list[Explanation],
        parameters=(("unit", "units that the call brings besides requests, separated by commas"),),
        others="the dimensions: user=ann&model=gpt-4o",
    ),
)
