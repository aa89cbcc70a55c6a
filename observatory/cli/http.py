"""Asking service instances, changing to another when one fails."""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Self

import httpx2

from .. import replies
from ..errors import InvalidArgument, ObservatoryError, StoreUnavailable

TRIES = 12
_PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0)
_LONGEST_PAUSE = 5.0
_PASSING = frozenset({408, 429, *range(500, 600)})


class ServiceClient:
    """Any of several instances that answer as one."""

    def __init__(self, urls: Sequence[str]) -> None:
        for url in urls:
            if not url.startswith(("http://", "https://")):
                raise InvalidArgument(f"--service: {url!r:.100} is not a URL", remedy="Write http://127.0.0.1:8484")
        self._urls = itertools.cycle([url.rstrip("/") for url in urls])
        limits = httpx2.Limits(max_connections=64, max_keepalive_connections=64)
        self._client = httpx2.AsyncClient(timeout=10.0, limits=limits, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def ask(
        self, method: str, path: str, *, body: Any = None, parameters: Any = None, lost: Callable[[], None] | None = None
    ) -> Any:
        """The answer's JSON. A problem document becomes its error; StoreUnavailable when nobody answers.

        lost: called for every answer that did not come; whether the instance had acted by then is unknown.
        """
        fault = "no answer"
        for attempt in range(TRIES):
            url = next(self._urls)
            pause = _PAUSES[min(attempt, len(_PAUSES) - 1)]
            try:
                answer = await self._client.request(method, f"{url}{path}", json=body, params=parameters)
                if answer.status_code < 400:
                    return answer.json()
                error = from_answer(answer)
                if answer.status_code < 500:
                    raise error
            except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, ValueError) as broken:
                error = from_client(broken)
            if not error.retryable:
                raise error
            fault = f"{url}: {error.message}"
            if lost is not None:
                lost()
            await asyncio.sleep(max(pause, min(error.retry_after or 0.0, _LONGEST_PAUSE)))
        raise StoreUnavailable(f"no service answers ({fault})")


def from_answer(answer: httpx2.Response) -> ObservatoryError:
    """The error that an answer tells of: a problem document's, or one made of what a proxy in between has said."""
    try:
        problem = answer.json() if "json" in answer.headers.get("content-type", "") else None
    except ValueError:
        problem = None
    code = answer.status_code
    if isinstance(problem, dict) and "code" in problem:
        error = ObservatoryError.from_problem(problem)
    else:
        error = ObservatoryError(f"{code} {answer.reason_phrase}: not an answer of Observatory's")
        error.code, error.status, error.retryable = "http", code, code in _PASSING
    if error.retry_after is None and (asked := replies.wait(answer.headers)) is not None:
        error.retry_after = asked
    return error


def from_client(error: Exception) -> ObservatoryError:
    """Our error for whatever the HTTP client raised. None reaches a user as it came."""
    text = f"{type(error).__name__}: {error}"[:300]
    if isinstance(error, httpx2.InvalidURL | httpx2.UnsupportedProtocol):
        return InvalidArgument(f"--service is not an acceptable URL: {text}", remedy="Write http://127.0.0.1:8484")
    if isinstance(error, httpx2.TransportError):
        return StoreUnavailable(type(error).__name__)
    made = ObservatoryError(f"what answered does not speak as Observatory does: {text}", remedy="Check the URL of --service")
    made.code = "http"
    return made
