"""The scripts: header, body and stub tell one story."""

import re
import subprocess
import sys

import pytest

from observatory.store.script import load
from tests.conftest import Open
from tests.servers import ROOT

LUA = ROOT / "lua"
SCRIPTS = sorted(str(path.relative_to(LUA).with_suffix("")) for path in LUA.rglob("[!_]*.lua"))
SOURCE = "\n".join(path.read_text() for path in (ROOT / "observatory").rglob("*.py"))


def body(name: str) -> str:
    return (LUA / f"{name}.lua").read_text().partition("]]\n")[2]


@pytest.mark.parametrize("name", SCRIPTS)
def test_slots_are_unpacked_once_by_their_names(name: str) -> None:
    """`local bucket = KEYS[1]`, in the header's order; afterwards slots have names, except what a variadic slot holds."""
    script, text = load(name), body(name)
    for array, slots in (("KEYS", script.keys), ("ARGV", script.arguments)):
        fixed = [slot for slot in slots if not slot.endswith("...")]
        for number, slot in enumerate(fixed, 1):
            pattern = rf"^local {slot} = (clock\()?((tonumber|cjson\.decode)\()?{array}\[{number}\]\)*$"
            assert len(re.findall(pattern, text, re.MULTILINE)) == 1, f"{slot} is not {array}[{number}]"
            assert len(re.findall(rf"\b{slot}\b", text)) > 1, f"{slot} is promised, unpacked, and never used"
        variadic = len(fixed) < len(slots)
        assert slots[: len(fixed)] == tuple(fixed), "only the last slot takes the rest"
        uses = len(re.findall(rf"{array}\[|#{array}\b|\b{array}, ", text))
        shared = script.text.partition("]]\n")[2].removesuffix(text)
        assert (uses > len(fixed) or (variadic and f"{array}[" in shared)) == variadic, f"{array} is used beyond its slots"


@pytest.mark.parametrize("name", SCRIPTS)
def test_laws_that_a_machine_can_see(name: str) -> None:
    """TIME once; no tostring; numbers are formatted; no key is made up; no scan."""
    script = load(name)
    text = re.sub(r"--\[\[.*?\]\]|--.*?$", "", script.text, flags=re.DOTALL | re.MULTILINE)
    assert text.count("'TIME'") <= 1
    assert "tostring" not in text
    assert not re.search(r"'(KEYS|SCAN|HSCAN|FLUSH\w*|EVAL)'", text)
    assert "obs1:" not in text
    assert script.flags in ({"safe"}, {"unsafe"}), "RETRY says safe or unsafe"
    for concatenated in re.findall(r"\.\.\s*(\S+)", text):
        assert concatenated.startswith(("'", "string.format", '"')), f".. {concatenated}: a number would lose digits"


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_is_bound_to_one_stub(name: str) -> None:
    """No orphan, no second voice."""
    assert len(re.findall(rf'^@lua\("{name}"\)$', SOURCE, re.MULTILINE)) == 1


async def test_both_servers_can_read_them(opening_any: Open) -> None:
    """SCRIPT LOAD gives the SHA that we compute."""
    obs = await opening_any()
    for name in SCRIPTS:
        script = load(name)
        assert (await obs.store.command("SCRIPT", "LOAD", script.text)).decode() == script.sha


def test_header_by_hand() -> None:
    """What the README says of headers is what the loader reads."""
    assert load("rate_limiter/decide").keys == ("fence", "states...")
    assert load("metrics/flush").keys[-1] == "targets..."
    assert load("rate_limiter/decide").arguments[0] == "now_us"


def test_what_several_verbs_share_is_named_and_used() -> None:
    """Every file that begins with `_` is used by a verb beside it, and stands whole in what runs."""
    for path in LUA.rglob("_*.lua"):
        verbs = [name for name in SCRIPTS if name.startswith(f"{path.parent.name}/")]
        assert any(path.read_text() in load(name).text for name in verbs), path


def test_what_runs_can_be_printed() -> None:
    """For redis-cli --eval."""
    printed = subprocess.run(
        [sys.executable, "-m", "observatory.store.script", "rate_limiter/settle"], capture_output=True, text=True, check=True
    )
    assert printed.stdout == load("rate_limiter/settle").text
