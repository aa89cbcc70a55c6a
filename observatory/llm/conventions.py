"""The words of OpenTelemetry's GenAI semantic conventions for a call, as span attributes. No content, ever."""

from typing import Any, Final

from .call import Usage
from .wire import Reading, Recognised

_ASKED: Final = {
    "temperature": ("gen_ai.request.temperature", float),
    "top_p": ("gen_ai.request.top_p", float),
    "top_k": ("gen_ai.request.top_k", int),
    "frequency_penalty": ("gen_ai.request.frequency_penalty", float),
    "presence_penalty": ("gen_ai.request.presence_penalty", float),
    "seed": ("gen_ai.request.seed", int),
    "n": ("gen_ai.request.choice.count", int),
    "dimensions": ("gen_ai.embeddings.dimension.count", int),
}
_USED: Final = {
    "input_tokens": ("gen_ai.usage.input_tokens",),
    "output_tokens": ("gen_ai.usage.output_tokens",),
    "cache_read_input_tokens": ("gen_ai.usage.cache_read.input_tokens",),
    # Named anew since 1.41: what most backends know, and what they will.
    "cache_write_input_tokens": ("gen_ai.usage.cache_creation.input_tokens", "gen_ai.usage.cache_write.input_tokens"),
    "reasoning_output_tokens": ("gen_ai.usage.reasoning.output_tokens",),
    "audio_input_tokens": ("gen_ai.usage.audio.input_tokens",),
    "audio_output_tokens": ("gen_ai.usage.audio.output_tokens",),
}
_OUTPUT_TYPES: Final = {"text": "text", "json_object": "json", "json_schema": "json"}
_OPENAI: Final = frozenset({"openai", "azure.ai.openai"})


def name(call: Recognised) -> str:
    return f"{call.operation} {call.model}"


def asked(call: Recognised) -> dict[str, Any]:
    """What is known before a call is sent."""
    said: dict[str, Any] = {
        "gen_ai.operation.name": call.operation,
        "gen_ai.provider.name": call.provider,
        "gen_ai.request.model": call.model,
    }
    if call.host:  # in the same process there is none
        said["server.address"] = call.host
    if call.port is not None:
        said["server.port"] = call.port
    if call.stream:
        said["gen_ai.request.stream"] = True
    document = call.document
    for field, (attribute, kind) in _ASKED.items():
        value = document.get(field)
        if type(value) in (int, float) and not (field == "n" and value == 1):
            said[attribute] = kind(value)
    if (most := call.max_output_tokens) and call.endpoint != "embeddings":
        said["gen_ai.request.max_tokens"] = most
    stop = document.get("stop", document.get("stop_sequences"))
    if isinstance(stop, list) and stop and all(isinstance(one, str) for one in stop):
        said["gen_ai.request.stop_sequences"] = [one[:64] for one in stop[:16]]
    wanted = document.get("response_format")
    if isinstance(wanted, dict) and (kind_of := _OUTPUT_TYPES.get(str(wanted.get("type")))):
        said["gen_ai.output.type"] = kind_of
    tier = document.get("service_tier")
    if call.provider in _OPENAI and isinstance(tier, str) and tier != "auto":
        said["openai.request.service_tier"] = tier[:64]
    return said


def answered(provider: str, reading: Reading) -> dict[str, Any]:
    """What is known once it is over."""
    said: dict[str, Any] = {}
    if reading.response_model is not None:
        said["gen_ai.response.model"] = reading.response_model
    if reading.response_id is not None:
        said["gen_ai.response.id"] = reading.response_id
    if reading.finish_reasons:
        said["gen_ai.response.finish_reasons"] = list(reading.finish_reasons)
    if reading.service_tier is not None and provider in _OPENAI:
        said["openai.response.service_tier"] = reading.service_tier
    if reading.usage is not None:
        said.update(used(reading.usage))
    if reading.estimated:
        said["observatory.usage.estimated"] = True
    return said


def used(usage: Usage) -> dict[str, int]:
    """Tokens; of the rarer kinds only where there are any."""
    said = {}
    for field, attributes in _USED.items():
        count = getattr(usage, field)
        if count or field in ("input_tokens", "output_tokens"):
            said.update(dict.fromkeys(attributes, count))
    return said
