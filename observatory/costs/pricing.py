"""Prices of what was used: of the models called lately, and of one model's tokens at another's price."""

import asyncio
from datetime import datetime
from decimal import Decimal
from fractions import Fraction

import msgspec

from ..errors import InvalidArgument
from ..features.metrics.blocks import LEVELS
from ..features.metrics.span import Span
from ..llm import Prices
from ..llm.rates import Rate, Rates, Steps
from ..store.store import Store
from ..types import Moment
from ..units import amount, moment, moment_us, shown
from .asking import Numbers, ask, span_of

_MILLION = 1_000_000
_AT_ONCE = 64
"""Prices looked up until the loop has its turn."""
_ALWAYS = ("cached, audio and reasoning tokens are priced as plain input and output: the metrics count them together",)


class ModelPrice(msgspec.Struct, frozen=True):
    """A model that was called, and its price now, as this process knows it."""

    provider: str
    model: str
    calls: int
    unpriced_calls: int
    """Those that had no price when they were made."""
    input_usd: Decimal | None
    """Of a million tokens, of the shortest inputs where it depends on their length. None: no price is known."""
    output_usd: Decimal | None


class WhatIf(msgspec.Struct, frozen=True):
    """One model's calls at another's price."""

    since: datetime
    until: datetime
    model: str
    instead_of: str
    calls: int
    input_tokens: int
    output_tokens: int
    cost_usd: Decimal
    """What they did cost, those that had a price,"""
    unpriced_calls: int
    """and how many had none."""
    what_if_usd: Decimal | None
    """None: there is no price for `model`, at some time or for some tenant."""
    unknown: tuple[str, ...]
    """What was not taken into account, because nobody knows it any more."""


async def what_if(
    store: Store,
    prices: Prices,
    model: str,
    instead_of: str,
    since: Moment | None,
    until: Moment | None,
    period: str | None,
    now_us: int,
) -> WhatIf:
    """See Costs.what_if."""
    provider, name = _named(model, "model")
    if not provider:
        raise InvalidArgument(f"model: {model!r:.80} does not say whose", remedy='Write it like "openai/gpt-4o-mini"')
    theirs, whose = _named(instead_of, "instead_of")
    span = span_of(since, until, period, "UTC", now_us)
    # As finely as is kept: a price may have changed in between.
    span = span._replace(step_us=_grain(span, now_us))
    # A tenant may have prices of its own; where calls carry no tenant, the group is that of nobody.
    where = {"model": whose, **({"provider": theirs} if theirs else {})}
    _, found = await ask(store, span, ("tenant",), where, ("tenant",))
    if theirs and not found.groups:
        # "meta-llama/llama-4" is a model of several providers, and no model of meta-llama's.
        _, found = await ask(store, span, ("tenant",), {"model": instead_of}, ("tenant",))
    # A third of a second, the first time.
    await asyncio.to_thread(prices.prepare)
    total, used, notes, known = Fraction(0), Numbers(), list(_ALWAYS), True
    for number, (at_us, tenant, numbers) in enumerate(
        (at, tenant, numbers) for at, table in sorted(found.groups.items()) for (tenant,), numbers in table.items()
    ):
        if number % _AT_ONCE == _AT_ONCE - 1:
            await asyncio.sleep(0)
        used.add(numbers)
        rates = prices.rates(provider, (name,), at_us=at_us, tenant=tenant or None)
        priced = None if rates is None else _priced(rates, numbers, notes)
        known = known and priced is not None
        total += priced or 0
    if not used.calls:
        notes.append(f"no calls of {shown(instead_of, 80)} were recorded in this time: is it spelled so?")
    if not found.groups:
        known = prices.rates(provider, (name,), at_us=now_us) is not None
    if found.folded.calls:
        notes.append(f"{found.folded.calls} calls of series that were too many (metrics.max_series) may be this model's")
    return WhatIf(
        *(moment(span.since_us), moment(span.until_us), model, instead_of, used.calls, used.input, used.output),
        *(Decimal(amount(used.nano, "usd")), used.unpriced),
        Decimal(amount(round(total / _MILLION), "usd")) if known else None,
        tuple(dict.fromkeys(notes)),
    )


def _grain(span: Span, now_us: int) -> int:
    """The length of the finest windows that are kept of a span."""
    return next((level for level in LEVELS if now_us - span.since_us <= level.keep_us), LEVELS[-1]).window_us


def _named(said: object, what: str) -> tuple[str, str]:
    """Provider ("" where it is not said) and model."""
    if not isinstance(said, str) or not said or said.startswith("/") or said.endswith("/"):
        raise InvalidArgument(f"{what}: {shown(said, 80)} is no model", remedy='Write it like "openai/gpt-4o-mini"')
    provider, slash, name = said.partition("/")
    return (provider, name) if slash else ("", said)


def _base(rate: Rate | Steps | None) -> Rate | None:
    return rate.below if isinstance(rate, Steps) else rate


def _priced(rates: Rates, numbers: Numbers, notes: list[str]) -> Fraction | None:
    if any(isinstance(rate, Steps) for rate in (rates.input, rates.output)):
        notes.append("long inputs cost more per token: how long each call's was is not known, all are priced as short ones")
    total = Fraction(0)
    for count, rate in (
        (numbers.input, _base(rates.input)),
        (numbers.output, _base(rates.output)),
        (numbers.calls, 0 if rates.request is None else _base(rates.request)),
    ):
        if count and rate is None:
            return None
        total += count * (rate or 0)
    return total


async def model_prices(store: Store, prices: Prices, since: Moment, now_us: int) -> tuple[ModelPrice, ...]:
    """See Costs.prices."""
    moment_us(since, now_us, "since")
    span = span_of(since, None, None, "UTC", now_us)
    _, found = await ask(store, span, ("provider", "model"), "", ())
    await asyncio.to_thread(prices.prepare)
    told = []
    for table in found.groups.values():
        for (provider, model), numbers in table.items():
            rates = prices.rates(provider, (model,), at_us=now_us)
            dollars = (None, None) if rates is None else (_dollars(rates.input), _dollars(rates.output))
            told.append(ModelPrice(provider, model, numbers.calls, numbers.unpriced, *dollars))
    return tuple(sorted(told, key=lambda one: (-one.unpriced_calls, -one.calls, one.provider, one.model)))


def _dollars(rate: Rate | Steps | None) -> Decimal | None:
    found = _base(rate)
    return None if found is None else Decimal(amount(round(found), "usd"))
