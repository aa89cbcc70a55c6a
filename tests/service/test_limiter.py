"""The limiter over HTTP: several limits at once, waiting, holding and settling; every mistake has a name."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import jsonschema
import msgspec
import pytest

from observatory import Limit, Observatory
from observatory.errors import ObservatoryError
from observatory.service import openapi
from observatory.service.app import build
from tests.conftest import Open
from tests.servers import Server

ROOM = "/v1/rate_limiter"


@pytest.fixture
async def service(obs: Observatory) -> Observatory:
    obs.rate_limiter.define(
        Limit("user-requests", 60, per="1h", burst=3, by="user", match="*"),
        Limit("tokens", 1000, per="1h", unit="tokens", match={"provider": "openai"}),
        Limit("budget", 5, per="day", unit="usd", by="team", match={"team": "*"}),
        Limit("fast", 100, per=1, burst=1),
        Limit("gpu", 2, unit="slots"),
    )
    return obs


@pytest.fixture
async def http(service: Observatory) -> AsyncIterator[httpx2.AsyncClient]:
    app, _ = build(service)
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url=f"http://test{ROOM}") as client:
        yield client


async def test_check_and_peek_of_several(http: httpx2.AsyncClient) -> None:
    """All or nothing; "*" takes what the identity meets and the cost brings; the parts say each one's part."""
    both = {"limit": ["user-requests", "tokens"], "identity": {"user": "ann"}, "cost": {"tokens": 900}}
    first = await http.post("/check", json=both)
    assert first.json()["allowed"]
    assert [(one["limit"], one["cost"], one["remaining"]) for one in first.json()["parts"]] == [
        ("user-requests", 1, 2),
        ("tokens", 900, 100),
    ]
    assert first.headers["ratelimit-policy"] == '"user-requests";q=60;w=3600, "tokens";q=1000;w=3600;observatory-unit="tokens"'
    second = (await http.post("/check", json=both)).json()
    assert (second["allowed"], second["limit"]) == (False, "tokens")
    peek = {"limit": ["user-requests", "tokens"], "identity": {"user": "ann"}}
    assert [one["remaining"] for one in (await http.post("/peek", json=peek)).json()["parts"]] == [2, 100], "nothing taken"
    call = {"team": "search", "provider": "openai", "model": "gpt-4o"}
    star = {"limit": "*", "identity": call, "cost": {"tokens": 50, "usd": "0.0045"}}
    seen = (await http.post("/peek", json=star)).json()
    assert [(one["limit"], one["identity"]) for one in seen["parts"]] == [
        ("user-requests", "-"),
        ("tokens", ""),
        ("budget", "search"),
    ]
    done = (await http.post("/check", json=star)).json()
    assert [one["remaining"] for one in done["parts"]] == [2, 50, "4.9955"]
    nothing = await http.post("/check", json={"limit": "*", "identity": {}, "cost": {"requests": 0, "x": 5}})
    assert nothing.json()["allowed"]


async def test_nothing_applies_is_allowed_and_says_nothing(obs: Observatory) -> None:
    """No limit, no header, nothing to settle."""
    app, _ = build(obs)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=f"http://test{ROOM}") as http:
        answer = await http.post("/check", json={"limit": "*", "identity": {"user": "ann"}})
        assert (answer.json()["allowed"], "ratelimit" in answer.headers) == (True, False)
        held = (await http.post("/reserve", json={"limit": "*", "identity": {"user": "ann"}})).json()
        assert held["allowed"]
        for verb, status in (("renew", 200), ("settle", 200), ("cancel", 200)):
            assert (await http.post(f"/{verb}", json={"id": held["id"]})).status_code == status


