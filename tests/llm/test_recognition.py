"""Which LLM call a request is, and how much it may take."""

import json
from hashlib import sha256
from typing import Any

import pytest

from observatory.llm.wire import Recognised, approximately, recognise
from observatory.llm.wire.tokens import IMAGE
from tests.llm.replay import recorded

KEY = ("Authorization", "Bearer sk-proj-0123456789abcdef")


def seen(url: str, document: Any = None, *headers: tuple[str, str], method: str = "POST", **more: Any) -> Recognised | None:
    body = document if isinstance(document, bytes) else json.dumps(document or {"model": "m-1"}).encode()
    return recognise(method, url, headers, lambda: body, **more)


@pytest.mark.parametrize(
    ("url", "provider", "endpoint"),
    [
        ("https://api.openai.com/v1/chat/completions", "openai", "chat"),
        ("https://eu.api.openai.com/v1/responses", "openai", "responses"),
        ("https://api.openai.com/v1/completions", "openai", "completions"),
        ("https://api.openai.com/v1/embeddings/", "openai", "embeddings"),
        ("https://acme.openai.azure.com/openai/v1/responses", "azure.ai.openai", "responses"),
        ("https://acme.services.ai.azure.com/models/chat/completions?api-version=1", "azure.ai.openai", "chat"),
        ("https://api.anthropic.com/v1/messages?beta=true", "anthropic", "messages"),
        ("https://api.groq.com/openai/v1/chat/completions", "groq", "chat"),
        ("https://api.mistral.ai/v1/chat/completions", "mistral_ai", "chat"),
        ("https://api.deepseek.com/chat/completions", "deepseek", "chat"),
        ("http://gpu-7:8000/v1/chat/completions", "openai_compatible", "chat"),
        ("http://gateway.local/anthropic/v1/messages", "anthropic_compatible", "messages"),
        ("https://api.openai.com.evil.example/v1/chat/completions", "openai_compatible", "chat"),
    ],
)
def test_by_its_address(url: str, provider: str, endpoint: str) -> None:
    call = seen(url)
    assert call is not None
    assert (call.provider, call.endpoint, call.model) == (provider, endpoint, "m-1")
    named = seen(url, provider="mine")
    assert named is not None
    assert named.provider == "mine"


