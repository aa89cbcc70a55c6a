"""What a reply asks for: statuses, and when to come again, in all the ways that providers say it."""

import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from observatory import replies
from observatory.features.retry import retryable

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)


def dated(seconds: float) -> str:
    """As HTTP writes a moment."""
    return format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)


def error(status: int, headers: dict[str, str]) -> httpx2.HTTPStatusError:
    request = httpx2.Request("GET", "http://x")
    return httpx2.HTTPStatusError("x", request=request, response=httpx2.Response(status, headers=headers))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7.0),
        (
            {
                "retry-after": format_datetime(NOW + timedelta(seconds=90), usegmt=True),
                "date": format_datetime(NOW, usegmt=True),
            },
            90.0,
        ),
        ({"retry-after": dated(90), "date": dated(0)}, 90.0),
        ({"retry-after": dated(0), "date": dated(3600)}, 0.0),
        ({"retry-after": "Sunday, 06-Nov-94 08:49:37 GMT"}, 0.0),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "tomorrow"}, None),
        ({"retry-after": "99999999999"}, None),
        ({"x-ratelimit-reset-requests": "1s"}, 1.0),
        ({"x-ratelimit-reset-requests": "6m0s"}, 360.0),
        ({"x-ratelimit-reset-tokens": "1h2m3.5s"}, 3723.5),
        ({"x-ratelimit-reset-tokens": "12ms"}, 0.012),
        ({"x-ratelimit-reset-requests": "2s", "x-ratelimit-reset-tokens": "5s"}, 5.0),
        (
            {
                "x-ratelimit-reset-requests": "2s",
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-tokens": "60s",
                "x-ratelimit-remaining-tokens": "1200",
            },
            2.0,
        ),
        ({"x-ratelimit-reset-requests": "2s", "x-ratelimit-remaining-requests": "7"}, None),
        ({"x-ratelimit-reset": "30", "x-ratelimit-remaining": "0"}, 30.0),
        ({"anthropic-ratelimit-tokens-reset": "2020-01-01T00:00:00Z", "anthropic-ratelimit-tokens-remaining": "0"}, 0.0),
        ({"anthropic-ratelimit-tokens-reset": "2020-01-01T00:00:00"}, None),
        ({"x-ratelimit-reset-requests": ""}, None),
        ({"x-ratelimit-limit-requests": "60"}, None),
    ],
)
def test_when_to_come_again(headers: dict[str, str], seconds: float | None) -> None:
    """Milliseconds before seconds before dates before resets; what means nothing is left out."""
    assert replies.wait(headers) == (None if seconds is None else pytest.approx(seconds))


def test_moments_are_counted_from_now() -> None:
    """Since 1970, or as Anthropic writes them; to within what this test takes."""
    assert replies.wait({"x-ratelimit-reset": str(int(time.time()) + 60)}) == pytest.approx(60, abs=2)
    moment = (datetime.now(UTC) + timedelta(seconds=60)).isoformat()
    assert replies.wait({"anthropic-ratelimit-requests-reset": moment}) == pytest.approx(60, abs=2)


@pytest.mark.parametrize(
    ("status", "headers", "answer"),
    [
        (429, {"Retry-After": "7"}, 7.0),
        (429, {}, True),
        (503, {"Retry-After-Ms": "20"}, 0.02),
        (503, {"x-should-retry": "false", "retry-after": "1"}, False),
        (400, {"x-should-retry": "true"}, True),
        (404, {"retry-after": "1"}, False),
        (409, {}, True),
        (425, {}, True),
        (501, {}, True),
    ],
)
def test_what_is_tried_again(status: int, headers: dict[str, str], answer: bool | float) -> None:
    """By status, unless the other side says otherwise; after what it asked."""
    said = retryable(error(status, headers))
    assert said == answer
    assert isinstance(said, bool) == isinstance(answer, bool)


def test_errors_of_every_library_look_alike() -> None:
    """By attributes: `response.status_code`, `status_code`, `status`; what is no status is none."""
    cases: list[tuple[dict[str, Any], int | None]] = [
        ({"status_code": 503}, 503),
        ({"status": 429}, 429),
        ({"status": "429"}, None),
        ({"status_code": 7}, None),
        ({"status_code": True}, None),
        ({"response": None}, None),
    ]
    for attributes, status in cases:
        made = RuntimeError("x")
        for name, value in attributes.items():
            setattr(made, name, value)
        assert replies.status(made) == status
    kind = type("APIConnectionError", (Exception,), {"__module__": "openai._exceptions"})
    assert replies.from_network(kind())
    assert not replies.from_network(type("APIConnectionError", (Exception,), {"__module__": "mine"})())


@given(
    headers=st.dictionaries(
        st.sampled_from(["retry-after", "retry-after-ms", "date", "x-ratelimit-reset-requests", "x-ratelimit-reset"]),
        st.text(max_size=20) | st.from_regex(r"[0-9.]{1,20}(ms|s|m|h)?", fullmatch=True) | st.datetimes().map(str),
    )
)
def test_whatever_strangers_send(headers: dict[str, str]) -> None:
    """Nothing, or a wait that can be slept."""
    found = replies.wait(headers)
    assert found is None or 0 <= found <= 10 * 365 * 86_400
