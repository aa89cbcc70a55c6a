"""Which LLM call a request is: its provider, endpoint, model; what it may use. Nothing here changes it."""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Final, Literal
from urllib.parse import unquote, urlsplit

import msgspec

from ...dimensions import key_of
from .tokens import BYTES_A_TOKEN, TOOLS, Tokenizer, approximately, input_tokens, max_output

Endpoint = Literal["chat", "responses", "completions", "embeddings", "messages"]
OPERATIONS: Final[Mapping[Endpoint, str]] = {
    "chat": "chat",
    "responses": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
    "messages": "chat",
}
"""The names that OpenTelemetry's GenAI conventions have for them."""
PATHS: Final[Mapping[Endpoint, str]] = {
    "chat": "/chat/completions",
    "completions": "/completions",
    "responses": "/responses",
    "embeddings": "/embeddings",
    "messages": "/v1/messages",
}
"""What an address of theirs ends in; the longer before the shorter."""
_HOSTS: Final = (
    (r"(?:.*\.)?api\.openai\.com", "openai"),
    (r".*\.(?:openai\.azure\.com|cognitiveservices\.azure\.com|services\.ai\.azure\.com|azure-api\.net)", "azure.ai.openai"),
    (r"api\.anthropic\.com", "anthropic"),
    (r"api\.groq\.com", "groq"),
    (r"(?:api|codestral)\.mistral\.ai", "mistral_ai"),
    (r"api\.deepseek\.com", "deepseek"),
    (r"api\.x\.ai", "x_ai"),
    (r"api\.perplexity\.ai", "perplexity"),
    (r"api\.cohere\.(?:ai|com)", "cohere"),
    (r"generativelanguage\.googleapis\.com", "gcp.gemini"),
    (r"(?:.*-)?aiplatform\.googleapis\.com", "gcp.vertex_ai"),
    (r"bedrock-runtime\..*\.amazonaws\.com", "aws.bedrock"),
    (r"api\.moonshot\.(?:ai|cn)", "moonshot_ai"),
    (r"api\.together\.(?:xyz|ai)", "together"),
    (r"api\.fireworks\.ai", "fireworks"),
    (r"openrouter\.ai", "openrouter"),
    (r"api\.cerebras\.ai", "cerebras"),
)
_KNOWN: Final = tuple((re.compile(pattern), provider) for pattern, provider in _HOSTS)
COMPATIBLE: Final[Mapping[bool, str]] = {False: "openai_compatible", True: "anthropic_compatible"}
"""Of an address that nobody has named: what it speaks is known, and who it is is not."""
_ADDRESSED: Final = frozenset({*COMPATIBLE.values(), "azure.ai.openai"})
_DEPLOYMENT = re.compile(r"/deployments/([^/]+)/")
CREDENTIALS: Final = ("authorization", "x-api-key", "api-key", "x-goog-api-key")
"""Headers that a key comes in."""
_RETRY: Final = "x-stainless-retry-count"
MAX_BODY: Final = 32 * 2**20
"""Bytes: a request above is not looked into."""
MAX_NAME: Final = 256
"""Characters of a model's name."""


