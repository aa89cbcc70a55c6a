"""Events as they come: read from the streams beside the workers, without touching anything."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from ..envelope import Envelope
from ..store.store import BLOCK_FOR, Store

_PAGE = 10
_POLL = 0.2
_ENVELOPE = msgspec.msgpack.Decoder(Envelope)


class Seen(msgspec.Struct, frozen=True):
    """An event that was accepted."""

    id: str
    type: str
    """"" when it cannot be read."""
    at_us: int
    partition: int
    dimensions: dict[str, str]
    data: Any

    def labels(self) -> dict[str, str]:
        """What can be asked for: type, id, dimensions, and the texts, numbers and truths that its data has at the top."""
        top = self.data if isinstance(self.data, dict) else {}
        plain = {str(name): str(value) for name, value in top.items() if isinstance(value, str | int | float)}
        return {**plain, **self.dimensions, "type": self.type, "id": self.id}


async def tail(store: Store) -> AsyncGenerator[Seen, None]:
    """Every event that is accepted from now on. What workers have applied and trimmed between two looks is not seen."""
    keys = store.keys
    now_ms = (store.server_us() or 0) // 1000
    heads = dict.fromkeys(range(keys.partitions), f"{now_ms}-0")
    streams = {keys.stream(partition).encode(): partition for partition in heads}
    while True:
        reads = [[partition] for partition in heads] if store.is_cluster else [list(heads)]
        wait = ("BLOCK", int(BLOCK_FOR * 250)) if len(reads) == 1 else ()
        replies = await asyncio.gather(
            *(
                store.command(
                    *("XREAD", "COUNT", _PAGE, *wait, "STREAMS"),
                    *(keys.stream(partition) for partition in some),
                    *(heads[partition] for partition in some),
                    link="blocking",
                )
                for some in reads
            )
        )
        found = [(streams[name], entries) for reply in replies for name, entries in (reply or {}).items()]
        for partition, entries in found:
            heads[partition] = entries[-1][0].decode()
            for _, fields in entries:
                for event, payload in zip(fields[::2], fields[1::2], strict=True):
                    yield _seen(partition, event.decode(errors="replace"), payload)
        if not found and not wait:
            await asyncio.sleep(_POLL)


def _seen(partition: int, event: str, payload: bytes) -> Seen:
    try:
        envelope = _ENVELOPE.decode(payload)
        data = msgspec.msgpack.decode(envelope.data)
        msgspec.json.encode(data)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError, OverflowError):
        return Seen(event, "", 0, partition, {}, None)
    return Seen(event, envelope.type, envelope.at_us, partition, dict(envelope.dimensions), data)
