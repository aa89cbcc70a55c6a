"""A response's bytes, read as they pass: nothing is changed, held back or kept."""

from collections.abc import Callable
from typing import Final

from .decoding import decoder
from .listener import Content, Listener
from .reading import Reading
from .request import Endpoint
from .skim import Skim
from .sse import Events
from .tokens import Tokenizer, approximately

DOCUMENT: Final = 16_384
"""Bytes of a JSON body that is kept to be read in full; a longer one is skimmed as it passes."""

CAPTURED: Final = 262_144
"""Where its content is captured."""


class Reader:
    """Reads one response. endpoint: of the request. Feed it the bytes as they are on the wire; it keeps some 20 KB at most.
    content: takes the texts of the answer."""

    __slots__ = ("_decoder", "_document", "_events", "_listener", "_most", "_plain", "_skim", "_status", "reading")

    def __init__(
        self,
        endpoint: Endpoint,
        status: int,
        content_type: str = "",
        content_encoding: str = "",
        *,
        tokenizer: Tokenizer = approximately,
        content: Content | None = None,
    ) -> None:
        self.reading = Reading()
        self._status = status
        self._listener = Listener(self.reading, endpoint, status, tokenizer, content)
        self._plain = content_encoding.strip().lower() in ("", "identity")
        self._decoder = decoder(content_encoding)
        self.reading.unread = self._decoder is None
        kind = content_type.partition(";")[0].strip().lower()
        heard = self._listener
        self._events = Events(heard.event, heard.long_event) if kind == "text/event-stream" else None
        self._document: bytearray | None = bytearray()
        self._most = DOCUMENT if content is None else CAPTURED
        self._skim: Skim | None = None

    @property
    def streams(self) -> bool:
        """Whether it is a stream of events."""
        return self._events is not None

    def feed(self, chunk: bytes, now: float) -> bool:
        """now: seconds on a clock that only moves forward. Whether something of the answer came."""
        self._listener.now = now
        before = self.reading.deltas
        if self._plain:
            self._take(chunk)
        elif self._decoder is not None:
            try:
                for part in self._decoder.feed(chunk):
                    self._take(part)
            except ValueError:
                self._decoder, self.reading.unread = None, True
        return self.reading.deltas != before

    def _take(self, part: bytes) -> None:
        if self._events is not None:
            self._events.feed(part)
        elif self._skim is not None:
            self._skim.feed(part)
        elif self._document is not None:
            self._document += part
            if len(self._document) > self._most:
                self._skim = Skim()
                self._skim.feed(bytes(self._document))
                self._document = None

    def end(self, *, estimate: Callable[[], int] | None = None, cut: bool = False) -> Reading:
        """All has passed, or (cut) as much of it as will. estimate: tokens of the request, asked for an answer that does not
        say what it took; None: that is not guessed."""
        reading = self.reading
        if self._events is not None:
            self._events.end()
        elif self._skim is not None:
            self._listener.skimmed(self._skim)
        elif self._document and not reading.unread and not cut:
            self._listener.document(bytes(self._document))
        self._document, self._skim = None, None
        if self._status >= 400:
            reading.error = reading.error or str(self._status)
        elif self._events is not None:
            if not (reading.over or reading.error or reading.unread or cut):
                reading.error = "truncated"
            if estimate is not None:
                self._listener.estimate(estimate)
        return reading