class Recognised(msgspec.Struct, frozen=True):
    """What is known of an LLM call before it is sent."""

    provider: str
    endpoint: Endpoint
    model: str
    stream: bool
    host: str
    port: int | None
    document: dict[str, Any]
    """The request as it was decoded, for the estimate and whoever else asks."""
    key: str | None
    """The dimension of the API key: the same for the same key, and not the way back."""
    attempt: int
    """0, or the number of the retry, as the SDK says it."""
    tokenizer: Tokenizer = approximately
    unread: int | None = None
    """Bytes of a request that cannot be looked into (it comes bit by bit, is encoded, too long, no JSON object); 0: unknown."""
    counted: list[int] = msgspec.field(default_factory=list)
    """Of all tries of one request: what the tokenizer has said."""

    def __repr__(self) -> str:
        """Without the request: a prompt is not for whoever reads a log."""
        said = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({said})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in self.__struct_fields__ if name != "document"]

    @property
    def operation(self) -> str:
        return OPERATIONS[self.endpoint]

    @property
    def where(self) -> str:
        """Who may fail and ask for pauses as one: a provider; where its name does not say at which address, with that."""
        return f"{self.provider}:{self.host}" if self.provider in _ADDRESSED else self.provider

    def input_tokens(self) -> int:
        """An estimate, made once; 100 KB of text take about 0.1 ms. A tokenizer that fails is not asked again: the default
        counts."""
        if not self.counted:
            self.counted.append(self._input_tokens())
        return self.counted[0]

    def _input_tokens(self) -> int:
        if self.unread is not None:
            return self.unread // BYTES_A_TOKEN
        more = TOOLS if self.endpoint == "messages" and self.document.get("tools") else 0
        try:
            return more + max(0, int(input_tokens(self.document, self.tokenizer)))
        except Exception:  # somebody's tokenizer: a call is not refused for it
            return more + input_tokens(self.document)

    @property
    def max_output_tokens(self) -> int | None:
        """What the request allows; None where it does not say."""
        return 0 if self.endpoint == "embeddings" else max_output(self.document)


def recognise(
    method: str,
    url: str,
    headers: Iterable[tuple[str, str]],
    body: Callable[[], bytes | None],
    *,
    provider: str | None = None,
    tokenizer: Tokenizer = approximately,
) -> Recognised | None:
    """The LLM call that a request is; None for any other. body: asked only where the address is one; None: it cannot be read
    before it is sent, and what it asks is unknown. provider: who answers, where the address does not say."""
    if method != "POST":
        return None
    parts = urlsplit(url)
    path = parts.path.rstrip("/")
    endpoint = next((one for one, ending in PATHS.items() if path.endswith(ending)), None)
    if endpoint is None:
        return None
    content = body()
    document = _document(content)
    said = {name.lower(): value for name, value in headers}
    host = (parts.hostname or "").lower()
    deployment = _DEPLOYMENT.search(parts.path)
    model = (document or {}).get("model")
    if not isinstance(model, str) or not model:
        model = unquote(deployment[1]) if deployment else "unknown"
    return Recognised(
        provider=provider or provider_of(host, anthropic=endpoint == "messages"),
        endpoint=endpoint,
        model=model[:MAX_NAME],
        stream=document is not None and document.get("stream") is True,
        host=host,
        port=_port(parts.scheme, parts.netloc),
        document=document or {},
        key=_key(said),
        attempt=_number(said.get(_RETRY)),
        tokenizer=tokenizer,
        unread=None if document is not None else _number(said.get("content-length"), 12) if content is None else len(content),
    )


def _document(content: bytes | None) -> dict[str, Any] | None:
    if content is None or len(content) > MAX_BODY:
        return None
    try:
        found = msgspec.json.decode(content)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


@lru_cache(1024)
def provider_of(host: str, *, anthropic: bool = False) -> str:
    """The name that OpenTelemetry has for who answers at a host."""
    found = next((provider for pattern, provider in _KNOWN if pattern.fullmatch(host)), None)
    return found or COMPATIBLE[anthropic]


def _port(scheme: str, netloc: str) -> int | None:
    _, _, said = netloc.rpartition("@")[2].rpartition(":")
    if said.isdigit() and len(said) <= 5:
        return int(said)
    return {"https": 443, "http": 80}.get(scheme)


def _key(headers: Mapping[str, str]) -> str | None:
    key = next((headers[name] for name in CREDENTIALS if headers.get(name)), None)
    if key is None:
        return None
    scheme, _, credential = key.partition(" ")
    return key_of(credential if credential and scheme.lower() == "bearer" else key)


def _number(said: str | None, digits: int = 3) -> int:
    return int(said) if said is not None and said.isascii() and said.isdigit() and len(said) <= digits else 0