async def test_acquire_waits_and_gives_up(http: httpx2.AsyncClient) -> None:
    """Admitted in turn; after `timeout` the same answer as a refused check; longer than a minute is not waited."""
    answers = await asyncio.gather(*(http.post("/acquire", json={"limit": "fast", "timeout": 5}) for _ in range(6)))
    assert [one.json()["allowed"] for one in answers] == [True] * 6
    assert max(one.json()["waited"] for one in answers) >= 0.03
    mine = {"limit": "user-requests", "identity": "ann", "cost": 3}
    assert (await http.post("/acquire", json=mine)).json()["allowed"]
    late = await http.post("/acquire", json={**mine, "timeout": 0.05})
    assert (late.status_code, late.json()["allowed"], late.json()["retry_after"] > 100) == (200, False, True)
    assert "retry-after" in late.headers
    denied = await http.post("/acquire?deny_status=429", json={**mine, "timeout": 0})
    assert (denied.status_code, denied.json()["allowed"]) == (429, False)
    never = await http.post("/acquire", json={**mine, "cost": 4, "timeout": 60})
    assert (never.json()["allowed"], never.json()["retry_after"]) == (False, None)
    for wrong in (61, -1, "1s", None, True):
        answer = await http.post("/acquire", json={**mine, "timeout": wrong})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_argument")


async def test_who_hangs_up_takes_nothing(service: Observatory) -> None:
    """The place in the line is given up with the connection."""
    app, _ = build(service)
    service.rate_limiter.define(Limit("slow", 1, per=1.5))
    assert (await service.rate_limiter.check("slow")).allowed
    body = msgspec.json.encode({"limit": "slow", "timeout": 30})
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": f"{ROOM}/acquire", "headers": [], "client": None}
    scope["query_string"] = b""
    messages = [{"type": "http.request", "body": body}]
    sent: list[Any] = []

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await asyncio.sleep(0.1)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await asyncio.wait_for(app(scope, receive, send), 1.0)
    assert sent[0]["status"] == 499
    await asyncio.sleep(1.6)
    assert (await service.rate_limiter.peek("slow")).remaining == 1


async def test_an_instance_on_its_way_out_lets_nobody_wait(service: Observatory) -> None:
    """Who stands in its line is told at once, and may ask another instance; nothing was taken."""
    service.rate_limiter.define(Limit("slow", 1, per=20))
    app, state = build(service)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=f"http://test{ROOM}") as http:
        assert (await http.post("/check", json={"limit": "slow"})).json()["allowed"]
        ask = {"limit": "slow", "timeout": 60}
        waiting = [asyncio.create_task(http.post(f"/{verb}", json=ask)) for verb in ("acquire", "reserve")]
        done, _ = await asyncio.wait(waiting, timeout=0.3)
        assert not done
        state.stopping.set()
        async with asyncio.timeout(2):
            answers = [*[await one for one in waiting], await http.post("/acquire", json=ask)]
    assert [(one.status_code, one.json()["allowed"]) for one in answers] == [(200, False)] * 3


async def test_reserve_and_settle(http: httpx2.AsyncClient) -> None:
    """Held, charged with the truth, once; any instance may be asked, since the id says all."""
    ask = {"limit": "*", "identity": {"team": "search", "provider": "openai"}, "cost": {"tokens": 600, "usd": "2"}}
    held = await http.post("/reserve", json={**ask, "timeout": 0, "lease": 30})
    assert (held.status_code, held.json()["allowed"], held.json()["id"][:4]) == (201, True, "res_")
    assert held.json()["expires_at"].endswith("Z")
    assert held.headers["ratelimit-policy"].startswith('"user-requests"')
    token = held.json()["id"]
    actual = {"id": token, "actual": {"tokens": 700, "usd": "0.5"}}
    first = (await http.post("/settle", json=actual)).json()
    assert (first["debt"], first["returned"]["usd"], first["late"]) == ({"tokens": 100}, "1.5", False)
    again = {"id": token, "actual": {"usd": 0.50, "tokens": "700"}}
    assert (await http.post("/settle", json=again)).json() == first
    for other in ({"id": token}, {"id": token, "actual": {"tokens": 701, "usd": "0.5"}}):
        lost = await http.post("/settle", json=other)
        assert (lost.status_code, lost.json()["code"]) == (409, "reservation_lost")
    assert (await http.post("/cancel", json={"id": token})).status_code == 409
    assert (await http.post("/renew", json={"id": token})).status_code == 409
    left = (await http.post("/peek", json=ask)).json()["parts"]
    assert [one["remaining"] for one in left] == [2, 300, "4.5"]


