"""What an answer means, whole or event by event, in each of the protocols."""

import re
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec

from ..call import Usage
from . import used
from .reading import Reading
from .request import Endpoint
from .skim import MAX_ENDS, Skim
from .tokens import Tokenizer, approximately
from .used import Used

_PIECE: Final = 1024
"""Characters of an answer that are counted at once."""
_CODE = re.compile(r"[A-Za-z][A-Za-z_.]{0,63}")
"""What a code of an error looks like. A key has digits: one that comes in its place is not passed on."""
_OVER: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
_SPEAKS: Final = frozenset({"content", "reasoning_content", "reasoning", "refusal", "text", "thinking", "partial_json"})


class Content(Protocol):
    """Who wants the texts of an answer."""

    def add(self, text: str) -> None: ...


class Listener:
    """Hears one answer, and writes down what is known of it. now: when what it hears came, set by who reads."""

    __slots__ = (
        "_content",
        "_endpoint",
        "_pending",
        "_said",
        "_started",
        "_status",
        "_texts",
        "_tokenizer",
        "_tokens",
        "now",
        "reading",
    )

    def __init__(
        self,
        reading: Reading,
        endpoint: Endpoint,
        status: int,
        tokenizer: Tokenizer,
        content: Content | None = None,
    ) -> None:
        self.reading = reading
        self._content = content
        self.now = 0.0
        self._endpoint = endpoint
        self._status = status
        self._said = used.anthropic if endpoint == "messages" else used.openai
        self._tokenizer = tokenizer
        self._texts: list[str] = []
        self._pending = 0
        self._tokens = 0
        self._started: dict[str, Any] = {}

    # what is not said is counted
    def _heard(self, text: Any) -> None:
        if isinstance(text, str) and text:
            if self._content is not None:
                self._content.add(text)
            self._texts.append(text)
            self._pending += len(text)
            if self._pending > _PIECE:
                self._counted()

    def _counted(self) -> int:
        if self._texts:
            text = "".join(self._texts)
            self._texts, self._pending = [], 0
            try:
                self._tokens += max(0, int(self._tokenizer(text)))
            except Exception:  # somebody's tokenizer: the answer goes on
                self._tokens += approximately(text)
        return self._tokens

    def estimate(self, input_tokens: Callable[[], int]) -> None:
        """A provider bills what it has said, whoever stopped listening. An event brings a token at least."""
        reading = self.reading
        if self._status >= 400 or (not reading.deltas if reading.used is None else reading.over):
            return
        output = max(self._counted(), reading.deltas)
        if reading.used is None:
            reading.used = Used(Usage(input_tokens=input_tokens(), output_tokens=output))
            reading.estimated = True
        elif reading.used.usage.output_tokens < output:
            # Anthropic says the input first, and the output last.
            reading.used = msgspec.structs.replace(
                reading.used, usage=msgspec.structs.replace(reading.used.usage, output_tokens=output)
            )
            reading.estimated = True

    # documents
    def document(self, body: bytes) -> None:
        try:
            document = msgspec.json.decode(body)
        except (msgspec.DecodeError, ValueError, RecursionError):
            document = None
        if isinstance(document, dict):
            self._answer(document)
        elif self._status < 400:
            self.reading.error = "invalid_response"

    def _answer(self, document: dict[str, Any]) -> None:
        """A whole answer, of any endpoint."""
        self._about(document)
        self._use(document.get("usage"))
        if self._content is not None:
            self._wrote(document)
        if self._endpoint == "messages":
            self._ended(document.get("stop_reason"))
        elif self._endpoint == "responses":
            self._response_ended(document)
        for choice in _listed(document.get("choices")):
            self._ended(choice.get("finish_reason"))
        self._erred(document.get("error"))

    def _wrote(self, document: dict[str, Any]) -> None:
        """The texts of a whole answer are heard as those of a stream are."""
        for choice in _listed(document.get("choices")):
            self._delta(choice["message"] if isinstance(choice.get("message"), dict) else choice)
        for item in (*_listed(document.get("output")), *_listed(document.get("content"))):
            self._delta(item)

    def _about(self, document: dict[str, Any]) -> None:
        reading = self.reading
        if reading.response_model is None and isinstance(model := document.get("model"), str) and model:
            reading.response_model = model[:256]
        if reading.response_id is None and isinstance(known := document.get("id"), str) and known:
            reading.response_id = known[:256]
        if isinstance(tier := document.get("service_tier"), str):
            reading.service_tier = tier[:64]

    def _use(self, said: Any) -> None:
        if isinstance(said, dict) and (found := self._said(said)) is not None:
            self.reading.used = found
            if said.get("speed") == "fast":
                self.reading.service_tier = "speed:fast"  # Anthropic's, beside its tiers
            elif isinstance(tier := said.get("service_tier"), str):
                self.reading.service_tier = tier[:64]

    def _ended(self, reason: Any) -> None:
        if isinstance(reason, str) and reason and len(self.reading.finish_reasons) < MAX_ENDS:
            self.reading.finish_reasons.append(reason[:64])

    def _response_ended(self, response: dict[str, Any]) -> None:
        status, details = response.get("status"), response.get("incomplete_details")
        if isinstance(details, dict) and isinstance(details.get("reason"), str):
            self._ended(details["reason"])
        elif status in ("completed", "incomplete", "cancelled"):
            self._ended(status)
        if status == "failed" and not isinstance(response.get("error"), dict):
            self.reading.error = "failed"

    def _erred(self, error: Any) -> None:
        """What a provider calls an error, by its code, else its type."""
        if not error:
            return
        said = [error.get(name) for name in ("code", "type")] if isinstance(error, dict) else [error]
        code = next((one for one in said if isinstance(one, str) and _CODE.fullmatch(one)), None)
        self.reading.error = code or (str(self._status) if self._status >= 400 else "error")

    def skimmed(self, skim: Skim) -> None:
        self._about(skim.found)
        self._use(skim.usage)
        if self._endpoint == "responses":
            self._response_ended({**skim.found, "incomplete_details": skim.details})
        for reason in skim.ends:
            self._ended(reason)
        if self._status >= 400 or skim.found.get("status") == "failed":
            self._erred(skim.error)

    # streams
    def event(self, name: bytes, data: bytes) -> None:
        if data == b"[DONE]":
            self.reading.terminated = True
            return
        try:
            event = msgspec.json.decode(data)
        except (msgspec.DecodeError, ValueError, RecursionError):
            self.reading.error = self.reading.error or "invalid_response"
            return
        if isinstance(event, dict):
            if self._endpoint == "messages":
                self._message(event)
            elif self._endpoint == "responses":
                self._response(event)
            else:
                self._chunk(event)
            if name == b"error" and self.reading.error is None:
                self._erred(event)

    def _spoke(self) -> None:
        reading = self.reading
        reading.deltas += 1
        if reading.first_token_at is None:
            reading.first_token_at = self.now

    def _chunk(self, event: dict[str, Any]) -> None:
        """Of chat and completions."""
        if self.reading.response_model is None or "service_tier" in event:
            self._about(event)
        if (said := event.get("usage")) is not None:
            self._use(said)
        elif isinstance(groq := event.get("x_groq"), dict):
            self._use(groq.get("usage"))
            self._erred(groq.get("error"))
        for choice in _listed(event.get("choices")):
            delta = choice.get("delta", choice)
            if isinstance(delta, dict) and self._delta(delta):
                self._spoke()
            if (reason := choice.get("finish_reason")) is not None:
                self._ended(reason)
        self._erred(event.get("error"))

    def _delta(self, delta: dict[str, Any]) -> bool:
        """Whether it brings anything of the answer; its texts are heard."""
        spoken = False
        for name, value in delta.items():
            if not value:
                continue
            if name in _SPEAKS:
                spoken = True
                self._heard(value)
                for part in _listed(value):  # parts, as Mistral has them
                    self._heard(part.get("text"))
            elif name in ("tool_calls", "function_call", "audio"):
                spoken = True
                for call in _listed(value if isinstance(value, list) else [value]):
                    function = call.get("function", call)
                    if isinstance(function, dict):
                        self._heard(function.get("name"))
                        self._heard(function.get("arguments"))
                        self._heard(function.get("transcript"))
        return spoken

    def _response(self, event: dict[str, Any]) -> None:
        kind = event.get("type")
        if isinstance(kind, str) and kind.endswith(".delta"):
            self._spoke()
            self._heard(event.get("delta"))
        elif isinstance(response := event.get("response"), dict):
            self._about(response)
            self._use(response.get("usage"))
            if kind in _OVER:
                self.reading.terminated = True
                self._response_ended(response)
                self._erred(response.get("error"))
        elif kind == "error":
            self._erred(event.get("error") or event)

    def _message(self, event: dict[str, Any]) -> None:
        match event:
            case {"type": "content_block_delta", "delta": dict(delta)}:
                if self._delta(delta):
                    self._spoke()
            case {"type": "message_start", "message": dict(message)}:
                self._about(message)
                if isinstance(begun := message.get("usage"), dict):
                    self._started = begun
                    self._use(begun)
            case {"type": "message_delta", **rest}:
                if isinstance(end := rest.get("delta"), dict):
                    self._ended(end.get("stop_reason"))
                if isinstance(so_far := rest.get("usage"), dict):
                    # Cumulative; what it leaves out is as it was said at the start.
                    self._use({**self._started, **{name: value for name, value in so_far.items() if value is not None}})
            case {"type": "message_stop"}:
                self.reading.terminated = True
            case {"type": "error", **rest}:
                self._erred(rest.get("error") or "error")

    def long_event(self, name: bytes, skim: Skim) -> None:
        """An event too long to be kept: the end of a long response, mostly."""
        kind = skim.found.get("type", name.decode("ascii", "replace"))
        if kind.endswith(".delta") or kind == "content_block_delta":
            self._spoke()
            return
        if self._endpoint == "responses" and kind in _OVER:
            self.reading.terminated = True
            self._about(skim.found)
            self._use(skim.usage)
            self._response_ended({**skim.found, "incomplete_details": skim.details})
            if kind == "response.failed":
                self._erred(skim.error or "failed")
        elif self._endpoint in ("chat", "completions"):
            self._about(skim.found)
            self._use(skim.usage)
            for reason in skim.ends:
                self._ended(reason)
            self._spoke()


def _listed(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
