"""The HTTP door: three instances answer as one, every mistake has a problem document, nothing half done."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from typing import Any

import httpx2
import msgspec
import pytest
import redis

import observatory
from observatory import Metric, Observatory
from observatory.errors import ObservatoryError
from observatory.service.app import build
from observatory.worker import Worker
from tests.conftest import Open
from tests.servers import Server, environment, process


@pytest.fixture
async def http(obs: Observatory) -> AsyncIterator[httpx2.AsyncClient]:
    """The application itself, in this process, on the shared server."""
    app, _ = build(obs)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test") as client:
        yield client


@pytest.fixture
def instances(server: Server, namespace: str) -> Iterator[list[str]]:
    """URLs of three service processes on one store."""
    env = environment(OBSERVATORY_REDIS_URL=server.url, OBSERVATORY_NAMESPACE=namespace, OBSERVATORY_SERVE_DRAIN_FOR="0.5")
    with ExitStack() as stack:
        urls = []
        for _ in range(3):
            one = stack.enter_context(process(["-m", "observatory", "serve", "--port", "0"], env))
            assert one.stdout
            urls.append(one.stdout.readline().split()[-1])
        yield urls


async def test_check_answers_with_a_decision_and_headers(http: httpx2.AsyncClient) -> None:
    """Allowed or refused is 200; who wants 429 says so."""
    body = {"limit": {"name": "web", "amount": 60, "per": "1m", "burst": 1}, "identity": "ann"}
    first = await http.post("/v1/rate_limiter/check", json=body)
    assert first.status_code == 200
    assert first.headers["ratelimit-policy"] == '"web";q=60;w=60'
    assert {**first.json(), "reset_after": 0} == {
        "allowed": True,
        "limit": "web",
        "identity": "ann",
        "unit": "requests",
        "cost": 1,
        "remaining": 0,
        "capacity": 1,
        "retry_after": 0.0,
        "reset_after": 0,
        "quota": 60,
        "window": 60.0,
        "more_after": 1.0,
        "waited": 0.0,
        "shadow": False,
        "decided_by": "redis",
        "parts": [],
    }
    refused = await http.post("/v1/rate_limiter/check", json=body)
    assert (refused.status_code, refused.json()["allowed"], refused.headers["retry-after"]) == (200, False, "1")
    denied = await http.post("/v1/rate_limiter/check?deny_status=429", json=body)
    assert (denied.status_code, denied.json()["allowed"]) == (429, False)


async def test_money_travels_as_text(http: httpx2.AsyncClient) -> None:
    """No digit of a dollar is lost in JSON."""
    body = {"limit": {"name": "usd", "amount": "0.3", "per": "10000d", "unit": "usd"}, "cost": {"usd": "0.000000001"}}
    assert (await http.post("/v1/rate_limiter/check", json=body)).json()["remaining"] == "0.299999999"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ("", 400, "invalid_argument"),
        ("{", 400, "invalid_argument"),
        ("[]", 400, "invalid_argument"),
        ('{"limit": "nope"}', 404, "unknown_limit"),
        ('{"limit": 5}', 400, "invalid_argument"),
        ('{"limit": "api", "cost": -1}', 400, "invalid_argument"),
        ('{"limit": "api", "cost": NaN}', 400, "invalid_argument"),
        ('{"limit": "api", "cost": 1e400}', 400, "invalid_argument"),
        ('{"limit": "api", "cost": "many"}', 400, "invalid_argument"),
        ('{"limit": "api", "cost": 1.5}', 400, "invalid_argument"),
        ('{"limit": "api", "cost": 9007199254740993}', 400, "invalid_argument"),
        ('{"limit": "api", "cost": true}', 400, "invalid_argument"),
        ('{"limit": "api", "identity": ""}', 400, "invalid_argument"),
        ('{"limit": "api", "identity": ["a"]}', 400, "invalid_argument"),
        ('{"limit": "api", "identity": {"a b": "x"}}', 400, "invalid_argument"),
        ('{"limit": "api", "idenity": "x"}', 400, "invalid_argument"),
        ('{"limit": {"name": "x"}}', 400, "invalid_argument"),
        ('{"limit": {"name": "X X", "amount": 1, "per": 1}}', 400, "invalid_argument"),
        ('{"limit": "api", "identity": "\\ud800"}', 400, "invalid_argument"),
        ("[" * 100_000, 400, "invalid_argument"),
        ('{"limit": "api", "cost": "1e9999999"}', 400, "invalid_argument"),
        ('{"limit": {"name": "x", "amount": "1e9999999", "per": 1}}', 400, "invalid_argument"),
        ('{"limit": {"name": "x", "amount": 1, "per": "' + "9" * 5000 + '"}}', 400, "invalid_argument"),
        ('{"limit": {"name": "x", "amount": "' + "9" * 5000 + '", "per": 1}}', 400, "invalid_argument"),
        ('{"limit": {"name": "x", "amount": 1, "per": 1, "unit": "\u00e9\u4e2d"}}', 400, "invalid_argument"),
        ('{"limit": "api", "cost": {"requests": 1' + "0" * 5000 + "}}", 400, "invalid_argument"),
        ('{"limit": "api", "identity": "' + "x" * 100_000 + '"}', 400, "invalid_argument"),
        ("x" * (4 * 2**20 + 1), 413, "payload_too_large"),
    ],
)
async def test_bad_check_is_a_problem_document(http: httpx2.AsyncClient, body: str, status: int, code: str) -> None:
    """It says what and where; it can be read back as the error it was; nothing was taken."""
    answer = await http.post("/v1/rate_limiter/check", content=body)
    problem = answer.json()
    assert (answer.status_code, problem["code"], answer.headers["content-type"]) == (status, code, "application/problem+json")
    assert {"type", "title", "status", "detail", "retryable", "instance"} <= set(problem)
    assert type(ObservatoryError.from_problem(problem)).code == code
    assert (await http.post("/v1/rate_limiter/peek", json={"limit": "api"})).json()["remaining"] == 100


async def test_body_is_bounded_before_it_is_buffered(http: httpx2.AsyncClient) -> None:
    """A stream without a length is cut where the bound is."""
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 64 * 2**20:
            sent += 2**16
            yield b"x" * 2**16

    answer = await http.post("/v1/events", content=endless())
    assert answer.status_code == 413
    assert sent < 6 * 2**20


async def test_events_are_accepted_one_by_one(http: httpx2.AsyncClient, obs: Observatory, opening: Open) -> None:
    """Good ones are durable, repeated ones are known, wrong ones are told by their index; a worker counts them."""
    good = {"id": "a-1", "type": "llm_call", "provider": "openai", "model": "m", "latency": 0.2, "usage": {"input_tokens": 5}}
    wrong = [
        {**good, "id": "a-2", "usage": {"input_tokens": -4}},
        {**good, "id": "no spaces"},
        {"type": "NO"},
        "text",
        {**good, "id": "a-3", "at": "yesterday"},
        {**good, "id": "a-4", "latency": "fast"},
        {**good, "id": "a-5", "success": "yes"},
        {**good, "id": "a-6", "dimensions": {"team": 5}},
    ]
    mixed = await http.post("/v1/events", json=[good, *wrong, {**good, "id": "b-1", "success": False, "error": "timeout"}])
    answer = mixed.json()
    assert (mixed.status_code, answer["accepted"], answer["duplicates"]) == (202, 2, 0)
    assert [one["index"] for one in answer["rejected"]] == list(range(1, 9))
    assert "input_tokens" in answer["rejected"][0]["detail"]
    again = await http.post(
        "/v1/events",
        content=b"\n".join(msgspec.json.encode(one) for one in (good, good)),
        headers={"content-type": "application/x-ndjson"},
    )
    assert (again.status_code, again.json()["accepted"], again.json()["duplicates"]) == (202, 0, 2)
    packed = await http.post(
        "/v1/events", content=msgspec.msgpack.encode([{**good, "id": "c-1"}]), headers={"content-type": "application/msgpack"}
    )
    assert packed.json()["accepted"] == 1
    assert (await http.post("/v1/events", json=wrong)).status_code == 400
    stop = asyncio.Event()
    task = asyncio.create_task(Worker(await opening(role="worker")).run(stop))
    async with asyncio.timeout(10):
        while (await obs.events.lag())["waiting"]:
            await asyncio.sleep(0.05)
    stop.set()
    await task
    found = await http.get("/v1/metrics/query", params={"metric": Metric.REQUESTS_TOTAL, "by": "status", "since": "10m"})
    assert {one["labels"]["status"]: one["value"] for one in found.json()["series"]} == {"success": 2.0, "error": 1.0}


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({}, "metric is missing"),
        ({"metric": "x", "nonsense": "1"}, "unknown parameter"),
        ({"metric": "never_recorded"}, "was ever recorded"),
        ({"metric": "observatory_requests_total", "stat": "p95"}, "it knows total, rate"),
        ({"metric": "x", "nonsense": "1"}, "There are metric, stat, by, where, since, until, step, top"),
        ({"metric": "observatory_requests_total", "top": "x"}, "top must be"),
        ({"metric": "observatory_requests_total", "top": "-1"}, "from 1 to 999999999, got '-1'"),
        ({"metric": "observatory_requests_total", "top": "0"}, "Leave top out"),
        ({"metric": "observatory_requests_total", "since": "2026-01-01T00:00:00"}, 'Write "2026-01-01T00:00:00Z"'),
        ({"metric": "observatory_requests_total", "top": "9" * 5000}, "top must be"),
        ({"metric": "observatory_requests_total", "step": "x"}, "step"),
        ({"metric": "observatory_requests_total", "where": "x"}, "not a matcher"),
    ],
)
async def test_bad_query_says_what_is_wrong(http: httpx2.AsyncClient, parameters: dict[str, str], says: str) -> None:
    """400 with the parameter's name."""
    answer = await http.get("/v1/metrics/query", params=parameters)
    assert answer.status_code == 400
    assert says in answer.json()["detail"] + answer.json().get("remedy", "")