async def test_idempotency_key_takes_once(http: httpx2.AsyncClient) -> None:
    """Asked again under the same key, also with its quotes: nothing more is taken."""
    ask = {"limit": "tokens", "cost": 400}
    keys = ("7f3c 9", '"7f3c 9"', "7f3c 9")
    answers = [await http.post("/reserve", json=ask, headers={"idempotency-key": key}) for key in keys]
    assert [one.status_code for one in answers] == [201, 201, 201]
    assert (await http.post("/peek", json=ask)).json()["remaining"] == 600
    settled = await http.post("/settle", json={"id": answers[-1].json()["id"], "actual": 0})
    assert settled.json()["returned"] == {"tokens": 400}
    for wrong in ("", '""', "x" * 256):
        refused = await http.post("/reserve", json=ask, headers={"idempotency-key": wrong})
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid_argument")


async def test_refused_reserve_is_an_answer(http: httpx2.AsyncClient) -> None:
    """As of check: 200 with allowed=false, or 429 where that is asked for."""
    first = await http.post("/reserve", json={"limit": "gpu"})
    second = await http.post("/reserve", json={"limit": "gpu"})
    assert second.json()["fence"] > first.json()["fence"]
    third = await http.post("/reserve", json={"limit": "gpu"})
    assert (third.status_code, third.json()["allowed"], third.json()["id"]) == (200, False, None)
    assert third.json()["decision"]["limit"] == "gpu"
    assert "retry-after" in third.headers
    assert (await http.post("/reserve?deny_status=429", json={"limit": "gpu"})).status_code == 429
    renewed = await http.post("/renew", json={"id": first.json()["id"], "lease": 600})
    assert renewed.json()["expires_at"] > first.json()["expires_at"]
    cancelled = [await http.post("/cancel", json={"id": first.json()["id"]}) for _ in range(2)]
    assert [one.status_code for one in cancelled] == [200, 200]
    assert (await http.post("/reserve", json={"limit": "gpu"})).status_code == 201


async def test_after_expiry(http: httpx2.AsyncClient) -> None:
    """A hold that ran out cannot be kept; what was used is recorded all the same, and said to be late."""
    held = (await http.post("/reserve", json={"limit": "tokens", "cost": 500, "lease": 0.05})).json()
    await asyncio.sleep(0.15)
    assert (await http.post("/peek", json={"limit": "tokens"})).json()["remaining"] == 1000
    lost = await http.post("/renew", json={"id": held["id"]})
    assert (lost.status_code, lost.json()["code"]) == (409, "reservation_lost")
    late = (await http.post("/settle", json={"id": held["id"], "actual": 500})).json()
    assert late == {"returned": {}, "debt": {}, "late": True}
    assert (await http.post("/peek", json={"limit": "tokens"})).json()["remaining"] == 500