@pytest.mark.parametrize(
    ("method", "url"),
    [
        ("GET", "https://api.openai.com/v1/chat/completions"),
        ("POST", "https://api.openai.com/v1/files"),
        ("POST", "https://api.anthropic.com/v1/messages/count_tokens"),
        ("POST", "https://api.anthropic.com/v1/messages/batches"),
        ("POST", "https://api.openai.com/v1/responses/resp_1/cancel"),
        ("POST", "https://example.com/messages"),
    ],
)
def test_others_are_none(method: str, url: str) -> None:
    assert seen(url, method=method) is None


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff\xfe", b'"x"', b"[" * 5000])
def test_what_is_no_json_object_is_a_call_that_nobody_knows(body: bytes) -> None:
    """It may be anything: so large, and of some model."""
    call = recognise("POST", "https://api.openai.com/v1/chat/completions", [], lambda: body)
    assert call is not None
    assert (call.model, call.document, call.unread) == ("unknown", {}, len(body))
    assert call.input_tokens() == len(body) // 4


def test_a_body_that_is_not_there_yet_is_not_waited_for() -> None:
    url, headers = "https://api.openai.com/v1/embeddings", [("Content-Length", "4000")]
    for said, size in ((headers, 4000), ([], 0)):
        call = recognise("POST", url, said, lambda: None)
        assert call is not None
        assert (call.unread, call.input_tokens()) == (size, size // 4)


def test_an_azure_deployment_is_the_model() -> None:
    call = seen("https://a.openai.azure.com/openai/deployments/our%20gpt/chat/completions?api-version=1", {"messages": []})
    assert call is not None
    assert (call.model, call.port, call.host) == ("our gpt", 443, "a.openai.azure.com")


def test_a_key_is_known_by_its_digest() -> None:
    """The same for one key, however it is sent; what `sha256sum` says of it, in the beginning."""
    url = "https://api.openai.com/v1/embeddings"
    key = KEY[1].split()[1]
    sent = [[KEY], [("x-api-key", key)], [("api-key", key)]]
    calls = [call for headers in sent if (call := seen(url, None, *headers))]
    assert {call.key for call in calls} == {sha256(key.encode()).hexdigest()[:12]}
    assert "0123456789" not in f"{calls}"
    nobody = seen(url)
    assert nobody is not None
    assert nobody.key is None


def test_where_an_address_says_who_fails_as_one() -> None:
    """Not all that speak like OpenAI, and not all resources of Azure."""
    for url, where in (
        ("https://api.openai.com/v1/embeddings", "openai"),
        ("http://10.0.0.7:8000/v1/embeddings", "openai_compatible:10.0.0.7"),
        ("https://a.openai.azure.com/openai/deployments/d/embeddings", "azure.ai.openai:a.openai.azure.com"),
    ):
        call = seen(url)
        assert call is not None
        assert call.where == where


def test_what_the_sdk_says_of_its_retries() -> None:
    for said, attempt in (("0", 0), ("2", 2), ("x", 0), ("-1", 0), ("9" * 99, 0)):
        call = seen("https://api.openai.com/v1/embeddings", None, ("x-stainless-retry-count", said))
        assert call is not None
        assert call.attempt == attempt


def test_estimates_of_recorded_requests() -> None:
    """Of text, within a factor of three, over all of them within a third; what has no usage is not compared."""
    ours = theirs = 0
    for one in recorded():
        call = seen(f"https://api.{one.provider}.com{one.path}", one.request)
        assert call is not None
        assert call.stream == one.streamed
        usage = {} if one.streamed else json.loads(one.body).get("usage") or {}
        cached = usage.get("cache_creation_input_tokens", 0) + usage.get("cache_read_input_tokens", 0)
        said = usage.get("prompt_tokens", usage.get("input_tokens", 0)) + cached
        # Images, and what a provider adds to have an answer in a shape, are not to be seen in the request.
        if said and "image" not in json.dumps(one.request) and "output_format" not in one.request:
            ours, theirs = ours + call.input_tokens(), theirs + said
            assert said / 3 <= call.input_tokens() + 8
            assert call.input_tokens() <= said * 3 + 8
    assert 0.67 < ours / theirs < 1.5


def call_of(document: dict[str, Any], **more: Any) -> Recognised:
    call = seen("https://api.openai.com/v1/chat/completions", {"model": "m", **document}, **more)
    assert call is not None
    return call


def test_what_an_estimate_counts() -> None:
    text = "x" * 400
    assert call_of({"messages": [{"role": "user", "content": text}]}).input_tokens() == 104
    parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": "data:" + "y" * 100_000}}]
    assert call_of({"messages": [{"role": "user", "content": parts}]}).input_tokens() == 104 + IMAGE
    assert call_of({"input": [[1, 2, 3], [4, 5]]}).input_tokens() == 5
    assert call_of({"prompt": [7] * 9}).input_tokens() == 9
    tools = [{"type": "function", "function": {"name": "f", "description": text}}]
    assert call_of({"messages": [], "tools": tools}).input_tokens() > 100
    assert approximately("日本語") == 3
    deep: Any = text
    for _ in range(200):
        deep = [deep]
    assert call_of({"messages": deep}).input_tokens() >= 0


def test_a_tokenizer_of_ones_own_counts_and_may_fail() -> None:
    messages = {"messages": [{"role": "user", "content": "abcd" * 10}]}
    assert call_of(messages, tokenizer=len).input_tokens() == 44

    def broken(text: str) -> int:
        raise RuntimeError(text)

    assert call_of(messages, tokenizer=broken).input_tokens() == 14


def test_how_much_an_answer_may_be() -> None:
    assert call_of({"max_tokens": 5}).max_output_tokens == 5
    assert call_of({"max_tokens": 5, "max_completion_tokens": 7, "n": 3}).max_output_tokens == 21
    assert call_of({"max_output_tokens": "many"}).max_output_tokens is None
    embeddings = seen("https://api.openai.com/v1/embeddings", {"model": "m"})
    assert embeddings is not None
    assert embeddings.max_output_tokens == 0
