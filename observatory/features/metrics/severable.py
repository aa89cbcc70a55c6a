"""HTTP requests that another thread can end. A library's own timeout is one for each read: a byte now and then outlasts it."""

import contextlib
import socket
import weakref
from typing import Any

from requests import Session
from requests.adapters import HTTPAdapter


class Severable(HTTPAdapter):
    """Knows its connections, however they are pooled or proxied. Once cut, no request goes through it any more."""

    def __init__(self) -> None:
        self._connections: weakref.WeakSet[Any] = weakref.WeakSet()
        self._is_cut = False
        super().__init__()

    def session(self) -> Session:
        """All of whose requests go through this adapter."""
        made = Session()
        for scheme in ("http://", "https://"):
            made.mount(scheme, self)
        return made

    def cut(self) -> None:
        """End what is under way: whoever reads finds the end. From any thread."""
        self._is_cut = True
        for connection in list(self._connections):
            self._end(connection)

    @staticmethod
    def _end(connection: Any) -> None:
        if (end := getattr(connection, "sock", None)) is not None:
            # Not the method of a TLS socket: that would take its state from under the thread that reads.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(end, socket.SHUT_RDWR)

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        return self._watched(super().get_connection_with_tls_context(*args, **kwargs))

    def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        """As above, before requests 2.32."""
        return self._watched(super().get_connection(*args, **kwargs))

    def _watched(self, pool: Any) -> Any:
        if self._is_cut:
            raise ConnectionAbortedError("it was cut")
        adapter, usual = self, pool.ConnectionCls
        if getattr(usual, "is_watched", False):
            return pool

        class Watched(usual):  # type: ignore[misc, valid-type]
            is_watched = True

            def connect(self) -> None:
                adapter._connections.add(self)
                super().connect()
                if adapter._is_cut:
                    adapter._end(self)

        pool.ConnectionCls = Watched
        return pool
