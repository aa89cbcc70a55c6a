"""What another model would have cost: at the price of its time and tenant, and what is not known is said."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from observatory import InvalidArgument, Observatory, Price, Usage
from observatory.names import Metric
from observatory.settings import Settings
from tests.conftest import Open
from tests.costs.hand import present_us, put, spend


async def tokens(obs: Observatory, at_us: int, number: int, kind: str, **labels: str) -> None:
    await put(obs, at_us, Metric.TOKENS_PROCESSED, number, {"provider": "openai", "model": "gpt", "type": kind, **labels})


async def test_priced_by_time_and_tenant(obs: Observatory) -> None:
    """A price that changed two hours ago, and a tenant with its own."""
    now = present_us()
    changed = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=2)
    obs.llm.prices.set("vllm/mine", Price(input=1, output=2), Price(input=3, output=4, from_=changed))
    obs.llm.prices.set("vllm/mine", Price(input=100, output=0, tenant="acme"))
    before = int(changed.timestamp() * 1e6) - 1_800_000_000
    await spend(obs, now, 5)
    for at, tenant in ((before, ""), (now, ""), (now, "acme")):
        labels = {"tenant": tenant} if tenant else {}
        await tokens(obs, at, 1_000_000, "input", **labels)
        await tokens(obs, at, 3, "output", **labels)
    found = await obs.costs.what_if(model="vllm/mine", instead_of="openai/gpt", since="20h")
    assert found.what_if_usd == Decimal(1) + Decimal(3) + Decimal(100) + Decimal(3 * 2 + 3 * 4) / 10**6
    assert (found.calls, found.input_tokens, found.output_tokens) == (1, 3_000_000, 9)
    assert found.cost_usd == Decimal("5E-9")
    assert any("cached, audio and reasoning" in note for note in found.unknown)
    assert (await obs.costs.what_if(model="vllm/mine", instead_of="gpt", since="20h")).what_if_usd == found.what_if_usd


async def test_without_a_price_nothing_is_said(obs: Observatory) -> None:
    """None, and no guess, also of nothing called."""
    await tokens(obs, present_us(), 10, "input")
    assert (await obs.costs.what_if(model="vllm/nobody", instead_of="gpt")).what_if_usd is None
    assert (await obs.costs.what_if(model="vllm/nobody", instead_of="never")).what_if_usd is None
    for wrong in ("gpt", "", "/x", "x/"):
        with pytest.raises(InvalidArgument, match="model: "):
            await obs.costs.what_if(model=wrong, instead_of="gpt")
    with pytest.raises(InvalidArgument, match="instead_of: "):
        await obs.costs.what_if(model="a/b", instead_of="")


async def test_a_mistyped_model_is_said(obs: Observatory) -> None:
    """Nothing was called by that name: zero dollars, and why."""
    obs.llm.prices.set("vllm/mine", Price(input=1, output=2))
    await spend(obs, present_us(), 5)
    await tokens(obs, present_us(), 1_000_000, "input")
    none = await obs.costs.what_if(model="vllm/mine", instead_of="openai/gtp", since="1h")
    assert [none.calls, none.what_if_usd] == [0, 0]
    assert "no calls of 'openai/gtp' were recorded in this time: is it spelled so?" in none.unknown
    some = await obs.costs.what_if(model="vllm/mine", instead_of="openai/gpt", since="1h")
    assert [some.calls, some.what_if_usd] == [1, 1]
    assert not any("no calls of" in note for note in some.unknown)


async def test_a_name_with_a_slash(obs: Observatory) -> None:
    """A model may be called like another's; a provider of the name before the slash goes first."""
    obs.llm.prices.set("vllm/mine", Price(input=1, output=2))
    slashed = {"provider": "groq", "model": "meta-llama/llama-4"}
    await spend(obs, present_us(), 5, **slashed)
    await tokens(obs, present_us(), 1_000_000, "input", **slashed)
    for instead in ("meta-llama/llama-4", "groq/meta-llama/llama-4"):
        found = await obs.costs.what_if(model="vllm/mine", instead_of=instead, since="1h")
        assert [found.calls, found.input_tokens, found.what_if_usd] == [1, 1_000_000, 1]
    await spend(obs, present_us(), 7, provider="meta-llama", model="llama-4")
    theirs = await obs.costs.what_if(model="vllm/mine", instead_of="meta-llama/llama-4", since="1h")
    assert (theirs.calls, theirs.cost_usd) == (1, Decimal("7E-9"))


async def test_a_price_by_length_is_that_of_short_inputs(opening: Open) -> None:
    """How long each input was, nobody knows any more: it is said, and sums of tokens are not taken for one long call."""
    obs = await opening(settings=Settings.load(environ={}))
    obs.record_request("openai", "gpt", latency=0.1, tokens=Usage(1_000_000, 0), cost_usd=1)
    await obs.flush()
    found = await obs.costs.what_if(model="google/gemini-2.5-pro", instead_of="gpt", since="1h")
    assert any("long inputs" in note for note in found.unknown)
    assert found.what_if_usd is not None
    one = obs.llm.prices.rates("google", ("gemini-2.5-pro",), at_us=present_us())
    assert one is not None
    assert found.what_if_usd == Decimal(str(one.input.below)).scaleb(-9)  # type: ignore[union-attr]
