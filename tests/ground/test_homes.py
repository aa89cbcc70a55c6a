"""Every error of a library or of the system that can reach a user has a home in our tree; nothing comes out as it came in."""

import builtins
import contextlib
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx2
import msgspec
import pytest
import redis.exceptions as driver
from hypothesis import given
from hypothesis import strategies as st

from observatory.cli import http
from observatory.errors import (
    ConfigurationError,
    InvalidArgument,
    ObservatoryError,
    StoreError,
    StoreMisconfigured,
    StoreUnavailable,
)
from observatory.service import body
from observatory.settings import Settings
from observatory.store.faults import from_driver


def below(kind: type[BaseException]) -> Iterator[type[BaseException]]:
    yield kind
    for one in kind.__subclasses__():
        yield from below(one)


def of(kind: type[BaseException]) -> Exception:
    """One of a class, however many arguments its constructor wants."""
    error = kind.__new__(kind)
    Exception.__init__(error, "text")
    assert isinstance(error, Exception)
    return error


SYSTEM = [kind for kind in vars(builtins).values() if isinstance(kind, type) and issubclass(kind, OSError)]
HTTP = sorted({*below(httpx2.HTTPError), *below(httpx2.StreamError), httpx2.InvalidURL}, key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", sorted({*SYSTEM, *below(ssl.SSLError), *below(driver.RedisError)}, key=repr))
def test_what_a_connection_raises(kind: type[BaseException]) -> None:
    """Away, misconfigured or a wrong address: one of ours, with a status, and retryable only where waiting helps."""
    error = from_driver(of(kind))
    assert isinstance(error, StoreError | ConfigurationError)
    assert error.retryable == (type(error) in (StoreError, StoreUnavailable))
    assert "text" in error.message
    if isinstance(error, StoreMisconfigured):
        assert error.remedy


@pytest.mark.parametrize("kind", HTTP, ids=lambda kind: kind.__name__)
def test_what_an_http_client_raises(kind: type[BaseException]) -> None:
    """The command line's client catches the classes that there are, and each becomes one of ours."""
    error = http.from_client(of(kind))
    assert isinstance(error, ObservatoryError)
    assert error.code in ("store_unavailable", "invalid_argument", "http")
    assert error.retryable == (error.code == "store_unavailable")
    assert issubclass(kind, httpx2.HTTPError | httpx2.InvalidURL | httpx2.StreamError)


@pytest.mark.parametrize(
    ("answer", "code", "retryable", "retry_after"),
    [
        (httpx2.Response(502, text="<html>"), "http", True, None),
        (httpx2.Response(404, text="nobody here"), "http", False, None),
        (httpx2.Response(503, json={"code": "store_unavailable", "retryable": True}), "store_unavailable", True, None),
        (httpx2.Response(503, json={"code": "store_misconfigured", "retryable": False}), "store_misconfigured", False, None),
        (httpx2.Response(503, headers={"Retry-After": "3"}, text="busy"), "http", True, 3.0),
        (httpx2.Response(500, headers={"content-type": "application/json"}, text="{"), "http", True, None),
        (httpx2.Response(500, json=["no", "problem"]), "http", True, None),
        (
            httpx2.Response(422, json={"code": "of_a_later_release", "status": 422, "detail": "x"}),
            "of_a_later_release",
            False,
            None,
        ),
    ],
)
def test_what_a_proxy_answers(answer: httpx2.Response, code: str, retryable: bool, retry_after: float | None) -> None:
    """With a problem document or without one, with JSON or what says that it is."""
    error = http.from_answer(answer)
    assert (error.code, error.retryable, error.retry_after) == (code, retryable, retry_after)
    assert error.status == answer.status_code


@pytest.mark.parametrize("kind", sorted(below(msgspec.MsgspecError), key=repr), ids=lambda kind: kind.__name__)
def test_what_decoding_raises(kind: type[BaseException]) -> None:
    """The caller's mistake: 400, and which one."""

    def fails(_: bytes) -> None:
        raise of(kind)

    with pytest.raises(InvalidArgument, match="text"):
        body._decoded(fails, b"")


@pytest.mark.parametrize("bad", [b"{", b'"\xff"', b"[" * 100_000, b'{"a":}', b"1e999999", b"\xc1", b"9" * 5000])
@pytest.mark.parametrize("media", ["application/json", "application/x-ndjson", "application/msgpack"])
def test_what_strangers_send(bad: bytes, media: str) -> None:
    """Either a value or InvalidArgument."""
    with contextlib.suppress(InvalidArgument):
        body.items(bad, media)


@pytest.mark.parametrize("broken", ["absent", "directory", "bytes", "number"])
def test_what_a_settings_file_raises(broken: str, tmp_path: Path) -> None:
    """ConfigurationError names the file, whatever the system says of it."""
    path = tmp_path / "observatory.toml"
    if broken == "directory":
        path.mkdir()
    elif broken != "absent":
        path.write_bytes(b"\xff\xfe" if broken == "bytes" else b"x = " + b"9" * 5000)
    with pytest.raises(ConfigurationError, match=r"observatory\.toml"):
        Settings.load(str(path), environ={})


_ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.floats(),
    st.integers(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
    st.sampled_from(["store", "circuit_open", "internal", 418]),
)
_MEMBERS = ("code", "detail", "title", "status", "retryable", "retry_after", "remedy", "context")


@given(problem=st.fixed_dictionaries({}, optional=dict.fromkeys(_MEMBERS, _ODD)))
def test_any_document_is_an_error_and_never_raises(problem: dict[str, object]) -> None:
    """What a stranger's proxy makes of it: the error that comes out can be shown, compared, and sent on."""
    error = ObservatoryError.from_problem(problem)
    again = ObservatoryError.from_problem(msgspec.json.decode(msgspec.json.encode(error.problem())))
    assert (again.code, again.status, again.retryable, again.retry_after) == (
        error.code,
        error.status,
        error.retryable,
        error.retry_after,
    )
    assert error.retry_after is None or 0 <= error.retry_after < float("inf")
    assert str(error)
