"""One entry as several types have it, and as who knows no type has it: the untyped generation, that of Any.

Who writes without a type (over HTTP, on the command line) writes there, and ends what every type has, as an owner does. A
reader who finds nothing of his own type's looks there too: what decodes as his type is a hit, and anything else a miss, as if
nothing were there. Nothing is copied from one generation to another, so nothing stays behind when it is written again.
"""

import asyncio
from typing import Any

from ...keys import Keys
from .codec import MISSING, Codec
from .shape import fingerprint
from .shelf import Look, Place, Shelf

UNTYPED = fingerprint(Any)


def _of(place: Place, generation: str) -> Place:
    entry = Keys.of_generation(place.entry, generation)
    return place._replace(entry=entry, lease=Keys.computing(entry))


async def beside(shelf: Shelf, codec: Codec[Any], place: Place, look: Look) -> Look:
    """What was written without a type, where it is of this one; else `look`, which has found nothing. One more trip, two with
    tags. What comes of it is never to be kept under `place`: its own key does not change when that is written again."""
    if codec.fingerprint == UNTYPED:
        return look
    found = await shelf.read(_of(place, UNTYPED))
    if found.entry is None:
        return look._replace(corrupt=look.corrupt or found.corrupt)
    if codec.decode(found.entry.payload, found.entry.flags) is MISSING:
        return look
    return found._replace(head=look.head, corrupt=look.corrupt, beside=True)  # what is written next replaces what `look` found


async def all_of(shelf: Shelf, place: Place) -> list[Look]:
    """What each generation that the cache's record names has. place: as the untyped one has it, which comes first."""
    first = await shelf.read(place)
    typed = () if first.record is None else first.record.generations
    others = (shelf.read(_of(place, generation)) for generation in typed if generation != UNTYPED)
    return [first, *await asyncio.gather(*others)]
