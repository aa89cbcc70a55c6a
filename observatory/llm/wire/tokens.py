"""How many tokens a request will have, before anybody has counted them."""

from collections.abc import Callable, Iterator
from typing import Any, Final

Tokenizer = Callable[[str], int]
"""Tokens of a text."""

BYTES_A_TOKEN: Final = 4
PER_MESSAGE: Final = 4
"""Tokens by which a message is wrapped."""
TOOLS: Final = 300
"""Tokens of what Anthropic adds to a request that has tools."""
IMAGE: Final = 1000
"""Tokens of an image or a file that only the provider has seen: the order of what a page or a photograph costs."""
_MAX_DEPTH: Final = 32
_TEXTS: Final = frozenset(
    {"text", "content", "input", "prompt", "system", "instructions", "name", "description", "arguments", "output", "thinking"}
)
_BINARY: Final = frozenset({"image_url", "input_image", "image", "input_file", "file", "document", "input_audio"})
_OUTPUT: Final = ("max_completion_tokens", "max_output_tokens", "max_tokens", "max_tokens_to_sample")


def approximately(text: str) -> int:
    """A token for every four bytes of UTF-8: off by a quarter for English, on the high side for other scripts."""
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return -(-size // BYTES_A_TOKEN)


def input_tokens(document: dict[str, Any], tokenizer: Tokenizer = approximately) -> int:
    """An estimate of the tokens that a request sends. What a tokenizer raises is raised."""
    total = 0
    for name in ("messages", "input", "prompt", "system", "instructions"):
        value = document.get(name)
        if isinstance(value, list):
            if value and all(type(one) is int for one in value):
                total += len(value)  # tokens already
                continue
            total += PER_MESSAGE * sum(isinstance(one, dict) for one in value)
        total += _of(value, tokenizer)
    for name in ("tools", "functions", "response_format", "text", "output_format", "output_config"):
        if (value := document.get(name)) is not None:
            total += sum(tokenizer(text) for text in _schema(value, 0))
    return total


def _of(value: Any, tokenizer: Tokenizer, depth: int = 0) -> int:
    if isinstance(value, str):
        return tokenizer(value) if value else 0
    if depth > _MAX_DEPTH:
        return 0
    if isinstance(value, list):
        if value and all(type(one) is int for one in value):
            return len(value)
        return sum(_of(one, tokenizer, depth + 1) for one in value)
    if not isinstance(value, dict):
        return 0
    if value.get("type") in _BINARY:
        return IMAGE
    total = 0
    for name, one in value.items():
        if name in _TEXTS or isinstance(one, list):
            total += _of(one, tokenizer, depth + 1)
        elif name == "function" and isinstance(one, dict):
            total += _of(one.get("name"), tokenizer) + _of(one.get("arguments"), tokenizer)
    return total


def _schema(value: Any, depth: int) -> Iterator[str]:
    """Names and texts of a tool: models see it written out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict) and depth < _MAX_DEPTH:
        for name, one in value.items():
            yield str(name)
            yield from _schema(one, depth + 1)
    elif isinstance(value, list) and depth < _MAX_DEPTH:
        for one in value:
            yield from _schema(one, depth + 1)


def max_output(document: dict[str, Any]) -> int | None:
    """How many tokens the answer may have, where the request says so: of each of the answers it asks for, together."""
    found = next((value for name in _OUTPUT if type(value := document.get(name)) is int and value > 0), None)
    answers = document.get("n")
    return None if found is None else found * (answers if type(answers) is int and answers > 0 else 1)
