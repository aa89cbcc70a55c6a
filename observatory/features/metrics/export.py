"""What leaves: the totals of the fleet, told only while they are whole, or of this process since it started."""

import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import NamedTuple

from ...errors import StoreError, StoreUnavailable
from ...names import OURS, Definition
from ...store.store import Store
from . import read
from .blocks import Table, Value
from .exemplars import Exemplar
from .gaps import Gaps
from .recorder import Recorder
from .waiting import Group, Window

Exemplary = Callable[[], Awaitable[dict[str, dict[str, Exemplar]]]]


class Family(NamedTuple):
    """One metric and all its series, by their text: values that were added up, or, of a gauge, where it stands."""

    name: str
    definition: Definition
    table: Table
    gauges: dict[str, float]
    exemplars: Mapping[str, Exemplar] = {}


async def _none() -> dict[str, dict[str, Exemplar]]:
    return {}


class Export:
    """Reads for those who carry the numbers elsewhere."""

    def __init__(self, store: Callable[[], Store], recorder: Recorder, exemplars: Exemplary = _none) -> None:
        self._store = store
        self._recorder = recorder
        self._exemplars = exemplars
        self._own: dict[str, Family] | None = None
        self.gaps = Gaps()

    # the fleet's
    async def fleet(self) -> list[Family]:
        """Lifetime totals, and gauges as the sum over live processes and those killed in the last ten seconds.

        StoreUnavailable, also while gaps are refilled."""
        store = self._store()
        life = await self.gaps.refuse(store)
        known = await read.definitions(store)
        gauges = await read.gauges(store)
        counted = sorted(metric for metric, definition in known.items() if definition.kind != "gauge")
        tables = await read.totals(store, counted)
        # Once more: the store may have gone back while it was read; and another look may have seen it, and settled.
        if await self.gaps.refuse(store) != life:
            raise StoreUnavailable("the store went back while its totals were read", retry_after=1.0)
        exemplars = await self._exemplars()
        families = [
            Family(metric, known[metric], tables[metric], {}, exemplars.get(metric, {})) for metric in counted if tables[metric]
        ]
        for metric in sorted(gauges):
            sums = {text: sum(values) for text, values in gauges[metric].items()}
            said = known.get(metric) or OURS.get(metric)
            families.append(Family(metric, said if said and said.kind == "gauge" else Definition("gauge"), {}, sums))
        return families

    async def look(self) -> None:
        """What an exporting process does about once a second: only who looked before can see that the store went back."""
        # A store that is away says nothing about where it stands.
        with contextlib.suppress(StoreError):
            await self.gaps.look(self._store())

    @property
    def is_kept(self) -> bool:
        """Whether `begin` was called."""
        return self._own is not None

    # this process's
    def begin(self) -> None:
        """Keep the totals of this process from now on, and watch for gaps."""
        if self._own is None:
            self._own = {}

    def forget(self) -> None:
        """A forked child has recorded nothing yet."""
        if self._own is not None:
            self._own = {}

    def took(self, windows: Iterable[Window]) -> None:
        """These were taken from the recorder, for the store; they are not there any more. As bounded as the recorder is."""
        if self._own is not None:
            for window in windows:
                _add(self._own, window.groups)

    def own(self) -> list[Family]:
        """What this process recorded since `begin`, sent or not; also while the store is away."""
        families: dict[str, Family] = {}
        for family in (self._own or {}).values():
            table: Table = {}
            for text, value in family.table.items():
                table[text] = Value()
                table[text].merge(value)
            families[family.name] = family._replace(table=table)
        _add(families, self._recorder.unfrozen())
        for metric, definition, text, stands_at in self._recorder.gauges():
            families.setdefault(metric, Family(metric, definition, {}, {})).gauges[text] = stands_at
        return list(families.values())


def _add(families: dict[str, Family], groups: Iterable[Group]) -> None:
    for metric, definition, additions in groups:
        if definition.kind == "gauge":
            continue  # where it stands is told, not where it stood
        table = families.setdefault(metric, Family(metric, definition, {}, {})).table
        for field, number in additions:
            part, _, text = field.partition("|")
            value = table.get(text)
            if value is None:
                value = table[text] = Value()
            value.add(part, number)
