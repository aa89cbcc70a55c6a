"""A provider that is asked instead of another: who it is, and what a request to it looks like."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import SplitResult, urlsplit

import msgspec

from .. import units
from ..dimensions import key_of
from ..errors import InvalidArgument
from .wire import PATHS, Endpoint, Recognised, provider_of
from .wire.request import COMPATIBLE, CREDENTIALS, MAX_NAME

Family = Literal["openai", "anthropic"]
WHEN: Final = (429, 500, 502, 503, 529)
_LONGEST: Final = 4096
_MOST: Final = 16
_PRIVATE: Final = frozenset({*CREDENTIALS, "proxy-authorization", "cookie", "openai-organization", "openai-project"})
"""What belongs to whoever was asked first, and to the key that came along."""
_WIRE: Final = frozenset({"host", "content-length", "transfer-encoding", "connection"})
"""What a request has of its own."""
_COMMON: Final = frozenset(
    {
        *("accept", "accept-encoding", "accept-language", "content-type", "user-agent", "idempotency-key"),
        *("anthropic-version", "anthropic-beta", "openai-beta"),
    }
)
"""What a stranger is told: any other header may be somebody's secret, whatever it is called."""
_EITHER: Final = frozenset({*COMPATIBLE.values(), "azure.ai.openai", "aws.bedrock", "gcp.vertex_ai"})
"""Who may speak either protocol."""
_SDKS: Final = "x-stainless-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """Who is asked instead. base_url: as the SDK takes it, with /v1 for OpenAI and those like it, without for Anthropic; a
    query that it has is sent along.
    model: instead of the one that was asked for; None: that one. provider: who answers, where the address does not say. when:
    the statuses of the one before it for which it is asked. The key is in no text of it."""

    base_url: str
    api_key: str = field(repr=False)
    model: str | None = None
    provider: str | None = None
    when: tuple[int, ...] = WHEN

    def __post_init__(self) -> None:
        _address(self.base_url)
        path, mark, query = self.base_url.partition("?")
        object.__setattr__(self, "base_url", path.rstrip("/") + (mark + query if query else ""))
        key = self.api_key
        if not isinstance(key, str) or not 0 < len(key) <= _LONGEST or not (key.isascii() and key.isprintable()) or " " in key:
            raise InvalidArgument("api_key of a Fallback must be a text of visible ASCII characters, as a header takes it")
        for name in ("model", "provider"):
            said = getattr(self, name)
            if said is not None and (not isinstance(said, str) or not 0 < len(said) <= MAX_NAME):
                raise InvalidArgument(f"{name} of a Fallback must be a text of 1 to {MAX_NAME} characters, got {said!r:.80}")
        when = self.when
        if isinstance(when, str | int) or not isinstance(when, Iterable):
            raise InvalidArgument(f"when of a Fallback must be several statuses, got {units.shown(when)}")
        object.__setattr__(self, "when", tuple(when))
        for status in self.when:
            if type(status) is not int or not 400 <= status <= 599:
                raise InvalidArgument(f"when of a Fallback must be statuses from 400 to 599, got {units.shown(status)}")

    @property
    def family(self) -> Family | None:
        """Whose protocol it speaks; None: the address does not say."""
        parts = urlsplit(self.base_url)
        provider = provider_of((parts.hostname or "").lower())
        if provider == "anthropic":
            return "openai" if parts.path else "anthropic"
        return None if provider in _EITHER else "openai"

    def serves(self, endpoint: Endpoint) -> bool:
        """Whether it may know what to do with a call. Nothing is translated."""
        return self.family in (None, family_of(endpoint))

    def of(self, lib: Any, call: Recognised, request: Any) -> tuple[Recognised, Any]:
        """The same call, asked here; and its request, in the library's words."""
        url = self._url(lib, call.endpoint, request.url)
        host = url.host.lower()
        model, document = self.model or call.model, call.document
        body = b"".join(request.stream)
        if self.model is not None and self.model != document.get("model"):
            body, document = _renamed(body, self.model), {**document, "model": self.model}
        asked = msgspec.structs.replace(
            call,
            provider=self.provider or provider_of(host, anthropic=call.endpoint == "messages"),
            model=model,
            host=host,
            port=_port(url),
            document=document,
            key=key_of(self.api_key),
        )
        timeouts = {name: request.extensions[name] for name in ("timeout", "trace") if name in request.extensions}
        headers = self._headers(request, url, asked)
        return asked, lib.Request(request.method, url, headers=headers, content=body, extensions=timeouts)

    def _url(self, lib: Any, endpoint: Endpoint, first: Any) -> Any:
        base, _, own = self.base_url.partition("?")
        url = lib.URL(base + PATHS[endpoint])
        query = own.encode()
        if not _stranger(url, first):
            # Of a parameter that both have, ours counts.
            named = {one.partition(b"=")[0] for one in query.split(b"&")}
            theirs = [one for one in first.query.split(b"&") if one and one.partition(b"=")[0] not in named]
            query = b"&".join([*theirs, *([query] if query else [])])
        return url.copy_with(query=query) if query else url

    def _headers(self, request: Any, url: Any, asked: Recognised) -> list[tuple[str, str]]:
        said = [(name.lower(), value) for name, value in request.headers.multi_items()]
        if _stranger(url, request.url):
            kept = [(name, value) for name, value in said if name in _COMMON or name.startswith(_SDKS)]
        else:
            mine = any(name in CREDENTIALS and value.removeprefix("Bearer ") == self.api_key for name, value in said)
            left_out = _WIRE | (frozenset(CREDENTIALS) if mine else _PRIVATE)
            kept = [(name, value) for name, value in said if name not in left_out]
        return [*kept, self._credential(asked, frozenset(name for name, _ in said))]

    def _credential(self, asked: Recognised, said: frozenset[str]) -> tuple[str, str]:
        if asked.provider == "azure.ai.openai":
            return "api-key", self.api_key
        if asked.endpoint == "messages" and (
            "x-api-key" in said or "authorization" not in said
        ):  # some SDKs say it so, some so
            return "x-api-key", self.api_key
        return "authorization", f"Bearer {self.api_key}"


