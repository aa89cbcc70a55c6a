"""A secret is in no line, wherever it was put; and whatever is put there, there is a line."""

import json
import random
import string
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observatory import ConfigurationError, Settings
from observatory.redaction import HIDDEN, MAX_TEXT, Redactor

WORD = st.text(string.ascii_letters + string.digits, min_size=16, max_size=40)
NAMES = [
    *("password", "db_password", "dbPassword", "PASSWD", "client_secret", "api_key", "apiKey", "x-api-key", "Authorization"),
    *("cookie", "Set-Cookie", "token", "accessToken", "private_key", "aws_secret_access_key", "credentials", "passphrase"),
]
SHAPES = [
    *(
        "sk-{}",
        "sk-proj-{}",
        "sk-ant-api03-{}",
        "sk_live_{}",
        "gsk_{}",
        "obs_k1_{}",
        "ghp_{}",
        "github_pat_{}",
        "xoxb-{}",
        "hf_{}",
    ),
    *("Bearer {}", "bearer {}", "Authorization: Basic {}=", "Cookie: session={}; theme=dark", "redis://user:{}@host:6379/0"),
    *(
        "redis://:{}@h",
        "https://u:{}@h/p?q=1",
        "eyJ{}.eyJ{}.{}",
        "glpat-{}",
        "AIzaSyA{}{}",
        "?api_key={}&x=1",
        "&access_token={}",
    ),
    *("password={}", "password = '{}'", '{{"password": "{}"}}', '{{\\"api_key\\":\\"{}\\"}}', "pwd: {}", "{{'token': '{}'}}"),
    *("-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----", "-----BEGIN PRIVATE KEY-----\n{}"),
]
BENIGN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-100, 100),
    st.floats(allow_nan=False),
    st.text(string.ascii_lowercase + " é\n\"'", max_size=12),
)


@dataclass
class Account:
    password: Any
    note: Any = None


class Held(msgspec.Struct):
    api_key: Any
    note: Any = None


def nested(leaf: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """The leaf somewhere in lists, tuples, mappings and objects, among what is harmless."""
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.builds(lambda value, more: [*more, value], inner, st.lists(BENIGN, max_size=3)),
            st.builds(lambda value, more: (value, *more), inner, st.lists(BENIGN, max_size=3)),
            st.builds(
                lambda name, value, more: {**more, name: value}, st.sampled_from(["a", "b c", "é"]), inner, st.just({"n": 1})
            ),
            st.builds(lambda value: Held(None, value), inner),
            st.builds(lambda value: Account(None, value), inner),
        ),
        max_leaves=6,
    )


@settings(max_examples=300, deadline=None)
@given(secret=WORD, name=st.sampled_from(NAMES), data=st.data())
def test_a_field_of_such_a_name_is_never_read(secret: str, name: str, data: st.DataObject) -> None:
    """Whatever it holds, and however deep it is."""
    value = data.draw(nested(st.just({name: data.draw(st.sampled_from([secret, [secret], {"x": secret}, (secret,)]))})))
    line, cleaned = Redactor().line({"message": "m", "field": value})
    assert secret not in line
    assert secret not in repr(cleaned)
    assert json.loads(line) == cleaned


@settings(max_examples=400, deadline=None)
@given(secret=WORD, shape=st.sampled_from(SHAPES), before=st.sampled_from(["", "x ", "é\n", '"']), data=st.data())
def test_a_secret_of_such_a_shape_is_never_read(secret: str, shape: str, before: str, data: st.DataObject) -> None:
    """In a message, in a field, as the name of a field, in an object's own words."""
    text = before + shape.replace("{{", "{").replace("}}", "}").replace("{}", secret)
    where = data.draw(st.sampled_from(["message", "field", "name", "exception"]))
    said: dict[str, Any] = {"message": "m"}
    if where == "message":
        said["message"] = text
    elif where == "name":
        said["field"] = {text: 1}
    elif where == "exception":
        said["field"] = ValueError(text)
    else:
        said["field"] = data.draw(nested(st.just(text)))
    line, cleaned = Redactor().line(said)
    assert secret not in line
    assert secret not in repr(cleaned)
    assert json.loads(line) == cleaned
    assert secret not in Redactor().traceback(f"Traceback\n  ValueError: {text}")


