"""Retry: attempts, waits, deadline, what is retried, and what comes out."""

import asyncio
import time
from collections.abc import Awaitable, Callable
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

    retry = obs.retry(attempts=1_100, timeout=None, budget=False, wait_initial=1e-9, wait_max=0, wait_jitter=0)
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


async def test_deadline_cuts_an_attempt(policy: Any) -> None:
    """Also the first one, and one behind a failure; what was tried before is noted."""
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        await policy(timeout=0.1).execute(asyncio.sleep, 60)
    calls = 0

    async def hangs_then() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ConnectionError("reset")
        await asyncio.sleep(60)

    with pytest.raises(TimeoutError) as caught:
        await policy(timeout=0.2).execute(hangs_then)
    assert time.monotonic() - began < 5
    assert calls == 2
    assert [note.split(" after ")[0].removeprefix("observatory: ") for note in caught.value.__notes__[1:]] == [
        "attempt 1 of 3: ConnectionError",
        "attempt 2 of 3: TimeoutError",
    ]


async def test_cancellation_and_a_timeout_at_one_moment(policy: Any) -> None:
    """Who is cancelled is cancelled, whatever the policy's own clock says; a timeout around it stays that one's."""

    async def stubborn() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            asyncio.current_task().cancel()  # type: ignore[union-attr]
            raise

    task = asyncio.create_task(policy(attempt_timeout=0.02).execute(stubborn))
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await policy(attempt_timeout=60).execute(asyncio.sleep, 60)
    current = asyncio.current_task()
    assert current is not None
    assert current.cancelling() == 0
    flaky = Flaky(0)
    assert await policy(attempt_timeout=0.5).execute(flaky) == "ok"


async def test_attempts_around_a_block(policy: Any, obs: Observatory) -> None:
    """Numbers, waits; the error of the last one, with notes; a block that succeeds ends the loop."""
    seen = []
    async for attempt in policy(name="blocks", wait_initial=0.002, wait_jitter=0):
        with attempt:
            seen.append((attempt.num, attempt.next_wait))
            if attempt.num < 3:
                raise ConnectionError("reset")
    assert seen == [(1, 0.002), (2, 0.004), (3, 0.008)]

    async def block(policy: Any, does: Callable[[], Awaitable[object]]) -> None:
        async for attempt in policy:
            with attempt:
                await does()

    with pytest.raises(ConnectionError) as caught:
        await block(policy(name="blocks"), Flaky(9))
    assert "gave up blocks after 3 of 3 attempts" in caught.value.__notes__[0]
    for error, calls in ((ValueError("a bug"), 1), (asyncio.CancelledError(), 1), (KeyboardInterrupt(), 1)):
        flaky = Flaky(9, error)
        with pytest.raises(type(error)):
            await block(policy, flaky)
        assert flaky.calls == calls
    with pytest.raises(TimeoutError):
        await block(policy(attempts=2, attempt_timeout=0.01), lambda: asyncio.sleep(60))
    await obs.flush()
    for outcome, times in (("retried", 4), ("gave_up", 1)):
        found = await obs.metrics.query(Metric.RETRY_ATTEMPTS, where={"name": "blocks", "outcome": outcome})
        assert found.value == times


async def test_hooks_are_told_and_harm_nothing(policy: Any) -> None:
    """Before each wait; one that fails is logged and goes on."""
    told: list[Any] = []

    def broken(_: object) -> None:
        raise RuntimeError("of the hook")

    error = ConnectionError("reset")
    await policy(name="fetch", hooks=(broken, told.append)).execute(Flaky(2, error))
    assert [(one.name, one.retry_num, one.caused_by) for one in told] == [("fetch", 1, error), ("fetch", 2, error)]
    assert told[1].waited_so_far == pytest.approx(told[0].wait_for)
    with pytest.raises(InvalidArgument, match="hooks"):
        policy(hooks="hook")


async def test_waits_that_are_asked_for_are_spread_and_those_of_on_are_exact(policy: Any) -> None:
    """Not everybody comes back at one moment; but who writes a function means what it says."""
    told: list[Any] = []
    policy = policy(hooks=(told.append,), budget=False)
    for _ in range(20):
        await policy(wait_jitter=1.0).execute(Flaky(1, StoreUnavailable("x", retry_after=0.01)))
    waits = [one.wait_for for one in told]
    assert all(0.01 <= wait <= 0.011 for wait in waits)
    assert len(set(waits)) > 10
    told.clear()
    await policy(on=lambda error: 0.01, wait_jitter=1.0).execute(Flaky(2))
    assert [one.wait_for for one in told] == [0.01, 0.01]


async def test_test_mode(obs: Observatory) -> None:
    """No waits, fewer attempts, no budget; over when it is over."""
    patient = obs.retry(attempts=9, timeout=None, wait_initial=60, wait_max=60)
    began = time.monotonic()
    for most, calls in ((1, 1), (4, 4), (99, 9)):
        flaky = Flaky(99)
        with obs.retry.testing(most), pytest.raises(ConnectionError):
            await patient.execute(flaky)
        assert flaky.calls == calls
    assert time.monotonic() - began < 5
    task = asyncio.create_task(patient.execute(Flaky(1)))
    await asyncio.sleep(0.05)
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_notes_show_no_content(policy: Any) -> None:
    """Classes, statuses, times: what an error says may be anybody's."""
    with pytest.raises(ConnectionError) as caught:
        await policy.execute(Flaky(9, ConnectionError("sk-secret")))
    assert len(caught.value.__notes__) == 4
    assert "sk-secret" not in "".join(caught.value.__notes__)
