"""What stands in Redis for one value: when it was made, how long it is fresh, what it cost, under which versions."""

import math
import random
import struct
from typing import NamedTuple
from zlib import crc32

_HEAD = struct.Struct(">BBQQI8sBI")
HEAD_SIZE = _HEAD.size
"""How many bytes tell one write from another: with them a script compares."""
_TAG = struct.Struct(">16s8s")
_LAYOUT = 1
COMPRESSED = 1
"""Flag: the payload is zlib's."""
BOUNDED = 2
"""Flag: after `fresh_until_us` the entry is stale, though it may still be there."""
MAX_TAGS = 64


class Entry(NamedTuple):
    """One write. version: of the cache, when it was made; tags: the digest of each, with the version that it had then."""

    made_us: int
    fresh_until_us: int
    cost_us: int
    version: bytes
    tags: tuple[tuple[bytes, bytes], ...]
    flags: int
    payload: bytes

    def is_fresh(self, now_us: int) -> bool:
        """Whether it may be served without a word. Where nothing was said of staleness, being there is enough."""
        return not self.flags & BOUNDED or now_us < self.fresh_until_us

    def early_us(self) -> float:
        """How long before its end it is to be made anew, drawn for each look: the dearer, the earlier (XFetch, Vattani et al.,
        VLDB 2015)."""
        return -self.cost_us * math.log(1.0 - random.random()) if self.cost_us else 0.0


def pack(entry: Entry) -> bytes:
    """The bytes. A checksum covers all of them: what was not written so is a miss."""
    rest = b"".join((*(_TAG.pack(*tag) for tag in entry.tags), entry.payload))
    cost_us = min(entry.cost_us, 0xFFFF_FFFF)
    facts = (_LAYOUT, entry.flags, entry.made_us, entry.fresh_until_us, cost_us, entry.version, len(entry.tags))
    head = _HEAD.pack(*facts, 0)[:-4]
    return head + crc32(rest, crc32(head)).to_bytes(4) + rest


def unpack(stored: bytes) -> Entry | None:
    """The entry, or None for bytes that no `pack` has made (or one of a layout to come)."""
    if len(stored) < HEAD_SIZE:
        return None
    layout, flags, made_us, fresh_until_us, cost_us, version, tags, checksum = _HEAD.unpack_from(stored)
    start = HEAD_SIZE + tags * _TAG.size
    if layout != _LAYOUT or len(stored) < start:
        return None
    if crc32(memoryview(stored)[HEAD_SIZE:], crc32(stored[: HEAD_SIZE - 4])) != checksum:
        return None
    found = tuple((digest, seen) for digest, seen in _TAG.iter_unpack(stored[HEAD_SIZE:start])) if tags else ()
    return Entry(made_us, fresh_until_us, cost_us, version, found, flags, stored[start:])
