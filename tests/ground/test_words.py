"""What refusals say: a wait as people say it, and exact where a program reads it."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observatory import Limit, Observatory, RateLimitExceeded
from observatory.documents import waiting


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0, "0.000 s"),
        (1.5, "1.500 s"),
        (120.0, "120.000 s"),
        (120.001, "2 min 1 s"),
        (3599.5, "60 min"),
        (3600.0, "1 h"),
        (3601.0, "1 h 1 min"),
        (637_039.955, "7 d 9 h"),
        (86_400.0, "1 d"),
        (1e9, "11,574 d 2 h"),
    ],
)
def test_waits_are_said_in_two_units(seconds: float, said: str) -> None:
    assert waiting(seconds) == said


@given(st.floats(120.01, 1e9))
def test_a_wait_is_never_said_too_short(seconds: float) -> None:
    """And not longer than by the smaller of its units."""
    units = {"s": 1, "min": 60, "h": 3600, "d": 86_400}
    words = waiting(seconds).replace(",", "").split()
    pairs = [(int(number), units[unit]) for number, unit in zip(words[::2], words[1::2], strict=True)]
    told = sum(number * unit for number, unit in pairs)
    small = next(less for unit, less in ((86_400, 3600), (3600, 60), (60, 1)) if seconds >= unit)
    assert seconds <= told < seconds + small + 1e-6


async def test_refusals_of_calendars_say_when_they_reset(obs: Observatory) -> None:
    """In words; the fields keep every second."""
    month = Limit("month", 1, per="month")
    assert await obs.rate_limiter.check(month)
    decision = await obs.rate_limiter.check(month)
    assert decision.retry_after is not None
    if decision.retry_after < 130:  # of the month's last minutes nothing is told but seconds
        await asyncio.sleep(decision.retry_after + 1)
        assert await obs.rate_limiter.check(month)
        decision = await obs.rate_limiter.check(month)
    with pytest.raises(RateLimitExceeded) as caught:
        decision.raise_if_denied()
    assert str(caught.value).endswith(f"retry in {waiting(decision.retry_after or 0)}, when it resets")
    assert caught.value.retry_after == decision.retry_after
    hourly = Limit("hourly", 2, per="1h")
    assert await obs.rate_limiter.check(hourly, None, 2)
    with pytest.raises(RateLimitExceeded, match=r"retry in (30 min|29 min \d+ s)$"):
        (await obs.rate_limiter.check(hourly)).raise_if_denied()
