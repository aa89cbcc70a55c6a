"""The middleware in applications of others: Starlette, FastAPI, Litestar, and bare ASGI."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, cast

import httpx2
import litestar
import pytest
from fastapi import Depends, FastAPI, Header
from fastapi.responses import StreamingResponse
from litestar.connection import ASGIConnection
from litestar.middleware import DefineMiddleware
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket

from observatory import Limit, Metric, Observatory, ObservatoryError, StoreUnavailable
from observatory.asgi import ObservatoryMiddleware, hand_over
from tests.conftest import Open
from tests.servers import Server

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
QUOTA = "https://iana.org/assignments/http-problem-types#quota-exceeded"
REDUCED = "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"


@asynccontextmanager
async def client(app: Any, **more: Any) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app, **more)
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as one:
        yield one


def around(obs: Observatory, *routes: tuple[str, Callable[[Request], Any]], **more: Any) -> Starlette:
    made = [Route(path, endpoint, methods=["GET", "POST"]) for path, endpoint in routes]
    return Starlette(routes=made, middleware=[Middleware(ObservatoryMiddleware, obs=obs, **more)])


async def test_program_one(obs: Observatory) -> None:
    """Ten of a burst, then 429 with everything a client needs; another user is not concerned; the app wrote none of it."""
    obs.rate_limiter.define(Limit("user-requests", 60, per="1m", burst=10, by="user"))
    app = FastAPI(lifespan=obs.lifespan)
    app.add_middleware(ObservatoryMiddleware, obs=obs)

    async def user(x_user_id: Annotated[str, Header()]) -> str:
        obs.bind(user=x_user_id)
        return x_user_id

    class Question(BaseModel):
        text: str

    @app.post("/chat", dependencies=[Depends(user), Depends(obs.rate_limiter.requires("user-requests"))])
    async def chat(question: Question) -> dict[str, str | None]:
        return {"answer": question.text, "user": obs.dimensions.get("user")}

    ann, bob = {"x-user-id": "ann", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}, {"x-user-id": "bob"}
    async with client(app) as http:
        answers = [await http.post("/chat", json={"text": "hi"}, headers=ann) for _ in range(11)]
        other = await http.post("/chat", json={"text": "hi"}, headers=bob)
    assert [one.status_code for one in answers] == [200] * 10 + [429]
    assert answers[0].json() == {"answer": "hi", "user": "ann"}
    assert answers[0].headers["ratelimit-policy"] == '"user-requests";q=60;w=60'
    assert answers[0].headers["ratelimit"].startswith('"user-requests";r=9;t=')
    assert "retry-after" not in answers[0].headers
    last = answers[-1]
    problem = last.json()
    assert (last.headers["content-type"], last.headers["retry-after"]) == ("application/problem+json", "1")
    assert last.headers["ratelimit"].startswith('"user-requests";r=0')
    assert (problem["type"], problem["status"], problem["code"]) == (QUOTA, 429, "rate_limit_exceeded")
    assert (problem["violated-policies"], problem["instance"]) == (["user-requests"], "/chat")
    assert problem["trace_id"] == TRACE
    assert (other.status_code, other.json()["user"]) == (200, "bob")
    assert not obs.dimensions


@pytest.mark.parametrize("kind", ["async", "generator", "sync"])
async def test_dimensions_bound_by_a_dependency_reach_the_endpoint(obs: Observatory, kind: str) -> None:
    """Async and sync endpoints and streaming bodies; two users at once do not mix."""
    obs.rate_limiter.define(Limit("each", 2, per="1h", by="user"))
    app = FastAPI()
    app.add_middleware(ObservatoryMiddleware, obs=obs)

    async def in_async(x_user: Annotated[str, Header()]) -> None:
        obs.bind(user=x_user)

    async def in_generator(x_user: Annotated[str, Header()]) -> AsyncIterator[None]:
        obs.bind(user=x_user)
        yield

    def in_sync(x_user: Annotated[str, Header()]) -> None:
        obs.bind(user=x_user)

    user = Depends({"async": in_async, "generator": in_generator, "sync": in_sync}[kind])

    @app.get("/async", dependencies=[user, Depends(obs.rate_limiter.requires("each"))])
    async def by_loop() -> str:
        await asyncio.sleep(0.01)
        return obs.dimensions["user"]

    @app.get("/sync", dependencies=[user])
    def by_thread() -> str:
        return obs.dimensions["user"]

    @app.get("/stream", dependencies=[user])
    async def by_stream() -> StreamingResponse:
        async def body() -> AsyncIterator[str]:
            for _ in range(3):
                await asyncio.sleep(0.01)
                yield obs.dimensions["user"]

        return StreamingResponse(body())

    async with client(app) as http:
        for path, expected in (("/async", '"{}"'), ("/sync", '"{}"'), ("/stream", "{0}{0}{0}")):
            asked = [http.get(path, headers={"x-user": name}) for name in ("ann", "bob") for _ in range(2)]
            said = [(one.status_code, one.text) for one in await asyncio.gather(*asked)]
            assert said == [(200, expected.format(name)) for name in ("ann", "bob") for _ in range(2)], path
        assert (await http.get("/async", headers={"x-user": "ann"})).status_code == 429


async def test_limits_that_match_are_asked_at_the_door(obs: Observatory) -> None:
    """By key, by path, by method: before the application runs; limits without `match`, or of other things, are not asked."""
    obs.rate_limiter.define(
        Limit("per-key", 2, per="1h", by="key", match={"route": "/v1/*"}),
        Limit("uploads", 1, per="1h", by="ip", match={"method": "POST"}),
        Limit("openai", 1, per="1h", match={"provider": "openai"}),
        Limit("named", 1, per="1h"),
    )
    ran: list[str] = []

    async def handler(request: Request) -> Response:
        ran.append(request.url.path)
        return JSONResponse(dict(obs.dimensions))

    app = around(obs, ("/v1/x", handler), ("/free", handler), ("/healthz", handler))
    token = {"authorization": "bearer  sk-secret"}
    async with client(app, client=("10.0.0.9", 1)) as http:
        answers = [await http.get("/v1/x", headers=token) for _ in range(3)]
        assert [one.status_code for one in answers] == [200, 200, 429]
        key = hashlib.sha256(b"sk-secret").hexdigest()[:12]
        assert answers[0].json() == {"route": "/v1/x", "method": "GET", "ip": "10.0.0.9", "key": key}
        assert answers[1].headers["ratelimit"].startswith('"per-key";r=0')
        assert answers[2].json()["violated-policies"] == ["per-key"]
        assert len(ran) == 2
        assert (await http.get("/v1/x", headers={"authorization": "Bearer other"})).status_code == 200
        # Who brings no key shares a bucket with all who do not; Basic is not a key.
        unknown = [await http.get("/v1/x", headers={"authorization": "Basic eA=="}) for _ in range(3)]
        assert [one.status_code for one in unknown] == [200, 200, 429]
        free = await http.get("/free")
        assert "ratelimit" not in free.headers
        both = await http.post("/v1/x", headers={"authorization": "Bearer third"})
        assert both.headers["ratelimit-policy"] == '"per-key";q=2;w=3600, "uploads";q=1;w=3600'
        assert (await http.post("/free")).json()["violated-policies"] == ["uploads"]
        untouched = await http.get("/healthz")
        assert (untouched.json(), "x-request-id" in untouched.headers) == ({}, False)


async def test_what_cannot_be_a_dimension_is_no_error(obs: Observatory) -> None:
    """A path of any length, no address, bytes that are no text."""

    async def handler(request: Request) -> Response:
        return JSONResponse(dict(obs.dimensions))

    transport = httpx2.ASGITransport(around(obs, ("/{path:path}", handler)), client=("", 0))
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as http:
        answer = await http.get("/" + "x" * 20_000, headers=[(b"authorization", b"Bearer \xff\xfe")])
    assert answer.status_code == 200
    assert (len(answer.json()["route"]), sorted(answer.json())) == (1024, ["key", "method", "route"])


async def test_both_refusals_are_named(obs: Observatory) -> None:
    """All the policies that were violated, and the longest wait."""
    obs.rate_limiter.define(Limit("a", 1, per="1h", match="*"), Limit("b", 1, per="1m", match="*"))
    async with client(around(obs, ("/", lambda request: Response()))) as http:
        await http.get("/")
        refused = await http.get("/")
    assert sorted(refused.json()["violated-policies"]) == ["a", "b"]
    assert int(refused.headers["retry-after"]) > 3000
    off = around(obs, ("/", lambda request: Response()), enforce=False)
    async with client(off) as http:
        assert (await http.get("/")).status_code == 200


async def test_identify_says_who_it_is(obs: Observatory) -> None:
    """In place of the key. What it does not know is not known; a value that cannot be one is the caller's mistake."""
    obs.rate_limiter.define(Limit("tenants", 1, per="1h", by="tenant", match={"tenant": "*"}))

    def tenant(scope: Any) -> dict[str, str]:
        return {"tenant": dict(scope["headers"]).get(b"x-tenant", b"").decode()}

    async def handler(request: Request) -> Response:
        return JSONResponse(sorted(obs.dimensions))

    async with client(around(obs, ("/", handler), identify=tenant)) as http:
        assert (await http.get("/", headers={"x-tenant": "acme"})).json() == ["ip", "method", "route", "tenant"]
        assert (await http.get("/", headers={"x-tenant": "acme"})).status_code == 429
        assert [(await http.get("/")).status_code for _ in range(3)] == [200] * 3
        wrong = await http.get("/", headers={"x-tenant": "x" * 9000})
        assert (wrong.status_code, wrong.json()["code"]) == (400, "invalid_argument")