def checked(fallbacks: object, provider: str | None) -> tuple[Fallback, ...]:
    """As a client takes them. InvalidArgument also where no call could be for all of them."""
    if not isinstance(fallbacks, Iterable) or isinstance(fallbacks, str | bytes):
        raise InvalidArgument(f"fallbacks must be several Fallback, got {units.shown(fallbacks)}")
    found = tuple(fallbacks)
    if len(found) > _MOST:
        raise InvalidArgument(f"at most {_MOST} fallbacks, got {len(found)}")
    for one in found:
        if not isinstance(one, Fallback):
            raise InvalidArgument(f"fallbacks must be several Fallback, got a {type(one).__name__}")
    families = {one.family for one in found} | ({provider} if provider in ("openai", "anthropic") else set())
    if {"openai", "anthropic"} <= families:
        raise InvalidArgument(
            "fallbacks must speak one protocol: a call of OpenAI's is not translated into one of Anthropic's",
            remedy="Anthropic answers calls of OpenAI's at https://api.anthropic.com/v1",
        )
    return found


def family_of(endpoint: Endpoint) -> Family:
    return "anthropic" if endpoint == "messages" else "openai"


def _address(base_url: object) -> None:
    parts = _split(base_url)
    if parts is None or parts.scheme not in ("https", "http") or not parts.hostname:
        raise InvalidArgument("base_url of a Fallback must be an address, as https://api.openai.com/v1")
    if parts.username is not None or parts.fragment:
        raise InvalidArgument("base_url of a Fallback must have neither a user nor a fragment")
    path = parts.path.rstrip("/")
    if any(path.endswith(ending) for ending in PATHS.values()):
        raise InvalidArgument(
            f"base_url of a Fallback must not name an endpoint, got the path {path:.80}",
            remedy="Write it as the SDK takes it: with /v1 for OpenAI and those like it, without for Anthropic",
        )
    provider = provider_of(parts.hostname.lower())
    if (provider == "openai" and not path) or (provider == "anthropic" and path not in ("", "/v1")):
        raise InvalidArgument(
            f"base_url of a Fallback: {parts.hostname} has no calls at {path or '/'!r:.80}",
            remedy="Write https://api.openai.com/v1, and https://api.anthropic.com",
        )


def _split(base_url: object) -> SplitResult | None:
    if not isinstance(base_url, str) or not 0 < len(base_url) <= _LONGEST or not base_url.isascii():
        return None
    if not base_url.isprintable() or " " in base_url:
        return None
    try:
        parts = urlsplit(base_url)
        _ = parts.port
    except ValueError:
        return None
    return parts


def _stranger(url: Any, first: Any) -> bool:
    """Whether it is at another address than who was asked first: nothing that may be a secret is for it."""
    return (url.scheme, url.host, _port(url)) != (first.scheme, first.host, _port(first))


def _port(url: Any) -> int | None:
    return url.port or {"https": 443, "http": 80}.get(url.scheme)


def _renamed(body: bytes, model: str) -> bytes:
    """With another model; every other value keeps its bytes."""
    said = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    said["model"] = msgspec.Raw(msgspec.json.encode(model))
    return msgspec.json.encode(said)
