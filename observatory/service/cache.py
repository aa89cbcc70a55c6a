"""The shared cache over HTTP: entries by name and key, of whatever type; dimensions say whose.

A cache is not a limit: a store that is away is a 503 for reads too, since a 404 would have the caller compute for an outage.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response

from ..errors import CacheMiss, InvalidArgument, NotFound
from ..features.cache import CacheReport, report
from . import body, problems
from .table import Answer, Endpoint, State

_MOST_PARAMETERS = 200
_STATUS = "cache-status"


class ScopeBody(msgspec.Struct, forbid_unknown_fields=True):
    """Whose part of the cache: the dimensions that it is kept by; none: it is everybody's."""

    dimensions: dict[str, str] = {}


class TagsBody(ScopeBody, forbid_unknown_fields=True, kw_only=True):
    """What was written with any of these tags counts no more."""

    tags: list[str]

    def __post_init__(self) -> None:
        if not self.tags:
            raise ValueError("tags must name at least one")


class Deleted(msgspec.Struct):
    """Whether there was one; now there is none, in either case."""

    deleted: bool


async def read(state: State, request: Request) -> Response:
    name, key = _entry(request)
    asked = _parameters(request, "dimension")
    try:
        with state.obs.untyped_caches.of(name, _dimensions(asked)) as cache:
            found = await cache.find(key)
    except CacheMiss as miss:
        answer = problems.response(request, miss)
        answer.headers[_STATUS] = "observatory; fwd=miss"
        return answer
    headers = {
        "age": str(int(found.age)),
        _STATUS: f"observatory; hit; ttl={int(found.ttl)}",
        # An entry may be deleted in the next moment, of which no cache between us would hear.
        "cache-control": "no-store",
    }
    if body.packs(",".join(request.headers.getlist("accept"))):
        return Response(msgspec.msgpack.encode(found.value), 200, headers, body.MSGPACK[0])
    return Response(found.json(), 200, headers, "application/json")


async def write(state: State, request: Request) -> Response:
    name, key = _entry(request)
    asked = _parameters(request, "ttl", "tag", "dimension")
    given = asked.get("ttl", [])
    if len(given) > 1:
        raise InvalidArgument("ttl is said twice")
    ttl: dict[str, Any] = {"ttl": given[0]} if given else {}
    raw = await body.read(request, state.obs.settings.serve.max_body)
    value = body.value(raw, request.headers.get("content-type", ""))
    with state.obs.untyped_caches.of(name, _dimensions(asked)) as cache:
        await cache.set(key, value, tags=asked.get("tag", []), **ttl)
    return Response(status_code=204)


async def delete(state: State, request: Request) -> Answer:
    name, key = _entry(request)
    with state.obs.untyped_caches.of(name, _dimensions(_parameters(request, "dimension"))) as cache:
        return Answer(Deleted(bool(await cache.delete(key))))


async def invalidate(state: State, request: Request) -> Response:
    asked = body.decode(await body.read(request, state.obs.settings.serve.max_body), TagsBody)
    with state.obs.untyped_caches.of(request.path_params["name"], asked.dimensions) as cache:
        await cache.invalidate(*asked.tags)
    return Response(status_code=204)


async def clear(state: State, request: Request) -> Response:
    asked = body.decode(await body.read(request, state.obs.settings.serve.max_body) or b"{}", ScopeBody)
    with state.obs.untyped_caches.of(request.path_params["name"], asked.dimensions) as cache:
        await cache.clear()
    return Response(status_code=204)


async def stats(state: State, request: Request) -> Answer:
    asked = _parameters(request, "scope")
    scope = asked.get("scope", ["fleet"])
    if scope not in (["fleet"], ["instance"]):
        raise InvalidArgument(f"scope must be fleet or instance, got {','.join(scope)!r:.40}")
    with state.obs.untyped_caches.of(request.path_params["name"], {}) as cache:
        return Answer(report(cache.name, await cache.stats(fleet=scope == ["fleet"])))


