"""Retry: attempts, waits, deadline, what is retried, and what comes out."""

import asyncio
import time
from typing import Any

import httpx2
import pytest

from observatory import InvalidArgument, Metric, Observatory, RateLimitExceeded, StoreUnavailable


class Flaky:
    """Fails so many times, then answers."""

    def __init__(self, failures: int, error: BaseException | None = None) -> None:
        self.calls = 0
        self._failures = failures
        self._error = error or ConnectionError("reset")

    async def __call__(self, answer: str = "ok", *, suffix: str = "") -> str:
        self.calls += 1
        if self.calls <= self._failures:
            raise self._error
        return answer + suffix


@pytest.fixture
def policy(obs: Observatory) -> Any:
    return obs.retry(wait_initial=0.001, wait_jitter=0.001, wait_max=0.01)


async def test_it_tries_again_and_answers(policy: Any, obs: Observatory) -> None:
    """Arguments are passed on; retries are counted by name."""
    flaky = Flaky(2)
    assert await policy(name="fetch").execute(flaky, "yes", suffix="!") == "yes!"
    assert flaky.calls == 3
    await obs.flush()
    assert (await obs.metrics.query(Metric.RETRY_ATTEMPTS, where={"name": "fetch", "outcome": "retried"})).value == 2


async def test_original_exception_comes_out_with_a_note(policy: Any) -> None:
    """After the last attempt, the very object."""
    error = ConnectionError("reset")
    with pytest.raises(ConnectionError) as caught:
        await policy.execute(Flaky(9, error))
    assert caught.value is error
    assert "gave up" in error.__notes__[0]
    assert "3 of 3 attempts" in error.__notes__[0]


@pytest.mark.parametrize(
    ("error", "calls"),
    [
        (ConnectionError(), 3),
        (TimeoutError(), 3),
        (StoreUnavailable("away"), 3),
        (httpx2.ConnectError("x"), 3),
        (httpx2.HTTPStatusError("x", request=httpx2.Request("GET", "http://x"), response=httpx2.Response(503)), 3),
        (httpx2.HTTPStatusError("x", request=httpx2.Request("GET", "http://x"), response=httpx2.Response(404)), 1),
        (ValueError("a bug"), 1),
        (InvalidArgument("x"), 1),
        (RateLimitExceeded("never"), 3),
        (asyncio.CancelledError(), 1),
        (KeyboardInterrupt(), 1),
    ],
)
async def test_only_what_may_pass_is_retried(policy: Any, error: BaseException, calls: int) -> None:
    """Errors of the network and our retryable ones; nobody's bug, and never a cancellation."""
    flaky = Flaky(9, error)
    with pytest.raises(type(error)):
        await policy.execute(flaky)
    assert flaky.calls == calls


async def test_wait_that_is_asked_for_is_kept_and_not_begun_past_the_deadline(policy: Any) -> None:
    """retry_after wins over backoff; a wait that would pass the deadline is not slept."""
    began = time.monotonic()
    assert await policy.execute(Flaky(1, StoreUnavailable("x", retry_after=0.1))) == "ok"
    assert time.monotonic() - began >= 0.1
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await policy(timeout=0.5).execute(Flaky(1, StoreUnavailable("x", retry_after=30)))
    assert time.monotonic() - began < 0.5


async def test_each_attempt_has_its_own_timeout(policy: Any) -> None:
    """A hanging call is given up and tried again."""
    calls = 0

    async def hang() -> str:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0 if calls == 3 else 60)
        return "ok"

    assert await policy(attempt_timeout=0.05).execute(hang) == "ok"
    assert calls == 3


async def test_decorator_and_on(policy: Any) -> None:
    """A policy decorates; `on` is a type, several, or a function."""
    flaky = Flaky(1, KeyError("x"))

    async def fetch() -> str:
        return await flaky()

    assert await policy(on=KeyError)(fetch)() == "ok"
    assert await policy(on=lambda error: isinstance(error, KeyError)).execute(Flaky(1, KeyError())) == "ok"


async def test_cancellation_during_a_wait_is_immediate(obs: Observatory) -> None:
    """Nobody waits for a backoff to end."""
    task = asyncio.create_task(obs.retry(wait_initial=60, wait_max=60, timeout=None).execute(Flaky(9)))
    await asyncio.sleep(0.05)
    task.cancel()
    began = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began < 0.5


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"timeout": -1}, {"wait_max": "x"}, {"atempts": 3}, {"wait_initial": -1}])
def test_wrong_policy_is_refused(wrong: dict[str, Any]) -> None:
    """When it is made, not when it is needed."""
    with pytest.raises(InvalidArgument):
        Observatory("x", redis_url="redis://127.0.0.1:1").retry(**wrong)


async def test_thousands_of_attempts_have_a_wait(obs: Observatory) -> None:
    """The backoff's power is beyond any float long before; the longest wait is meant."""
    tried = 0

    async def failing() -> None:
        nonlocal tried
        tried += 1
        raise OSError("no")

    retry = obs.retry(attempts=1_100, timeout=None, wait_initial=1e-9, wait_max=0, wait_jitter=0)
    with pytest.raises(OSError, match="no"):
        await retry.execute(failing)
    assert tried == 1_100


@pytest.mark.parametrize("said", [None, "yes", float("nan"), float("inf"), 10**5000], ids=lambda said: type(said).__name__)
async def test_an_answer_of_on_that_is_none(obs: Observatory, said: object) -> None:
    """A function that forgot its return is told so, with the error it was asked about behind it."""

    async def failing() -> None:
        raise OSError("no")

    with pytest.raises(InvalidArgument, match="on said") as caught:
        await obs.retry(on=lambda error: said).execute(failing)  # type: ignore[arg-type,return-value]
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("on", [5, "OSError", (OSError, 5), None])
async def test_on_that_says_nothing(obs: Observatory, on: object) -> None:
    """Refused where the policy is made."""
    with pytest.raises(InvalidArgument, match="on must be an exception"):
        obs.retry(on=on)  # type: ignore[call-overload]
