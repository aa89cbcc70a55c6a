"""The catalogue of list prices: genai-prices, read offline, as rates of whole numbers."""

import re
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

from ..logs import INTERNAL
from .rates import Rate, Rates, Steps

_IDS: Final = {
    "azure.ai.openai": "azure",
    "mistral_ai": "mistral",
    "x_ai": "x-ai",
    "gcp.gemini": "google",
    "gcp.vertex_ai": "google",
    "aws.bedrock": "aws",
    "moonshot_ai": "moonshotai",
}
"""What the catalogue calls those whom OpenTelemetry calls otherwise."""
_FIELDS: Final = {
    "input_mtok": "input",
    "output_mtok": "output",
    "cache_read_mtok": "cache_read",
    "cache_write_mtok": "cache_write",
    "cache_write_1h_mtok": "cache_write_1h",
    "output_reasoning_mtok": "reasoning",
    "input_audio_mtok": "audio_input",
    "output_audio_mtok": "audio_output",
    "web_searches_kcount": "web_search",
    "requests_kcount": "request",
}
_ORDINARY: Final = frozenset({None, "", "auto", "default", "standard", "on_demand"})
_SPECIAL: Final = {"batch": {"processing": "batch"}, "speed:fast": {"speed": "fast"}}
_SUFFIX = re.compile(r"[-@:]?(?:(?:20\d{2}-?[01]\d-?[0-3]\d|\d{4}|latest)(?:-v\d+)?(?::\d+)?)?")
"""What may stand behind the beginning of a name that the catalogue knows: a date, and no other model's name."""
MAX_KNOWN: Final = 2000
_MINUTE_US: Final = 60_000_000


class Catalogue:
    """Found once a minute per model; a name that is not there is remembered likewise."""

    def __init__(self) -> None:
        self._library: Any = None
        self._known: dict[tuple[str, str, str | None], tuple[int, Rates | None]] = {}

    def prepare(self) -> None:
        """Read it. Without the library every model is unknown, and a warning says so."""
        if self._library is not None:
            return
        try:
            from genai_prices import data_snapshot
        except ImportError:
            self._library = False
            INTERNAL.warning("no genai-prices: costs are unknown but of models priced by yourself (install the extra llm)")
        else:
            self._library = data_snapshot
            data_snapshot.get_snapshot()

    def rates(self, provider: str, model: str, at_us: int, tier: str | None) -> Rates | None:
        """None: the catalogue does not know."""
        key, minute = (provider, model, tier), at_us // _MINUTE_US
        known = self._known.get(key)
        if known is not None and known[0] == minute:
            return known[1]
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        found = self._find(provider, model, at_us, tier)
        self._known[key] = minute, found
        return found

    def _find(self, provider: str, model: str, at_us: int, tier: str | None) -> Rates | None:
        self.prepare()
        if not self._library:
            return None
        snapshot = self._library.get_snapshot()  # a newer one, where the application updates it
        wanted, name = _IDS.get(provider, provider), model.lower()
        # Asked by name, the library takes whoever's name is in it.
        whose = next((one for one in snapshot.providers if one.id == wanted), None)
        if whose is None:
            return None
        try:
            _, found = snapshot.find_provider_model(name, whose, None, None)
        except LookupError:
            return None
        if not _surely(found.match, name):
            return None
        at = datetime.fromtimestamp(at_us / 1e6, UTC)
        if tier in _ORDINARY:
            return _rates(found.get_prices(at))
        context = _SPECIAL.get(tier or "", {"service_tier": tier})
        variants = [one for one in found.price_variants or () if one.when == context]
        if not any(one is found for one in whose.models) or not variants:
            return None  # dearer or cheaper than usual, and nobody has written by how much
        return _rates(found.get_prices(at, context))


def _surely(match: Any, name: str) -> bool:
    """Whether the catalogue means this model, and not all that begin like it, those of next year among them."""
    if (several := getattr(match, "or_", None)) is not None:
        return any(_surely(one, name) for one in several)
    if (several := getattr(match, "and_", None)) is not None:
        return all(_surely(one, name) for one in several)
    if (start := getattr(match, "starts_with", None)) is not None:
        return name.startswith(start) and (start.startswith("ft:") or bool(_SUFFIX.fullmatch(name, len(start))))
    return bool(match.is_match(name))


def _rates(price: Any) -> Rates | None:
    said = {name: _rate(value, name) for field, name in _FIELDS.items() if (value := getattr(price, field)) is not None}
    return Rates(**said) if "input" in said or "output" in said else None


def _rate(value: Any, name: str) -> Rate | Steps:
    if isinstance(value, Decimal):
        nano = Fraction(value) * 10**9
        if name in ("web_search", "request"):
            nano *= 1000  # they are by the thousand
        return nano.numerator if nano.denominator == 1 else nano
    return Steps(_exact(value.base, name), tuple((tier.start, _exact(tier.price, name)) for tier in value.tiers))


def _exact(value: Decimal, name: str) -> Rate:
    rate = _rate(value, name)
    assert not isinstance(rate, Steps)  # noqa: S101 (of a Decimal it is none)
    return rate
