"""Handlers of costs: reports and budgets. Money is a decimal string."""

from starlette.requests import Request

from ..costs import Budget, CostReport
from ..errors import InvalidArgument
from .table import Answer, Endpoint, State


def _checked(request: Request, known: tuple[tuple[str, str], ...]) -> None:
    names = [name for name, _ in known]
    if unknown := request.query_params.keys() - set(names):
        there = f"There are {', '.join(names)}" if names else "There are none"
        raise InvalidArgument(f"unknown parameter {min(unknown)!r:.40}", remedy=there)
    for name in request.query_params:
        if name != "by" and len(request.query_params.getlist(name)) > 1:
            raise InvalidArgument(f"{name} is there twice", remedy="Say it once")


async def report(state: State, request: Request) -> Answer:
    _checked(request, _REPORT)
    wanted = request.query_params
    latency = wanted.get("latency", "false")
    if latency not in ("true", "false"):
        raise InvalidArgument(f"latency must be true or false, got {latency!r:.40}")
    found = await state.obs.costs.report(
        by=",".join(wanted.getlist("by")) if "by" in wanted else "provider,model",
        where=wanted.get("where", ""),
        since=wanted.get("since"),
        until=wanted.get("until"),
        period=wanted.get("period"),
        timezone=wanted.get("timezone", "UTC"),
        latency=latency == "true",
    )
    return Answer(found)


async def budgets(state: State, request: Request) -> Answer:
    _checked(request, ())
    return Answer(await state.obs.costs.budgets())


_REPORT = (
    ("by", "labels to group by, separated by commas, or said again for each; default provider,model"),
    ("where", 'PromQL matchers: team="search",model=~"gpt-.*"'),
    ("since", 'RFC 3339, a date, or an age; default "7d"'),
    ("until", 'RFC 3339, a date, "now", or an age'),
    ("period", "in place of since and until: today, last-week, this-month, 2026-W47, 2026-11, 2026-11-16 …"),
    ("timezone", "of the period: Europe/Berlin; default UTC"),
    ("latency", "true: p50 and p95 of each row"),
)

TABLE: tuple[Endpoint, ...] = (
    Endpoint("GET", "/v1/costs", report, "What calls have cost", answer=CostReport, parameters=_REPORT),
    Endpoint(
        *("GET", "/v1/costs/budgets", budgets, "Limits that count usd, for everybody who is charged in them"),
        answer=list[Budget],
    ),
)
