"""An event as it lies on the stream: its id, its envelope, its bytes."""

import os
import random
import re
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from .errors import InvalidArgument, NotEncodable

_TYPE = re.compile(r"[a-z][a-z0-9_.]{0,63}")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}")
MAX_EVENT = 65_536
MAX_DEPTH = 100
"""Containers within containers. Who reads refuses somewhat less than who writes, and an event that nobody can read is lost."""
_ENCODER = msgspec.msgpack.Encoder()
_NOT_ENCODABLE = (TypeError, ValueError, OverflowError, RecursionError)


class Envelope(msgspec.Struct, frozen=True, omit_defaults=True):
    """An event as it lies on the stream. `at_us`: server time. `counted`: its metrics were written by who saw it.

    data: read, it is raw; written, it may also be what is not encoded yet.
    """

    type: str
    at_us: int
    data: msgspec.Raw = msgspec.Raw(b"\x80")
    dimensions: Mapping[str, str] = {}
    counted: bool = False


_dice = random.Random()
"""Our own, seeded by the system: an application that seeds `random` alike in every replica must not give one id twice."""
os.register_at_fork(after_in_child=_dice.seed)


def new_id() -> str:
    """An id that sorts by time and was never used before."""
    return (time.time_ns() // 1_000_000 << 64 | _dice.getrandbits(64)).to_bytes(14, "big").hex()[1:]


def checked_id(value: object) -> str:
    if not isinstance(value, str) or _ID.fullmatch(value) is None:
        raise InvalidArgument(f"id {value!r:.80} must match {_ID.pattern}")
    return value


def checked_type(value: object) -> str:
    if not isinstance(value, str) or _TYPE.fullmatch(value) is None:
        raise InvalidArgument(f"type {value!r:.80} must match {_TYPE.pattern}")
    return value


def encoded(envelope: Envelope) -> bytes:
    """As it is written. InvalidArgument above 64 KiB, NotEncodable where its data has no such form."""
    try:
        payload = _ENCODER.encode(envelope)
    except _NOT_ENCODABLE as error:
        raise NotEncodable(f"an event's data cannot be encoded: {error}") from error
    if len(payload) > MAX_EVENT:
        raise InvalidArgument(f"an event must be at most {MAX_EVENT} bytes, got {len(payload)}")
    return payload


def packed(data: Any) -> msgspec.Raw:
    """The data of an event, whatever the msgspec types in it. NotEncodable."""
    try:
        return msgspec.Raw(_ENCODER.encode(data))
    except _NOT_ENCODABLE as error:
        raise NotEncodable(f"an event's data cannot be encoded: {error}") from error


def refuse_deep(data: Mapping[str, Any]) -> None:
    """InvalidArgument when something in it lies deeper than MAX_DEPTH."""
    level = [value for value in data.values() if isinstance(value, (dict, list, tuple))]
    for _ in range(MAX_DEPTH + 1):
        if not level:
            return
        # Each object once: one that holds itself twice would be a thousand of them ten levels down.
        within = {id(one): one for outer in level for one in (outer.values() if isinstance(outer, dict) else outer)}
        level = [one for one in within.values() if isinstance(one, (dict, list, tuple))]
    raise InvalidArgument(f"an event must not be nested deeper than {MAX_DEPTH}")