@pytest.mark.parametrize(
    ("verb", "body", "status", "says"),
    [
        ("check", {"limit": ["tokens", "tokens"], "cost": {"tokens": 1}}, 400, "named twice"),
        ("check", {"limit": []}, 400, "no limit was named"),
        ("check", {"limit": ["tokens", "nope"], "cost": {"tokens": 1}}, 404, "nope"),
        ("check", {"limit": ["tokens"], "cost": {"tokens": 1, "bananas": 2}}, 400, "bananas"),
        ("check", {"limit": "tokens", "cost": {"bananas": 2}}, 400, "bananas"),
        ("check", {"limit": ["tokens", "fast"], "cost": 5}, 400, "does not say which"),
        ("check", {"limit": "*", "identity": "ann"}, 400, "needs dimensions"),
        ("check", {"limit": "gpu"}, 400, "use reserve"),
        ("acquire", {"limit": "tokens", "cost": -1}, 400, "negative"),
        ("acquire", {"limit": "tokens", "wait": 5}, 400, "wait"),
        ("reserve", {"limit": "tokens", "cost": -1}, 400, "negative"),
        ("reserve", {"limit": "tokens", "lease": 0}, 400, "lease"),
        ("reserve", {"limit": "tokens", "lease": 4000}, 400, "lease"),
        ("reserve", {"limit": "tokens", "timeout": 61}, 400, "timeout"),
        ("reserve", {"limit": "user-requests"}, 400, "user"),
        ("settle", {"id": "res_AAAA"}, 400, "not one that reserve gave out"),
        ("settle", {"id": ""}, 400, "not one that reserve gave out"),
        ("settle", {}, 400, "id"),
        ("cancel", {"id": "res_" + "A" * 100_000}, 400, "not one that reserve gave out"),
        ("renew", {"id": "somebody's"}, 400, "not one that reserve gave out"),
        ("reset", {"limit": "nope"}, 404, "nope"),
        ("reset", {"limit": "user-requests"}, 400, "user"),
        ("reset", {"limit": "*"}, 404, "no limit named"),
    ],
)
async def test_mistakes_have_names(http: httpx2.AsyncClient, verb: str, body: dict[str, Any], status: int, says: str) -> None:
    """A problem document that says which value; nothing was taken."""
    answer = await http.post(f"/{verb}", json=body)
    problem = answer.json()
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), problem
    assert says in problem["detail"]
    assert problem["instance"] == f"{ROOM}/{verb}"
    assert (await http.post("/peek", json={"limit": "tokens"})).json()["remaining"] == 1000


@pytest.mark.parametrize(
    "actual",
    [-1, 1.5, "many", {"tokens": -1}, {"bananas": 5}, {"tokens": "1e9999999"}, [5], True, 2**60],
    ids=str,
)
async def test_wrong_settlements_leave_the_hold(http: httpx2.AsyncClient, actual: Any) -> None:
    """Refused, and the right numbers may follow."""
    held = (await http.post("/reserve", json={"limit": "tokens", "cost": 500})).json()
    wrong = await http.post("/settle", json={"id": held["id"], "actual": actual})
    assert (wrong.status_code, wrong.json()["code"]) == (400, "invalid_argument")
    right = await http.post("/settle", json={"id": held["id"], "actual": 200})
    assert right.json()["returned"] == {"tokens": 300}


async def test_reset_forgets(http: httpx2.AsyncClient) -> None:
    """Of one identity."""
    for user in ("ann", "bob"):
        await http.post("/check", json={"limit": "user-requests", "identity": user, "cost": 3})
    assert (await http.post("/reset", json={"limit": "user-requests", "identity": {"user": "ann"}})).status_code == 204
    left = [(await http.post("/peek", json={"limit": "user-requests", "identity": who})).json() for who in ("ann", "bob")]
    assert [one["remaining"] for one in left] == [3, 0]


async def test_explain(http: httpx2.AsyncClient) -> None:
    """Every limit, and why it does or does not apply."""
    answer = await http.get("/explain?user=ann&provider=azure&unit=tokens,usd")
    found = {one["limit"]: one for one in answer.json()}
    assert {name for name, one in found.items() if one["applies"]} == {"user-requests"}
    assert (found["user-requests"]["identity"], found["user-requests"]["why"]) == ("ann", "it matches every call")
    assert found["tokens"]["why"] == "provider is azure, which does not match openai"
    assert (found["budget"]["why"], found["budget"]["unknown"]) == ("team is not known, and must match *", ["team"])
    assert found["fast"]["why"] == "it has no match: only by its name"
    fits = {one["limit"]: one for one in (await http.get("/explain?provider=openai")).json()}
    assert fits["tokens"]["why"] == "it counts tokens, which the call does not bring"
    assert fits["user-requests"]["identity"] == "-"
    for wrong in ("user=", "a b=c", "user=ann&user=bob"):
        assert (await http.get(f"/explain?{wrong}")).status_code == 400


