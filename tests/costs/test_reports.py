"""Reports: every billionth of what was recorded, by whoever, in the period in which it was recorded, and no other."""

import asyncio
import csv
import io
import json
import random
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from observatory import InvalidArgument, Observatory, Usage
from observatory.costs import CostReport
from observatory.llm import CallData
from observatory.names import OVERFLOW, UNPRICED_CALLS, Metric
from observatory.settings import Settings
from tests.conftest import Open
from tests.costs.hand import DAY_US, present_us, put, spend, stands_at, zone_with_midnight
from tests.servers import Server, environment, process

HOUR_US = 3_600_000_000
TEAMS = Settings.load(metrics_dimensions="team", environ={})

PROGRAM = """
import asyncio, json, random, sys
from decimal import Decimal
from observatory import Observatory, Usage

async def main(seed):
    dice, told = random.Random(seed), {}
    async with Observatory("spender") as obs:
        for _ in range(300):
            model, team = dice.choice("ab"), dice.choice(("search", "support"))
            nano = dice.choice((1, 7, 10**9 - 1, dice.randrange(10**12), None))
            usage = Usage(dice.randrange(1000), dice.randrange(1000))
            cost = None if nano is None else Decimal(nano).scaleb(-9)
            obs.record_request("openai", model, latency=0.1, tokens=usage, cost_usd=cost, dimensions={"team": team})
            one = told.setdefault(f"{model} {team}", [0, 0, 0, 0, 0])
            for at, number in enumerate((1, usage.input_tokens, usage.output_tokens, nano or 0, nano is None)):
                one[at] += number
    print(json.dumps(told))

asyncio.run(main(int(sys.argv[1])))
"""


def rows(report: CostReport) -> dict[tuple[str, ...], Any]:
    return {tuple(row.group.get(name, "–") for name in report.by): row for row in report.rows}


async def test_sums_are_those_of_four_processes(opening: Open, server: Server, namespace: str) -> None:
    """Random costs from a billionth to a thousand dollars: the report has exactly their sums, by group and in all."""
    env = environment(OBSERVATORY_REDIS_URL=server.url, OBSERVATORY_NAMESPACE=namespace, OBSERVATORY_METRICS_DIMENSIONS="team")
    expected: dict[tuple[str, ...], list[int]] = {}
    running = [process(["-c", PROGRAM, str(seed)], env) for seed in range(4)]
    for context in running:
        with context as one:
            told, errors = await asyncio.to_thread(one.communicate, timeout=60)
        assert one.returncode == 0, errors
        for group, numbers in json.loads(told).items():
            sums = expected.setdefault(tuple(group.split()), [0] * 5)
            expected[tuple(group.split())] = [a + b for a, b in zip(sums, numbers, strict=True)]
    obs = await opening()
    # No setting here says so: the labels are those that the calls carry.
    report = await obs.costs.report(by="model,team", since="1h")
    found = {
        group: [row.calls, row.input_tokens, row.output_tokens, int(row.cost_usd.scaleb(9)), row.unpriced_calls]
        for group, row in rows(report).items()
    }
    assert found == expected
    totals = [sum(column) for column in zip(*expected.values(), strict=True)]
    assert totals == [
        *(report.calls, report.input_tokens, report.output_tokens),
        *(int(report.total_usd.scaleb(9)), report.unpriced_calls),
    ]
    assert [row.cost_usd for row in report.rows] == sorted((row.cost_usd for row in report.rows), reverse=True)
    some = await obs.costs.report(by="model", where='team="search",model=~"[a]"', since="1h")
    assert [int(row.cost_usd.scaleb(9)) for row in some.rows] == [expected["a", "search"][3]]


