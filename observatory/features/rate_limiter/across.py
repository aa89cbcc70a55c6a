"""One request over limits that may lie in several slots of a Cluster.

In one slot it is one script call. Over several: holds in a fixed order, so that a death in between gives all back at the
deadline; a refusal gives back what was taken; then all are settled, and only then the answer is told (docs/guarantees.md).
"""

import asyncio
from collections.abc import Sequence

from ...store.journey import heard
from .desk import Answer, Desk, Part, PartAnswer
from .reservation import new_id
from .wanted import Wanted

_BETWEEN_US = 2_000_000
"""How long a hold may stand between the first slot and the last: the store's wait, several times over."""


class Across:
    """Asks the desk, slot by slot where it must."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def ask(self, verb: str, wanted: Sequence[Wanted], *, id: str = "", lease_us: int = 0) -> Answer:  # noqa: A002
        """All or nothing; the answer's parts are in the order of what was wanted."""
        strict = any(one.policy.strict for one in wanted) and verb != "look"
        if len(wanted) == 1 or not self._desk.store().is_cluster:
            return await self._alone(verb, wanted, id, lease_us, strict)
        slots: dict[str, list[int]] = {}
        for place, one in enumerate(wanted):
            slots.setdefault(one.key[one.key.index("{") : one.key.index("}")], []).append(place)
        if len(slots) == 1:
            return await self._alone(verb, wanted, id, lease_us, strict)
        if verb == "look":
            asked = [self._desk.ask(verb, [wanted[place].part for place in places]) for places in slots.values()]
            return _joined(list(slots.values()), list(await asyncio.gather(*asked)))
        name = id or new_id(None)
        held: list[tuple[list[int], Answer]] = []
        for slot in sorted(slots):
            places = slots[slot]
            parts = [wanted[place].part for place in places]
            try:
                answer = await self._answer("hold", parts, name, lease_us or _BETWEEN_US, strict)
            except BaseException:
                # Unknown here, or cancelled: what is held comes back now, or at its deadline.
                self._undo(name, wanted, held)
                raise
            if answer.status < 1:
                self._undo(name, wanted, held)
                if answer.status < 0:
                    return answer
                fits = [*held, (places, answer)]
                rest = [other for other in slots.values() if other not in [p for p, _ in fits]]
                looked = await asyncio.gather(*[self._desk.ask("look", [wanted[p].part for p in other]) for other in rest])
                return _joined([p for p, _ in fits] + rest, [a for _, a in fits] + list(looked))
            held.append((places, answer))
        if verb == "take":
            await asyncio.gather(
                *[
                    self._desk.settle("settle", one.part, id=name, held=(one.part.cost, one.part.part), strict=strict)
                    for one in wanted
                ]
            )
        return _joined([places for places, _ in held], [answer for _, answer in held])

    async def _alone(self, verb: str, wanted: Sequence[Wanted], id: str, lease_us: int, strict: bool) -> Answer:  # noqa: A002
        return await self._answer(verb, [one.part for one in wanted], id, lease_us, strict)

    async def _answer(self, verb: str, parts: Sequence[Part], id: str, lease_us: int, strict: bool) -> Answer:  # noqa: A002
        asked: asyncio.Future[Answer] = self._desk.ask(verb, parts, id=id, lease_us=lease_us, strict=strict)
        try:
            return await asked
        except asyncio.CancelledError:
            # The answer had come, and its caller was cancelled before he heard of it: nobody else knows what is held.
            if (
                verb == "hold"
                and asked.done()
                and not asked.cancelled()
                and not asked.exception()
                and asked.result().status == 1
            ):
                self._desk.let_go(parts, id)
            raise

    def _undo(self, name: str, wanted: Sequence[Wanted], held: list[tuple[list[int], Answer]]) -> None:
        for places, answer in held:
            # What was held before under this id is an earlier caller's.
            for place in places if answer.status == 1 else ():
                nothing = wanted[place].part._replace(cost=0, part=0)
                self._desk.settle("settle", nothing, id=name).add_done_callback(heard)


def _joined(places: list[list[int]], answers: list[Answer]) -> Answer:
    found: dict[int, PartAnswer] = {}
    for where, answer in zip(places, answers, strict=True):
        found.update(zip(where, answer.parts, strict=True))
    status = min(answer.status for answer in answers)
    return Answer(
        status,
        tuple(found[place] for place in sorted(found)),
        max(answer.now_us for answer in answers),
    )
