"""One handler per verb: read, ask the client, write; no thought of its own. One table, from which OpenAPI is made too."""

from starlette.requests import Request
from starlette.responses import Response

from ..errors import InvalidArgument, ObservatoryError, StoreError
from ..features.metrics import Result, openmetrics
from ..features.metrics.query import ALL_SERIES
from . import body, breakers, cache, costs, dead_letters, limiter
from .schemas import CheckAnswer, EventBody, EventsAnswer, ReadyAnswer, Rejected, event
from .table import Answer, Endpoint, State

MAX_EVENTS = 10_000
"""Events in one request."""


async def events(state: State, request: Request) -> Answer:
    raw = await body.read(request, state.obs.settings.serve.max_body)
    posted = body.items(raw, request.headers.get("content-type", ""))
    if len(posted) > MAX_EVENTS:
        raise InvalidArgument(f"at most {MAX_EVENTS} events at once, got {len(posted)}")
    now_us = state.obs.store.server_us() or 0
    good: list[tuple[str, bytes]] = []
    rejected: list[Rejected] = []
    for index, item in enumerate(posted):
        try:
            good.append(event(item, now_us))
        except ObservatoryError as error:
            rejected.append(Rejected(index, error.code, error.message))
    done = await state.obs.events.accept(good)
    answer = EventsAnswer(done.accepted, done.duplicates, rejected)
    # A caller who looks at the status only must not take "all of them were wrong" for success.
    return Answer(answer, 400 if rejected and not good else 202)


async def query(state: State, request: Request) -> Answer:
    wanted = request.query_params
    known = [name for name, _ in _QUERY]
    if unknown := wanted.keys() - set(known):
        raise InvalidArgument(f"unknown parameter {min(unknown)!r:.40}", remedy=f"There are {', '.join(known)}")
    if "metric" not in wanted:
        raise InvalidArgument("metric is missing", remedy="Add ?metric=observatory_requests_total")
    found = await state.obs.metrics.query(
        wanted["metric"],
        wanted.get("stat", "total"),
        by=wanted.get("by", ""),
        where=wanted.get("where", ""),
        since=wanted.get("since", "1h"),
        until=wanted.get("until", "now"),
        step=_seconds(wanted.get("step")),
        top=_whole(wanted.get("top")),
    )
    return Answer(found)


def _seconds(text: str | None) -> float | None:
    from .. import units

    if text is None:
        return None
    return units.seconds(text, "step")


def _whole(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdecimal() or not 0 < int(text[:10]) < 10**9:
        raise InvalidArgument(f"top must be a whole number from 1 to 999999999, got {text!r:.20}", remedy=ALL_SERIES)
    return int(text)


async def metrics(state: State, request: Request) -> Response:
    scope = request.query_params.get("scope", "fleet")
    if scope not in ("fleet", "instance"):
        raise InvalidArgument(f"scope must be fleet or instance, got {scope!r:.40}")
    form = openmetrics.wanted(",".join(request.headers.getlist("accept")))
    text = await state.obs.metrics.exposition(form=form, scope="instance" if scope == "instance" else "fleet")
    return Response(text, headers={"content-type": openmetrics.MEDIA_TYPES[form], "vary": "Accept"})


async def live(state: State, request: Request) -> Answer:
    return Answer({"status": "ok"})


async def ready(state: State, request: Request) -> Answer:
    checks = []
    try:
        await state.obs.ready(timeout=1.0)
        checks.append(CheckAnswer("redis", "ok"))
    except StoreError as error:
        checks.append(CheckAnswer("redis", "fail", error.message))
    if state.draining:
        checks.append(CheckAnswer("draining", "fail", "this instance is stopping"))
    down = any(one.status == "fail" for one in checks)
    status = "draining" if state.draining else "unavailable" if down else "ok"
    return Answer(ReadyAnswer(status, checks), 503 if down else 200)


_QUERY = (
    ("metric", "name of the metric"),
    ("stat", "total, rate; count, sum, avg, p50 … p99.9; sum, avg, min, max, last of gauges"),
    ("by", "labels to group by, separated by commas"),
    ("where", 'PromQL matchers: model=~"gpt-.*",tenant!="acme"'),
    ("since", 'RFC 3339, a date, or an age such as "1h"'),
    ("until", 'RFC 3339, a date, "now", or an age'),
    ("step", "seconds between points; none: one value per series"),
    ("top", "only the largest so many"),
)

_SCOPE = (("scope", "fleet (the default), or instance: what this process has recorded since it started"),)
_ACCEPT = (("accept", "application/openmetrics-text for OpenMetrics 1.0; else text format 0.0.4"),)

TABLE: tuple[Endpoint, ...] = (
    *limiter.TABLE,
    *cache.TABLE,
    *dead_letters.TABLE,
    *breakers.TABLE,
    *costs.TABLE,
    Endpoint(
        *("POST", "/v1/events", events, "Hand in events: JSON array, NDJSON or msgpack; each id counts once"),
        body=EventBody,
        many=MAX_EVENTS,
        answer=EventsAnswer,
        status=202,
    ),
    Endpoint("GET", "/v1/metrics/query", query, "What the fleet has recorded", answer=Result, parameters=_QUERY),
    Endpoint("GET", "/metrics", metrics, "The fleet's lifetime totals, for Prometheus", parameters=_SCOPE, headers=_ACCEPT),
    Endpoint("GET", "/healthz", live, "This process runs"),
    Endpoint("GET", "/livez", live, "This process runs"),
    Endpoint("GET", "/readyz", ready, "503 while the store is away, or this instance is stopping", answer=ReadyAnswer),
)