async def test_a_period_ends_to_the_window(opening: Open) -> None:
    """Calls in every 10 s around a midnight, and at random: today and yesterday have each exactly its own; rolled up or not,
    now, three days later and a hundred."""
    obs = await opening()
    now, dice = present_us(), random.Random(5)
    zone = zone_with_midnight(3, now)
    midnight = now - now % HOUR_US - 3 * HOUR_US
    # A day has whole hours of data behind its midnight, and those before it.
    moments = [midnight + step * 10_000_000 for step in range(-3, 3)]
    moments += [dice.randrange(now - 20 * HOUR_US, now - 60_000_000) for _ in range(60)]
    spent = {at: dice.randrange(1, 10**10) for at in moments}
    for at, nano in spent.items():
        await spend(obs, at, nano)

    def sums(since: int, until: int) -> int:
        return sum(nano for at, nano in spent.items() if since <= at < until)

    async def asked(name: str, timezone: str = zone) -> int:
        return int((await obs.costs.report(period=name, timezone=timezone)).total_usd.scaleb(9))

    for _ in range(2):
        assert await asked("today") == sums(midnight, now)
        assert await asked("yesterday") == sums(midnight - DAY_US, midnight)
        await obs.metrics.compact()
    first = await obs.costs.report(period="today", timezone=zone)
    named = f"{first.since.astimezone(ZoneInfo(zone)):%Y-%m-%d}"
    assert int(first.since.timestamp() * 1e6) == midnight
    stands_at(obs, now + 3 * DAY_US)
    assert await asked(named) == sums(midnight, midnight + DAY_US)
    stands_at(obs, now + 100 * DAY_US)
    if zone != "UTC":
        with pytest.raises(InvalidArgument, match=r"nothing so fine is kept.*timezone=\"UTC\""):
            await asked(named)
    utc_midnight = now - now % DAY_US
    assert await asked(f"{(first.until):%Y-%m-%d}", "UTC") == sums(utc_midnight, utc_midnight + DAY_US)
    whole = await obs.costs.report(since="101d")
    assert int(whole.since.timestamp() * 1e6) % DAY_US == 0, "it says to what it was rounded"
    assert int(whole.total_usd.scaleb(9)) == sum(spent.values())


async def test_half_an_hour_is_refused_when_hours_are_kept(opening: Open) -> None:
    """In India a day begins at 18:30 UTC: exact while minutes are kept, and never silently another half hour."""
    obs = await opening()
    assert (await obs.costs.report(period="today", timezone="Asia/Kolkata")).since.minute == 30
    stands_at(obs, present_us())
    with pytest.raises(InvalidArgument, match=r"period last-week begins at .*:30Z"):
        await obs.costs.report(period="last-week", timezone="Asia/Kolkata")


async def test_what_has_no_price_and_what_was_estimated(opening: Open) -> None:
    """Beside the dollars, never in them; what was refused was no call."""
    obs = await opening(settings=TEAMS)
    obs.record_request("openai", "gpt", latency=0.5, tokens=Usage(10, 5), cost_usd=Decimal("0.000000001"))
    obs.record_request("vllm", "mine", latency=2.0, tokens=Usage(7, 3))
    estimated = CallData("openai", "gpt", latency=0.7, usage=Usage(1, 1), cost_usd=Decimal(1), estimated=True)
    obs._calls.put(estimated, 10**9, {"team": "search"})
    obs._calls.put(CallData("openai", "refused", status="refused"), None, {"team": "search"})
    await obs.flush()
    report = await obs.costs.report(by=("provider", "team"), since="1h", latency=True)
    found = rows(report)
    assert set(found) == {("openai", "–"), ("openai", "search"), ("vllm", "–")}
    one, other, mine = found["openai", "–"], found["openai", "search"], found["vllm", "–"]
    assert (one.calls, one.cost_usd, one.unpriced_calls, one.estimated_calls) == (1, Decimal("1E-9"), 0, 0)
    assert (other.calls, other.cost_usd, other.estimated_calls) == (1, 1, 1)
    assert (mine.calls, mine.cost_usd, mine.unpriced_calls) == (1, 0, 1)
    assert mine.latency_p50 == pytest.approx(2.0, rel=0.012)
    assert (report.unpriced_calls, report.estimated_calls, report.total_usd) == (1, 1, Decimal("1.000000001"))
    text = report.table()
    assert "1.000000001" in text
    assert "0.000000001" in text, "no E-9"
    assert "1 call has no price and is not in it" in text
    assert [line["provider"] for line in csv.DictReader(io.StringIO(report.csv()))] == ["openai", "openai", "vllm"]