async def test_store_away(opening: Open, own_server: Server) -> None:
    """A closed limit is a 503 of the draft's type, for every verb; a local one answers by itself."""
    obs = await opening(own_server)
    obs.rate_limiter.define(Limit("shut", 9, per=60, on_store_down="closed"), Limit("free", 9, per=60, on_store_down="open"))
    app, _ = build(obs)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=f"http://test{ROOM}") as http:
        held = (await http.post("/reserve", json={"limit": "shut"})).json()
        own_server.stop()
        asked: list[tuple[str, Any]] = [(verb, {"limit": "shut"}) for verb in ("check", "peek", "acquire", "reserve", "reset")]
        asked += [(verb, {"id": held["id"]}) for verb in ("settle", "renew", "cancel")]
        for verb, body in asked:
            answer = await http.post(f"/{verb}", json=body)
            problem = answer.json()
            assert (answer.status_code, problem["code"], problem["retryable"]) == (503, "store_unavailable", True), verb
            assert problem["type"] == "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"
            assert answer.headers["retry-after"] == "1"
            if verb in ("check", "peek", "acquire", "reserve"):
                assert (problem["context"]["limit"], 'on_store_down="closed"' in problem["remedy"]) == ("shut", True), verb
            assert type(ObservatoryError.from_problem(problem)).__name__ == "StoreUnavailable"
        opened = await http.post("/check", json={"limit": "free"})
        assert (opened.status_code, opened.json()["allowed"], opened.json()["decided_by"]) == (200, True, "local")


def _schema(verb: str, *path: str) -> dict[str, Any]:
    document = openapi.document()
    found: Any = document["paths"][f"{ROOM}/{verb}"]["post"]
    for step in (*path, "content", "application/json", "schema"):
        found = found[step]
    return {**found, "components": document["components"]}


async def test_bodies_and_answers_are_as_described(http: httpx2.AsyncClient) -> None:
    """The page's own examples fit the OpenAPI description, and so do the answers."""
    ask = {"limit": "*", "identity": {"team": "search", "provider": "openai"}, "cost": {"tokens": 10, "usd": "0.006"}}
    cases: list[tuple[str, Any, str]] = [
        ("check", {"limit": ["user-requests", "tokens"], "identity": {"user": "ann"}, "cost": {"tokens": 9}}, "200"),
        ("peek", {"limit": "user-requests", "identity": "ann"}, "200"),
        ("acquire", {**ask, "timeout": 10}, "200"),
        ("reserve", {**ask, "timeout": 5, "lease": 60}, "201"),
    ]
    token = ""
    for verb, body, status in cases:
        jsonschema.validate(body, _schema(verb, "requestBody"))
        answer = await http.post(f"/{verb}", json=body)
        assert str(answer.status_code) == status
        jsonschema.validate(answer.json(), _schema(verb, "responses", status))
        token = answer.json().get("id", token)
    for verb, body in (("renew", {"id": token}), ("settle", {"id": token, "actual": {"tokens": 13, "usd": "0.0066"}})):
        jsonschema.validate(body, _schema(verb, "requestBody"))
        jsonschema.validate((await http.post(f"/{verb}", json=body)).json(), _schema(verb, "responses", "200"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"limit": "x", "lease": "long"}, _schema("reserve", "requestBody"))
    reserve = openapi.document()["paths"][f"{ROOM}/reserve"]["post"]
    assert {one["in"]: one["name"] for one in reserve["parameters"]} == {"query": "deny_status", "header": "Idempotency-Key"}
    assert set(reserve["responses"]) == {"200", "201", "default"}
