"""More names than a process remembers: those of nobody are forgotten, and no others."""

import gc
from itertools import count

import pytest

from observatory import CircuitOpen, Observatory
from observatory.features.breaker.breakers import MOST
from observatory.settings import BreakerSettings


async def works() -> None: ...


async def fails() -> None:
    raise ConnectionError("reset")


def known(obs: Observatory) -> int:
    gc.collect()
    return len(obs.breakers._breakers)


async def test_invented_names_are_forgotten(obs: Observatory) -> None:
    """Also where each was used, once the fleet knows of it."""
    for number in range(3 * MOST):
        await obs.breaker(f"invented/{number}").execute(works)
        if number % 100 == 99:
            await obs.breakers.flush()
    assert known(obs) <= MOST + 100
    kept = obs.breakers._breakers
    assert f"invented/{3 * MOST - 1}" in kept
    assert "invented/0" not in kept
    assert (await obs.breakers.show("invented/0")).calls == 1, "the fleet knows"


async def test_what_is_held_open_or_untold_is_not_forgotten(obs: Observatory) -> None:
    obs.breakers.use({"bad": BreakerSettings(consecutive=2, open_for=60)})
    mine, numbers = obs.breaker("mine"), count()

    async def others() -> None:
        for number in [next(numbers) for _ in range(2 * MOST)]:
            obs.breaker(f"invented/{number}")

    for _ in range(3):
        with pytest.raises((ConnectionError, CircuitOpen)):
            await obs.breaker("bad").execute(fails)
        await obs.breakers.flush()
    assert obs.breaker("bad").state == "open"
    await obs.breaker("untold").execute(works)
    assert [batch.calls for batch in obs.breaker("untold").take()] == [1]
    await obs.breaker("untold").execute(works)
    await others()
    assert known(obs) <= MOST + 3
    assert obs.breaker("mine") is mine, "whoever holds one and whoever asks for it have the same"
    assert obs.breaker("bad").state == "open"
    with pytest.raises(CircuitOpen):
        await obs.breaker("bad").execute(works)
    del mine
    await others()
    assert "mine" not in obs.breakers._breakers


async def test_one_that_somebody_holds_is_told_and_hears(obs: Observatory) -> None:
    """Forgotten by us, it works on: what it counts is the fleet's, and what the fleet says reaches it."""
    mine = obs.breaker("mine")
    for number in range(2 * MOST):
        obs.breaker(f"invented/{number}")
    assert "mine" not in obs.breakers._lately
    await mine.execute(works)
    await obs.breakers.flush()
    assert (await obs.breakers.show("mine")).calls == 1
    with pytest.raises(ConnectionError):
        await mine.execute(fails)
    assert "mine" in obs.breakers._lately, "a failure is told, whoever lets go of it"
    await obs.breakers.flush()
    assert (await obs.breakers.show("mine")).failures == 1
    await obs.breakers.hold("mine", "open", reason="test")
    await obs.breakers.look()
    assert mine.state == "open"
