"""What a Fallback is, and what a request becomes that goes to it instead."""

import copy
import json
from typing import Any

import httpx
import httpx2
import pytest

from observatory import Fallback, InvalidArgument, Observatory
from observatory.llm.fallback import checked
from observatory.llm.wire import recognise
from tests.llm.tried import KEY, OTHER

FIRST = "https://api.openai.com/v1/chat/completions"
BODY = b'{"model": "gpt-4o","seed":12345678901234567890123, "temperature":1.0,"x":"\\u00e9","messages":[{"content":"model"}]}'
LIBRARIES: dict[str, Any] = {"httpx2": httpx2, "httpx": httpx}


def sent(
    one: Fallback, given: dict[str, str] | None = None, *, url: str = FIRST, library: str = "httpx2"
) -> tuple[Any, dict[str, str]]:
    """The recognised call and the request, with its headers as they would be on the wire."""
    lib = LIBRARIES[library]
    body = BODY
    said = {name.replace("_", "-"): value for name, value in (given or {"authorization": f"Bearer {KEY}"}).items()}
    first = lib.Request("POST", url, headers=said, content=body, extensions={"timeout": {"read": 7}, "sni_hostname": "a"})
    call = recognise("POST", url, said.items(), lambda: body)
    assert call is not None
    asked, request = one.of(lib, call, first)
    request.read()
    names = [name.lower() for name, _ in request.headers.raw]
    assert len(set(names)) == len(names), "none twice"
    assert request.extensions == {"timeout": {"read": 7}}
    return (asked, request), dict(request.headers)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    ("base", "url", "becomes"),
    [
        ("https://api.groq.com/openai/v1/", FIRST, "https://api.groq.com/openai/v1/chat/completions"),
        ("http://here:8000/v1", f"{FIRST}?key=secret", "http://here:8000/v1/chat/completions"),
        ("https://api.openai.com/v2", f"{FIRST}?a=b&c=%20d", "https://api.openai.com/v2/chat/completions?a=b&c=%20d"),
        ("https://api.openai.com:443/v2?c=e", f"{FIRST}?a=b&c=d", "https://api.openai.com/v2/chat/completions?a=b&c=e"),
        ("https://api.openai.com:1/v2", f"{FIRST}?key=secret", "https://api.openai.com:1/v2/chat/completions"),
        ("http://api.openai.com/v2", f"{FIRST}?key=secret", "http://api.openai.com/v2/chat/completions"),
        ("https://h/v1/?", FIRST, "https://h/v1/chat/completions"),
        (
            "https://x.openai.azure.com/openai/deployments/d/?api-version=1&a=%20b",
            f"{FIRST}?key=secret",
            "https://x.openai.azure.com/openai/deployments/d/chat/completions?api-version=1&a=%20b",
        ),
        ("https://h/v1", "https://api.openai.com/v1/responses", "https://h/v1/responses"),
        ("https://h/v1", "https://api.openai.com/v1/embeddings", "https://h/v1/embeddings"),
        ("https://h/v1", "https://api.openai.com/v1/completions", "https://h/v1/completions"),
        ("https://h", "https://api.anthropic.com/v1/messages?beta=true", "https://h/v1/messages"),
        ("https://h?beta=true", "https://api.anthropic.com/v1/messages", "https://h/v1/messages?beta=true"),
        ("https://h/anthropic", "https://gateway/a/v1/messages", "https://h/anthropic/v1/messages"),
        (
            "https://h/v1",
            "https://x.openai.azure.com/openai/deployments/d/chat/completions?api-version=1",
            "https://h/v1/chat/completions",
        ),
    ],
)
def test_addresses(base: str, url: str, becomes: str, library: str) -> None:
    """The endpoint's path on the base, and the base's query; the request's own goes to no stranger, since it may be a key."""
    (_, request), headers = sent(Fallback(base_url=base, api_key=OTHER), url=url, library=library)
    assert str(request.url) == becomes
    assert headers["host"] == request.url.netloc.decode()


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_body_changes_by_its_model_alone(library: str) -> None:
    """Numbers and escapes keep their bytes; without another model all of it does."""
    (asked, request), headers = sent(Fallback(base_url="https://h/v1", api_key=OTHER, model='a"b'), library=library)
    assert json.loads(request.content) == {**json.loads(BODY), "model": 'a"b'}
    for kept in (b"12345678901234567890123", b"1.0", b"\\u00e9"):
        assert kept in request.content
    assert headers["content-length"] == str(len(request.content))
    assert (asked.model, asked.document["model"]) == ('a"b', 'a"b')
    for model in (None, "gpt-4o"):
        (asked, request), _ = sent(Fallback(base_url="https://h/v1", api_key=OTHER, model=model), library=library)
        assert (request.content, asked.model) == (BODY, "gpt-4o")


@pytest.mark.parametrize(
    ("base", "given", "name"),
    [
        ("https://h/v1", {"authorization": f"Bearer {KEY}"}, "authorization"),
        ("https://x.openai.azure.com/openai/v1", {"authorization": f"Bearer {KEY}"}, "api-key"),
        ("https://h/v1", {"api_key": KEY}, "authorization"),
        ("https://h/v1", {"x_goog_api_key": KEY}, "authorization"),
    ],
)
def test_the_key_is_replaced(base: str, given: dict[str, str], name: str) -> None:
    secrets = {
        "cookie": "a=b",
        "openai_organization": "o",
        "openai_project": "p",
        "proxy_authorization": "x",
        "helicone_auth": KEY,
    }
    kept = {"openai_beta": "x", "x_stainless_lang": "python", "content_type": "application/json", "user_agent": "me"}
    one = Fallback(base_url=base, api_key=OTHER)
    (asked, _), headers = sent(one, {**given, **secrets, **kept})
    assert headers[name] in (OTHER, f"Bearer {OTHER}")
    own = {"host", "content-length", name}
    assert headers.keys() == {one.replace("_", "-") for one in kept} | own
    assert KEY not in f"{headers}"
    assert asked.key not in (None, KEY, OTHER)


