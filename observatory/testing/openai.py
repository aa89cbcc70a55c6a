"""Answers as OpenAI's API gives them, and all that speak like it."""

import base64
import json
import math
import struct
from hashlib import blake2b
from typing import Any

_CREATED = 1_700_000_000
_ERRORS = {
    400: ("invalid_request_error", None),
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("invalid_request_error", None),
    404: ("invalid_request_error", "model_not_found"),
    429: ("requests", "rate_limit_exceeded"),
}
_WIDTH = 8
"""Numbers of an embedding for which nobody said how many."""


def error(status: int, text: str) -> dict[str, Any]:
    kind, code = _ERRORS.get(status, ("server_error" if status >= 500 else "invalid_request_error", None))
    return {"error": {"message": text, "type": kind, "param": None, "code": code}}


# chat
def chat(said: Any, asked: dict[str, Any]) -> dict[str, Any]:
    spoken = {"role": "assistant", "content": said.text, "refusal": None, "annotations": []}
    return {
        **_head("chatcmpl-sandbox", "chat.completion", asked),
        "choices": [{"index": 0, "message": spoken, "logprobs": None, "finish_reason": "stop"}],
        "usage": _usage(said),
        "service_tier": "default",
    }


def chat_stream(said: Any, asked: dict[str, Any], host: str) -> list[bytes]:
    head = _head("chatcmpl-sandbox", "chat.completion.chunk", asked)
    wanted = _wants_usage(asked)
    if wanted:
        head["usage"] = None

    def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]}

    last = chunk({}, "stop")
    if host.endswith("groq.com"):
        last["x_groq"] = {"id": "req_sandbox", "usage": _usage(said)}
    chunks = [chunk({"role": "assistant", "content": ""}), *(chunk({"content": word}) for word in said.words), last]
    if wanted:
        chunks.append({**head, "choices": [], "usage": _usage(said)})
    return [*map(_data, chunks), b"data: [DONE]\n\n"]


# completions
def completion(said: Any, asked: dict[str, Any]) -> dict[str, Any]:
    return {
        **_head("cmpl-sandbox", "text_completion", asked),
        "choices": [{"index": 0, "text": said.text, "logprobs": None, "finish_reason": "stop"}],
        "usage": _usage(said),
    }


def completion_stream(said: Any, asked: dict[str, Any], host: str) -> list[bytes]:
    head = _head("cmpl-sandbox", "text_completion", asked)

    def chunk(text: str, finish: str | None = None) -> dict[str, Any]:
        return {**head, "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": finish}]}

    chunks = [*(chunk(word) for word in said.words), chunk("", "stop")]
    if _wants_usage(asked):
        chunks.append({**head, "choices": [], "usage": _usage(said)})
    return [*map(_data, chunks), b"data: [DONE]\n\n"]


# responses
def response(said: Any, asked: dict[str, Any]) -> dict[str, Any]:
    return {
        **_response(asked, "completed"),
        "output": [_spoken(said.text, "completed")],
        "usage": {
            "input_tokens": said.input_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": said.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": said.input_tokens + said.output_tokens,
        },
    }


def response_stream(said: Any, asked: dict[str, Any], host: str) -> list[bytes]:
    begun = _response(asked, "in_progress")
    where = {"item_id": "msg_sandbox", "output_index": 0}
    part = {**where, "content_index": 0}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        {"type": "response.output_item.added", "output_index": 0, "item": {**_spoken("", "in_progress"), "content": []}},
        {"type": "response.content_part.added", **part, "part": _part("")},
        *({"type": "response.output_text.delta", **part, "delta": word, "logprobs": []} for word in said.words),
        {"type": "response.output_text.done", **part, "text": said.text, "logprobs": []},
        {"type": "response.content_part.done", **part, "part": _part(said.text)},
        {"type": "response.output_item.done", "output_index": 0, "item": _spoken(said.text, "completed")},
        {"type": "response.completed", "response": response(said, asked)},
    ]
    return [
        f"event: {event['type']}\ndata: {json.dumps({**event, 'sequence_number': number})}\n\n".encode()
        for number, event in enumerate(events)
    ]


def _response(asked: dict[str, Any], status: str) -> dict[str, Any]:
    return {
        "id": "resp_sandbox",
        "object": "response",
        "created_at": _CREATED,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": asked.get("instructions"),
        "max_output_tokens": asked.get("max_output_tokens"),
        "model": asked.get("model", "sandbox"),
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": asked.get("previous_response_id"),
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": asked.get("store", True),
        "temperature": asked.get("temperature", 1.0),
        "text": {"format": {"type": "text"}},
        "tool_choice": asked.get("tool_choice", "auto"),
        "tools": asked.get("tools", []),
        "top_p": asked.get("top_p", 1.0),
        "truncation": "disabled",
        "usage": None,
        "metadata": asked.get("metadata") or {},
    }


def _spoken(text: str, status: str) -> dict[str, Any]:
    return {"id": "msg_sandbox", "type": "message", "status": status, "role": "assistant", "content": [_part(text)]}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


# embeddings
def embeddings(said: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """The same text has the same one; it has length 1."""
    given = asked.get("input", "")
    # One text, one list of tokens, or several of either.
    inputs = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    width = asked.get("dimensions") or _WIDTH
    data = []
    for index, one in enumerate(inputs):
        vector: Any = _vector(json.dumps(one), width)
        if asked.get("encoding_format") == "base64":
            vector = base64.b64encode(struct.pack(f"<{width}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": vector})
    usage = {"prompt_tokens": said.input_tokens, "total_tokens": said.input_tokens}
    return {"object": "list", "data": data, "model": asked.get("model", "sandbox"), "usage": usage}


def _vector(text: str, width: int) -> list[float]:
    numbers = [int.from_bytes(blake2b(f"{at} {text}".encode(), digest_size=4).digest()) / 2**31 - 1 for at in range(width)]
    length = math.hypot(*numbers) or 1.0
    return [number / length for number in numbers]


# all of them
def _head(id: str, kind: str, asked: dict[str, Any]) -> dict[str, Any]:  # noqa: A002 (its name there)
    model = asked.get("model", "sandbox")
    return {"id": id, "object": kind, "created": _CREATED, "model": model, "system_fingerprint": "fp_sandbox"}


def _usage(said: Any) -> dict[str, Any]:
    return {
        "prompt_tokens": said.input_tokens,
        "completion_tokens": said.output_tokens,
        "total_tokens": said.input_tokens + said.output_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def _wants_usage(asked: dict[str, Any]) -> bool:
    return bool((asked.get("stream_options") or {}).get("include_usage"))


def _data(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"
