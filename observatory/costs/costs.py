"""`obs.costs`: what the fleet's calls have cost, by whatever they carry."""

from collections.abc import Callable, Sequence
from decimal import Decimal

from ..clock import RoomClock
from ..features.metrics.query import quantile
from ..features.rate_limiter import Limit
from ..llm import Prices
from ..names import OVERFLOW
from ..store.store import Store
from ..types import Moment
from ..units import amount, moment
from .asking import OWN, Numbers, Where, ask, span_of
from .budgets import Budget, budgets
from .pricing import ModelPrice, WhatIf, model_prices, what_if
from .report import CostReport, CostRow


class Costs:
    """Asks what the metrics have counted: whoever has recorded it, wherever. StoreUnavailable: ask again.

    What is less than metrics.flush_every old may not be there yet; while calls are being made, the columns of the window that
    is under way may be a flush apart.
    """

    def __init__(
        self,
        store: Callable[[], Store],
        clock: RoomClock,
        *,
        dimensions: Callable[[], Sequence[str]],
        limits: Callable[[], Sequence[Limit]],
        prices: Callable[[], Prices],
    ) -> None:
        self._store = store
        self._clock = clock
        self._dimensions = dimensions
        self._limits = limits
        self._prices = prices

    @staticmethod
    def _now_us(store: Store) -> int:
        """The server's, by which metrics are kept, whatever clock the limits go by."""
        return store.server_us() or 0

    async def report(
        self,
        *,
        by: str | Sequence[str] = OWN,
        where: Where = "",
        since: Moment | None = None,
        until: Moment | None = None,
        period: str | None = None,
        timezone: str = "UTC",
        latency: bool = False,
    ) -> CostReport:
        """Calls, tokens and dollars of a time, by provider, model and the labels of metrics.dimensions.

        where: {"team": "search"} or PromQL matchers. since, until: by default the last 7 days; rounded outwards to whole
        windows of what is kept of `since` (10 s for 2 h, minutes for 25 h, hours for 90 d, days for 2 y); the report says
        to what.
        period, in place of them: "today" "yesterday" "this-week" "last-week" "this-month" "last-month" "2026-W47" "2026-11"
        "2026-11-16", in `timezone`, never rounded: InvalidArgument where its ends fall into what is kept as one.
        latency: p50 and p95 of each row too.
        """
        store = self._store()
        span = span_of(since, until, period, timezone, self._now_us(store))
        labels, found = await ask(store, span, by, where, self._dimensions(), latency=latency)
        rows = [
            _row({name: value for name, value in zip(labels, group, strict=True) if value}, numbers)
            for table in found.groups.values()
            for group, numbers in table.items()
            # Of refusals alone there is nothing to tell.
            if numbers.calls or numbers.nano or numbers.input or numbers.output
        ]
        if found.folded.calls and not where:
            rows.append(_row({OVERFLOW: "true"}, found.folded))
        rows.sort(key=lambda row: (-row.cost_usd, -row.calls, tuple(row.group.items())))
        return CostReport(
            *(moment(span.since_us), moment(span.until_us), labels, tuple(rows)),
            total_usd=_exact(sum((row.cost_usd for row in rows), Decimal(0))),
            calls=sum(row.calls for row in rows),
            input_tokens=sum(row.input_tokens for row in rows),
            output_tokens=sum(row.output_tokens for row in rows),
            unpriced_calls=sum(row.unpriced_calls for row in rows),
            estimated_calls=sum(row.estimated_calls for row in rows),
            folded_calls=found.folded.calls,
        )

    async def what_if(
        self,
        *,
        model: str,
        instead_of: str,
        since: Moment | None = None,
        until: Moment | None = None,
        period: str | None = None,
    ) -> WhatIf:
        """What the calls of one model would have cost at another's price, at the time when they were made.

        "PROVIDER/MODEL", or of `instead_of` a model alone: of all its providers. Only sums of tokens are known: `unknown` says
        what could not be taken into account. what_if_usd None: there is no price for it.
        """
        store = self._store()
        return await what_if(store, self._prices(), model, instead_of, since, until, period, self._now_us(store))

    async def prices(self, *, since: Moment | None = None) -> tuple[ModelPrice, ...]:
        """The models called lately (30 days), what a million of their tokens costs now as far as this process knows, and how
        many of their calls had no price when they were made."""
        store = self._store()
        return await model_prices(store, self._prices(), "30d" if since is None else since, self._now_us(store))

    async def budgets(self) -> tuple[Budget, ...]:
        """Every limit that counts usd, for every identity that is charged in it now, the fullest first.

        Limits are those known here, and those that processes of the fleet have charged in the last two months. Of identities
        the fleet remembers the 10,000 that were charged last.
        """
        store = self._store()
        return await budgets(store, self._clock, self._limits())


def _exact(dollars: Decimal) -> Decimal:
    found = amount(int(dollars.scaleb(9)), "usd")
    return Decimal(found)


def _row(group: dict[str, str], numbers: Numbers) -> CostRow:
    spread = numbers.latency
    return CostRow(
        *(group, numbers.calls, numbers.input, numbers.output, Decimal(amount(numbers.nano, "usd"))),
        *(numbers.unpriced, numbers.estimated),
        latency_p50=None if spread is None else quantile(spread, 0.5),
        latency_p95=None if spread is None else quantile(spread, 0.95),
    )
