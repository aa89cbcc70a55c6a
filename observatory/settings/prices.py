"""Prices that are not the catalogue's: agreed with a provider, of models of one's own, for one tenant."""

from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

import msgspec

from .. import units
from ..errors import ConfigurationError, InvalidArgument
from ..types import Amount


class Price(msgspec.Struct, frozen=True):
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
        if self.from_ is not None and not isinstance(self.from_, date):
            raise InvalidArgument(f"from must be a date or a moment, got {units.shown(self.from_, 80)}")
        if isinstance(self.from_, datetime) and self.from_.tzinfo is None:
            raise InvalidArgument(f"from {self.from_} does not say its time zone", remedy="Write a date, or end it with Z")
        if self.tenant is not None and (not isinstance(self.tenant, str) or not self.tenant):
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
            found[priced(name)] = tuple(_price(one) for one in (said if isinstance(said, list) else [said]))
        except InvalidArgument as error:
            raise ConfigurationError(f'{layer}: prices."{name}": {error.message}') from error
    return found


def _price(table: Any) -> Price:
    if not isinstance(table, dict):
        raise InvalidArgument(f"must be a table, got {units.shown(table, 60)}")
    known = {*AMOUNTS, "from", "tenant"}
    if strange := [name for name in table if name not in known]:
        raise InvalidArgument(f"{strange[0]}: unknown key, known are {', '.join(sorted(known))}")
    if "input" not in table:
        raise InvalidArgument("input: is missing")
    return Price(**{"from_" if name == "from" else name: value for name, value in table.items()})