async def test_wrong_questions(opening: Open) -> None:
    """Each names its field, and what to write instead."""
    obs = await opening(settings=TEAMS)
    for asked, said in (
        ({"by": "tema"}, r"^by: 'tema' is no label.*provider, model, team.*Did you mean \"team\".*dimensions = \[\"tema\"\]"),
        ({"by": ("model", "tenant")}, r"'tenant' is no label"),
        ({"where": {"tenant": "a"}}, r"^where: 'tenant' is no label"),
        ({"where": 'tenant="a"'}, r"'tenant' is no label"),
        ({"by": "status"}, r"'status' is no label"),
        ({"period": "last-year"}, r"'last-year' is no period.*last-week"),
        ({"period": "2026-W54"}, "is no period"),
        ({"period": "2026-02-30"}, "is no period"),
        ({"period": "2026-1"}, "is no period"),
        ({"period": 7}, "period must be a text"),
        ({"period": "today", "timezone": "Mars/Base"}, "timezone 'Mars/Base' is not known"),
        ({"period": "2026-11", "timezone": "../etc/passwd"}, "is not known"),
        ({"period": "today", "since": "1d"}, "in place of since and until"),
        ({"timezone": "Europe/Berlin"}, "timezone is of a period"),
        ({"period": "8000-01"}, "in the future"),
        ({"period": "2001-01"}, "at most 730 d ago"),
    ):
        with pytest.raises(InvalidArgument, match=f"(?s){said}"):
            await obs.costs.report(**asked)
    empty = await obs.costs.report(by="team", period="this-month")
    assert [empty.rows, empty.total_usd, empty.calls] == [(), 0, 0]


async def test_series_that_were_too_many(opening: Open) -> None:
    """They are in the total, and the report says that nobody knows whose they were; with `where` they are in no row."""
    obs = await opening(settings=Settings.load(metrics_max_series=6, environ={}))
    for number in range(10):
        obs.record_request("openai", f"m{number}", latency=0.1, tokens=1, cost_usd=1)
    await obs.flush()
    report = await obs.costs.report(by="model", since="1h")
    assert report.total_usd == report.calls == 10
    (folded,) = [row for row in report.rows if OVERFLOW in row.group]
    assert folded.calls == report.folded_calls > 0
    assert "(folded)" in report.table()
    some = await obs.costs.report(by="model", where='model="m0"', since="1h")
    assert (some.calls, some.folded_calls) == (1, report.folded_calls)
    assert "nobody knows whose" in some.table()


async def test_a_spreadsheet_believes_nothing(obs: Observatory) -> None:
    """A model may call itself what it likes, and a terminal or a spreadsheet obeys none of it."""
    await spend(obs, present_us(), 5, model="=HYPERLINK(1)\x1b[2J")
    report = await obs.costs.report(since="1h")
    assert "\x1b" not in report.table()
    assert list(csv.reader(io.StringIO(report.csv())))[1][1].startswith("'=HYPERLINK")


async def test_prices_of_what_was_called(obs: Observatory) -> None:
    """Those without a price come first; of the others it says which."""
    for model, unpriced in (("gpt-4o-mini", 0), ("mine", 3)):
        labels = {"provider": "openai", "model": model}
        await put(obs, present_us(), Metric.REQUESTS_TOTAL, 5, {**labels, "status": "success"})
        if unpriced:
            await put(obs, present_us(), UNPRICED_CALLS, unpriced, labels)
    mine, mini = await obs.costs.prices()
    assert (mine.model, mine.calls, mine.unpriced_calls, mine.input_usd) == ("mine", 5, 3, None)
    assert (mini.model, mini.unpriced_calls) == ("gpt-4o-mini", 0)
    assert mini.input_usd is not None
    assert 0 < mini.input_usd < 10
