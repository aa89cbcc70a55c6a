"""Names that anybody may invent: models, hosts. Nothing of them is kept for ever, and none is another's."""

import gc
import json
from collections.abc import AsyncIterator

import openai
import pytest

from observatory import Observatory
from observatory.features.breaker.breakers import MOST
from observatory.llm.gate import _named
from observatory.llm.retries import _MOST, Habits
from tests.llm.guarded import asking, document, error, sdk, settled
from tests.llm.observed import closing
from tests.llm.replay import Answer, Provider, Request, provider


@pytest.fixture
async def there() -> AsyncIterator[Provider]:
    async with provider() as one:
        yield one


async def test_a_bad_model_among_invented_ones_closes_no_other(obs: Observatory, there: Provider) -> None:
    def says(request: Request) -> Answer:
        model = json.loads(request.body)["model"]
        return error(404) if model.startswith("junk") else error(503) if model == "bad" else document()

    there.says = says
    async with obs.llm.http_client(provider="openai", trust_env=False, base_url=there.url) as http:
        for number in range(MOST + 100):
            await http.post("/v1/chat/completions", json={"model": f"junk{number}"})
    async with closing(client := sdk(obs, there)):
        for _ in range(6):
            with pytest.raises(openai.InternalServerError):
                await asking(client, model="bad")
        await settled(obs)
        await obs.breakers.flush()
        assert obs.breaker("openai/bad").state == "open"
        for model in ("gpt-4o", "gpt-4o-mini"):
            await asking(client, model=model)
    gc.collect()
    assert len(obs.breakers._breakers) <= MOST + 100, "what is untold waits for its turn"


async def test_hosts_that_nobody_asks_again(obs: Observatory) -> None:
    """What a client was promised for them is bounded, and gone when it was redeemed."""
    retries = obs._desk.retries
    habits = Habits()
    assert await retries.advise("one", 0, 503, {}, habits)
    assert list(retries._promised) == ["one"]
    assert await retries.begin("one", 1, habits)
    assert not retries._promised
    for number in range(_MOST + 200):
        habits = Habits()
        await retries.advise(f"host{number}", 0, 503, {"retry-after-ms": "1"}, habits)
    assert len(retries._promised) <= _MOST
    assert all(retries._promised.values()), "no empty ones"


def test_long_names_are_not_shared() -> None:
    one, other = _named("openai/" + "m" * 250 + "1"), _named("openai/" + "m" * 250 + "2")
    assert one != other
    assert len(one) == len(other) == 128
    assert _named("openai:h/ö x") == "openai:h/__x"
    assert _named("/a") == "x/a"
