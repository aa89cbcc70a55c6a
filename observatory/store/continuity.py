"""Do the same servers answer that answered before? After a restart or a promotion what was acknowledged may be gone."""

import asyncio
import re
from typing import NamedTuple

from ..errors import StoreUnavailable
from .store import Store

_RUN = re.compile(rb"^run_id:(\w+)", re.MULTILINE)
_HISTORY = re.compile(rb"^master_replid:(\w+)", re.MULTILINE)
_SECOND = re.compile(rb"^master_replid2:(\w*[^0\s]\w*)", re.MULTILINE)


class Server(NamedTuple):
    """A primary: its process, its history of replication, and whether that follows on another's."""

    run: bytes
    history: bytes
    follows: bool


class Continuity:
    """Remembers the primaries. Looking costs each of them two INFO."""

    def __init__(self) -> None:
        self._known: dict[str, Server] = {}

    async def broken(self, store: Store) -> bool:
        """Whether one was restarted or promoted since the last look; of a server that hides INFO that is never known.

        False the first time, and where a primary joins a cluster or a first replica attaches: neither loses anything.
        StoreUnavailable: none answers.
        """
        servers, histories = await asyncio.gather(store.everywhere("INFO", "server"), store.everywhere("INFO", "replication"))
        faults = [said for said in servers.values() if isinstance(said, StoreUnavailable)]
        if faults and len(faults) == len(servers):
            raise faults[0]
        now: dict[str, Server] = {}
        for where, said in servers.items():
            found = _server(said, histories.get(where))
            if found is not None:
                now[where] = found
            elif where in self._known and isinstance(said, StoreUnavailable):
                # Who does not answer may be what it was.
                now[where] = self._known[where]
        known, self._known = self._known, now
        return bool(known) and _is_broken(set(known.values()), set(now.values()))


def _is_broken(known: set[Server], now: set[Server]) -> bool:
    histories = {server.run: server.history for server in known}
    gone = histories.keys() - {server.run for server in now}
    for server in now:
        history = histories.get(server.run)
        if history is None:
            # Another in the place of one that is gone; or one that was a replica until now, of whomever.
            if gone or server.follows:
                return True
        elif history != server.history and server.follows:
            return True
    return False


def _server(said: object, replication: object) -> Server | None:
    run = _RUN.search(said) if isinstance(said, bytes) else None
    if run is None:
        return None
    told = replication if isinstance(replication, bytes) else b""
    history = _HISTORY.search(told)
    return Server(run[1], history[1] if history else b"", _SECOND.search(told) is not None)
