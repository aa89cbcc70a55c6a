"""Asking service instances, changing to another when one fails."""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Self

import httpx2

from ..errors import InvalidArgument, ObservatoryError, StoreUnavailable

TRIES = 12
_PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0)


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
            try:
                answer = await self._client.request(method, f"{url}{path}", json=body, params=parameters)
            except httpx2.TransportError as error:
                fault = f"{url}: {type(error).__name__}"
            else:
                if answer.status_code < 400:
                    return answer.json()
                problem = answer.json() if "json" in answer.headers.get("content-type", "") else {"title": answer.text[:200]}
                if answer.status_code < 500:
                    raise ObservatoryError.from_problem(problem)
                fault = f"{url}: {answer.status_code} {problem.get('detail', problem.get('title', ''))}"
            if lost is not None:
                lost()
            await asyncio.sleep(_PAUSES[min(attempt, len(_PAUSES) - 1)])
        raise StoreUnavailable(f"no service answers ({fault})")
