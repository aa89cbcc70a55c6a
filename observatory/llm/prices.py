"""What a call costs: exact, in billionths of a dollar, or unknown. Never a guess."""

from collections.abc import Iterable, Mapping

from .. import units
from ..errors import InvalidArgument
from ..settings import Price
from ..settings.prices import AMOUNTS, priced
from .catalogue import Catalogue
from .rates import Rates
from .wire.used import Used


def _rates(price: Price) -> Rates:
    """Of a price that a file or a program says."""
    found = {}
    for name in AMOUNTS:
        if (value := getattr(price, name)) is not None:
            nano = units.units(units.parsed(value, name), "usd", name)
            found[name] = nano * 1000 if name == "web_search" else nano
    return Rates(**found)


class Prices:
    """The prices that this process goes by: a tenant's own, then those for everybody, then the catalogue's.

    said: as the settings have them.
    """

    def __init__(self, said: Mapping[str, Iterable[Price]], catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._own: dict[tuple[str | None, str], tuple[tuple[int, Rates], ...]] = {}
        for name, several in said.items():
            self.set(name, *several)

    def set(self, name: str, *prices: Price) -> None:
        """name: "PROVIDER/MODEL" or "PROVIDER/*". Beside those of the name that there are; one of the same tenant and moment
        takes its place. In this process; the settings' file is for all. InvalidArgument names what is wrong."""
        priced(name)
        for price in prices:
            if not isinstance(price, Price):
                raise InvalidArgument(
                    f"a price is a Price, got {units.shown(price, 60)}", remedy="Write Price(input=2, output=8)"
                )
        for price in prices:
            key = price.tenant, name.lower()
            kept = {since: rates for since, rates in self._own.get(key, ()) if since != price.from_us}
            kept[price.from_us] = _rates(price)
            self._own[key] = tuple(sorted(kept.items(), key=lambda one: -one[0]))

    def cost(
        self,
        provider: str,
        models: Iterable[str | None],
        used: Used,
        *,
        at_us: int,
        tenant: str | None = None,
        tier: str | None = None,
    ) -> int | None:
        """Billionths of a dollar; None: unknown. models: names of the one that answered, the most exact first. at_us: when.
        tier: the provider's word for how it was served."""
        found = self.rates(provider, models, at_us=at_us, tenant=tenant, tier=tier)
        return None if found is None else found.cost(used)

    def rates(
        self,
        provider: str,
        models: Iterable[str | None],
        *,
        at_us: int,
        tenant: str | None = None,
        tier: str | None = None,
    ) -> Rates | None:
        """What `cost` goes by; None: unknown."""
        names = [name for name in dict.fromkeys(models) if name]
        for whose in dict.fromkeys((tenant, None)):
            for name in (*names, "*"):
                for since, rates in self._own.get((whose, f"{provider}/{name}".lower()), ()):
                    if since <= at_us:
                        return rates
        for name in names:
            if (found := self._catalogue.rates(provider, name, at_us, tier)) is not None:
                return found
        return None

    def prepare(self) -> None:
        """Read the catalogue now, and not when the first call has ended: a third of a second."""
        self._catalogue.prepare()
