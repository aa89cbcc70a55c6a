"""What nobody should learn from an invoice, or by waiting: no price, no max_tokens, no room, no such option."""

import contextlib
import logging
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import openai
import pytest

from observatory import AnswerCache, Fallback, InvalidArgument, Limit, Observatory, Price
from observatory.settings import Settings
from tests.conftest import Open
from tests.llm.guarded import asking, document, sdk, settled
from tests.llm.observed import closing, total
from tests.llm.replay import Provider, provider

BUDGET = Limit("budget", Decimal("0.01"), per="month", unit="usd", match="*", alert_at=(0.5, 1.0))


@pytest.fixture
async def there() -> AsyncIterator[Provider]:
    async with provider() as one:
        one.says = lambda _: document()
        yield one


async def test_a_model_without_a_price_is_spoken_of_once(
    obs: Observatory, there: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    """Where a budget meets it; where none does, nobody minds."""
    caplog.set_level(logging.WARNING, logger="observatory")
    client = sdk(obs, there)
    async with closing(client):
        await asking(client, model="gpt-9-internal")
        assert "has no price" not in caplog.text
        obs.rate_limiter.define(BUDGET)
        for _ in range(3):
            await asking(client, model="gpt-9-internal")
    assert caplog.text.count("openai/gpt-9-internal has no price: its calls cost budget nothing") == 1


async def test_a_model_without_a_price_is_refused(opening: Open, there: Provider) -> None:
    """Where that is asked for: a sentence, and not sent; with a price it is let in."""
    obs = await opening(settings=Settings.load(None, environ={}, llm_unpriced="refuse"))
    client = sdk(obs, there)
    async with closing(client):
        await asking(client, model="gpt-9-internal")
        obs.rate_limiter.define(BUDGET)
        with pytest.raises(openai.BadRequestError) as refused:
            await asking(client, model="gpt-9-internal")
        assert "openai/gpt-9-internal has no price, and budget counts dollars" in str(refused.value)
        assert len(there.requests) == 1
        obs.llm.prices.set("openai/gpt-9-internal", Price(input=1, output=1))
        await asking(client, model="gpt-9-internal")


async def test_who_is_cut_off_by_a_budget_is_told_of(obs: Observatory, there: Provider) -> None:
    """The last call that fits leaves some cents: the alert at 1.0 comes with the first that does not."""
    obs.rate_limiter.define(BUDGET)
    obs.llm.prices.set("openai/m", Price(input=100, output=100))
    client = sdk(obs, there)
    async with closing(client):
        with contextlib.suppress(openai.RateLimitError):
            for _ in range(100):
                await asking(client, model="m", max_tokens=20)
                await settled(obs)
    budget = await obs.rate_limiter.peek("budget")
    assert 0 < budget.remaining < Decimal("0.004"), "not all is used"
    await obs.rate_limiter.aclose()
    assert await total(obs, "observatory_limit_alerts_total", limit="budget", fraction="1") == 1


async def test_what_an_unknown_model_may_say(opening: Open, there: Provider) -> None:
    """The first guess is a setting: held until the answer is there."""
    obs = await opening(settings=Settings.load(None, environ={}, llm_output_tokens=5000))
    obs.rate_limiter.define(Limit("tokens", 100_000, per="day", unit="tokens", match="*"))
    held: list[Any] = []

    async def gate(_: int) -> None:
        held.append((await obs.rate_limiter.peek("tokens")).remaining)

    there.gate = gate
    client = sdk(obs, there)
    async with closing(client):
        await asking(client)
        await settled(obs)
        await asking(client)
    assert held[0] < 95_000
    assert held[-1] > 99_000, "and what this model said is the next one"


@pytest.mark.parametrize("wait", [0, 0.05, 0.2])
async def test_a_line_that_is_too_long_is_left_to_the_sdk(obs: Observatory, there: Provider, wait: float) -> None:
    """Refused at once, whatever its patience: it has stood in no line, and may come again."""
    obs.rate_limiter.define(Limit("few", 1, per=3, burst=1, match="*"))
    client = sdk(obs, there, retries=0, wait=wait)
    async with closing(client):
        await asking(client)
        with pytest.raises(openai.RateLimitError) as refused:
            await asking(client)
    assert "x-should-retry" not in refused.value.response.headers
    assert "observatory: limit few" in str(refused.value), "and not the provider"


async def test_a_slot_is_asked_for_again_soon(obs: Observatory, there: Provider) -> None:
    """Nobody knows when it is let go; its lease is a minute."""
    obs.rate_limiter.define(Limit("one", 1, unit="slots", match="*"))
    client = sdk(obs, there)
    async with closing(client), obs.rate_limiter.reserve("one"):
        with pytest.raises(openai.RateLimitError) as refused:
            await asking(client)
    assert refused.value.response.headers["retry-after"] == "1"


async def test_a_fallback_of_another_protocol_is_spoken_of(
    obs: Observatory, there: Provider, caplog: pytest.LogCaptureFixture
) -> None:
    """Once; and a list that can be for nobody is refused."""
    caplog.set_level(logging.WARNING, logger="observatory")
    stranger = Fallback(base_url="https://api.anthropic.com", api_key="k")
    http = obs.llm.http_client(fallbacks=[stranger], trust_env=False)
    client = openai.AsyncOpenAI(api_key="k", base_url=f"{there.url}/v1", http_client=http)
    async with closing(client):
        for _ in range(2):
            await asking(client)
    assert caplog.text.count("https://api.anthropic.com speaks another protocol") == 1
    with pytest.raises(InvalidArgument, match="one protocol"):
        obs.llm.http_client(fallbacks=[Fallback(base_url="https://api.groq.com/openai/v1", api_key="k"), stranger])


async def test_options_that_nobody_has(obs: Observatory) -> None:
    with pytest.raises(InvalidArgument, match=r"no option wiat, did you mean wait\?"):
        obs.llm.http_client(wiat=3)
    with pytest.raises(InvalidArgument, match=r"^tokens must be"):
        obs.llm.guard("vllm", "m", tokens=-5)
    with pytest.raises(InvalidArgument, match="cache must be"):
        obs.llm.http_client(cache=AnswerCache)  # type: ignore[call-overload]
