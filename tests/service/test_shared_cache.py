"""The shared cache over HTTP: entries that Python and others share, every mistake with a name, nobody in another's place."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from urllib.parse import quote

import httpx2
import jsonschema
import msgspec
import pytest

from observatory import Observatory
from observatory.errors import ObservatoryError
from observatory.features.cache.generations import UNTYPED
from observatory.service import openapi
from observatory.service.app import build
from observatory.service.body import packs
from tests.conftest import Open
from tests.servers import Server, environment, process

ROOM = "/v1/cache"


class Answer(msgspec.Struct, frozen=True):
    text: str
    score: float = 0.0


class Number(msgspec.Struct):
    number: int


@pytest.fixture
async def http(obs: Observatory) -> AsyncIterator[httpx2.AsyncClient]:
    """The application itself, in this process, on the shared server."""
    app, _ = build(obs)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=f"http://test{ROOM}") as client:
        yield client


@pytest.fixture
def instances(server: Server, namespace: str) -> Iterator[list[str]]:
    """URLs of two service processes on one store."""
    env = environment(OBSERVATORY_REDIS_URL=server.url, OBSERVATORY_NAMESPACE=namespace, OBSERVATORY_SERVE_DRAIN_FOR="0")
    with ExitStack() as stack:
        running = [stack.enter_context(process(["-m", "observatory", "serve", "--port", "0"], env)) for _ in range(2)]
        yield [f"{one.stdout.readline().split()[-1]}{ROOM}" for one in running if one.stdout]


async def test_processes_share_entries_with_a_class(instances: list[str], opening: Open) -> None:
    """What Python sets is read at one instance; what is written at another is Python's; a delete is felt everywhere."""
    first, second = instances
    cache = (await opening()).cache(Answer, name="answers", ttl=100)
    other = (await opening()).cache(Number, name="answers")
    async with httpx2.AsyncClient(trust_env=False) as client:
        assert (await client.put(f"{second}/answers/entries/early", json={"text": "before any class"})).status_code == 204
        assert await cache.get("early") == Answer("before any class")
        await cache.set("k", Answer("python", 0.5), tags=["faq"])
        found = await client.get(f"{first}/answers/entries/k")
        assert (found.status_code, found.json()) == (200, {"text": "python", "score": 0.5})
        head = await client.head(f"{first}/answers/entries/k")
        assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(found.content)))
        assert found.headers["content-type"] == "application/json"
        assert 0 <= int(found.headers["age"]) < 60
        name, state, ttl = found.headers["cache-status"].split("; ")
        assert (name, state) == ("observatory", "hit")
        assert 30 <= int(ttl.removeprefix("ttl=")) <= 100
        written = await client.put(f"{second}/answers/entries/k?ttl=60&tag=a&tag=b", json={"text": "http", "score": 1})
        assert (written.status_code, written.content) == (204, b"")
        assert await cache.get("k") == Answer("http", 1.0)
        assert await other.get("k", "miss") == "miss", "of another shape"
        assert (await client.get(f"{first}/answers/entries/k")).json() == {"text": "http", "score": 1}
        assert (await client.post(f"{first}/answers/invalidate", json={"tags": ["nobody's", "b"]})).status_code == 204
        assert await cache.get("k") is None
        missed = await client.get(f"{second}/answers/entries/k")
        assert (missed.status_code, missed.json()["code"]) == (404, "cache_miss")
        assert missed.headers["cache-status"] == "observatory; fwd=miss"
        assert missed.headers["content-type"] == "application/problem+json"
        assert missed.json()["type"] == "urn:observatory:problem:cache_miss"
        await cache.set("k", Answer("again"))
        assert (await client.delete(f"{first}/answers/entries/k")).json() == {"deleted": True}
        assert (await client.delete(f"{second}/answers/entries/k")).json() == {"deleted": False}
        assert await cache.get("k") is None
        await cache.set("k", Answer("again"))
        assert (await client.post(f"{second}/answers/clear")).status_code == 204
        assert (await cache.get("k"), await cache.get("early")) == (None, None)