def test_messages_have_the_key_where_it_was() -> None:
    url = "https://api.anthropic.com/v1/messages"
    one = Fallback(base_url="https://h", api_key=OTHER)
    assert sent(one, {"x_api_key": KEY}, url=url)[1]["x-api-key"] == OTHER
    assert sent(one, url=url)[1]["authorization"] == f"Bearer {OTHER}"


def test_at_the_same_address() -> None:
    """Another key has other organisations; the same key has them, with another model."""
    given = {"authorization": f"Bearer {KEY}", "openai_organization": "o", "cookie": "a=b", "x_mine": "1"}
    headers = sent(Fallback(base_url="https://api.openai.com/v1", api_key=OTHER), given)[1]
    assert {"openai-organization", "cookie"}.isdisjoint(headers)
    assert headers["x-mine"] == "1"
    headers = sent(Fallback(base_url="https://api.openai.com/v1", api_key=KEY, model="m"), given)[1]
    assert (headers["openai-organization"], headers["authorization"]) == ("o", f"Bearer {KEY}")


@pytest.mark.parametrize(
    ("base", "provider", "url", "named"),
    [
        ("https://api.groq.com/openai/v1", None, FIRST, "groq"),
        ("https://h:1/v1", None, FIRST, "openai_compatible"),
        ("https://h:1/v1", "vllm", FIRST, "vllm"),
        ("https://h", None, "https://api.anthropic.com/v1/messages", "anthropic_compatible"),
        ("https://api.anthropic.com", None, "https://gateway/v1/messages", "anthropic"),
    ],
)
def test_who_answers(base: str, provider: str | None, url: str, named: str) -> None:
    (asked, _), _ = sent(Fallback(base_url=base, api_key=OTHER, provider=provider), url=url)
    assert asked.provider == named


@pytest.mark.parametrize(
    "wrong",
    [
        *(
            {"base_url": url}
            for url in ("", "api.openai.com/v1", "ftp://h/v1", "https://", "https://h:x/v1", None, "https://h/ v1")
        ),
        *({"base_url": url} for url in ("https://u:p@h/v1", "https://h/v1#a", "https://h:99999/v1")),
        *({"base_url": f"https://h{path}"} for path in ("/v1/chat/completions", "/v1/messages/", "/v1/embeddings")),
        *({"base_url": f"https://api.openai.com{path}"} for path in ("", "/")),
        {"base_url": "https://api.anthropic.com/v2"},
        *({"api_key": key} for key in ("", None, "a b", "a\r\nb", "ä", b"a")),
        *({"model": model} for model in ("", 1, "x" * 257)),
        *({"provider": provider} for provider in ("", 1)),
        *({"when": when} for when in (429, "429", (200,), ("429",), (True,), (600,), None)),
    ],
)
def test_what_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Fallback(**{"base_url": "https://h/v1", "api_key": OTHER, **wrong})
    assert OTHER not in str(caught.value)
    assert "u:p" not in str(caught.value)


def test_a_protocol_is_not_translated() -> None:
    """What can be known is refused; a fallback that speaks another protocol than the call is passed over."""
    openai = Fallback(base_url="https://api.openai.com/v1", api_key=OTHER)
    anthropic = Fallback(base_url="https://api.anthropic.com", api_key=OTHER)
    unknown = Fallback(base_url="https://h", api_key=OTHER)
    like_openai = Fallback(base_url="https://api.anthropic.com/v1", api_key=OTHER)
    for wrong, provider in (
        ([openai, anthropic], None),
        ([openai], "anthropic"),
        ([anthropic], "openai"),
        ([anthropic, like_openai], None),
    ):
        with pytest.raises(InvalidArgument, match="protocol"):
            checked(wrong, provider)
    assert checked([openai, unknown, like_openai], "openai") == (openai, unknown, like_openai)
    assert [one.serves("messages") for one in (openai, anthropic, unknown, like_openai)] == [False, True, True, False]
    assert [one.serves("chat") for one in (openai, anthropic, unknown, like_openai)] == [True, False, True, True]


def test_it_is_frozen_and_says_no_key() -> None:
    one = Fallback(base_url="https://h/v1", api_key=OTHER, when=[500])  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        one.model = "a"  # type: ignore[misc]
    assert (one.when, one) == ((500,), copy.copy(one))
    assert hash(one)
    assert OTHER not in f"{one!r} {one} {[one]}"


async def test_what_clients_refuse(obs: Observatory) -> None:
    for wrong in ({"fallbacks": "a"}, {"fallbacks": [1]}, {"fallbacks": 3}, {"hedge_after": -1}, {"hedge_after": "x"}):
        with pytest.raises(InvalidArgument):
            obs.llm.http_client(**wrong)
    one = Fallback(base_url="https://h/v1", api_key=OTHER)
    with pytest.raises(InvalidArgument):
        obs.llm.http_client(fallbacks=[one] * 17)
