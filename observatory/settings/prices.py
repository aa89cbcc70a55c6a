"""Prices that are not the catalogue's: agreed with a provider, of models of one's own, for one tenant."""

from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

import msgspec

from .. import units
from ..errors import ConfigurationError, InvalidArgument
from ..types import Amount

_FROM = {"from_": "from"}


class Price(msgspec.Struct, frozen=True, rename=_FROM, forbid_unknown_fields=True):
    """Dollars for a million tokens. What is left out costs what input or output costs; audio, hour-long cache writes and web
    searches (a thousand of them) that have no price make the cost of a call that uses them unknown."""

    input: Amount | str
    output: Amount | str = 0
    cache_read: Amount | str | None = None
    cache_write: Amount | str | None = None
    cache_write_1h: Amount | str | None = None
    reasoning: Amount | str | None = None
    audio_input: Amount | str | None = None
    audio_output: Amount | str | None = None
    web_search: Amount | str | None = None
    from_: date | datetime | None = None
    """Since when; a date begins at midnight UTC. None: always."""
    tenant: str | None = None
    """For whom; None: for everybody."""

    def __post_init__(self) -> None:
        for name in AMOUNTS:
            if (value := getattr(self, name)) is not None:
                units.units(units.parsed(value, name), "usd", name)
        if isinstance(self.from_, datetime) and self.from_.tzinfo is None:
            raise InvalidArgument(f"from {self.from_} does not say its time zone", remedy="Write a date, or end it with Z")
        if self.tenant is not None and not self.tenant:
            raise InvalidArgument("tenant must be a name, or left out")

    @property
    def from_us(self) -> int:
        """Microseconds since the epoch; 0: always."""
        if self.from_ is None:
            return 0
        since = self.from_ if isinstance(self.from_, datetime) else datetime(*self.from_.timetuple()[:3], tzinfo=UTC)
        return units.moment_us(since, 0, "from")


AMOUNTS = tuple(name for name in Price.__struct_fields__ if name not in ("from_", "tenant"))


def priced(name: object) -> str:
    """PROVIDER/MODEL, or PROVIDER/* for all of its models that have no price of their own."""
    if not isinstance(name, str) or not all(name.partition("/")[::2]) or len(name) > 512:
        raise InvalidArgument(
            f"{units.shown(name, 80)} is no PROVIDER/MODEL", remedy='Write it like "openai/gpt-4o-mini" or "vllm/*"'
        )
    return name


def prices(tables: Any, layer: str) -> dict[str, tuple[Price, ...]]:
    """[prices."PROVIDER/MODEL"], or several [[prices."PROVIDER/MODEL"]], of a file."""
    if not isinstance(tables, Mapping):
        raise ConfigurationError(f"{layer}: prices: must be a table of tables")
    found = {}
    for name, said in tables.items():
        try:
            found[priced(name)] = msgspec.convert(said if isinstance(said, list) else [said], tuple[Price, ...])
        except (msgspec.ValidationError, InvalidArgument) as error:
            raise ConfigurationError(f'{layer}: prices."{name}": {error}') from error
    return found