async def test_errors_of_ours_are_problem_documents_and_others_are_not_touched(obs: Observatory) -> None:
    """A closed limit is a 503 that says when; a bug of the application stays one; what has begun is not begun again."""

    async def away(request: Request) -> Response:
        raise StoreUnavailable("the store is away")

    async def bug(request: Request) -> Response:
        raise ZeroDivisionError("of the application")

    async with client(around(obs, ("/away", away), ("/bug", bug)), raise_app_exceptions=False) as http:
        closed = await http.get("/away")
        assert (closed.status_code, closed.headers["retry-after"], closed.json()["type"]) == (503, "1", REDUCED)
        assert (await http.get("/bug")).text == "Internal Server Error"

    async def begun(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise StoreUnavailable("the store is away")

    async with client(ObservatoryMiddleware(begun, obs=obs)) as http:
        with pytest.raises(StoreUnavailable):
            await http.get("/")


async def test_what_the_application_says_stands(obs: Observatory) -> None:
    """Its own RateLimit header, its own id; the id of a request is the caller's, or made, and the application sees it."""

    async def handler(request: Request) -> Response:
        await obs.rate_limiter.check("api")
        await asyncio.to_thread(lambda: None)
        return Response(request.headers["x-request-id"], headers={"ratelimit": '"mine";r=1'})

    async def quiet(request: Request) -> Response:
        return Response()

    async with client(around(obs, ("/", handler), ("/quiet", quiet))) as http:
        answer = await http.get("/", headers={"x-request-id": "abc-1"})
        assert (answer.text, answer.headers["x-request-id"], answer.headers["ratelimit"]) == ("abc-1", "abc-1", '"mine";r=1')
        assert answer.headers["ratelimit-policy"].startswith('"api";q=1000')
        forged = await http.get("/", headers={"x-request-id": "no spaces"})
        assert forged.text == forged.headers["x-request-id"] != "no spaces"
        assert "ratelimit" not in (await http.get("/quiet")).headers


async def test_streams_pass_as_they_come_and_are_counted_while_open(obs: Observatory) -> None:
    """The first piece is there before the second is made; the gauge is one until the end, also after an abort."""
    more = asyncio.Event()
    sent: list[Any] = []
    first = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-a", b"1")]})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await more.wait()
        await send({"type": "http.response.body", "body": b"two"})

    async def send(message: Any) -> None:
        sent.append(message)
        if message["type"] == "http.response.body":
            first.set()

    async def receive() -> Any:
        return {"type": "http.request"}

    async def open_now() -> float | None:
        await obs.flush()
        return (await obs.metrics.query(Metric.ACTIVE_CONNECTIONS, where={"kind": "http"})).value

    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/", "headers": [], "client": None}
    for abort in (False, True):
        sent.clear()
        first.clear()
        more.clear()
        door = ObservatoryMiddleware(app, obs=obs)
        task = asyncio.create_task(door({**scope}, receive, send))
        await asyncio.wait_for(first.wait(), 5)
        assert sent[-1] == {"type": "http.response.body", "body": b"one", "more_body": True}
        assert await open_now() == 1
        if abort:
            task.cancel()
        more.set()
        await asyncio.wait({task})
        assert await open_now() == 0


def test_websockets_and_lifespan_pass(server: Server, namespace: str) -> None:
    """Untouched, also where a limit matches everything."""
    obs = Observatory("app", redis_url=server.url, namespace=namespace)
    obs.rate_limiter.define(Limit("all", 1, per="1h", match="*"))

    async def echo(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(await socket.receive_text())
        await socket.close()

    app = Starlette(
        routes=[WebSocketRoute("/ws", echo), Route("/", lambda request: Response())],
        middleware=[Middleware(ObservatoryMiddleware, obs=obs)],
        lifespan=obs.lifespan,
    )
    with TestClient(app) as http:
        for _ in range(3):
            with http.websocket_connect("/ws") as socket:
                socket.send_text("hello")
                assert socket.receive_text() == "hello"
        assert [http.get("/").status_code for _ in range(2)] == [200, 429]
    assert not obs.is_open


async def test_litestar(opening: Open) -> None:
    """Its guards and handlers; errors of ours are handed over to the middleware."""
    obs = await opening()
    obs.rate_limiter.define(Limit("user-requests", 60, per="1m", burst=2, by="user"))
    limited = obs.rate_limiter.requires("user-requests")

    async def user(connection: ASGIConnection[Any, Any, Any, Any], handler: Any) -> None:
        obs.bind(user=connection.headers["x-user"])
        await limited()

    @litestar.get("/", guards=[user])
    async def index() -> str:
        return obs.dimensions["user"]

    app = litestar.Litestar(
        [index],
        middleware=[DefineMiddleware(cast(Any, ObservatoryMiddleware), obs=obs)],
        exception_handlers={ObservatoryError: hand_over},
        openapi_config=None,
    )
    async with client(app) as http:
        answers = [await http.get("/", headers={"x-user": "ann"}) for _ in range(3)]
        assert [one.status_code for one in answers] == [200, 200, 429]
        assert (answers[0].text, answers[0].headers["ratelimit"][:22]) == ("ann", '"user-requests";r=1;t=')
        assert (answers[2].json()["violated-policies"], answers[2].headers["retry-after"]) == (["user-requests"], "1")
        assert (await http.get("/", headers={"x-user": "bob"})).status_code == 200


async def test_not_open_is_told(server: Server, namespace: str) -> None:
    """A limit that cannot be asked is no permission."""
    obs = Observatory("app", redis_url=server.url, namespace=namespace)
    obs.rate_limiter.define(Limit("all", 1, per="1h", match="*"))
    async with client(around(obs, ("/", lambda request: Response()))) as http:
        answer = await http.get("/")
    assert (answer.status_code, answer.json()["code"]) == (500, "not_open")


async def test_spans(obs: Observatory) -> None:
    """One for a request, in the caller's trace, named by the route, with what came of it; none inside of somebody's."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    async def items(request: Request) -> Response:
        if request.path_params["item"] == "no":
            (await obs.rate_limiter.check("api", cost=10**6)).raise_if_denied()
        return JSONResponse(obs.tracing.trace_id)

    app = around(obs, ("/items/{item}", items))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("opentelemetry.trace.get_tracer_provider", lambda: provider)
        async with client(app) as http:
            said = await http.get("/items/5", headers={"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"})
            assert said.json() == TRACE
            assert (await http.get("/items/no")).status_code == 429
            with obs.span("outer"):
                await http.get("/items/6")
    first, refused, outer = exporter.get_finished_spans()
    assert (first.name, first.kind.name, f"{first.context.trace_id:032x}") == ("GET /items/{item}", "SERVER", TRACE)
    assert (first.attributes or {})["http.response.status_code"] == 200
    assert (refused.attributes or {})["http.response.status_code"] == 429
    assert refused.status.is_unset
    assert outer.name == "outer"
