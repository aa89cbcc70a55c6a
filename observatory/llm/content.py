"""What was asked and what was answered, in the shape that OpenTelemetry's GenAI conventions have for spans.

Only where `llm.capture_content` is on. Texts, and tools by name and arguments; of images, files and audio only that they were
there. Long ones are cut.
"""

import json
from collections.abc import Iterator
from typing import Any, Final

MOST: Final = 16_000
"""Characters of a prompt, and of an answer."""
_CUT: Final = " …"
_PIECES: Final = 64
_JSON: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_DEPTH: Final = 8
_TEXTS: Final = ("text", "thinking", "content", "output", "refusal")


class Texts:
    """Takes as many characters as there is room for."""

    __slots__ = ("_room", "_said")

    def __init__(self) -> None:
        self._room = MOST
        self._said: list[str] = []

    def add(self, text: str) -> None:
        """Of an answer, as it comes."""
        if not self._room:
            return
        self._said.append(self.cut(text))
        if len(self._said) >= _PIECES:  # of a token each: as many objects are ten times the text
            self._said = ["".join(self._said)]

    def json(self, value: Any) -> str:
        """As much of its JSON as still fits; no more of it is written."""
        written, size = list[str](), 0
        for piece in _JSON.iterencode(value):
            written.append(piece)
            size += len(piece)
            if size > self._room:
                break
        return self.cut("".join(written))

    def cut(self, text: str) -> str:
        """As much of it as still fits."""
        if len(text) <= self._room:
            self._room -= len(text)
            return text
        kept, self._room = text[: self._room], 0
        return kept + _CUT if kept else ""

    def __str__(self) -> str:
        return "".join(self._said)


def asked(document: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Attributes of a request: its messages, and its system instructions where they stand apart."""
    texts = Texts()
    found = {}
    apart = next((document[name] for name in ("system", "instructions") if document.get(name)), None)
    if apart is not None:
        found["gen_ai.system_instructions"] = list(_parts(apart, texts, 0))
    turns: Any = next((document[name] for name in ("messages", "input", "prompt") if document.get(name)), [])
    turns = turns if isinstance(turns, list) and any(isinstance(one, dict) for one in turns) else [turns]
    found["gen_ai.input.messages"] = [_turn(one, texts) for one in turns]
    return found


def answered(texts: Texts, reasons: list[str]) -> list[dict[str, Any]]:
    """The answer: all of its texts as one. Empty: nothing was said, as where embeddings were asked for."""
    if not (said := str(texts)):
        return []
    part = {"type": "text", "content": said}
    return [{"role": "assistant", "parts": [part], "finish_reason": reasons[0] if reasons else "error"}]


def _turn(turn: Any, texts: Texts) -> dict[str, Any]:
    if not isinstance(turn, dict):
        return {"role": "user", "parts": list(_parts(turn, texts, 0))}
    role = turn.get("role") if isinstance(turn.get("role"), str) else "user"
    calls = turn.get("tool_calls")
    # An item of `input` has no content of its own where it is a tool's call, or what came of it.
    said = [turn.get("content"), calls] if "content" in turn or calls else turn
    return {"role": role, "parts": list(_parts(said, texts, 0))}


def _parts(said: Any, texts: Texts, depth: int) -> Iterator[dict[str, Any]]:
    if isinstance(said, str):
        yield {"type": "text", "content": texts.cut(said)}
    elif isinstance(said, list) and depth < _DEPTH:
        for one in said:
            yield from _parts(one, texts, depth + 1)
    elif isinstance(said, dict):
        kind = said.get("type") if isinstance(said.get("type"), str) else "text"
        inside = said.get("function")
        function = inside if isinstance(inside, dict) else said
        if isinstance(name := function.get("name"), str):
            given = function.get("arguments", function.get("input"))
            called = {"type": "tool_call", "name": texts.cut(name)}
            yield called if given is None else {**called, "arguments": _arguments(given, texts)}
            return
        inner = next((said[name] for name in _TEXTS if isinstance(said.get(name), str | list)), None)
        if isinstance(inner, str):
            yield {"type": kind if kind not in ("input_text", "output_text") else "text", "content": texts.cut(inner)}
        elif inner is not None and depth < _DEPTH:
            yield from _parts(inner, texts, depth + 1)
        else:
            yield {"type": kind}


def _arguments(given: Any, texts: Texts) -> str:
    return texts.cut(given) if isinstance(given, str) else texts.json(given)