async def raw(url: str, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    """A request as it is written: clients tidy paths up, and send none above 64 kB."""
    host, port = url.removeprefix("http://").removesuffix(ROOM).split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"{method} {ROOM}{path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    async with asyncio.timeout(20):
        answer = await reader.read()
    writer.close()
    head_, _, content = answer.partition(b"\r\n\r\n")
    return int(head_.split()[1]), content


async def test_any_key_is_one(instances: list[str], opening: Open) -> None:
    """Of 64 kB, which is all that a URL holds; with what a path would lose, encoded or not; the one that Python says."""
    cache = (await opening()).cache(str, name="keys")
    keys = ("x" * 65_000, "é" * 10_000, "a/../b", "a//b/", "%2F", "a?b#c", "a b+c", "\n", "x\ny", "k:lease", "..", "\ud800")
    for number, key in enumerate(keys):
        path = f"/keys/entries/{quote(key, safe='', errors='surrogatepass')}"
        assert await raw(instances[0], "PUT", path, b'"%d"' % number) == (204, b""), key[:20]
        assert await cache.get(key) == str(number)
        assert await raw(instances[1], "GET", path) == (200, b'"%d"' % number)
    assert await cache.get_many(keys) == {key: str(number) for number, key in enumerate(keys)}
    assert await raw(instances[0], "GET", "/keys/entries/a/../b") == (200, b'"2"')
    assert await raw(instances[0], "GET", "/keys/entries/a//b/") == (200, b'"3"')
    assert (await raw(instances[0], "GET", "/keys/entries/" + "x" * 70_000))[0] == 400
    assert (await raw(instances[0], "GET", "/keys/entries/" + "x" * 10**7))[0] == 400
    assert (await raw(instances[0], "GET", "/keys/entries/k"))[0] == 404, "it is still there"


async def test_values_that_json_does_not_hold_go_as_msgpack(http: httpx2.AsyncClient, obs: Observatory) -> None:
    """Both ways, as they are; as JSON bytes become base64, which is no bytes any more when it is sent back."""
    cache = obs.cache(bytes, name="raw")
    await cache.set("k", b"\x00\xff")
    assert (await http.get("/raw/entries/k")).content == b'"AP8="'
    packed = await http.get("/raw/entries/k", headers={"accept": "application/msgpack"})
    assert (packed.headers["content-type"], packed.content) == ("application/msgpack", msgspec.msgpack.encode(b"\x00\xff"))
    await http.put("/raw/entries/k", json="AP8=")
    assert await cache.get("k", "miss") == "miss"
    sent = await http.put("/raw/entries/k", content=packed.content, headers={"content-type": "application/msgpack"})
    assert (sent.status_code, await cache.get("k")) == (204, b"\x00\xff")
    pairs = obs.cache(dict[tuple[int, int], str], name="pairs")
    await pairs.set("k", {(1, 2): "x"})
    refused = await http.get("/pairs/entries/k")
    assert (refused.status_code, refused.json()["code"]) == (422, "not_encodable")
    assert "Accept: application/msgpack" in refused.json()["remedy"]
    assert (await http.get("/pairs/entries/k", headers={"accept": "application/x-msgpack"})).content[:1] == b"\x81"


@pytest.mark.parametrize(
    ("accept", "packed"),
    [
        ("", False),
        ("*/*", False),
        ("application/msgpack", True),
        ("application/json, application/msgpack;q=0.5", False),
        ("application/json;q=0.1, application/vnd.msgpack", True),
        ("application/msgpack;q=0", False),
        ("application/msgpack;q=nonsense", False),
        ("text/html, application/msgpack;q=0.2", True),
    ],
)
def test_accept(accept: str, packed: bool) -> None:
    """The better word wins; JSON is for who does not say."""
    assert packs(accept) is packed


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "says"),
    [
        ("GET", "/c/entries/", None, 400, "invalid_argument", "non-empty"),
        ("PUT", "/c/entries/", b"1", 400, "invalid_argument", "non-empty"),
        ("DELETE", "/c/entries/", None, 400, "invalid_argument", "non-empty"),
        ("GET", "/no%20name/entries/k", None, 400, "invalid_argument", "cache name"),
        ("GET", "/c:tenant=acme/entries/k", None, 400, "invalid_argument", "cache name"),
        ("GET", "/c%2Fentries%2Fx/entries/k", None, 400, "invalid_argument", "cache name"),
        ("GET", "/c/entries%2Fk", None, 404, "not_found", "a path to an entry"),
        ("GET", "/c/entries/%ff", None, 400, "invalid_argument", "not UTF-8"),
        ("GET", "/c/entries/k?tenant=acme", None, 400, "invalid_argument", "There are dimension"),
        ("GET", "/c/entries/k?dimension=tenant", None, 400, "invalid_argument", "name=value"),
        ("GET", "/c/entries/k?dimension=tenant=", None, 400, "invalid_argument", "dimension tenant must be"),
        ("GET", "/c/entries/k?dimension=a:b=c", None, 400, "invalid_argument", "identifier"),
        ("GET", "/c/entries/k?dimension=a=b&dimension=a=c", None, 400, "invalid_argument", "said twice"),
        ("GET", "/c/entries/k?dimension=tenant=%ff", None, 400, "invalid_argument", "not UTF-8"),
        ("GET", "/c/entries/k?" + "&" * 300, None, 400, "invalid_argument", "at most 200"),
        ("PUT", "/c/entries/k", b"", 400, "invalid_argument", "cannot be decoded"),
        ("PUT", "/c/entries/k", b"{", 400, "invalid_argument", "cannot be decoded"),
        ("PUT", "/c/entries/k", b"text", 400, "invalid_argument", "cannot be decoded"),
        ("PUT", "/c/entries/k", b"NaN", 400, "invalid_argument", "cannot be decoded"),
        ("PUT", "/c/entries/k", b"[" * 100_000, 400, "invalid_argument", "cannot be decoded"),
        ("PUT", "/c/entries/k", b"1" * 30, 422, "not_encodable", "serialize ints"),
        ("PUT", "/c/entries/k", b'"' + b"x" * (4 * 2**20) + b'"', 413, "payload_too_large", "4194304"),
        ("PUT", "/c/entries/k?ttl=0", b"1", 400, "invalid_argument", "ttl"),
        ("PUT", "/c/entries/k?ttl=-1", b"1", 400, "invalid_argument", "ttl"),
        ("PUT", "/c/entries/k?ttl=", b"1", 400, "invalid_argument", "ttl"),
        ("PUT", "/c/entries/k?ttl=soon", b"1", 400, "invalid_argument", "ttl"),
        ("PUT", "/c/entries/k?ttl=nan", b"1", 400, "invalid_argument", "ttl"),
        ("PUT", "/c/entries/k?ttl=" + "9" * 5000, b"1", 400, "invalid_argument", "ttl"),
        ("PUT", "/c/entries/k?ttl=1&ttl=2", b"1", 400, "invalid_argument", "ttl is said twice"),
        ("PUT", "/c/entries/k?tll=1", b"1", 400, "invalid_argument", "unknown parameter"),
        ("PUT", "/c/entries/k?tag=", b"1", 400, "invalid_argument", "tags"),
        ("PUT", "/c/entries/k?" + "&".join(f"tag={n}" for n in range(65)), b"1", 400, "invalid_argument", "tags"),
        ("POST", "/c/invalidate", b"", 400, "invalid_argument", "not JSON"),
        ("POST", "/c/invalidate", b"{}", 400, "invalid_argument", "tags"),
        ("POST", "/c/invalidate", b'{"tags": []}', 400, "invalid_argument", "at least one"),
        ("POST", "/c/invalidate", b'{"tags": "x"}', 400, "invalid_argument", "array"),
        ("POST", "/c/invalidate", b'{"tags": [""]}', 400, "invalid_argument", "tags"),
        ("POST", "/c/invalidate", b'{"tags": ["x"], "tenant": "a"}', 400, "invalid_argument", "tenant"),
        ("POST", "/c/clear", b'{"dimensions": {"a b": "x"}}', 400, "invalid_argument", "identifier"),
        ("POST", "/c/clear", b"[]", 400, "invalid_argument", "object"),
        ("GET", "/c/stats?scope=everything", None, 400, "invalid_argument", "fleet or instance"),
        ("GET", "/no%20name/stats", None, 400, "invalid_argument", "cache name"),
        ("POST", "/c/entries/k", b"1", 405, "method_not_allowed", ""),
    ],
    ids=lambda value: value[:40] if isinstance(value, str | bytes) else None,
)
async def test_mistakes(
    http: httpx2.AsyncClient, method: str, path: str, body: bytes | None, status: int, code: str, says: str
) -> None:
    """Each a problem document that says what; it can be read back; nothing was written or taken."""
    await http.put("/c/entries/k", json="before")
    answer = await http.request(method, path, content=body)
    problem = answer.json()
    assert (answer.status_code, problem["code"], answer.headers["content-type"]) == (status, code, "application/problem+json")
    assert says in problem.get("detail", "") + problem.get("remedy", ""), problem
    if code != "method_not_allowed":
        assert type(ObservatoryError.from_problem(problem)).code == code
    else:
        assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD", "PUT", "DELETE"}
    assert (await http.get("/c/entries/k")).json() == "before"