@settings(max_examples=100, deadline=None)
@given(
    secret=WORD,
    shape=st.sampled_from(SHAPES[:20]),
    at=st.integers(-60, 60),
    near=st.sampled_from([0, MAX_TEXT // 2, MAX_TEXT, 2 * MAX_TEXT]),
)
def test_a_cut_does_not_lay_bare_what_it_halves(secret: str, shape: str, at: int, near: int) -> None:
    """Long texts are cut; a secret at the cut is not shown in part."""
    text = "a " * max((near + at) // 2, 0) + shape.replace("{}", secret) + " b" * MAX_TEXT
    for shown in (Redactor().text(text), Redactor().traceback(text)):
        assert len(shown) <= MAX_TEXT + 200
        assert secret[:12] not in shown
        assert secret[-12:] not in shown


@pytest.mark.parametrize(
    "text",
    [
        *(
            "input_tokens=812 output_tokens=96",
            "unexpected token: }",
            "GET http://localhost:8000/v1/chat 200",
            "a@b.example wrote",
        ),
        *(
            "redis://redis:6379/0",
            "the bearer of news",
            "ask-me-anything-you-like-today",
            "total tokens: 12345678",
            "task-1234567890123456",
        ),
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    """Tokens are counted in this trade, and addresses have ports."""
    assert Redactor().text(text) == text
    assert Redactor().line({"message": text, "input_tokens": 812, "tokens": [1, 2]})[1] == {
        "message": text,
        "input_tokens": 812,
        "tokens": [1, 2],
    }


def test_more_names_and_shapes_by_the_settings() -> None:
    """Whole parts of a name: `ip` does not hide a description. A pattern that RE2 does not take is refused, by its key."""
    redactor = Redactor(["email", "ip"], [r"\bINV-\d{4}\b"])
    said = {"userEmail": "a@b", "client-ip": "::1", "description": "ok", "zip": "12", "m": "INV-1234 paid\ud800"}
    line, _ = redactor.line(said)
    assert json.loads(line) == {
        "userEmail": HIDDEN,
        "client-ip": HIDDEN,
        "description": "ok",
        "zip": "12",
        "m": f"{HIDDEN} paid\\ud800",
    }
    loaded = Settings.load(environ={"OBSERVATORY_LOG_REDACT": "email,ssn", "OBSERVATORY_LOG_REDACT_PATTERNS": r"\d{16}"})
    assert (loaded.log.redact, loaded.log.redact_patterns) == (("email", "ssn"), (r"\d{16}",))
    for wrong in ("(", "(?=x)", "a*"):
        with pytest.raises(ConfigurationError, match=r"log\.redact_patterns"):
            Settings.load(environ={"OBSERVATORY_LOG_REDACT_PATTERNS": wrong})


class Broken:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


class Endless(dict[str, Any]):
    def items(self) -> Any:
        return (("k", index) for index in iter(int, 1))


def awkward() -> list[Any]:
    cycle: list[Any] = []
    cycle.append({"me": cycle, "and": [cycle, cycle]})
    deep: Any = "end"
    for _ in range(10_000):
        deep = [deep]
    wide = {f"k{index}": ["v" * 100] * 100 for index in range(1000)}
    return [
        cycle,
        deep,
        wide,
        Broken(),
        {Broken(): Broken()},
        {"s": {1, 2}},
        Endless(a=1),
        "\ud800 half",
        {"\udfff": 1},
        10**5000,
    ]


def test_there_is_always_a_line_of_bounded_length() -> None:
    """Cyclic, deep, wide, broken, endless, half a character, huge."""
    more = [b"\xff\x00", float("nan"), float("inf"), 2**64, object, ValueError("x"), "x" * 10_000_000]
    for number, value in enumerate([*awkward(), *more]):
        line, cleaned = Redactor().line({"message": "m", "field": value, "after": 1})
        assert len(line) < 300_000, number
        assert json.loads(line) == cleaned, number
        assert cleaned["message"] == "m"
    many, _ = Redactor().line({"message": "m", **{f"f{index}": "v" * 1000 for index in range(50_000)}})
    assert len(many) < 300_000


@pytest.mark.parametrize("hidden", range(0, 500, 50))
def test_the_halves_of_a_long_password_are_not_shown_either(hidden: int) -> None:
    """Where a text is cut before the end of a password, it has no shape; what was before it may have shrunk."""
    password = "".join(random.Random(hidden).choices(string.ascii_letters, k=600))
    url = f"redis://u:{password}@host"
    for cut in (MAX_TEXT // 2, 2 * MAX_TEXT + 1024):
        shrinking = f"password={'x' * 1000} " * 40
        before = (shrinking if cut > MAX_TEXT else "a " * MAX_TEXT)[: cut - hidden - 10]
        for shown in (Redactor().text(before + url + " b" * 40_000), Redactor().traceback(before + url + " b" * 40_000)):
            assert not any(password[at : at + 12] in shown for at in range(580))
    shown = Redactor().traceback("a " * 20_000 + url + " b" * ((MAX_TEXT // 2 - hidden - 10) // 2))
    assert not any(password[at : at + 12] in shown for at in range(580))


def test_depth_is_bounded() -> None:
    """What is deeper than a person reads is not shown."""
    deep: Any = "end"
    for _ in range(100):
        deep = [deep]
    assert len(Redactor().line({"message": "m", "field": deep})[0]) < 80
