"""The OpenAPI description, made from the table of routes and msgspec's schemas."""

import re
from http import HTTPStatus
from typing import Any

import msgspec

from ..asgi import MEDIA_TYPE
from ..version import __version__
from .body import MSGPACK
from .routes import TABLE
from .table import Endpoint

_REFERENCE = "#/components/schemas/{name}"


def document() -> dict[str, Any]:
    """OpenAPI 3.1."""
    kinds = [kind for endpoint in TABLE for kind in (endpoint.body, endpoint.answer) if kind is not None]
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REFERENCE)
    by_kind = dict(zip(map(repr, kinds), schemas, strict=True))
    paths: dict[str, Any] = {}
    for endpoint in TABLE:
        path = re.sub(r":\w+}", "}", endpoint.path)
        operation = _operation(endpoint._replace(path=path), by_kind)
        paths.setdefault(path, {})[endpoint.method.lower()] = operation
    for path, verbs in paths.items():
        for method, operation in verbs.items():
            words = re.sub(r"\W+", "_", path).strip("_")
            operation["operationId"] = f"{method}_{words}" if len(verbs) > 1 else words
    return {
        "openapi": "3.1.0",
        "info": {"title": "Observatory", "version": __version__},
        "paths": paths,
        "components": {"schemas": components},
    }


def _operation(endpoint: Endpoint, schemas: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": HTTPStatus(endpoint.status).phrase}
    if endpoint.answer is not None:
        answer["content"] = _bodies(schemas[repr(endpoint.answer)], 0, packed=endpoint.packed)
    if endpoint.tells:
        answer["headers"] = {name: {"description": text, "schema": {"type": "string"}} for name, text in endpoint.tells}
    operation: dict[str, Any] = {
        "summary": endpoint.summary,
        "responses": {
            str(endpoint.status): answer,
            **{str(status): {**answer, "description": text} for status, text in endpoint.also},
            "default": {"description": "A problem document (RFC 9457)", "content": {MEDIA_TYPE: {}}},
        },
    }
    if endpoint.body is not None:
        content = _bodies(schemas[repr(endpoint.body)], endpoint.many, packed=endpoint.packed)
        operation["requestBody"] = {"required": True, "content": content}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", endpoint.path)
    ]
    parameters += [*_strings("query", endpoint.parameters), *_strings("header", endpoint.headers)]
    if endpoint.others:
        free = {"type": "object", "additionalProperties": {"type": "string"}}
        said = {"style": "form", "explode": True, "description": endpoint.others, "schema": free}
        parameters.append({"name": "dimensions", "in": "query", **said})
    if parameters:
        operation["parameters"] = parameters
    return operation


def _strings(where: str, named: tuple[tuple[str, str], ...]) -> list[dict[str, Any]]:
    return [{"name": name, "in": where, "description": text, "schema": {"type": "string"}} for name, text in named]


def _bodies(schema: Any, many: int, *, packed: bool = False) -> dict[str, Any]:
    """By media type: one, or as many as one request may bring."""
    if not many:
        return {media: {"schema": schema} for media in ("application/json", *(MSGPACK[:1] if packed else ()))}
    several = {"anyOf": [{"type": "array", "items": schema, "maxItems": many}, schema]}
    return {
        "application/json": {"schema": several},
        "application/x-ndjson": {"schema": schema},
        "application/msgpack": {"schema": several},
    }