async def test_values_are_bounded_by_the_cache_too(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """cache.max_value, below what a body may have."""
    monkeypatch.setenv("OBSERVATORY_CACHE_MAX_VALUE", "1000")
    app, _ = build(await opening())
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=f"http://test{ROOM}") as http:
        assert (await http.put("/c/entries/k", json="x" * 900)).status_code == 204
        refused = await http.put("/c/entries/k", json="x" * 1001)
        assert (refused.status_code, refused.json()["code"]) == (413, "value_too_large")
        assert len((await http.get("/c/entries/k")).json()) == 900


async def test_tenants_do_not_meet(http: httpx2.AsyncClient, obs: Observatory) -> None:
    """Whatever keys, names and values look like; a clear and a tag are one tenant's."""
    cache = obs.cache(str, name="private", by="tenant")
    with obs.bound(tenant="acme"):
        await cache.set("k", "acme's", tags=["t"])
        entry = cache._room.place("k").entry
    crafted = ["k", "tenant=acme:k", "acme:k", "/acme/k", "..%2Facme%2Fk", quote(entry, safe=""), "%00", "k:lease"]
    for tenant in (None, "acme:k", "acme%00", "a", "%7E", "acme,user=x", "acme&dimension=user=x"):
        query = "" if tenant is None else f"?dimension=tenant={tenant}"
        for key in crafted:
            assert (await http.get(f"/private/entries/{key}{query}")).status_code == 404, (tenant, key)
            assert (await http.delete(f"/private/entries/{key}{query}")).json() == {"deleted": False}
            assert (await http.put(f"/private/entries/{key}{query}", json="theirs")).status_code == 204
        whose = {} if tenant is None else {"dimensions": {"tenant": tenant}}
        assert (await http.post("/private/invalidate", json={"tags": ["t"], **whose})).status_code == 204
        assert (await http.post("/private/clear", json=whose)).status_code == 204
    found = await http.get("/private/entries/k?dimension=tenant=acme")
    assert found.json() == "acme's"
    await http.put("/private/entries/k", params={"dimension": "tenant=acme", "tag": "u"}, json="http's")
    with obs.bound(tenant="acme"):
        assert await cache.get("k") == "http's"
        await http.post("/private/invalidate", json={"tags": ["u"], "dimensions": {"tenant": "acme"}})
        assert await cache.get("k") is None
        await cache.set("k", "again")
        await http.post("/private/clear", json={"dimensions": {"tenant": "acme"}})
        assert await cache.get("k") is None