def _entry(request: Request) -> tuple[str, str]:
    """Name and key, of the path as it was sent: decoded first, a key's %2F could not be told from a name's, and bytes that are
    no text would all be one key."""
    _, *parts = request.scope["raw_path"].partition(b"?")[0].split(b"/", 5)
    try:
        decoded = [unquote_to_bytes(part).decode("utf-8", "surrogatepass") for part in parts]
    except UnicodeDecodeError:
        raise InvalidArgument("the key in the path is not UTF-8, percent-encoded") from None
    match decoded:
        case ["v1", "cache", name, "entries", key]:
            return name, key
    raise NotFound("a path to an entry is /v1/cache/{name}/entries/{key}", remedy="Percent-encode name and key, nothing else")


def _parameters(request: Request, *known: str) -> dict[str, list[str]]:
    """What the query says. A parameter that nobody knows is a mistake here: a dimension that was mistyped is not noticed."""
    query = request.scope["query_string"].decode("latin-1")
    found: dict[str, list[str]] = {}
    try:
        for name, value in parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=_MOST_PARAMETERS):
            found.setdefault(name, []).append(value)
    except UnicodeDecodeError:
        raise InvalidArgument("the query is not UTF-8, percent-encoded") from None
    except ValueError:
        raise InvalidArgument(f"at most {_MOST_PARAMETERS} parameters") from None
    if unknown := found.keys() - set(known):
        raise InvalidArgument(f"unknown parameter {min(unknown)!r:.40}", remedy=f"There are {', '.join(known)}")
    return found


def _dimensions(asked: Mapping[str, list[str]]) -> dict[str, str]:
    pairs = [said.partition("=") for said in asked.get("dimension", [])]
    if any(not equals for _, equals, _ in pairs):
        raise InvalidArgument("dimension wants name=value", remedy="Write ?dimension=tenant=acme")
    found = {name: value for name, _, value in pairs}
    if len(found) < len(pairs):
        raise InvalidArgument("a dimension is said twice")
    return found


_WHOSE = (("dimension", "tenant=acme: whose, where the cache is kept by that; again for another dimension"),)
_TTL = ("ttl", "seconds, or 5m, 1h: how long it is kept, less a jitter; default cache.ttl")
_TAG = ("tag", "a tag; again for more, at most 64")
_SCOPE = (("scope", "fleet (the default): in the last hour; or instance: by this instance since it started"),)
_ACCEPT = (("accept", "application/msgpack for what JSON has no form for; else JSON"),)
_TOLD = (("age", "seconds since the entry was made"), (_STATUS, "observatory; hit; ttl=57, as of RFC 9211"))
_ROOM = "/v1/cache/{name}"
_ENTRY = f"{_ROOM}/entries/{{key:rest}}"


class _Rest(Convertor[str]):
    """All that follows: slashes, and line ends, before which Starlette's own `path` stops."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("rest", _Rest())

TABLE: tuple[Endpoint, ...] = (
    Endpoint(
        *("GET", _ENTRY, read, "The newest entry of whatever type; 404 cache_miss where there is none"),
        answer=Any,
        parameters=_WHOSE,
        headers=_ACCEPT,
        packed=True,
        tells=_TOLD,
    ),
    Endpoint(
        *("PUT", _ENTRY, write, "Write, in every type's stead; readers with a type that fits find it"),
        body=Any,
        parameters=(_TTL, _TAG, *_WHOSE),
        status=204,
        packed=True,
    ),
    Endpoint(
        *("DELETE", _ENTRY, delete, "Remove the entry of every type"),
        answer=Deleted,
        parameters=_WHOSE,
    ),
    Endpoint(
        *("POST", f"{_ROOM}/invalidate", invalidate, "All that was written with any of these tags counts no more"),
        body=TagsBody,
        status=204,
    ),
    Endpoint("POST", f"{_ROOM}/clear", clear, "Everything in the cache counts no more", body=ScopeBody, status=204),
    Endpoint("GET", f"{_ROOM}/stats", stats, "How the cache has served", answer=CacheReport, parameters=_SCOPE),
)
