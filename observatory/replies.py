"""What an error of somebody else's library says of the reply behind it: its status, whether and when to come again.

httpx, httpx2, requests, aiohttp, and the SDKs that stand on them agree in nothing but attributes; none of them is imported.
"""

import math
import re
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_LONGEST = 10.0 * 365 * 86_400
"""Seconds: whoever asks for more has made a mistake."""
_GO_DURATION = re.compile(
    r"(?:(\d{1,9})h)?(?:(\d{1,9})m(?!s))?(?:(\d{1,9}(?:\.\d{1,9})?)s)?(?:(\d{1,9}(?:\.\d{1,9})?)ms)?", re.ASCII
)
_NUMBER = re.compile(r"\d{1,15}(?:\.\d{1,15})?", re.ASCII)
_RESET = re.compile(r"(?:x|anthropic)-ratelimit-(?:(reset)(?:-(.+))?|(.+)-reset)", re.ASCII)
_EPOCH = 10**9
"""A reset above this is a moment since 1970, below it seconds from now."""


def status(error: BaseException) -> int | None:
    """The HTTP status that an error tells of, if it does."""
    for place in (getattr(error, "response", None), error):
        for name in ("status_code", "status"):
            found = getattr(place, name, None)
            if type(found) is int and 100 <= found <= 599:
                return found
    return None


def headers(error: BaseException) -> Mapping[str, str]:
    """The headers of the reply, by lower-case name; none where there is none."""
    for place in (getattr(error, "response", None), error):
        found = getattr(place, "headers", None)
        if isinstance(found, Mapping):
            return {str(name).lower(): str(value) for name, value in found.items()}
    return {}


def from_network(error: BaseException) -> bool:
    """Nobody answered, or not in time: errors of the system, of time, and of the transport beneath an HTTP client or an SDK."""
    if isinstance(error, OSError | TimeoutError):
        return True
    return any((kind.__module__.partition(".")[0], kind.__name__) in _TRANSPORTS for kind in type(error).__mro__)


_TRANSPORTS = frozenset(
    {
        *((library, "TransportError") for library in ("httpx", "httpx2")),
        *((library, "APIConnectionError") for library in ("openai", "anthropic", "groq", "cerebras")),
        ("aiohttp", "ClientConnectionError"),
    }
)


def should_retry(said: Mapping[str, str]) -> bool | None:
    """What `x-should-retry` says, as OpenAI's and Anthropic's servers send it; None: nothing."""
    return {"true": True, "false": False}.get(said.get("x-should-retry", "").strip().lower())


def wait(said: Mapping[str, str]) -> float | None:
    """Seconds that the reply asks to wait: `retry-after-ms`, `Retry-After` (seconds or a date), else the resets of what is
    used up (`x-ratelimit-reset-requests` and the like). None: it does not say. A moment that is over is 0."""
    milliseconds = said.get("retry-after-ms", "").strip()
    if _NUMBER.fullmatch(milliseconds):
        return _bounded(float(milliseconds) / 1000)
    after = said.get("retry-after", "").strip()
    if _NUMBER.fullmatch(after):
        return _bounded(float(after))
    if after and (moment := _date(after)) is not None:
        # The other side's clock may be off; what it says of now is in `Date`.
        now = _date(said.get("date", ""))
        return _bounded((moment - (datetime.now(UTC) if now is None else now)).total_seconds())
    return max(_resets(said), default=None)


def _resets(said: Mapping[str, str]) -> Iterator[float]:
    for name, value in said.items():
        found = _RESET.fullmatch(name)
        if found is None:
            continue
        what = found[2] or found[3] or ""
        left = [
            said[other]
            for other in (
                *((f"x-ratelimit-remaining-{what}", f"anthropic-ratelimit-{what}-remaining") if what else ()),
                *(("x-ratelimit-remaining",) if not what else ()),
            )
            if other in said
        ]
        # A reset says when all of it is there again: of what is not used up, nobody need wait for that.
        if any(_NUMBER.fullmatch(one.strip()) and float(one) > 0 for one in left):
            continue
        if (seconds := _until(value.strip())) is not None:
            yield seconds


def _until(value: str) -> float | None:
    if _NUMBER.fullmatch(value):
        number = float(value)
        return _bounded(number - time.time() if number > _EPOCH else number)
    if value and (found := _GO_DURATION.fullmatch(value)):
        hours, minutes, seconds, milliseconds = (float(part or 0) for part in found.groups())
        return _bounded(hours * 3600 + minutes * 60 + seconds + milliseconds / 1000)
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return None if moment.tzinfo is None else _bounded((moment - datetime.now(UTC)).total_seconds())


def _date(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _bounded(seconds: float) -> float | None:
    """0 for the past; None for what cannot be meant."""
    return max(seconds, 0.0) if math.isfinite(seconds) and seconds <= _LONGEST else None