async def test_entries_end(http: httpx2.AsyncClient, obs: Observatory) -> None:
    """After ?ttl=, or cache.ttl; what is stale is a miss here; age grows."""
    cache = obs.cache(Number, name="c")

    async def until_missed(key: str) -> None:
        async with asyncio.timeout(10):
            while (await http.get(f"/c/entries/{key}")).status_code != 404:
                await asyncio.sleep(0.05)

    await http.put("/c/entries/own", json={"number": 1})
    assert 240_000 < await obs.store.command("PTTL", obs.store.keys.entry("c", UNTYPED, "own")) <= 300_000
    own = await http.get("/c/entries/own")
    assert 240 <= int(own.headers["cache-status"].rpartition("=")[2]) <= 300
    await http.put("/c/entries/short?ttl=200ms", json={"number": 1})
    await until_missed("short")
    assert await cache.get("short") is None

    async def compute() -> Number:
        return Number(5)

    await cache.get_or_compute("stale", compute, ttl=0.2, stale_for=60)
    await until_missed("stale")
    assert await obs.store.command("PTTL", cache._room.place("stale").entry) > 0, "though it is there"
    async with asyncio.timeout(10):
        while (await http.get("/c/entries/own")).headers["age"] == "0":
            await asyncio.sleep(0.05)


