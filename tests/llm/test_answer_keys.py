"""By what an answer is found again: everything that is said, however it is spelled."""

import json
import random
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observatory.llm.answers.canonical import UNSAID, Number, Request, encodings, key, parsed

URL = "https://api.example.com/v1/chat/completions"
HEADERS = [("Content-Type", "application/json"), ("Authorization", "Bearer k"), ("anthropic-version", "2023-06-01")]


def key_of(body: bytes | dict[str, Any], url: str = URL, headers: Any = HEADERS, provider: str = "openai", **more: Any) -> str:
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return key(Request(provider, "POST", url, headers, body), parsed(body), **more)


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
parts = st.dictionaries(st.sampled_from(["type", "text", "input"]), values, max_size=3)
turns = st.fixed_dictionaries(
    {}, optional={"role": st.sampled_from(["user", "system"]), "content": st.text(max_size=8) | st.lists(parts, max_size=2)}
)
requests = st.fixed_dictionaries(
    {"model": st.text(max_size=4)},
    optional={
        "messages": st.lists(turns, max_size=3),
        "temperature": st.floats(0, 2) | st.integers(0, 2),
        "tools": st.lists(values, max_size=2),
        "seed": st.integers(),
        "stream": st.booleans(),
        "user": st.text(max_size=3),
        "new_parameter": values,
    },
)


def spelled(value: Any, rng: random.Random, sort: int = 0) -> str:
    """The same JSON otherwise. sort: how many levels down the order of names says nothing."""

    def pad(text: str) -> str:
        return rng.choice(["", " ", "\n\t"]) + text + rng.choice(["", " "])

    if isinstance(value, str):
        return "".join(
            f"\\u{ord(char):04x}" if ord(char) < 0x10000 and rng.random() < 0.5 else json.dumps(char, ensure_ascii=False)[1:-1]
            for char in value
        ).join('""')
    if isinstance(value, list):
        return pad("[" + ",".join(pad(spelled(one, rng, sort)) for one in value) + "]")
    if isinstance(value, dict):
        names = list(value)
        if sort:
            rng.shuffle(names)
        inner = {name: sort - 1 if sort > 1 and name in ("messages", "content") else 0 for name in names}
        return pad(
            "{" + ",".join(f"{spelled(name, rng)}:{pad(spelled(value[name], rng, inner[name]))}" for name in names) + "}"
        )
    return json.dumps(value)


@given(requests, st.randoms(use_true_random=False))
def test_one_key_however_it_is_spelled(document: dict[str, Any], rng: random.Random) -> None:
    """White space, escapes, and the order of names in the request, its messages and their parts."""
    body = spelled(document, rng, sort=3).encode("utf-8", "surrogatepass")
    assert key_of(body) == key_of(document)


def meaning(value: Any, sort: int = 3) -> Any:
    """What a request says, written by other rules than the key's."""
    if isinstance(value, dict):
        items = [(name, meaning(one, sort - 1 if name in ("messages", "content") else 0)) for name, one in value.items()]
        return ("object", tuple(sorted(items, key=lambda item: item[0]) if sort else items))
    if isinstance(value, list):
        return ("array", tuple(meaning(one, sort) for one in value))
    return (type(value).__name__, repr(value))


def said(document: dict[str, Any]) -> Any:
    kept = {name: value for name, value in document.items() if name not in UNSAID}
    if kept.get("stream") is None or kept["stream"] is False:
        kept.pop("stream", None)
    temperature = kept.get("temperature")
    if isinstance(temperature, int | float) and not isinstance(temperature, bool):
        del kept["temperature"]
        return Fraction(repr(temperature)), meaning(kept)
    return None, meaning(kept)


