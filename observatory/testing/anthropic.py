"""Answers as Anthropic's API gives them."""

import json
from typing import Any

_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}


def error(status: int, text: str) -> dict[str, Any]:
    kind = _ERRORS.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": text}, "request_id": "req_sandbox"}


def message(said: Any, asked: dict[str, Any]) -> dict[str, Any]:
    return {
        **_head(asked),
        "content": [{"type": "text", "text": said.text}],
        "stop_reason": "end_turn",
        "usage": _usage(said, said.output_tokens),
    }


def counted(said: Any, asked: dict[str, Any]) -> dict[str, Any]:
    return {"input_tokens": said.input_tokens}


def message_stream(said: Any, asked: dict[str, Any], host: str) -> list[bytes]:
    begun = {**_head(asked), "content": [], "stop_reason": None, "usage": _usage(said, 1 if said.output_tokens else 0)}
    return [
        _event({"type": "message_start", "message": begun}),
        _event({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        _event({"type": "ping"}),
        *(
            _event({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}})
            for word in said.words
        ),
        _event({"type": "content_block_stop", "index": 0}),
        _event(
            {
                "type": "message_delta",
                "delta": {"stop_reason": "end_turn", "stop_sequence": None},
                "usage": {"output_tokens": said.output_tokens},
            }
        ),
        _event({"type": "message_stop"}),
    ]


def _head(asked: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "msg_sandbox",
        "type": "message",
        "role": "assistant",
        "model": asked.get("model", "sandbox"),
        "stop_sequence": None,
    }


def _usage(said: Any, output_tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": said.input_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": output_tokens,
        "service_tier": "standard",
    }


def _event(document: dict[str, Any]) -> bytes:
    return f"event: {document['type']}\ndata: {json.dumps(document)}\n\n".encode()