async def test_stats(http: httpx2.AsyncClient, obs: Observatory, opening: Open) -> None:
    """The fleet's, Python's reads with those over HTTP; or this instance's."""
    python = await opening()
    cache = python.cache(Number, name="counted")
    await cache.set("k", Number(1))
    await cache.get("k")
    await http.get("/counted/entries/k")
    await http.get("/counted/entries/other")
    await asyncio.gather(python.flush(), obs.flush())
    fleet = (await http.get("/counted/stats")).json()
    assert (fleet["cache"], fleet["hits"], fleet["misses"], fleet["hit_rate"]) == ("counted", 2, 1, 2 / 3)
    here = (await http.get("/counted/stats?scope=instance")).json()
    assert (here["hits"], here["misses"]) == (1, 1)
    document = openapi.document()
    schema = document["paths"]["/v1/cache/{name}/stats"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.validate(fleet, {**schema, "components": document["components"]})


async def test_a_store_that_is_away_is_503_for_reads_and_writes(
    opening: Open, own_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never a miss, which would have everybody compute; it says when to try again."""
    monkeypatch.setenv("OBSERVATORY_CACHE_REDIS_URL", own_server.url)
    app, _ = build(await opening())
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=f"http://test{ROOM}") as http:
        assert (await http.put("/c/entries/k", json=1)).status_code == 204
        own_server.stop()
        for method, path, body in (
            ("GET", "/c/entries/k", None),
            ("PUT", "/c/entries/k", b"2"),
            ("DELETE", "/c/entries/k", None),
            ("POST", "/c/invalidate", b'{"tags": ["x"]}'),
            ("POST", "/c/clear", b"{}"),
        ):
            answer = await http.request(method, path, content=body)
            assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable"), (method, path)
            assert answer.headers["retry-after"] == "1"
            assert "cache-status" not in answer.headers


def test_the_description() -> None:
    """Three verbs of one path, each with a name of its own; the key is one parameter; media types; what the answer tells."""
    document = openapi.document()
    verbs = document["paths"]["/v1/cache/{name}/entries/{key}"]
    assert set(verbs) == {"get", "put", "delete"}
    ids = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(ids) == len(set(ids))
    assert {one["name"] for one in verbs["put"]["parameters"]} == {"name", "key", "ttl", "tag", "dimension"}
    assert set(verbs["put"]["requestBody"]["content"]) == {"application/json", "application/msgpack"}
    assert set(verbs["get"]["responses"]["200"]["content"]) == {"application/json", "application/msgpack"}
    assert set(verbs["get"]["responses"]["200"]["headers"]) == {"age", "cache-status"}
    assert set(verbs["put"]["responses"]) == {"204", "default"}
    body = document["paths"]["/v1/cache/{name}/invalidate"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    schema = {**body, "components": document["components"]}
    jsonschema.validate({"tags": ["x"], "dimensions": {"tenant": "acme"}}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"dimensions": {}}, schema)
