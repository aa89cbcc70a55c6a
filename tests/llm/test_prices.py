"""What a call costs: exact where it is known, unknown where it is not."""

from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import genai_prices
import pytest
from genai_prices import data_snapshot
from hypothesis import given
from hypothesis import strategies as st

from observatory import ConfigurationError, InvalidArgument, Price, Prices, Settings, Usage
from observatory.llm import Catalogue
from observatory.llm.wire.used import Used

NOW = int(datetime(2026, 11, 16, tzinfo=UTC).timestamp() * 1e6)
DAY_US = 86_400_000_000


@pytest.fixture(scope="module")
def prices() -> Prices:
    return Prices({}, Catalogue())


def cost(prices: Prices, name: str, *, at_us: int = NOW, tenant: Any = None, tier: Any = None, **used: int) -> Any:
    """In nano-dollars. used: tokens; what is beside a Usage by its name."""
    provider, model = name.split("/", 1)
    beside = {key: used.pop(key) for key in ("cache_write_1h", "web_searches") if key in used}
    return prices.cost(provider, (model,), Used(Usage(**used), **beside), at_us=at_us, tenant=tenant, tier=tier)


@given(tokens=st.tuples(*[st.integers(0, 10**6)] * 3), model=st.sampled_from(["gpt-4o", "gpt-5", "gpt-5.4", "gpt-4.1-nano"]))
def test_as_the_catalogue_has_it(prices: Prices, tokens: tuple[int, int, int], model: str) -> None:
    """Dear for long inputs, cheaper for the cache, to the last billionth."""
    fresh, cached, output = tokens
    used = {"input_tokens": fresh + cached, "output_tokens": output}
    theirs = genai_prices.calc_price(
        genai_prices.Usage(**used, cache_read_tokens=cached), model, provider_id="openai", genai_request_timestamp=_at(NOW)
    )
    ours = cost(prices, f"openai/{model}", **used, cache_read_input_tokens=cached)
    assert ours == round(Fraction(theirs.total_price) * 10**9)


def _at(us: int) -> datetime:
    return datetime.fromtimestamp(us / 1e6, UTC)


def test_every_model_of_the_big_providers_costs_what_the_library_says(prices: Prices) -> None:
    """Of those that it can be asked for by their own name."""
    compared = 0
    ids = {"mistral": "mistral_ai", "x-ai": "x_ai"}
    for whose in data_snapshot.get_snapshot().providers:
        for model in whose.models if whose.id in ("openai", "anthropic", "groq", "mistral", "x-ai", "deepseek") else ():
            name = f"{ids.get(whose.id, whose.id)}/{model.id}"
            ours = cost(prices, name, input_tokens=1000, output_tokens=100)
            if ours is None:
                continue
            compared += 1
            theirs = genai_prices.calc_price(
                genai_prices.Usage(input_tokens=1000, output_tokens=100),
                model.id,
                provider_id=whose.id,
                genai_request_timestamp=_at(NOW),
            )
            assert ours == round(Fraction(theirs.total_price) * 10**9), name
    assert compared > 150


@pytest.mark.parametrize(
    "name",
    [
        "openai/gpt-9-of-next-year",
        "openai/gpt-4o-mini-which-is-another",
        "anthropic/claude-sonnet-4-5-max",
        "anthropic/claude-sonnet-4-50",
        "openai_compatible/gpt-4o",
        "anthropic_compatible/claude-sonnet-4-5",
        "vllm/meta-llama",
        "/",
        "openai/",
    ],
)
def test_what_nobody_knows_is_unknown(prices: Prices, name: str) -> None:
    """Also what only begins like a model that is known, and what a stranger answers under a known name."""
    assert cost(prices, name, input_tokens=1000) is None


@pytest.mark.parametrize(
    "name", ["anthropic/claude-sonnet-4-5-20250929", "anthropic/claude-3-5-haiku-latest", "openai/gpt-5-nano-2025-08-07"]
)
def test_a_dated_name_is_the_model(prices: Prices, name: str) -> None:
    assert cost(prices, name, input_tokens=1000) > 0


def test_what_has_no_rate_makes_the_cost_unknown(prices: Prices) -> None:
    """Audio where only text is priced, a tier that nobody has written down, counts that contradict each other."""
    assert cost(prices, "openai/gpt-4o", input_tokens=100, audio_input_tokens=10) is None
    assert cost(prices, "openai/gpt-4o", input_tokens=10, cache_read_input_tokens=20) is None
    assert cost(prices, "openai/gpt-4o", tier="platinum", input_tokens=10) is None
    assert cost(prices, "openai/gpt-4o", tier="default", input_tokens=10) == 25_000
    assert cost(prices, "openai/text-embedding-3-small", input_tokens=10, output_tokens=1) is None


def test_what_anthropic_charges_beside_tokens(prices: Prices) -> None:
    name = "anthropic/claude-sonnet-4-5"
    used = {"input_tokens": 1000, "cache_write_input_tokens": 600}
    short = cost(prices, name, **used)
    assert short == 400 * 3000 + 600 * 3750
    assert cost(prices, name, **used, cache_write_1h=600) == 400 * 3000 + 600 * 6000
    assert cost(prices, name, **used, web_searches=2) == short + 2 * 10_000_000


def own(**said: Any) -> Prices:
    return Prices({name: tuple(several) for name, several in said.pop("said").items()}, Catalogue())