async def test_unknown_paths_and_methods_are_problems_too(http: httpx2.AsyncClient) -> None:
    """404 and 405, with what is allowed."""
    missing = await http.get("/v1/nothing")
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
    method = await http.get("/v1/rate_limiter/check")
    assert (method.status_code, method.json()["code"], method.headers["allow"]) == (405, "method_not_allowed", "POST")


async def test_request_id_is_echoed_or_made(http: httpx2.AsyncClient) -> None:
    """A caller's id comes back; one that could forge a header does not."""
    assert (await http.get("/healthz", headers={"x-request-id": "abc-1"})).headers["x-request-id"] == "abc-1"
    made = (await http.get("/healthz", headers={"x-request-id": "no spaces"})).headers["x-request-id"]
    assert len(made) == 16


async def test_metrics_are_the_fleets(http: httpx2.AsyncClient, opening: Open) -> None:
    """What another process recorded is on this one's /metrics, in Prometheus' form, cumulative, without an instance."""
    other = await opening()
    other.metrics.increment_counter("test_total", 3, {"a": 'q"\\\n'})
    other.metrics.record_histogram(Metric.REQUEST_LATENCY, 0.3)
    await other.flush()
    answer = await http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    assert 'test_total{a="q\\"\\\\\\n"} 3' in lines
    assert "# TYPE observatory_request_latency_seconds histogram" in lines
    buckets = [int(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("observatory_request_latency_seconds_bucket")]
    assert buckets == sorted(buckets)
    assert buckets[-1] == 1
    assert "instance=" not in answer.text
    assert (await http.get("/metrics?scope=everything")).status_code == 400


async def test_openmetrics_is_for_who_asks(http: httpx2.AsyncClient, obs: Observatory) -> None:
    """As Prometheus asks, with a better word for it than for text; a wildcard is content with text."""
    obs.metrics.increment_counter("test_total", 3)
    await obs.flush()
    prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,*/*;q=0.1"
    for accept, media, ends in (
        (prometheus, "application/openmetrics-text; version=1.0.0; charset=utf-8", "test_total 3\n# EOF\n"),
        (
            "application/openmetrics-text;version=1.0.0;q=0.3, text/plain;q=0.5",
            "text/plain; version=0.0.4; charset=utf-8",
            "\n",
        ),
        ("application/openmetrics-text; version=9.0.0", "text/plain; version=0.0.4; charset=utf-8", "test_total 3\n"),
        ("application/openmetrics-text; q=nonsense", "text/plain; version=0.0.4; charset=utf-8", "test_total 3\n"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8", "test_total 3\n"),
    ):
        answer = await http.get("/metrics", headers={"accept": accept})
        assert (answer.status_code, answer.headers["content-type"], answer.headers["vary"]) == (200, media, "Accept")
        assert answer.text.endswith(ends), accept


async def test_scope_instance_is_this_process_alone(http: httpx2.AsyncClient, obs: Observatory, opening: Open) -> None:
    """Since it began to serve, flushed or not, cumulative; nothing of another process; and which release it is."""
    other = await opening()
    other.metrics.increment_counter("test_total", 50)
    await other.flush()
    obs.metrics.increment_counter("test_total", 3)
    obs.metrics.record_histogram("test_seconds", 0.25)
    await obs.flush()
    obs.metrics.increment_counter("test_total", 4)
    obs.metrics.set_gauge("test_level", 2.5)
    for _ in range(2):
        lines = (await http.get("/metrics?scope=instance")).text.splitlines()
        assert {"test_total 7", "test_level 2.5", "test_seconds_count 1", 'test_seconds_bucket{le="0.25"} 1'} <= set(lines)
        assert f'observatory_build_info{{version="{observatory.__version__}"}} 1' in lines
    await obs.flush()
    assert "test_total 7" in (await http.get("/metrics?scope=instance")).text.splitlines()
    assert "test_total 57" in (await http.get("/metrics")).text.splitlines()


async def test_openapi_describes_every_route(http: httpx2.AsyncClient) -> None:
    """From the same table that routes."""
    document = (await http.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    assert {"/v1/rate_limiter/check", "/v1/events", "/v1/metrics/query", "/metrics", "/healthz", "/readyz"} <= set(
        document["paths"]
    )
    references = str(document).count("#/components/schemas/")
    assert references
    for name in ("CheckBody", "Decision", "EventsAnswer", "Result"):
        assert name in document["components"]["schemas"]


def test_three_instances_answer_as_one(instances: list[str]) -> None:
    """60 checks dealt over three processes against one burst of 40: exactly 40; what one was told, all of them show."""
    body = {"limit": {"name": "three", "amount": 40, "per": "1h"}, "identity": "x"}
    with httpx2.Client(trust_env=False, timeout=10) as client:
        allowed = [client.post(f"{instances[n % 3]}/v1/rate_limiter/check", json=body).json()["allowed"] for n in range(60)]
        assert sum(allowed) == 40

        def rejections(url: str) -> float | None:
            found = client.get(f"{url}/v1/metrics/query", params={"metric": Metric.RATE_LIMIT_REJECTIONS, "since": "5m"})
            value: float | None = found.json()["series"][0]["value"]
            return value

        deadline = time.monotonic() + 10
        while {rejections(url) for url in instances} != {20.0} and time.monotonic() < deadline:
            time.sleep(0.1)
        assert [rejections(url) for url in instances] == [20.0] * 3
        assert {client.get(f"{url}/readyz").json()["status"] for url in instances} == {"ok"}


def test_sigterm_is_heard_by_the_balancer_before_the_listener_closes(server: Server, namespace: str) -> None:
    """readyz turns 503 while requests are still served; then the process ends with 0 and has flushed."""
    env = environment(OBSERVATORY_REDIS_URL=server.url, OBSERVATORY_NAMESPACE=namespace, OBSERVATORY_SERVE_DRAIN_FOR="1.5")
    with process(["-m", "observatory", "serve", "--port", "0"], env) as one, httpx2.Client(trust_env=False) as client:
        assert one.stdout
        url = one.stdout.readline().split()[-1]
        assert client.get(f"{url}/readyz").status_code == 200
        os.kill(one.pid, signal.SIGTERM)
        deadline = time.monotonic() + 1
        while (ready := client.get(f"{url}/readyz")).status_code == 200 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (ready.status_code, ready.json()["status"]) == (503, "draining")
        assert client.post(f"{url}/v1/rate_limiter/check", json={"limit": "api"}).json()["allowed"]
        assert one.wait(10) == 0


async def test_store_away_is_503_and_health_stays(opening: Open, own_server: Server) -> None:
    """A retryable problem for who asks; not ready for the balancer; alive for the orchestrator."""
    obs = await opening(own_server)
    app, _ = build(obs)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test") as http:
        own_server.stop()
        answers: dict[str, Any] = {}
        for path in ("/healthz", "/readyz", "/metrics"):
            answers[path] = await http.get(path)
        assert (await http.get("/metrics?scope=instance")).status_code == 200
        closed = {"name": "shut", "amount": 9, "per": 60, "on_store_down": "closed"}
        check = await http.post("/v1/rate_limiter/check", json={"limit": closed})
        assert (check.status_code, check.json()["code"], check.json()["retryable"]) == (503, "store_unavailable", True)
        assert check.headers["retry-after"] == "1"
        assert [answers[path].status_code for path in answers] == [200, 503, 503]
        own_server.start()
        async with asyncio.timeout(5):
            while (await http.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.05)


async def test_unfit_store_that_comes_late_is_refused_too(opening: Open, own_server: Server) -> None:
    """Opened without a store; the one that comes would evict limits: nothing is admitted on it, until it is mended."""
    own_server.stop()
    obs = await opening(own_server)
    own_server.start()
    with redis.Redis.from_url(own_server.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        app, _ = build(obs)
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test") as http:

            async def status() -> tuple[int, int]:
                check = await http.post("/v1/rate_limiter/check", json={"limit": "api"})
                return check.status_code, (await http.get("/readyz")).status_code

            async with asyncio.timeout(8):
                while (await http.post("/v1/rate_limiter/check", json={"limit": "api"})).json()[
                    "code"
                ] != "store_misconfigured":
                    await asyncio.sleep(0.05)
            assert await status() == (503, 503)
            client.config_set("maxmemory-policy", "noeviction")
            async with asyncio.timeout(5):
                while await status() != (200, 200):
                    await asyncio.sleep(0.05)


def test_answers_do_not_wait_for_nagle(server: Server, namespace: str) -> None:
    """An accepted connection sends at once: twenty requests on one take less than one delayed acknowledgement each."""
    env = environment(OBSERVATORY_REDIS_URL=server.url, OBSERVATORY_NAMESPACE=namespace, OBSERVATORY_SERVE_DRAIN_FOR="0")
    with process(["-m", "observatory", "serve", "--port", "0"], env) as one, httpx2.Client(trust_env=False) as client:
        assert one.stdout
        url = one.stdout.readline().split()[-1]
        client.get(f"{url}/healthz")
        took = []
        for _ in range(20):
            began = time.monotonic()
            client.get(f"{url}/healthz")
            took.append(time.monotonic() - began)
        assert min(took) < 0.03


async def test_refusal_that_was_told_survives_the_instance(opening: Open, server: Server, namespace: str) -> None:
    """SIGKILL in the moment after the answer: the refusal is counted all the same."""
    env = environment(OBSERVATORY_REDIS_URL=server.url, OBSERVATORY_NAMESPACE=namespace, OBSERVATORY_METRICS_FLUSH_EVERY="3600")
    obs = await opening()
    with process(["-m", "observatory", "serve", "--port", "0"], env) as one, httpx2.Client(trust_env=False) as client:
        assert one.stdout
        url = one.stdout.readline().split()[-1]
        body = {"limit": {"name": "told", "amount": 1, "per": "1h"}}
        told = [client.post(f"{url}/v1/rate_limiter/check", json=body).json()["allowed"] for _ in range(4)]
        one.kill()
        one.wait()
    assert told == [True, False, False, False]
    assert (await obs.metrics.query(Metric.RATE_LIMIT_REJECTIONS, where={"limit": "told"})).value == 3


def test_public_address_needs_a_word(tmp_path: Any) -> None:
    """This version has no keys: it does not listen where others can reach it unless told so."""
    with process(["-m", "observatory", "serve", "--host", "0.0.0.0", "--port", "0"], environment()) as one:
        _, said = one.communicate(timeout=20)
    assert one.returncode == 2
    assert "--allow-anonymous" in said
