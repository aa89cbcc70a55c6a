"""A request to a provider, and by what it is found again.

Everything that is sent is part of the key, but what is listed here as left out: who leaves out by a list of what counts serves
wrong answers as soon as a provider has a new parameter. What is spelled otherwise and says the same (white space, escapes, the
order of names in the request, its messages and their parts, `0` and `0.0` where a number steers the sampling) has one key.
Further down the order of names counts: models see it in schemas and in the arguments of tools, and answer in it.
"""

import json
from collections.abc import Iterable, Sequence
from decimal import Decimal, InvalidOperation
from hashlib import blake2b
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from ..wire.request import CREDENTIALS

MAX_BODY: Final = 8 * 2**20
"""Bytes: a request above is not worth its canonical form."""
ENDPOINTS: Final = ("chat/completions", "completions", "responses", "messages", "embeddings", "moderations")
DETERMINISTIC: Final = frozenset({"embeddings", "moderations"})

UNSAID: Final = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"})
"""Left out: who asks, and where the provider shall look for a prefix. But not of `responses`, which say them again."""
_BY_VALUE = frozenset({"temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"})
_TURNS = frozenset({"messages", "input", "system"})

HEADERS: Final = ("accept", "openai-", "anthropic-", "azureml-", "x-portkey-", "helicone-", "cf-aig-", "x-litellm-")
"""Headers that change the answer: those that begin so, `accept` alone in full."""
_READABLE = ("gzip", "deflate")


class Request(NamedTuple):
    """What a client sends. headers: pairs, as they come; names in any case."""

    provider: str
    method: str
    url: str
    headers: Sequence[tuple[str, str]]
    body: bytes

    @property
    def endpoint(self) -> str:
        """One of ENDPOINTS, or empty."""
        path = urlsplit(self.url).path.rstrip("/")
        return next((one for one in ENDPOINTS if path.endswith(f"/{one}")), "")

    def header(self, name: str) -> str:
        """All of this name, joined."""
        return ", ".join(value for key, value in self.headers if key.lower() == name)


class Number(str):
    """A number as it is written: a double would make one of two."""

    __slots__ = ()


def parsed(body: bytes) -> dict[str, Any]:
    """The JSON object that a body is. ValueError where it is none, or says one name twice."""
    if len(body) > MAX_BODY:
        raise ValueError("too long")
    try:
        found = json.loads(
            body.decode(), parse_int=Number, parse_float=Number, parse_constant=_no_constant, object_pairs_hook=_object
        )
    except RecursionError:
        raise ValueError("too deep") from None
    if not isinstance(found, dict):
        raise ValueError("no object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice")
    return found


def encodings(request: Request) -> str:
    """Those that the client takes and we can look into: what the provider is asked for, and a part of the key."""
    offered: dict[str, bool] = {}
    for one in request.header("accept-encoding").lower().split(","):
        name, _, quality = one.partition(";")
        offered[name.strip()] = quality.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    kept = [name for name in _READABLE if offered.get(name, offered.get("*", False))]
    return ", ".join(kept) or "identity"


def key(request: Request, document: dict[str, Any], *, vary: Iterable[str] = (), credentials: bool = False) -> str:
    """Of an answer: 64 hexadecimal digits. credentials: those with another API key have others."""
    out: list[bytes] = []
    endpoint = request.endpoint
    for text in (request.provider, request.method.upper(), request.url, encodings(request)):
        _text(text, out)
    names = {*map(str.lower, vary), *(CREDENTIALS if credentials else ())}
    kept = sorted(
        (name.lower(), value)
        for name, value in request.headers
        if name.lower() in names or name.lower() == HEADERS[0] or name.lower().startswith(HEADERS[1:])
    )
    _value([list(pair) for pair in kept], out)
    _value(_said(document, endpoint), out)
    return blake2b(b"".join(out), digest_size=32).hexdigest()


def _said(document: dict[str, Any], endpoint: str) -> dict[str, Any]:
    left_out = frozenset() if endpoint == "responses" else UNSAID
    said: dict[str, Any] = {}
    for name in sorted(document.keys() - left_out):
        value = document[name]
        if name == "stream" and value in (False, None):
            continue
        if name in _BY_VALUE and isinstance(value, Number):
            value = _by_value(value)
        elif name in _TURNS and isinstance(value, list):
            value = [_turn(one) for one in value]
        said[name] = value
    return said


def _turn(turn: Any) -> Any:
    if not isinstance(turn, dict):
        return turn
    turn = {name: turn[name] for name in sorted(turn)}
    if isinstance(content := turn.get("content"), list):
        turn["content"] = [{name: one[name] for name in sorted(one)} if isinstance(one, dict) else one for one in content]
    return turn


def _by_value(number: Number) -> Number:
    try:
        exact = Decimal(number)
    except InvalidOperation:
        return number
    if not exact:
        return Number("0")
    return number if len(number) > 25 else Number(exact.normalize())


def _text(text: str, out: list[bytes]) -> None:
    data = text.encode("utf-8", "surrogatepass")
    out.append(b"s%d:" % len(data))
    out.append(data)


def _value(value: Any, out: list[bytes]) -> None:
    """Lengths and kinds stand before what they are of, so that no two values are written alike."""
    if isinstance(value, Number):
        out.append(b"n%d:%s" % (len(value), value.encode()))
    elif isinstance(value, str):
        _text(value, out)
    elif isinstance(value, dict):
        out.append(b"o%d:" % len(value))
        for name, one in value.items():
            _text(name, out)
            _value(one, out)
    elif isinstance(value, list):
        out.append(b"a%d:" % len(value))
        for one in value:
            _value(one, out)
    else:
        out.append({True: b"t", False: b"f", None: b"z"}[value])