def test_a_price_of_ones_own_goes_first_and_has_its_dates() -> None:
    """Before the catalogue's; from its day on; of a tenant before everybody's; one for all models of a provider last."""
    prices = own(
        said={
            "openai/gpt-4o": [Price(input=1, from_=date(2026, 11, 1)), Price(input=2, from_=date(2026, 11, 16))],
            "vllm/*": [Price(input=0)],
            "vllm/big": [Price(input="0.000001"), Price(input="0.5", tenant="acme")],
        }
    )
    day = {"input_tokens": 1000}
    assert cost(prices, "openai/gpt-4o", **day) == 2_000_000
    assert cost(prices, "openai/gpt-4o", at_us=NOW - 1, **day) == 1_000_000
    assert cost(prices, "openai/gpt-4o", at_us=NOW - 30 * DAY_US, **day) == 2_500_000, "the catalogue's"
    assert cost(prices, "vllm/any", **day) == 0
    assert cost(prices, "VLLM/Big", input_tokens=10**6) == 1000
    assert cost(prices, "vllm/big", tenant="acme", **day) == 500_000
    assert cost(prices, "vllm/big", tenant="other", **day) == 1
    prices.set("openai/gpt-4o", Price(input=9, from_=date(2026, 11, 16)))
    assert cost(prices, "openai/gpt-4o", **day) == 9_000_000


def test_a_catalogue_price_changes_on_its_day(prices: Prices) -> None:
    """A model of the catalogue whose price has changed costs what it cost then."""
    changed = 0
    for model in next(one for one in data_snapshot.get_snapshot().providers if one.id == "deepseek").models:
        for condition in model.prices if isinstance(model.prices, list) else []:
            start = getattr(condition.constraint, "start_date", None)
            if start is None:
                continue
            changed += 1
            at = int(datetime(start.year, start.month, start.day, tzinfo=UTC).timestamp() * 1e6)
            for moment in (at - 1_000_000, at):
                theirs = genai_prices.calc_price(
                    genai_prices.Usage(input_tokens=1000, output_tokens=10),
                    model.id,
                    provider_id="deepseek",
                    genai_request_timestamp=_at(moment),
                )
                ours = cost(prices, f"deepseek/{model.id}", at_us=moment, input_tokens=1000, output_tokens=10)
                assert ours in (None, round(Fraction(theirs.total_price) * 10**9))
    assert changed


MORE = ("input = true", "input = 1\nfrom = 3", "input = 1\nfrom = 2026-11-10T10:00:00")


def test_prices_of_a_file(tmp_path: Path) -> None:
    """Exact as they are written; what is wrong is named."""
    file = tmp_path / "o.toml"
    file.write_text(
        '[prices."openai/gpt-4o"]\ninput = 2.1\noutput = "8.000000001"\n'
        '[[prices."acme/m"]]\ninput = 1\n[[prices."acme/m"]]\ninput = 2\nfrom = 2026-11-10\ntenant = "t"\n'
    )
    settings = Settings.load(str(file), environ={})
    prices = Prices(settings.prices, Catalogue())
    assert cost(prices, "openai/gpt-4o", input_tokens=1, output_tokens=1_000_000) == 8_000_002_101
    assert cost(prices, "acme/m", tenant="t", input_tokens=1000) == 2_000_000
    assert Settings.load(str(file), environ={}).replace(namespace="x").prices == settings.prices
    for said in (
        "input = -1",
        'input = "much"',
        "output = 1",
        "input = 1\ncolour = 2",
        "input = nan",
        "input = 1\ntenant = ''",
    ):
        file.write_text(f'[prices."openai/gpt-4o"]\n{said}\n')
        with pytest.raises(ConfigurationError, match=r"openai/gpt-4o"):
            Settings.load(str(file), environ={})
    for said in ("prices = 3", '[prices."gpt-4o"]\ninput = 1', '[prices."/x"]\ninput = 1'):
        file.write_text(said)
        with pytest.raises(ConfigurationError, match="prices"):
            Settings.load(str(file), environ={})


def test_a_price_says_what_is_wrong_with_it() -> None:
    with pytest.raises(InvalidArgument, match="input"):
        Price(input=-1)
    with pytest.raises(InvalidArgument, match="time zone"):
        Price(input=1, from_=datetime(2026, 1, 1))  # noqa: DTZ001
    with pytest.raises(InvalidArgument, match="PROVIDER/MODEL"):
        Prices({}, Catalogue()).set("gpt-4o", Price(input=1))


def test_sums_are_exact() -> None:
    """Rounded once, at the end."""
    prices = own(said={"a/b": [Price(input="0.0005", output=Decimal("0.0005"))]})
    assert cost(prices, "a/b", input_tokens=1, output_tokens=2) == 2, "three halves are two, and not one and one or nothing"


def test_without_the_library_everything_is_unknown(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """But what one has priced oneself; and it is said once."""
    monkeypatch.setitem(__import__("sys").modules, "genai_prices", None)
    prices = own(said={"openai/mine": [Price(input=1)]})
    assert cost(prices, "openai/gpt-4o", input_tokens=1) is None
    assert cost(prices, "openai/gpt-5", input_tokens=1) is None
    assert cost(prices, "openai/mine", input_tokens=1000) == 1_000_000
    assert len([one for one in caplog.records if "genai-prices" in one.getMessage()]) == 1


@pytest.mark.parametrize("wrong", [{"input": 2}, 2, None, "2"])
def test_what_is_no_price_is_refused_whole(wrong: Any) -> None:
    """By its type; nothing of the call was set."""
    prices = Prices({}, Catalogue())
    with pytest.raises(InvalidArgument, match=r"a price is a Price, got .*Write Price\(input=2"):
        prices.set("mine/x", Price(1), wrong)
    assert cost(prices, "mine/x", input_tokens=1) is None