@given(requests, requests)
def test_two_keys_for_two_meanings(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Whatever a parameter is called, it is not left out."""
    assert (key_of(one) == key_of(other)) == (said(one) == said(other))


@given(requests, st.data())
def test_a_change_anywhere_changes_the_key(document: dict[str, Any], data: st.DataObject) -> None:
    """One place of a request is replaced by something else."""
    changed = json.loads(json.dumps(document))
    where: Any = changed
    while True:
        names = list(where) if isinstance(where, dict) else list(range(len(where)))
        name = data.draw(st.sampled_from(names))
        if isinstance(where[name], dict | list) and where[name] and data.draw(st.booleans()):
            where = where[name]
            continue
        where[name] = data.draw(values)
        break
    assert (key_of(document) == key_of(changed)) == (said(document) == said(changed))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (b'{"model":"m","temperature":0}', b'{"model":"m","temperature":0.0}', True),
        (b'{"model":"m","temperature":0}', b'{"model":"m","temperature":-0.0}', True),
        (b'{"model":"m","temperature":0.50}', b'{"model":"m","temperature":5e-1}', True),
        (b'{"model":"m","seed":1}', b'{"model":"m","seed":1.0}', False),
        (b'{"model":"m","temperature":"0"}', b'{"model":"m","temperature":0}', False),
        (b'{"model":"m","a":0.1}', b'{"model":"m","a":0.1000000000000000055}', False),
        (b'{"model":"m","a":12345678901234567890}', b'{"model":"m","a":12345678901234567891}', False),
        (b'{"model":"m","a":true}', b'{"model":"m","a":1}', False),
        (b'{"model":"m","a":"1"}', b'{"model":"m","a":1}', False),
        (b'{"model":"m","a":null}', b'{"model":"m"}', False),
        (b'{"model":"m","a":["b","c"]}', b'{"model":"m","a":["bc"]}', False),
        (b'{"model":"m","a":[["b"],"c"]}', b'{"model":"m","a":[["b","c"]]}', False),
        (b'{"model":"m","stream":false}', b'{"model":"m"}', True),
        (b'{"model":"m","stream":true}', b'{"model":"m"}', False),
        (b'{"model":"m","stream":true,"stream_options":{"include_usage":true}}', b'{"model":"m","stream":true}', False),
        (b'{"model":"m","user":"ann","metadata":{"a":"b"}}', b'{"model":"m"}', True),
        (b'{"model":"m","service_tier":"flex"}', b'{"model":"m"}', False),
        # Models answer in the order of a schema, and see the arguments of former calls.
        (b'{"model":"m","tools":[{"a":1,"b":2}]}', b'{"model":"m","tools":[{"b":2,"a":1}]}', False),
        (
            b'{"model":"m","messages":[{"content":[{"input":{"a":1,"b":2}}]}]}',
            b'{"model":"m","messages":[{"content":[{"input":{"b":2,"a":1}}]}]}',
            False,
        ),
        ('{"model":"m","a":"\u00e9"}'.encode(), b'{"model":"m","a":"\\u00e9"}', True),
        ('{"model":"m","a":"\u00e9"}'.encode(), '{"model":"m","a":"e\u0301"}'.encode(), False),
        (b'{"model":"m","a":"\\ud800"}', b'{"model":"m","a":"\\ud801"}', False),
    ],
)
def test_what_is_the_same(one: bytes, other: bytes, same: bool) -> None:
    """The cases in which others have erred."""
    assert (key_of(one) == key_of(other)) == same


def test_what_an_answer_says_again_is_part_of_its_key() -> None:
    """The responses endpoint repeats who asked: nobody else's name is told to anybody."""
    url = "https://api.example.com/v1/responses"
    for name in UNSAID:
        assert key_of({"model": "m", name: "ann"}, url) != key_of({"model": "m", name: "bob"}, url)
        assert key_of({"model": "m", name: "ann"}) == key_of({"model": "m", name: "bob"})


def test_where_and_how_it_is_asked() -> None:
    """Provider, host, path, query, version headers; not the API key, the trace, or who wrote the client."""
    body = {"model": "m"}
    usual = key_of(body)
    for url in (URL.replace("chat/", ""), URL.replace("api.", "eu."), URL + "?beta=true", URL.replace("https", "http")):
        assert key_of(body, url) != usual
    assert key_of(body, provider="azure") != usual
    for name in ("Anthropic-Beta", "OpenAI-Organization", "openai-project", "helicone-x", "accept"):
        assert key_of(body, headers=[*HEADERS, (name, "x")]) != usual
    for name in ("traceparent", "user-agent", "x-stainless-retry-count", "x-mine"):
        assert key_of(body, headers=[*HEADERS, (name, "x")]) == usual
    assert key_of(body, headers=[*HEADERS, ("x-mine", "x")], vary=["X-Mine"]) != usual
    assert key_of(body, headers=[(name.upper(), value) for name, value in reversed(HEADERS)]) == usual
    others = [("authorization", "Bearer other"), HEADERS[2]]
    assert key_of(body, headers=others) == usual
    assert key_of(body, headers=others, credentials=True) != key_of(body, credentials=True)


@pytest.mark.parametrize(
    ("offered", "asked"),
    [
        ("gzip, deflate, br, zstd", "gzip, deflate"),
        ("br;q=1.0, GZIP;q=0.8", "gzip"),
        ("gzip;q=0, *", "deflate"),
        ("*", "gzip, deflate"),
        ("br", "identity"),
        ("", "identity"),
    ],
)
def test_encodings_that_the_client_can_read_and_we_too(offered: str, asked: str) -> None:
    """Who cannot read gzip is not given it out of the cache."""
    request = Request("openai", "POST", URL, [("Accept-Encoding", offered)], b"{}")
    assert encodings(request) == asked
    one = key_of({"model": "m"}, headers=[("accept-encoding", "gzip")])
    assert one != key_of({"model": "m"}, headers=[("accept-encoding", "identity")])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'"a"',
        b"{",
        b'{"a":1,"a":2}',
        b'{"a":{"b":1,"b":1}}',
        b'{"a":NaN}',
        b"\xff",
        b"[" * 100_000,
        b" " * 9_000_000,
    ],
)
def test_what_is_no_request(body: bytes) -> None:
    """A body that says one name twice means one thing here, and another at the provider."""
    with pytest.raises(ValueError, match=r"."):
        parsed(body)


def test_numbers_stay_as_they_were_written() -> None:
    """Not rounded to a double."""
    assert parsed(b'{"a":1.00000000000000000001}') == {"a": Number("1.00000000000000000001")}
